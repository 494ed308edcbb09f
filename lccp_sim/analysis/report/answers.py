"""The findings of arXiv 2604.02650, one by one, over the seeds of an arm: reproduced, not, or not to be told.

Each answer follows from a rule that is stated beside it, so that a reader may disagree with the rule and not with the
reading. What a reader would question: "not" is said of what the runs show, never of what an 80B model does.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.format import change, interval, number, percent
from lccp_sim.analysis.report.paper import STAGES, TOP, TOTAL, whole_sentence
from lccp_sim.analysis.report.tables import Table
from lccp_sim.analysis.seeds import pooled_over_seeds
from lccp_sim.analysis.stats.correlation import comparisons
from lccp_sim.analysis.stats.dynamics import like_the_paper
from lccp_sim.analysis.stats.pairs import gather
from lccp_sim.analysis.stats.rule import decided
from lccp_sim.analysis.stats.saturation import Progress

YES, NO, OPEN = "reproduced", "not reproduced", "cannot be told"
CLOSE = 2.0  # AICc within which two laws fit alike (Burnham and Anderson 2002, sec. 2.6)


@dataclass(frozen=True)
class Answer:
    """One finding: where it stands in the paper, what it says, the answer, by which rule, and the numbers behind it."""

    where: str
    finding: str
    answer: str
    rule: str
    numbers: str

    def row(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def answers(seeds: Sequence[Findings]) -> list[Answer]:
    """The answers of runs that differ in their seed alone, or of one run; findings without their metrics are left out.

    Intervals are over seeds and items where there are several seeds, else over items.
    """
    over = pooled_over_seeds(seeds) if len(seeds) > 1 else seeds[0]
    made: list[Callable[[], Answer | None]] = [
        lambda: _levels(over),
        lambda: _goes_on(over),
        lambda: _probe(over),
        lambda: _grows(over, COUNT),
        lambda: _grows(over, MEAN),
        lambda: _stable(seeds),
        lambda: _law(over),
        lambda: _closer(seeds),
        lambda: _depths(seeds),
    ]
    return [answer for make in made if (answer := make()) is not None]


COUNT = ("retrieval_heads_count", "sec. 6, fig. 5a", "the number of retrieval heads grows")
MEAN = ("initial_heads_mean_frac", "sec. 6, fig. 5b", "the mean score of the initial retrieval heads grows")


def table(found: Sequence[Answer], seeds: int) -> Table:
    """One row a finding."""
    rows = [[each.where, each.finding, each.answer, each.numbers, each.rule] for each in found]
    note = f"Over {seeds} seed{'s' * (seeds != 1)}; in brackets 95 % intervals. Of this model and these data alone. "
    note += "The score, its NLL and its perplexity are of the needle's value; the paper has the whole answer sentence."
    head = ["arXiv 2604.02650", "finding", "here", "numbers", "by the rule"]
    return Table("The paper's findings, one by one", head, rows, note, words=True)


def _levels(over: Findings) -> Answer | None:
    hit, row = over.decision("needle", "hit_frac"), over.row("needle", "hit_frac")
    if hit is None or row is None:
        return None
    answer = {"saturated": YES, "improving": NO}.get(hit.verdict, OPEN)
    said = f"{change(row)}; {decided(hit, over.eps)}{whole_sentence(over, 'hit_frac')}"
    return Answer("sec. 5", "the NIAH score saturates within the run", answer, "the saturation rule on the hit", said)


def _goes_on(over: Findings) -> Answer | None:
    hit, nll = over.decision("needle", "hit_frac"), over.decision("needle", "answer_nll_nats")
    if hit is None or nll is None:
        return None
    answer = YES if (hit.verdict, nll.verdict) == ("saturated", "improving") else OPEN
    answer = NO if hit.verdict == "improving" or nll.verdict == "saturated" else answer
    said = f"hit {hit.verdict}; NLL {decided(nll, over.eps)}"
    rule = "the hit is saturated and the NLL improving; not, where the hit improves or the NLL is saturated"
    return Answer("sec. 5", "the answer's likelihood improves after the score has saturated", answer, rule, said)


def _probe(over: Findings) -> Answer | None:
    row = over.row("probe", "exact_match_frac")
    if row is None:
        return None
    said = f"{change(row)}, an improvement of {interval(row.improvement)}"
    return Answer("sec. 4", "the probe after fine-tuning improves", _moved(row), "the interval of first to last", said)


def _grows(over: Findings, which: tuple[str, str, str]) -> Answer | None:
    metric, where, finding = which
    row = over.row("heads", metric)
    if row is None:
        return None
    said = f"{change(row)}, by {interval(row.improvement)}"
    return Answer(where, finding, NO if row.first == row.last else _moved(row), "the interval of first to last", said)


def _moved(row: Progress) -> str:
    return YES if row.improvement.above(0) else NO if row.improvement.below(0) else OPEN


def _stable(seeds: Sequence[Findings]) -> Answer | None:
    shares = (0.0, *(after / TOTAL for _, after, _, _ in STAGES))
    found = [stages for each in seeds if (stages := like_the_paper(each.run, shares))]
    moved = [each.heads["needle"] for each in seeds if "needle" in each.heads]
    if not found or not moved:
        return None
    least = min(stage.shared / moved[0].k for stages in found for stage in stages)
    ranks = [stage.spearman for stages in found for stage in stages if stage.spearman is not None]
    theirs = min(shared for _, _, shared, _ in STAGES) / TOP
    said = f"at least {percent(least)} of the {moved[0].k} strongest shared (chance {percent(moved[0].chance)})"
    said += f"; Spearman {min(ranks):.2f} to {max(ranks):.2f}" if ranks else ""
    rule = f"every stage of every seed shares at least the paper's least, {percent(theirs)}"
    return Answer("table 5", "the strongest heads stay the same", YES if least >= theirs else NO, rule, said)


def _law(over: Findings) -> Answer | None:
    fits = {fit.law: fit for fit in over.fits.get(("perplexity", "ppl", ()), [])}
    if "log" not in fits:
        return None
    best = min(fits.values(), key=lambda fit: fit.aicc)
    behind = fits["log"].aicc - best.aicc
    said = f"best: {best.law.replace('_', ' ')}; the log law's AICc is {number(behind)} above"
    rule = f"the log law's AICc is within {number(CLOSE)} of the best; not, where it is 10 above"
    answer = YES if behind <= CLOSE else NO if behind >= 5 * CLOSE else OPEN
    return Answer("sec. 7.1", "held-out perplexity is A log N + B", answer, rule, said)


def _closer(seeds: Sequence[Findings]) -> Answer | None:
    rows = comparisons(gather([each.run for each in seeds]))
    row = next((r for r in rows if (r.target, r.task, r.monitor, r.kind) == (
        "exact_match_frac", None, "needle/answer_ppl", "level")), None)  # fmt: skip
    if row is None or row.p is None or row.r is None or row.r_against is None:
        return None
    answer = OPEN if row.p >= 0.05 else YES if row.r > row.r_against else NO
    said = f"r {row.r:.2f} against the score's {row.r_against:.2f}, p {number(row.p)}, n {row.n}"
    rule = "Williams's test at 0.05, on values as the paper has them"
    return Answer("table 4", "perplexity goes with the probe more than the score does", answer, rule, said)


def _depths(seeds: Sequence[Findings]) -> Answer | None:
    hardest, flatter = [], []
    for each in seeds:
        rows = each.run.select("needle", "answer_ppl", "depth")
        if rows.empty:
            return None
        first, last = (rows[rows.step == step].set_index("depth").value for step in (rows.step.min(), rows.step.max()))
        hardest.append(float(first.idxmax()))
        flatter.append(float((last.max() / last.min()) / (first.max() / first.min())))
    middle = [0.3 <= depth <= 0.8 for depth in hardest]
    both = [inside and ratio < 1 for inside, ratio in zip(middle, flatter, strict=True)]
    said = f"hardest at first at depth {', '.join(f'{depth:g}' for depth in hardest)}; the ratio of hardest to easiest "
    said += f"changes by a factor of {number(np.median(flatter))}"
    rule = "in every seed the hardest depth at first is .3 to .8, and the ratio falls; not, where in none"
    answer = YES if all(both) else OPEN if any(both) else NO
    return Answer("sec. 7.2", "the middle is hardest at first, and training flattens it", answer, rule, said)
