"""Tests for deceptive saturation: is the gap larger than thresholding alone produces, and does it predict the probe?

The index t95(late) / t95(hit) of arXiv 2604.02650 is above 1 for any thresholded statistic of a steep enough curve. So
it is compared with the same index of hits that are derived from the items' NLL. Design note: the p value tests whether
the hit levels off earlier than one function of NLL allows, not whether the NLL continues to fall. The fold change
measures that, and the decisive test is whether the NLL after the hit predicts the probe in another run.

A hit is a threshold on an item's NLL, so its mean levels off early by construction. The null hypothesis is that the
item's NLL determines the hit: P(hit | NLL) is one decreasing function, the same for all items and windows, fitted by
isotonic regression to all item-windows. It contains a threshold and every monotone link. If each item has its own
threshold, in proportion to its own level, this null is rejected although every hit is a threshold. So the same null is
also tested on `own_scale`. That test rarely rejects, because a hit that appears once and stays is always monotone in
its item's own NLL.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import binomtest

from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.curve import LEVEL, Absent, Curve, Estimate, curves, probe_tags
from lccp_sim.analysis.stats.estimate import Array, item_values, weights
from lccp_sim.analysis.stats.pairs import CEILING, NLL, TARGETS, at_ceiling, gather
from lccp_sim.analysis.stats.prediction import Prediction, predict
from lccp_sim.analysis.stats.saturation import isotonic, progress, tokens_to
from lccp_sim.records import Tag


def hit_given_nll(nll_IW: Array, hit_IW: Array) -> Array:
    """Fit P(hit | NLL) [I, W] at each item and window, a decreasing function of NLL, to the hits by least squares.

    Source: Barlow et al. 1972, isotonic regression, in scipy; its overall mean equals that of the hits.
    """
    _, place, count = np.unique(nll_IW.ravel(), return_inverse=True, return_counts=True)
    mean = np.bincount(place, hit_IW.ravel()) / count
    fitted = isotonic_regression(mean, weights=count, increasing=False).x
    return np.clip(fitted, 0, 1)[place].reshape(nll_IW.shape)


def own_scale(nll_IW: Array) -> Array:
    """Subtract from log NLL [I, W] its mean over the item's windows; an NLL of 0 becomes the least positive float."""
    log_IW = np.log(np.maximum(nll_IW, np.finfo(float).tiny))
    return log_IW - log_IW.mean(1, keepdims=True)


def null_hits(hit_given_IW: Array, weight_RI: Array, seed: int = 0) -> Array:
    """Draw mean hits [R, W] under the null, each resample with new hits of its own resample of items.

    An item keeps one uniform number throughout the run, and hits if it is below P(hit | NLL): its threshold is fixed.
    """
    uniform_RI = np.random.default_rng([seed, 1]).random(weight_RI.shape)
    return np.stack([(weight_RI * (uniform_RI < p_I)).sum(1) for p_I in hit_given_IW.T], axis=1)


def t95_of(tokens_W: Array, value_RW: Array, rising: bool) -> Array:
    """Return the tokens [R] to 95 % of the improvement of each resampled curve, nan if it does not improve."""
    return np.array([tokens_to(tokens_W, isotonic(value_W, rising)) for value_W in value_RW])


SIGNIFICANCE = 0.05
RULES = ("mean", "wilson")
LATE = (NLL, *(f"probe/{target}" for target in TARGETS))


@dataclass(frozen=True)
class Index:
    """The index t95(`late`) / t95(hit), with its null distributions.

    `null`: the index of hits derived from the NLL (median and 95 % range of the draws). `p`: share of these draws that
    reach the observed index, one-sided. `null_own` and `p_own`: with hits derived from the NLL relative to the item's
    own level, so that thresholds may differ between items. `exceeds`: whether both p are below 0.05. `excess`: observed
    over `null` on the same resampled items, median and 95 % range. These are None if `reason` is given. Only the index
    needs no samples.
    """

    late: str
    index: Estimate | None
    null: Estimate | None
    p: float | None
    null_own: Estimate | None
    p_own: float | None
    exceeds: bool | None
    excess: Estimate | None
    reason: Absent | None


@dataclass(frozen=True)
class Ceiling:
    """The answer NLL at the first window where the hit reaches 0.95, compared with that at the end.

    `fold`: their ratio; `nats`: their difference. `rule` "mean": the mean hit reaches 0.95; "wilson": the lower bound
    of its 95 % Wilson interval over items does. The window, at `tokens`, is treated as given: intervals are over items.
    Numbers are None if `reason` is given.
    """

    rule: str
    tokens: int | None
    fold: Estimate | None
    nats: Estimate | None
    reason: Absent | None


@dataclass(frozen=True)
class DeceptiveRun:
    """The results of one run: `items` (with samples at every window) and `windows` of the hit, indices, ceilings."""

    run: str
    items: int
    windows: int
    indices: tuple[Index, ...]
    ceilings: tuple[Ceiling, ...]


@dataclass(frozen=True)
class Deceptive:
    """The results of each run, and `predictions`: does the NLL after the hit predict each target in left-out runs?"""

    tags: Mapping[str, Tag]
    runs: tuple[DeceptiveRun, ...]
    predictions: tuple[Prediction, ...]


def deceptive(runs: RunData | Sequence[RunData], tags: Mapping[str, Tag] | None = None, seed: int = 0) -> Deceptive:
    """Compute index, null and ceilings of each run, for needles with `tags` ({}: overall), and the predictions.

    Predictions are overall, whatever `tags`. Missing records do not raise: each part gives its reason. Source:
    arXiv 2604.02650 sec. 5 for the claim; index, null and tests are our own.
    """
    tags = dict(tags or {})
    several = [runs] if isinstance(runs, RunData) else list(runs)
    distinct = list({run.path.resolve(): run for run in several}.values())
    panels = gather(distinct, seed, by_task=False)
    predictions = tuple(predict(panels, target, None, NLL, after_hit=True) for target in TARGETS)
    return Deceptive(tags, tuple(_one(run, tags, seed) for run in distinct), predictions)


def _one(run: RunData, tags: Mapping[str, Tag], seed: int) -> DeceptiveRun:
    both = curves(run, "needle", ("hit_frac", "answer_nll_nats"), tags, seed)
    if len(both) < 2:
        reason = Absent("no needle records with these tags")
        indices = tuple(_no_index(name, reason) for name in LATE)
        return DeceptiveRun(run.name, 0, 0, indices, tuple(Ceiling(rule, None, None, None, reason) for rule in RULES))
    hit, nll = both["hit_frac"], both["answer_nll_nats"]
    late = {NLL: nll}
    for target in TARGETS:
        found = curves(run, "probe", (target,), probe_tags(run, target), seed + 1)
        late |= {f"probe/{target}": curve for curve in found.values()}
    steps = [set(run.select("needle", metric, **tags).step) for metric in both]
    values = item_values(run, "needle", list(both), sorted(set.intersection(*steps)), tags)
    drawn, items = None, 0
    if values is not None:
        by_metric, stratum_I = values
        nll_IW, hit_IW = by_metric["answer_nll_nats"], by_metric["hit_frac"]
        items, weight_RI = len(stratum_I), weights(stratum_I, seed=seed)
        means = [weight_RI @ hit_IW]
        means += [null_hits(hit_given_nll(x_IW, hit_IW), weight_RI, seed) for x_IW in (nll_IW, own_scale(nll_IW))]
        drawn = tuple(t95_of(hit.tokens_W, mean_RW, rising=True) for mean_RW in means)
    indices = tuple(_index(name, late.get(name), hit, drawn) for name in LATE)
    ceilings = tuple(_ceiling(rule, hit, nll) for rule in RULES)
    return DeceptiveRun(run.name, items, len(hit.tokens_W), indices, ceilings)


def _index(name: str, late: Curve | None, hit: Curve, drawn: tuple[Array, ...] | None) -> Index:
    """Compute one index. `drawn`: t95 [R] of resampled hits, of derived hits, and of hits derived on the own scale."""
    if late is None:
        return _no_index(name, Absent("not recorded", of=(name,)))
    first, last = progress(hit), progress(late)
    if first.t95 is None or last.t95 is None:
        which, row = ("hit", first) if first.t95 is None else (name, last)
        return _no_index(name, Absent("no t95", str(row.reason), of=(which,)))
    draws_R = None
    if first.t95.draws is not None and last.t95.draws is not None:
        draws_R = last.t95.draws / first.t95.draws
    index = Estimate.of(last.t95.value / first.t95.value, draws_R)
    found = replace(
        _no_index(name, Absent("no samples of the needle at every window")), index=replace(index, draws=None)
    )
    if drawn is None or late.draws_RW is None:
        return found
    hit_R, null_R, own_R = drawn
    late_R = t95_of(late.tokens_W, late.draws_RW, late.rising)
    null, p = _against(index.value, late_R / null_R)
    null_own, p_own = _against(index.value, late_R / own_R)
    if null is None or null_own is None or p is None or p_own is None:
        return replace(found, reason=Absent("hits derived from the NLL do not improve"))
    excess = _spread(np.round(null_R / hit_R, 9))  # exactly 1 if derived hits equal the observed ones
    return Index(
        late=name,
        index=found.index,
        null=null,
        p=p,
        null_own=null_own,
        p_own=p_own,
        exceeds=max(p, p_own) < SIGNIFICANCE,
        excess=excess,
        reason=None,
    )


def _against(index: float, null_R: Array) -> tuple[Estimate | None, float | None]:
    """Return the spread of an index under a null, and the one-sided p value of the observed index."""
    null_R = null_R[np.isfinite(null_R)]
    if not null_R.size:
        return None, None
    return _spread(null_R), (1 + int((null_R >= index).sum())) / (1 + null_R.size)


def _spread(draws_R: Array) -> Estimate | None:
    """Return the median and plain 95 % range of draws: there is no estimate whose bias could be corrected."""
    draws_R = draws_R[np.isfinite(draws_R)]
    if not draws_R.size:
        return None
    middle, low, high = np.percentile(draws_R, [50, 2.5, 97.5])
    return Estimate(float(middle), float(low), float(high))


def _no_index(name: str, reason: Absent) -> Index:
    return Index(name, *(None,) * 7, reason)


def wilson_low(share: float, items: int) -> float:
    """Compute the lower bound of the 95 % Wilson interval of a share of 0/1 items."""
    return float(binomtest(round(share * items), items).proportion_ci(LEVEL, method="wilson").low)


def _ceiling(rule: str, hit: Curve, nll: Curve) -> Ceiling:
    lower_W = hit.value_W
    if rule == "wilson":
        lower_W = np.array([wilson_low(share, hit.n) for share in hit.value_W])
    place = at_ceiling(lower_W)
    none = Ceiling(rule, None, None, None, None)
    if place is None:
        best = f"the hit's {'mean' if rule == 'mean' else 'lower bound'}"
        few = rule == "wilson" and wilson_low(1.0, hit.n) < CEILING
        detail = f"{hit.n} items are too few" if few else f"{lower_W.max():.3g} at most"
        return replace(none, reason=Absent(f"never reaches {CEILING}", detail, of=(best,)))
    none = replace(none, tokens=int(hit.tokens_W[place]))
    if place == len(hit.tokens_W) - 1:
        return replace(none, reason=Absent("reached at the last window only"))
    if nll.value_W[-1] <= 0:
        return replace(none, reason=Absent("the NLL ends at 0"))
    at, end = nll.value_W[place], nll.value_W[-1]
    fold_R = nats_R = None
    if nll.draws_RW is not None:
        end_R = np.where(nll.draws_RW[:, -1] > 0, nll.draws_RW[:, -1], np.nan)
        fold_R, nats_R = nll.draws_RW[:, place] / end_R, nll.draws_RW[:, place] - end_R
    fold, nats = Estimate.of(at / end, fold_R), Estimate.of(at - end, nats_R)
    return replace(none, fold=replace(fold, draws=None), nats=replace(nats, draws=None))
