"""What a reader might expect from arXiv 2604.02650 and does not find in a run, each with the number that says so."""

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.format import change, interval, number, tokens
from lccp_sim.analysis.stats.rule import decided

MISSING = {
    "needle": "needle records: no hit and no answer NLL",
    "heads": "heads records: nothing about retrieval heads",
    "perplexity": "perplexity records: nothing about held-out text or forgetting",
    "probe": "probe records: nothing about fine-tuned behaviour",
}


def not_shown(found: Findings) -> list[str]:
    """The sentences: what was not recorded, what moved within noise, what has not levelled, what does not keep pace."""
    present = set(found.run.records.monitor)
    lines = [f"No {text}." for monitor, text in MISSING.items() if monitor not in present]
    return lines + _needle(found) + _heads(found) + _probe(found)


def _needle(found: Findings) -> list[str]:
    hit, nll, gap = found.row("needle", "hit_frac"), found.row("needle", "answer_nll_nats"), found.lag()
    lines = []
    for name, row in (("hit", hit), ("answer NLL", nll)):
        if row and row.t95 is None:
            lines.append(f"No t95 of the {name}: {row.reason}.")
    if hit and hit.last < 0.95:
        lines.append(
            f"A hit at its ceiling: it ends at {number(hit.last)}, so its t95 may be that of an unfinished rise."
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
        lines.append(f"Intrinsic saturation: by the rule the answer NLL is {decided(decision, found.eps)} nats.")
    gain = found.row("needle", "gain_nats")
    if gain and not gain.improvement.above(0):
        moved = f"{change(gain, ' nats')}, a change of {interval(gain.improvement)}"
        lines.append(f"More use of the needle: the gain over the control goes {moved}.")
    held_out = [row for row in found.by_length("heldout") if not row.improvement.above(0)]
    if held_out:
        where = ", ".join(f"{row.tags['length']}" for row in held_out)
        lines.append(f"Hits on a template that training never shows: no gain beyond noise at {where} tokens.")
    return lines


def _heads(found: Findings) -> list[str]:
    mean, nll = found.row("heads", "initial_heads_mean_frac"), found.row("needle", "answer_nll_nats")
    lines = []
    if mean and mean.t95 and nll and nll.t95 and nll.t95.low is not None and mean.t95.value < nll.t95.low:
        lines.append(
            f"Heads that keep pace with the NLL: the initial heads' mean has t95 = {tokens(mean.t95.value)}, "
            f"the answer NLL {interval(nll.t95, tokens)}."
        )
    effect = found.curve("intervention", "causal_nll_nats")
    if effect is not None and not effect.value_W[-1] > 2 * effect.stderr_W[-1]:
        ends = f"{number(effect.value_W[-1])} ± {number(effect.stderr_W[-1])}"
        lines.append(f"A causal effect of the strongest heads: at the end it is {ends} nats.")
    return lines


def _probe(found: Findings) -> list[str]:
    lines = []
    for name, metric in (("exact match", "exact_match_frac"), ("answer NLL", "answer_nll_nats")):
        row = found.row("probe", metric)
        if row and not row.improvement.above(0):
            lines.append(
                f"A better probe: its {name} goes {change(row)}, an improvement of {interval(row.improvement)}."
            )
    return lines
