"""The findings of arXiv 2604.02650, one by one, over the seeds of an arm: reproduced, refuted, or cannot be told.

The rules were fixed in docs/studies/replicate.md before the runs. Each answer is shown with its rule. A seed's value is
the mean over its data orders. Intervals are over seeds and items if there are several seeds, else over items.
"Refuted" describes these runs, never an 80B model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.format import interval, number, percent
from lccp_sim.analysis.report.paper import STAGES, TOP, TOTAL
from lccp_sim.analysis.report.tables import Table
from lccp_sim.analysis.seeds import (
    Orders,
    ceiling,
    curves_of_seeds,
    drawn,
    longest_needles,
    over,
    over_orders,
    pooled_over_seeds,
)
from lccp_sim.analysis.stats.arms import noise
from lccp_sim.analysis.stats.curve import Curve, Estimate
from lccp_sim.analysis.stats.deceptive import hit_given_nll, null_hits
from lccp_sim.analysis.stats.dynamics import like_the_paper
from lccp_sim.analysis.stats.estimate import Array, item_values, weights
from lccp_sim.analysis.stats.pairs import CEILING, HIT, NLL, at_ceiling, gather
from lccp_sim.analysis.stats.prediction import errors_left_out
from lccp_sim.records import Tag

YES, NO, OPEN = "reproduced", "refuted", "cannot be told"
CLOSE, FAR = 2.0, 10.0  # AICc differences: below, laws fit equally; above, one is refuted (Burnham and Anderson 2002)
EARLY, HALF = 1 / 4, 1 / 2  # shares of the run's tokens
FOLD = 2.0
SMALL = 0.05  # change of exact match, and of the mean head score
SHARE = min(shared for _, _, shared, _ in STAGES) / TOP  # of the strongest heads, table 5 of the paper
MIDDLE = (0.3, 0.8)
MANY = 100  # practical limit on the number of seeds
BETTER = f"Better bases, with which the hit of every seed reaches {CEILING}, would decide."
LEAST_NATS_LEFT = 1e-12  # nats, below which a log factor is meaningless


@dataclass(frozen=True)
class Answer:
    """One finding: its place in the paper, its statement, the answer, the numbers, and both rules.

    `would_tell`: what would decide an open answer; `answers` leaves it empty for other answers.
    """

    where: str
    finding: str
    answer: str
    numbers: str
    reproduced: str
    refuted: str
    would_tell: str = ""


def answers(seeds: Sequence[Orders]) -> list[Answer]:
    """Answer the findings from runs by seed and data order; a finding whose metrics are missing is left out."""
    made: list[Callable[[Sequence[Orders]], Answer | None]] = [
        _saturates, _goes_on, _probe, _count, _mean, _stable, _law, _closer, _depths,
    ]  # fmt: skip
    found = [answer for make in made if (answer := make(seeds)) is not None]
    return [answer if answer.answer == OPEN else replace(answer, would_tell="") for answer in found]


def table(found: Sequence[Answer], seeds: int) -> Table:
    """Tabulate the findings, one per row."""
    rows = [[e.where, e.finding, e.answer, ". ".join(filter(None, [e.numbers, e.would_tell])), e.reproduced, e.refuted]
            for e in found]  # fmt: skip
    note = f"Over {seeds} seed{'s' * (seeds != 1)}; in parentheses 95 % intervals. For this model and these data only. "
    note += "The score and its NLL refer to the needle's value; in the paper, to the full answer sentence."
    head = ["arXiv 2604.02650", "finding", "here", "numbers", "reproduced if", "refuted if"]
    return Table("The paper's findings, one by one", head, rows, note, words=True)


def _saturates(seeds: Sequence[Orders]) -> Answer | None:
    found = longest_needles(seeds)
    if found is None:
        return None
    length, hits, _ = found
    shares = [ceiling(hit) / hit.tokens_W[-1] for hit in hits]
    answer = YES if max(shares) <= EARLY else NO if min(shares) > HALF else OPEN
    said = f"the hit at {length} tokens reaches {CEILING} at {_each(shares, _share)} of the tokens"
    return Answer(
        "sec. 5", "the NIAH score saturates early", answer, said,
        f"in every seed the hit reaches {CEILING} within the first quarter of the tokens",
        "in no seed within the first half",
        "Longer runs would decide.",
    )  # fmt: skip


def _goes_on(seeds: Sequence[Orders]) -> Answer | None:
    found = longest_needles(seeds)
    if found is None:
        return None
    length, hits, nlls = found
    where = ("sec. 5", "the answer's likelihood keeps improving after that")
    rules = (f"the NLL falls by a factor of at least {FOLD:g}, with an interval above 1 and above that of thresholding",
             f"the interval is below {FOLD:g}, or inside that of thresholding")  # fmt: skip
    reached = [
        (nll, place) for hit, nll in zip(hits, nlls, strict=True) if (place := at_ceiling(hit.value_W)) is not None
    ]
    if len(reached) < len(hits):
        factors = np.exp([_log_fold(nll.value_W, place) for nll, place in reached])
        said = _unreached(hits) + (f"; in the others the NLL falls by {_each(factors, number)}" if reached else "")
        return Answer(*where, OPEN, said, *rules, BETTER)
    places = [place for _, place in reached]
    logs = [_log_fold(nll.value_W, place) for nll, place in zip(nlls, places, strict=True)]
    draws = [_log_fold(drawn(nll), place) for nll, place in zip(nlls, places, strict=True)]
    fold = over(logs, draws)
    null = [_null_folds(orders, length) for orders in seeds]
    said = f"by {interval(_exp(fold))} at {length} tokens; by seed {_each(np.exp(logs), number)}"
    if fold.below(np.log(FOLD)):
        return Answer(*where, NO, said, *rules)
    if any(each is None for each in null):
        return Answer(
            *where, OPEN, said, *rules, "Samples at every window, and a ceiling under thresholding, would decide."
        )
    by_itself = over([float(np.median(each)) for each in null if each is not None], [e for e in null if e is not None])
    said += f"; thresholding alone gives {interval(_exp(by_itself))}"
    more = fold.above(0) and fold.value >= np.log(FOLD)
    beyond = by_itself.high is not None and fold.above(by_itself.high)
    inside = by_itself.low is not None and by_itself.high is not None and (
        fold.low is not None and fold.high is not None and by_itself.low <= fold.low and fold.high <= by_itself.high
    )  # fmt: skip
    answer = YES if more and beyond else NO if inside else OPEN
    needed = _seeds_to_tell(fold, float(by_itself.value), len(logs), lambda log: number(float(np.exp(log))))
    return Answer(*where, answer, said, *rules, needed)


def _probe(seeds: Sequence[Orders]) -> Answer | None:
    found, match = longest_needles(seeds), curves_of_seeds(seeds, "probe", "exact_match_frac", {})
    if found is None or match is None:
        return None
    where = ("sec. 4", "the probe keeps improving after the hit's ceiling")
    rules = ("exact match at the end minus that at the ceiling: the interval is above 0, and the gain exceeds the "
             "effect of data order", f"the interval is below {SMALL}")  # fmt: skip
    after = [np.flatnonzero(own.tokens_W >= ceiling(hit)) for own, hit in zip(match, found[1], strict=True)]
    if unreached := _unreached(found[1]):
        gains = [float(c.value_W[-1] - c.value_W[w[0]]) for c, w in zip(match, after, strict=True) if len(w) > 1]
        said = unreached + (f"; in the others exact match gains {_each(gains, number)}" if gains else "")
        return Answer(*where, OPEN, said, *rules, BETTER)
    if any(len(windows) < 2 for windows in after):
        return Answer(*where, OPEN, "fewer than two windows of the probe after the ceiling", *rules, "Longer runs.")
    gains = [float(c.value_W[-1] - c.value_W[w[0]]) for c, w in zip(match, after, strict=True)]
    draws = [drawn(c)[:, -1] - drawn(c)[:, w[0]] for c, w in zip(match, after, strict=True)]
    gain, floor = over(gains, draws), _floor(seeds, [windows[0] for windows in after])
    said = f"exact match gains {interval(gain)}; by seed {_each(gains, number)}"
    said += "" if floor is None else f"; data order alone gives up to {number(floor)}"
    told = floor is not None and gain.value > floor
    answer = YES if gain.above(0) and told else NO if gain.below(SMALL) else OPEN
    needed = "Repeats would decide." if floor is None else _seeds_to_tell(gain, 0.0, len(gains))
    return Answer(*where, answer, said, *rules, needed)


def _count(seeds: Sequence[Orders]) -> Answer | None:
    moved = _moved(seeds, "retrieval_heads_count")
    if moved is None:
        return None
    answer = YES if moved.above(0) else NO if moved.below(1) else OPEN
    rules = ("last minus first window: the interval is above 0", "it includes 0 and is below 1 head")
    return Answer(
        "sec. 6, fig. 5a",
        "the number of retrieval heads grows",
        answer,
        interval(moved),
        *rules,
        _seeds_to_tell(moved, 0.0, len(seeds)),
    )


def _mean(seeds: Sequence[Orders]) -> Answer | None:
    moved = _moved(seeds, "initial_heads_mean_frac")
    if moved is None:
        return None
    answer = YES if moved.above(0) else NO if moved.below(SMALL) else OPEN
    finding = "the mean score of the initial retrieval heads grows"
    rules = ("last minus first window: the interval is above 0", f"the interval is below {SMALL}")
    return Answer("sec. 6, fig. 5b", finding, answer, interval(moved), *rules, _seeds_to_tell(moved, 0.0, len(seeds)))


def _stable(seeds: Sequence[Orders]) -> Answer | None:
    fractions = (0.0, *(after / TOTAL for _, after, _, _ in STAGES))
    found = [[like_the_paper(each.run, fractions) for each in orders] for orders in seeds]
    moved = [each.heads["needle"] for orders in seeds for each in orders if "needle" in each.heads]
    if not moved or not all(all(own) for own in found):
        return None
    share_SG = np.array([np.mean([[s.shared for s in own] for own in orders], axis=0) for orders in found]) / moved[0].k
    answer = YES if share_SG.min() >= SHARE else NO if share_SG.mean(0).min() < SHARE else OPEN
    said = f"at least {percent(share_SG.min())} of the {moved[0].k} strongest (chance {percent(moved[0].chance)})"
    said += f"; mean over seeds at the worst stage {percent(share_SG.mean(0).min())}"
    rules = (f"at each of the paper's stages every seed shares at least {percent(SHARE)}",
             f"at a stage the mean over seeds is below {percent(SHARE)}")  # fmt: skip
    return Answer(
        "table 5", "the strongest heads stay the same", answer, said, *rules, "More items per head score would decide."
    )


def _law(seeds: Sequence[Orders]) -> Answer | None:
    runs = [_of_seed(orders) for orders in seeds]
    over_all = pooled_over_seeds(runs) if len(runs) > 1 else runs[0]
    fits = {fit.law: fit for fit in over_all.fits.get(("perplexity", "ppl", ()), [])}
    if "log" not in fits:
        return None
    best = min(fits.values(), key=lambda fit: fit.aicc)
    behind = fits["log"].aicc - best.aicc
    answer = YES if behind <= CLOSE else NO if behind >= FAR else OPEN
    said = f"best: {best.law.replace('_', ' ')}; the log law's AICc is {number(behind)} above"
    rules = (f"the log law's AICc is within {CLOSE:g} of the best", f"it is {FAR:g} or more above")
    return Answer("sec. 7.1", "held-out perplexity is A log N + B", answer, said, *rules, "More windows would decide.")


def _closer(seeds: Sequence[Orders]) -> Answer | None:
    panels = gather([each.run for orders in seeds for each in orders])
    by_nll, by_hit = (errors_left_out(panels, "exact_match_frac", name) for name in (NLL, HIT))
    if by_nll is None or by_hit is None or len(by_nll) != len(by_hit):
        return None
    wins, runs = sum(a < b for a, b in zip(by_nll, by_hit, strict=True)), len(by_nll)
    answer = YES if wins >= 5 * runs / 6 else NO if wins <= runs / 6 else OPEN
    said = f"the NLL has the smaller error in {wins} of {runs} left-out runs"
    said += f" ({number(float(np.mean(by_nll)))} against {number(float(np.mean(by_hit)))} on average)"
    finding = "the likelihood predicts the probe better than the score does"
    rules = ("the NLL predicts exact match better in at least five of six left-out runs", "in at most one of six")
    return Answer("table 4", finding, answer, said, *rules, "More runs would decide.")


def _depths(seeds: Sequence[Orders]) -> Answer | None:
    hardest, flatter = [], []
    for orders in seeds:
        rows = [each.run.select("needle", "answer_nll_nats", "depth") for each in orders]
        if any(each.empty for each in rows):
            return None
        ends = [[own[own.step == step].set_index("depth").value for own in rows] for step in _ends(rows)]
        first, last = (sum(own[1:], own[0]) / len(own) for own in ends)
        hardest.append(float(first.idxmax()))
        flatter.append(float((last.max() / last.min()) / (first.max() / first.min())))
    both = [MIDDLE[0] <= depth <= MIDDLE[1] and ratio < 1 for depth, ratio in zip(hardest, flatter, strict=True)]
    answer = YES if all(both) else OPEN if any(both) else NO
    said = f"hardest at first: depth {_each(hardest, lambda depth: f'{depth:g}')}; the ratio of hardest to easiest "
    said += f"changes by a factor of {_each(flatter, number)}"
    rules = (f"in every seed the NLL is at first highest at a depth of {MIDDLE[0]} to {MIDDLE[1]}, and the ratio falls",
             "in no seed")  # fmt: skip
    finding = "the middle is hardest at first, and training flattens it"
    return Answer("sec. 7.2", finding, answer, said, *rules, "More seeds would decide.")


def _of_seed(orders: Orders) -> Findings:
    """Return findings whose curve of held-out perplexity is the mean over a seed's data orders."""
    if len(orders) == 1:
        return orders[0]
    mean = Findings(orders[0].run, eps=orders[0].eps)
    curves = [each.curve("perplexity", "ppl") for each in orders]
    if all(curve is not None for curve in curves):
        mean.enter(over_orders([curve for curve in curves if curve is not None]))
    return mean


def _log_fold(nll_W: Array, place: int | Array) -> Any:
    """Compute the logarithm of the ratio of the NLL at window `place` to the NLL at the end."""
    at = np.take_along_axis(nll_W, np.asarray(place)[:, None], -1)[:, 0] if np.ndim(place) else nll_W[..., place]
    return np.log(np.maximum(at, LEAST_NATS_LEFT)) - np.log(np.maximum(nll_W[..., -1], LEAST_NATS_LEFT))


def _null_folds(orders: Orders, length: int) -> Array | None:
    """Draw log factors [R] of the NLL's fall after the ceiling of hits that are derived from the items' NLL.

    Draws without such a ceiling are left out. None if no draw has one, and without samples at every window.
    """
    found = []
    for each in orders:
        tags: dict[str, Tag] = {"variant": "single", "length": length, "span": each.run.span()}
        curve = each.curve("needle", "answer_nll_nats", **tags)
        steps = sorted(set(each.run.select("needle", "hit_frac", **tags).step))
        values = item_values(each.run, "needle", ["answer_nll_nats", "hit_frac"], steps, tags)
        if curve is None or values is None:
            return None
        (nll_IW, hit_IW), stratum_I = values[0].values(), values[1]
        weight_RI = weights(stratum_I)
        hit_RW, nll_RW = null_hits(hit_given_nll(nll_IW, hit_IW), weight_RI), weight_RI @ nll_IW
        kept_R = (hit_RW >= CEILING).any(1)
        found.append(_log_fold(nll_RW[kept_R], np.argmax(hit_RW[kept_R] >= CEILING, axis=1)))
    size = min(map(len, found))
    return np.mean([draws_R[:size] for draws_R in found], axis=0) if size else None


def _moved(seeds: Sequence[Orders], metric: str) -> Estimate | None:
    """Estimate the change of a retrieval-head metric from first to last window, over seeds."""
    curves = curves_of_seeds(seeds, "heads", metric, {})
    if curves is None:
        return None
    gains = [float(curve.value_W[-1] - curve.value_W[0]) for curve in curves]
    return over(gains, [drawn(curve)[:, -1] - drawn(curve)[:, 0] for curve in curves])


def _floor(seeds: Sequence[Orders], starts: Sequence[int]) -> float | None:
    """Bound the change of the probe's gain from these windows on by data order alone; None without repeats."""
    gains: dict[int, list[float]] = {}
    for number_, (orders, start) in enumerate(zip(seeds, starts, strict=True)):
        curves = [each.curve("probe", "exact_match_frac") for each in orders]
        gains[number_] = [float(c.value_W[-1] - c.value_W[start]) for c in curves if c is not None]
    scatter = noise(gains.values())
    return None if scatter is None else scatter.floor(gains)


def _unreached(hits: Sequence[Curve]) -> str:
    """Describe the seeds whose hit never reaches the ceiling, with the highest value; "" if all reach it."""
    highest = [float(hit.value_W.max()) for hit in hits if at_ceiling(hit.value_W) is None]
    if not highest:
        return ""
    return f"in {len(highest)} of {len(hits)} seeds the hit never reaches {CEILING} (at most {number(max(highest))})"


def _seeds_to_tell(found: Estimate, bound: float, seeds: int, form: Callable[[float], str] = number) -> str:
    """Compute how many seeds with the same scatter would separate this estimate from a bound."""
    if found.low is None or found.high is None or seeds < 2:
        return "More seeds would decide."
    scatter = (found.high - found.low) / 2 * sqrt(seeds) / student.ppf(0.975, seeds - 1)
    for more in range(seeds + 1, MANY):
        if student.ppf(0.975, more - 1) * scatter / sqrt(more) < abs(found.value - bound):
            return f"{more} seeds with the same scatter would separate it from {form(bound)}."
    return f"Even {MANY} seeds with the same scatter would not separate it from {form(bound)}."


def _ends(rows: Sequence[pd.DataFrame]) -> tuple[int, int]:
    """Return the first and last step of the records."""
    return int(rows[0].step.min()), int(rows[0].step.max())


def _exp(of_log: Estimate) -> Estimate:
    """Convert the estimate of a logarithm to that of the factor."""
    low, high = (None if end is None else float(np.exp(end)) for end in (of_log.low, of_log.high))
    return Estimate(float(np.exp(of_log.value)), low, high)


def _each(values: Sequence[float] | Array, form: Callable[[float], str]) -> str:
    return ", ".join(form(float(value)) for value in values)


def _share(value: float) -> str:
    return percent(value, 1) if np.isfinite(value) else "no window"
