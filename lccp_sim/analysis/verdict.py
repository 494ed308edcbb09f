"""What a run shows, in words whose every number is computed, and just as plainly what it does not show.

A claim is made only where a whole 95 % interval is on one side. "Deceptive saturation" is claimed by t95(NLL) /
t95(hit) > 1; the factor by which the NLL still falls is reported beside the factor that a curve of the hit's own
shape would show, because any steep enough curve falls by a large factor over its last 5 %.
"""

from dataclasses import dataclass

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.precondition import Check, precondition
from lccp_sim.analysis.saturation import FRAC, Lag, Progress
from lccp_sim.analysis.words import change, interval, number, percent, reached, tokens


@dataclass(frozen=True)
class Verdict:
    """`summary`: three sentences. `caution`: what in the precondition fails, or "". `statements`: (topic, sentence).

    `not_shown`: what a reader may look for and this run does not show.
    """

    summary: tuple[str, str, str]
    caution: str
    statements: list[tuple[str, str]]
    not_shown: list[str]
    precondition: list[Check]


def verdict(found: Findings) -> Verdict:
    """The verdict on a run; parts whose metrics are absent say so."""
    hit, nll = found.row("needle", "hit_frac"), found.row("needle", "answer_nll_nats")
    gap = found.lag()
    summary = (_moved(found, hit, nll), _after(found, hit, nll, gap), _others(found))
    statements = [
        (topic, text)
        for topic, text in (
            ("Scale", _scale(gap)),
            ("By length", _lengths(found)),
            ("Without the needle", _control(found)),
            ("End of the run", _end(hit, nll)),
            ("Retrieval heads", _heads(found)),
            ("Unmarked copying", _copying(found)),
            ("Fine-tuned probe", _probe(found)),
            ("Forgetting", _forgetting(found)),
        )
        if text
    ]
    checks = precondition(found.run)
    failed = [f"{check.question}: {check.answer}" for check in checks if check.met is False]
    caution = f"The precondition is not met, so read the rest with care. {'; '.join(failed)}." if failed else ""
    return Verdict(summary, caution, statements, _not_shown(found, hit, nll, gap), checks)


def _moved(found: Findings, hit: Progress | None, nll: Progress | None) -> str:
    run = found.run
    planned = run.setting("run.tokens", run.tokens)
    state = "" if run.finished else f"The run is unfinished ({tokens(run.tokens)} of {tokens(planned)} tokens). "
    if hit is None or nll is None:
        return f"{state}This run has no needle records, so there is nothing to say about hit and answer NLL."
    text = f"The needle hit goes {change(hit)} and {reached(hit)}; "
    return f"{state}{text}the answer NLL goes {change(nll, ' nats')} and {reached(nll)}."


def _after(found: Findings, hit: Progress | None, nll: Progress | None, gap: Lag | None) -> str:
    if hit is None or nll is None:
        return "Deceptive saturation cannot be judged."
    if gap is None:
        return f"Deceptive saturation cannot be judged, because the hit {reached(hit)}."
    text = (
        f"After the hit's t95 the answer NLL falls by a factor of {interval(gap.factor)}, {interval(gap.nats)} nats; "
        f"a curve of the hit's own shape would show a factor of {number(gap.same_shape.value)}"
    )
    if gap.index is None:
        return f"{text}; t95(NLL) is not defined, so neither is the deceptive index."
    text += f", and the deceptive index t95(NLL) / t95(hit) is {interval(gap.index)}: "
    if gap.index.below(1):
        text += "the answer NLL makes 95 % of its improvement before the hit does"
    elif not gap.index.above(1):
        text += "the two are not told apart"
    elif gap.factor.above(1) and not (hit.last_doubling and hit.last_doubling.above(0)):
        text += "the hit levels before the answer NLL does (deceptive saturation, in this run)"
    else:
        text += "the hit makes 95 % of its improvement first, but has not levelled"
    return f"{text}{_lengths_ahead(found)}."


def _lengths_ahead(found: Findings) -> str:
    """The lengths at which the index is above 1 with its whole interval, of those that were monitored."""
    rows = found.by_length("single", "full")
    ahead = [row.tags["length"] for row in rows if (gap := found.lag(**row.tags)) and gap.index and gap.index.above(1)]
    if len(rows) < 2:
        return ""
    where = f"at {', '.join(map(str, ahead))} tokens" if ahead else "at none"
    return f"; taken by length, the index is above 1 {where} of {len(rows)} lengths"


def _others(found: Findings) -> str:
    parts = []
    count, mean = found.row("heads", "retrieval_heads_count"), found.row("heads", "initial_heads_mean_frac")
    if count and mean:
        parts.append(f"retrieval heads go {change(count)}, the mean score of the initial ones {change(mean)}")
    exact = found.probe("exact_match_frac")
    if exact:
        parts.append(f"exact match of the fine-tuned probe goes {change(exact)}{_beyond(exact)}")
    short = found.row("perplexity", "short_nll_nats")
    if short:
        parts.append(f"the short-context NLL goes {change(short, ' nats')}{_beyond(short)}")
    if not parts:
        return "No heads, probe or short-context records."
    return "Beside them: " + "; ".join(parts) + "."


def _beyond(row: Progress) -> str:
    if row.improvement.above(0):
        return ""
    if row.improvement.below(0):
        return " (worse, beyond noise)"
    return " (within noise)" if row.improvement.low is not None else ""


def _scale(gap: Lag | None) -> str:
    if gap is None or gap.index_log is None:
        return ""
    return (
        f"t95 depends on the scale: with the NLL in nats the index is {interval(gap.index)}, with its logarithm "
        f"{interval(gap.index_log)}. t95 is {percent(FRAC)} of this run's own improvement, not a point of saturation: "
        "a curve that goes on improving has a later t95 in a longer run."
    )


def _lengths(found: Findings) -> str:
    parts = []
    for row in found.by_length("single", "full"):
        gap, length = found.lag(**row.tags), row.tags["length"]
        if gap and row.t95:
            index = "" if gap.index is None else f", index {interval(gap.index)}"
            parts.append(
                f"at {length} tokens the hit has t95 = {interval(row.t95, tokens)}, "
                f"after it the NLL falls by a factor of {interval(gap.factor)}{index}"
            )
        else:
            parts.append(f"at {length} tokens the hit goes {change(row)} and {reached(row)}")
    return _sentence(parts)


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _control(found: Findings) -> str:
    control, gain = found.row("needle", "control_nll_nats"), found.row("needle", "gain_nats")
    if not control or not gain:
        return ""
    without = f"With the needle replaced by haystack the answer's NLL goes {change(control, ' nats')}"
    return (
        f"{without}, by {interval(control.improvement)}: that part is not retrieval. The needle is worth "
        f"{number(gain.first)} nats at first and {number(gain.last)} at last, a change of {interval(gain.improvement)}."
    )


def _end(hit: Progress | None, nll: Progress | None) -> str:
    parts = []
    for name, row in (("hit", hit), ("answer NLL", nll)):
        if row is not None and row.last_doubling is not None:
            still = "improves" if row.last_doubling.above(0) else "does not improve beyond noise"
            parts.append(f"the {name} {still} over the last doubling of tokens, by {interval(row.last_doubling)}")
    return ("At its end " + "; ".join(parts) + ".") if parts else ""


def _heads(found: Findings) -> str:
    count, mean = found.row("heads", "retrieval_heads_count"), found.row("heads", "initial_heads_mean_frac")
    if not count or not mean:
        return ""
    text = f"The number of heads above 0.1 goes {change(count)}. "
    return f"{text}The mean score of the initial heads goes {change(mean)} and {reached(mean)}."


def _copying(found: Findings) -> str:
    second = found.row("induction", "second_copy_nll_nats")
    if second is None:
        return ""
    text = f"The NLL of a random span's second copy, without any question, goes {change(second, ' nats')}"
    return f"{text} and {reached(second)}."


def _probe(found: Findings) -> str:
    parts = []
    for sft_step in sorted({found.steps_sft[0], found.steps_sft[-1]}) if found.steps_sft else ():
        for name, metric in (("exact match", "exact_match_frac"), ("answer NLL", "answer_nll_nats")):
            row = found.row("probe", metric, sft_step=sft_step)
            if row:
                when = "before fine-tuning" if sft_step == 0 else f"after {sft_step} fine-tuning steps"
                parts.append(f"{when}, {name} goes {change(row)}{_beyond(row)} over {row.windows} windows")
    return _sentence(parts)


def _forgetting(found: Findings) -> str:
    short = found.row("perplexity", "short_nll_nats")
    if short is None:
        return ""
    word = (
        "improves"
        if short.improvement.above(0)
        else "gets worse"
        if short.improvement.below(0)
        else "does not move beyond noise"
    )
    return f"The NLL at the old context length goes {change(short, ' nats')}; it {word}."


def _not_shown(found: Findings, hit: Progress | None, nll: Progress | None, gap: Lag | None) -> list[str]:
    """What a reader might expect from arXiv 2604.02650 and does not find in this run."""
    missing = {
        "needle": "needle records: no hit and no answer NLL",
        "heads": "heads records: nothing about retrieval heads",
        "perplexity": "perplexity records: nothing about held-out text or forgetting",
        "probe": "probe records: nothing about fine-tuned behaviour",
    }
    present = set(found.run.records.monitor)
    lines = [f"No {text}." for monitor, text in missing.items() if monitor not in present]
    for name, row in (("hit", hit), ("answer NLL", nll)):
        if row and row.t95 is None:
            lines.append(f"No t95 of the {name}: {row.reason}.")
    if hit and hit.last < 0.95:
        lines.append(
            f"A hit at its ceiling: it ends at {number(hit.last)}, so its t95 may be that of an unfinished rise."
        )
    if hit and hit.t95 and hit.last_doubling and hit.last_doubling.above(0):
        lines.append(
            f"A hit that has levelled: over the last doubling of tokens it still gains {interval(hit.last_doubling)}."
        )
    if gap and gap.index and not gap.index.above(1):
        lines.append(f"Deceptive saturation by t95 in nats: the index is {interval(gap.index)}.")
    if gap and not gap.factor.above(1):
        lines.append(f"A fall of the answer NLL after the hit's t95: the factor is {interval(gap.factor)}.")
    if nll and nll.t95 and nll.last_doubling and nll.last_doubling.above(0):
        lines.append(
            "Intrinsic saturation: the answer NLL still falls at the end, "
            f"by {interval(nll.last_doubling)} nats over the last doubling of tokens."
        )
    gain = found.row("needle", "gain_nats")
    if gain and not gain.improvement.above(0):
        moved = f"{change(gain, ' nats')}, a change of {interval(gain.improvement)}"
        lines.append(f"More use of the needle: the gain over the control goes {moved}.")
    mean = found.row("heads", "initial_heads_mean_frac")
    if mean and mean.t95 and nll and nll.t95 and nll.t95.low is not None and mean.t95.value < nll.t95.low:
        lines.append(
            f"Heads that keep pace with the NLL: the initial heads' mean has t95 = {tokens(mean.t95.value)}, "
            f"the answer NLL {interval(nll.t95, tokens)}."
        )
    for name, metric in (("exact match", "exact_match_frac"), ("answer NLL", "answer_nll_nats")):
        row = found.probe(metric)
        if row and not row.improvement.above(0):
            lines.append(
                f"A better probe: its {name} goes {change(row)}, an improvement of {interval(row.improvement)}."
            )
    return lines
