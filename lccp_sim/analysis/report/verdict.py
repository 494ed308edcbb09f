"""What a run shows, in three sentences whose every number is computed; more is in `details`, the rest in `absent`.

A claim is made only where a whole 95 % interval is on one side. Deceptive saturation is claimed where the rule calls
the hit saturated and the answer NLL improving: the rule rests on what the next doubling of tokens is predicted to
bring, not on t95, which every curve has, one that goes on improving, too.
"""

from dataclasses import dataclass

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.format import SPANS, change, judged, percent, reached, tokens
from lccp_sim.analysis.report.absent import not_shown
from lccp_sim.analysis.report.details import beyond, statements
from lccp_sim.analysis.report.precondition import Check, precondition, unmet
from lccp_sim.analysis.stats.equivalence import Equivalence
from lccp_sim.analysis.stats.rule import Decision, decided
from lccp_sim.analysis.stats.saturation import Progress
from lccp_sim.records import SENTENCE


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
    summary = (_moved(found, hit, nll), _rule(found), _others(found))
    checks = precondition(found.run)
    failed = unmet(checks)
    caution = f"The precondition is not met, so read the rest with care. {failed}." if failed else ""
    return Verdict(summary, caution, statements(found), not_shown(found), checks)


def deceptive_here(hit: Decision | None, nll: Decision | None, stays: Equivalence | None) -> str:
    """What two verdicts and the probe say together: the words of the claim, or why there is none."""
    if hit is None or nll is None:
        return "Deceptive saturation cannot be judged: hit or answer NLL was not recorded"
    if "not enough points" in (hit.verdict, nll.verdict):
        return "Deceptive saturation cannot be judged: not enough points"
    if hit.verdict == "saturated":
        both = {
            "improving": "the hit levels while the answer NLL goes on improving (deceptive saturation, in this run)"
        }
        levelled = "the hit and the answer NLL have both levelled"
        both["saturated"] = f"{levelled} (intrinsic saturation, in this run)"
        if stays is not None and not stays.holds:
            both["saturated"] = f"{levelled}, but intrinsic saturation asks for the probe, too: {stays.said()}"
        return both.get(nll.verdict, "the hit levels, and whether the answer NLL goes on improving is not told apart")
    if hit.verdict == "improving":
        return "the hit has not levelled, so there is no saturation of it that could deceive"
    return "whether the hit has levelled is not told apart, so neither is deceptive saturation"


def _moved(found: Findings, hit: Progress | None, nll: Progress | None) -> str:
    run = found.run
    planned = run.setting("run.tokens", run.tokens)
    state = "" if run.finished else f"The run is unfinished ({tokens(run.tokens)} of {tokens(planned)} tokens). "
    if hit is None or nll is None:
        return f"{state}There are no needle records, so there is nothing to say about hit and answer NLL."
    text = f"The needle hit goes {change(hit)} and {reached(hit)}; "
    return f"{state}{text}the answer NLL goes {change(nll, ' nats')} and {reached(nll)}. {_span(found)}"


def _span(found: Findings) -> str:
    """Of which tokens these are, with the whole sentence's beside those of the value."""
    run = found.run
    whole = [found.row("needle", metric, **run.sentence) for metric in ("hit_frac", "answer_nll_nats")]
    if not run.sentence:
        return f"Both are of {judged(run)} (records of an earlier version)."
    if whole[0] is None or whole[1] is None:
        return f"Both are of {judged(run)}."
    beside = f"the hit goes {change(whole[0])} and the NLL {change(whole[1], ' nats')}"
    return f"Both are of {judged(run)}; of {SPANS[SENTENCE]} {beside}."


def _rule(found: Findings) -> str:
    """The second sentence: both verdicts of the rule, and what they say together."""
    hit, nll = found.decision("needle", "hit_frac"), found.decision("needle", "answer_nll_nats")
    said = deceptive_here(hit, nll, found.stays)
    if hit is None or nll is None or "not enough points" in (hit.verdict, nll.verdict):
        return f"{said}."
    text = (
        "By the rule, which sets the gain that the next doubling of tokens should bring against "
        f"{percent(found.eps)} of the gain so far, the hit is {decided(hit, found.eps)}, and the answer NLL is "
        f"{decided(nll, found.eps)} nats: "
    )
    return f"{text}{said}."


def _others(found: Findings) -> str:
    parts = []
    count, mean = found.row("heads", "retrieval_heads_count"), found.row("heads", "initial_heads_mean_frac")
    if count and mean:
        parts.append(f"retrieval heads go {change(count)}, the mean score of the initial ones {change(mean)}")
    exact = found.row("probe", "exact_match_frac")
    if exact:
        parts.append(f"exact match of the fine-tuned probe goes {change(exact)}{beyond(exact)}")
    short = found.row("perplexity", "short_nll_nats")
    if short:
        parts.append(f"the short-context NLL goes {change(short, ' nats')}{beyond(short)}")
    if not parts:
        return "No heads, probe or short-context records."
    return "Beside them: " + "; ".join(parts) + "."
