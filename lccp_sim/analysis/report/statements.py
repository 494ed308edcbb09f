"""The findings of a run in words, and expected findings that the run does not show.

There is one statement per topic, with its numbers; a topic whose metrics are absent has none. What is not shown is what
arXiv 2604.02650 leads a reader to expect, with the number behind it.
"""

from lccp_sim.analysis.areas import rate_of
from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.format import interval, number, percent, tokens
from lccp_sim.analysis.stats.rule import VERDICT_WORDS, decided
from lccp_sim.analysis.stats.saturation import FRAC, Lag, Progress


def statements(found: Findings) -> list[tuple[str, str]]:
    """Return pairs of topic and sentence, in the order of the report."""
    hit, nll = found.row("needle", "hit_frac"), found.row("needle", "answer_nll_nats")
    gap = found.lag()
    made = (
        ("After the hit's t95", _after(found, hit, gap)),
        ("Scale", _scale(found, gap)),
        ("Knee", _knee(found)),
        ("By length", _lengths(found)),
        ("Without the needle", _control(found)),
        ("End of the run", _end(hit, nll)),
        ("Retrieval heads", _heads(found)),
        ("Interventions", _intervention(found)),
        ("Unmarked copying", _copying(found)),
        ("Fine-tuned probe", _probe(found)),
        ("Forgetting", _forgetting(found)),
        ("Turning length", _turning(found)),
        ("By source", _sources(found)),
        ("Laws", _laws(found)),
        ("Forecasts", _forecasts(found)),
    )
    return [(topic, text) for topic, text in made if text]


def beyond(row: Progress) -> str:
    """Return a qualifier for a change that is not an improvement beyond noise, such as " (within noise)", else ""."""
    if row.improvement.above(0):
        return ""
    if row.improvement.below(0):
        return " (a deterioration beyond noise)"
    return " (within noise)" if row.improvement.low is not None else ""


def _after(found: Findings, hit: Progress | None, gap: Lag | None) -> str:
    if hit is None:
        return ""
    if gap is None:
        return f"Not defined, because the hit {reached(hit)}."
    text = (
        f"After that the answer NLL falls by a factor of {interval(gap.factor)}, or {interval(gap.nats)} nats. If it "
        f"had the same shape as the hit, the factor would be {number(gap.same_shape.value)}"
    )
    if gap.index is None:
        return f"{text}. The deceptive index is not defined, because the NLL has no t95."
    told = (
        "the NLL makes 95 % of its improvement before the hit does"
        if gap.index.below(1)
        else "the hit makes 95 % of its improvement first"
        if gap.index.above(1)
        else "the order of the two is undecided"
    )
    return f"{text}. The deceptive index t95(NLL) / t95(hit) is {interval(gap.index)}: {told}.{_threshold(found)}"


def _threshold(found: Findings) -> str:
    """Describe the index of hits that are derived from the NLL alone."""
    index = found.deceptive.runs[0].indices[0] if found.deceptive else None
    if index is None or index.null is None:
        return ""
    word = "exceeds" if index.exceeds else "is not distinguishable from"
    return f" Hits derived from the NLL by a threshold alone give {interval(index.null)}; the index {word} that."


def _scale(found: Findings, gap: Lag | None) -> str:
    parts = []
    if gap is not None and gap.index_log is not None:
        parts.append(f"the index is {interval(gap.index)} with the NLL, {interval(gap.index_log)} with its logarithm")
    ppl = found.decision("needle", "answer_ppl")
    if ppl is not None and ppl.verdict != "not enough points":
        parts.append(f"by the rule the needle's perplexity, which is exp(NLL), is {VERDICT_WORDS[ppl.verdict]}")
    if not parts:
        return ""
    text = "; ".join(parts)
    return (
        f"t95 and the rule depend on the scale: {text}. t95 marks {percent(FRAC)} of this run's own improvement, not "
        f"saturation: a curve that keeps improving has a later t95 in a run longer than {tokens(found.run.tokens)} "
        "tokens."
    )


def _knee(found: Findings) -> str:
    names = (("hit", "hit_frac"), ("answer NLL", "answer_nll_nats"))
    knees = [(name, found.knees.get(("needle", metric, ()))) for name, metric in names]
    said = [f"of the {name} at {tokens(knee)} tokens" for name, knee in knees if knee is not None]
    if not said:
        return ""
    return (
        f"A knee finder (Kneedle) puts the knee {' and '.join(said)}. This is a warning, not a result: Kneedle also "
        "finds a knee on a curve that never levels, and places it later in a longer run."
    )


def _lengths(found: Findings) -> str:
    parts = []
    for row in found.by_length("single"):
        gap, decision = found.lag(**row.tags), found.decision("needle", "hit_frac", **row.tags)
        nll = found.decision("needle", "answer_nll_nats", **row.tags)
        length = row.tags["length"]
        verdicts = ""
        if decision and nll:
            verdicts = f"; by the rule it is {VERDICT_WORDS[decision.verdict]} (NLL: {VERDICT_WORDS[nll.verdict]})"
        if gap and row.t95:
            index = "" if gap.index is None else f", index {interval(gap.index)}"
            parts.append(f"at {length} tokens the hit has t95 = {interval(row.t95, tokens)}{index}{verdicts}")
        else:
            parts.append(f"at {length} tokens the hit goes {change(row)} and {reached(row)}{verdicts}")
    return _sentences(parts)


def _sentences(parts: list[str]) -> str:
    return " ".join(f"{part[:1].upper()}{part[1:]}." for part in parts)


def _control(found: Findings) -> str:
    control, gain = found.row("needle", "control_nll_nats"), found.row("needle", "gain_nats")
    if not control or not gain:
        return ""
    without = f"With the needle replaced by haystack, the answer's NLL goes {change(control, ' nats')}"
    return (
        f"{without}. This improvement of {interval(control.improvement)} is not retrieval. The needle lowers the NLL "
        f"by {number(gain.first)} nats at the first window and by {number(gain.last)} at the last, a change of "
        f"{interval(gain.improvement)}."
    )


def _end(hit: Progress | None, nll: Progress | None) -> str:
    parts = []
    for name, row in (("hit", hit), ("answer NLL", nll)):
        if row is not None and row.last_doubling is not None:
            noise = "" if row.last_doubling.above(0) else ", which is not beyond noise"
            parts.append(f"the {name} improves by {interval(row.last_doubling)}{noise}")
    return ("Over the last doubling of tokens " + "; ".join(parts) + ".") if parts else ""


def _heads(found: Findings) -> str:
    count, mean = found.row("heads", "retrieval_heads_count"), found.row("heads", "initial_heads_mean_frac")
    if not count or not mean:
        return ""
    text = f"The number of heads above 0.1 goes {change(count)}. "
    text += f"The mean score of the initial heads goes {change(mean)} and {reached(mean)}."
    moved = found.heads.get("needle")
    if moved is None:
        return text
    return (
        f"{text} At the end {percent(moved.surviving_W[-1])} of the {len(moved.initial)} initial heads are above 0.1. "
        f"The {moved.k} strongest heads are the same at every window from {tokens(moved.fixed_at)} tokens on."
    )


def _intervention(found: Findings) -> str:
    effect = found.curve("intervention", "causal_nll_nats")
    if effect is None:
        return ""
    at = [f"{number(effect.value_W[i])} ± {number(effect.stderr_W[i])} nats" for i in (0, -1)]
    return (
        f"Masking the strongest heads costs {at[0]} more than masking random heads at the first window, and {at[1]} "
        "at the last. Above 0 the answer depends on them more than on other heads."
    )


def _copying(found: Findings) -> str:
    second = found.row("induction", "second_copy_nll_nats")
    if second is None:
        return ""
    text = f"The NLL of the second copy of a random span, without any question, goes {change(second, ' nats')}"
    return f"{text} and {reached(second)}."


def _probe(found: Findings) -> str:
    parts = []
    for sft_step in sorted({found.steps_sft[0], found.steps_sft[-1]}) if found.steps_sft else ():
        for name, metric in (("exact match", "exact_match_frac"), ("answer NLL", "answer_nll_nats")):
            row = found.row("probe", metric, sft_step=sft_step)
            if row:
                when = "before fine-tuning" if sft_step == 0 else f"after {sft_step} fine-tuning steps"
                parts.append(f"{when}, {name} goes {change(row)}{beyond(row)} over {row.windows} windows")
    if found.stays is not None:
        parts.append(found.stays.said())
    return _sentences(parts)


def _forgetting(found: Findings) -> str:
    short = found.row("perplexity", "short_nll_nats")
    if short is None:
        return ""
    word = (
        "improves"
        if short.improvement.above(0)
        else "gets worse"
        if short.improvement.below(0)
        else "does not change beyond noise"
    )
    return f"The NLL at the old context length goes {change(short, ' nats')}; it {word}."


def _turning(found: Findings) -> str:
    turned = found.turning
    if turned is None:
        return ""
    when = turned.tokens
    law = "the CPT law (arXiv 2505.07796) fitted to the NLL at the old and at the new context length together"
    if when.value == when.high == 0:
        return (
            f"By {law}, the NLL at the old context length never exceeds its value at step 0, so there is nothing to "
            "recover."
        )
    if when.low == float("inf"):
        return f"By {law}, the NLL at the old context length is not back at its value of step 0 within ten such runs."
    return (
        f"By {law}, the NLL at the old context length rises by at most {interval(turned.rise)} nats and is back at its "
        f"value of step 0 after {interval(when, tokens)} tokens (0: it never rose; never: not within ten such runs)."
    )


def _sources(found: Findings) -> str:
    parts = []
    for name, metric in (("held-out NLL", "nll_nats"), ("short-context NLL", "short_nll_nats")):
        rows = [row for row in found.parts() if (row.monitor, row.metric) == ("perplexity", metric)]
        of_source = {str(row.tags["source"]): row for row in rows if set(row.tags) == {"source"}}
        mean = found.decision("perplexity", metric)
        if len(of_source) < 2 or mean is None:
            continue
        said = []
        for source, row in of_source.items():
            decision = found.decision("perplexity", metric, source=source)
            status = f", {VERDICT_WORDS[decision.verdict]}" if decision else ""
            said.append(f"{source} goes {change(row)}{beyond(row)}{status}")
        parts.append(f"by the rule the mean {name} is {VERDICT_WORDS[mean.verdict]}; {'; '.join(said)}")
    return _sentences(parts)


def _laws(found: Findings) -> str:
    """Name the variable of the laws, with the reason, and the law that fits the answer NLL best."""
    run, nll = found.run, found.curve("needle", "answer_nll_nats")
    rate = rate_of(run)
    best = found.decision("needle", "answer_nll_nats")
    law = f" The law that fits the answer NLL best is {best.law.replace('_', ' ')}." if best and best.law else ""
    if run.select("train", "lr").empty:
        return f"Laws are in tokens, which assumes a constant learning rate; the rate was not recorded.{law}"
    if rate is None or nll is None:
        return f"Laws are in tokens, because the learning rate is constant after its warm-up.{law}"
    said = rate.said()
    if not nll.areas.annealed:
        return f"Laws are in the forward area, the sum of learning rates: {said}, but not before the last window.{law}"
    return (
        f"Laws are in the forward area, the sum of learning rates, with an annealing term (arXiv 2505.07796 eq. 4): "
        f"{said}, so a law in tokens does not hold. The next doubling refers to a run twice as long under the same "
        f"kind of schedule.{law}"
    )


def _forecasts(found: Findings) -> str:
    over = [forecast for forecast in found.forecasts if forecast.held is not None]
    if not over:
        return ""
    held = sum(bool(forecast.held) for forecast in over)
    nearer = sum(abs(f.final.value - f.came) < abs(f.last_seen - f.came) for f in over if f.came is not None)
    return (
        f"The run's last values were predicted from its first windows (a third, a half or two thirds of them). Of "
        f"{len(over)} forecasts, {held} hold within their 95 % interval, and {nearer} are closer than the naive "
        "forecast of no change."
    )


MISSING = {
    "needle": "needle records, so no hit and no answer NLL",
    "heads": "heads records, so nothing about retrieval heads",
    "perplexity": "perplexity records, so nothing about held-out text or forgetting",
    "probe": "probe records, so nothing about fine-tuned behaviour",
}


def not_shown(found: Findings) -> list[str]:
    """Return sentences on metrics that were not recorded, changed within noise, have not levelled, or lag behind."""
    present = set(found.run.records.monitor)
    lines = [f"No {text}." for monitor, text in MISSING.items() if monitor not in present]
    return lines + _needle_not_shown(found) + _heads_not_shown(found) + _probe_not_shown(found)


def _needle_not_shown(found: Findings) -> list[str]:
    hit, nll, gap = found.row("needle", "hit_frac"), found.row("needle", "answer_nll_nats"), found.lag()
    lines = []
    for name, row in (("hit", hit), ("answer NLL", nll)):
        if row and row.t95 is None:
            lines.append(f"No t95 of the {name}: {row.reason}.")
    if hit and hit.last < 0.95:
        lines.append(
            f"A hit at its ceiling: it ends at {number(hit.last)}, so its t95 may belong to an unfinished rise."
        )
    decision = found.decision("needle", "hit_frac")
    if decision and decision.verdict in ("improving", "not told apart"):
        lines.append(f"A hit that has levelled: by the rule it is {decided(decision, found.eps)}.")
    if gap and gap.index and not gap.index.above(1):
        lines.append(f"Deceptive saturation by t95 in nats: the index is {interval(gap.index)}.")
    if gap and not gap.factor.above(1):
        lines.append(f"A fall of the answer NLL after the hit's t95: the factor is {interval(gap.factor)}.")
    decision = found.decision("needle", "answer_nll_nats")
    if decision and decision.verdict in ("improving", "not told apart"):
        lines.append(f"Intrinsic saturation: by the rule the answer NLL is {decided(decision, found.eps)}, in nats.")
    gain = found.row("needle", "gain_nats")
    if gain and not gain.improvement.above(0):
        moved = f"{change(gain, ' nats')}, a change of {interval(gain.improvement)}"
        lines.append(f"More use of the needle: the gain over the control goes {moved}.")
    held_out = [row for row in found.by_length("heldout") if not row.improvement.above(0)]
    if held_out:
        where = ", ".join(f"{row.tags['length']}" for row in held_out)
        lines.append(f"Hits on a template that training never shows: no gain beyond noise at {where} tokens.")
    return lines


def _heads_not_shown(found: Findings) -> list[str]:
    mean, nll = found.row("heads", "initial_heads_mean_frac"), found.row("needle", "answer_nll_nats")
    lines = []
    if mean and mean.t95 and nll and nll.t95 and nll.t95.low is not None and mean.t95.value < nll.t95.low:
        lines.append(
            f"Heads that keep pace with the NLL: the t95 of the initial heads' mean is {tokens(mean.t95.value)}, that "
            f"of the answer NLL {interval(nll.t95, tokens)}."
        )
    effect = found.curve("intervention", "causal_nll_nats")
    if effect is not None and not effect.value_W[-1] > 2 * effect.stderr_W[-1]:
        ends = f"{number(effect.value_W[-1])} ± {number(effect.stderr_W[-1])}"
        lines.append(f"A causal effect of the strongest heads: at the end it is {ends} nats.")
    return lines


def _probe_not_shown(found: Findings) -> list[str]:
    lines = []
    for name, metric in (("exact match", "exact_match_frac"), ("answer NLL", "answer_nll_nats")):
        row = found.row("probe", metric)
        if row and not row.improvement.above(0):
            lines.append(
                f"A better probe: its {name} goes {change(row)}, an improvement of {interval(row.improvement)}."
            )
    return lines


def change(row: Progress, unit: str = "") -> str:
    """Format the first and last value: "from 0.1 to 0.9"."""
    return f"from {number(row.first)} to {number(row.last)}{unit}"


def reached(row: Progress) -> str:
    """Describe the t95 with the run length, or why there is none."""
    if row.t95 is None:
        return f"has no t95 ({row.reason})"
    return f"has t95 = {interval(row.t95, tokens)}, of the run's {tokens(row.run_tokens)} tokens"
