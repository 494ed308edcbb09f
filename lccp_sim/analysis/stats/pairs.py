"""The monitors and the probe of a run, aligned at the windows that they share.

The probe is measured at fewer windows than the monitors, so every comparison first finds the windows of both. Design
note: "after the hit" starts at the first window where the mean hit is at least 0.95; one window suffices. In a run that
never gets there it starts at the hit's t95, although that is not a ceiling.

Correlations are computed within runs and pooled over runs: each run's own mean (and, optionally, its own trend in log
tokens) is removed before products are summed, because a run that is better throughout says nothing about windows.
Windows are resampled in short blocks, which keep neighbours together but not a trend longer than a block. So the
interval of a coefficient that contains the trend is about this trend, not about anything else that the two series
share.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lccp_sim.analysis.metrics import groups, shown
from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.curve import Curve, Estimate, curves, probe_tags
from lccp_sim.analysis.stats.estimate import RESAMPLES, Array
from lccp_sim.analysis.stats.saturation import progress

CEILING = 0.95
HIT, NLL = "needle/hit_frac", "needle/answer_nll_nats"
SECOND_MONITORS = tuple(dict.fromkeys(each.monitor for each in shown("beside")))
TARGETS = tuple(each.name for each in shown("target"))
PAIR_KINDS = ("level", "differences", "partial", "after_hit")
MIN_POINTS = 4
Name = str  # "monitor/metric", "probe/metric" or "probe/metric/task"


@dataclass(frozen=True)
class Shared:
    """Curves at their common windows, by name; `kept_W`: the indices of these windows in each curve."""

    tokens_W: Array
    value_W: dict[Name, Array]
    kept_W: dict[Name, npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Aligned:
    """Values [W] and resamples over items [R or 1, W] of curves, in the requested order; the trend to partial out."""

    values: list[Array]
    draws: list[Array]
    trend_W: Array | None


@dataclass(frozen=True)
class Panel:
    """One run's curves by name. `first` is its first window after step 0, in tokens.

    `after`: where "after the hit" starts, in tokens. `rule`: the rule that placed it, or why there is no such place.
    """

    path: Path
    run: str
    curves: dict[Name, Curve] = field(repr=False)
    first: float
    after: float | None
    rule: str

    def shared(self, *names: Name) -> Shared | None:
        """Return the curves `names` at the windows that all share; None if a curve or a shared window is missing."""
        if not set(names) <= set(self.curves):
            return None
        chosen = [self.curves[name] for name in names]
        tokens_W = reduce(np.intersect1d, [curve.tokens_W for curve in chosen])
        if not len(tokens_W):
            return None
        kept = [np.isin(curve.tokens_W, tokens_W) for curve in chosen]
        value_W = {name: curve.value_W[at_W] for name, curve, at_W in zip(names, chosen, kept, strict=True)}
        return Shared(tokens_W, value_W, dict(zip(names, kept, strict=True)))

    def aligned(self, kind: str, *names: Name, items: bool = False) -> Aligned | None:
        """Return the curves `names` prepared for `kind`; None if they share no window, or if it needs `after` in vain.

        `level`: values. `differences`: slopes between windows in log tokens, so that a straight line in log tokens has
        constant slopes wherever the windows lie. `partial`: values, with log tokens as their trend. `after_hit`: values
        from `after` on. `items`: with resamples over items, if there are any. Raises ValueError for another kind.
        """
        if kind not in PAIR_KINDS:
            raise ValueError(f"aligned: kind {kind!r} is not one of {', '.join(PAIR_KINDS)}")
        shared = self.shared(*names)
        if shared is None or (kind == "after_hit" and self.after is None):
            return None
        log_W = self.log_tokens(shared.tokens_W)
        values = [shared.value_W[name] for name in names]
        draws = [value[None] for value in values]
        if items:
            found = {name: self.curves[name].draws_RW for name in names}
            draws = [
                d if (r := found[n]) is None else r[:, shared.kept_W[n]] for n, d in zip(names, draws, strict=True)
            ]
        if kind == "differences":
            values, draws = ([np.diff(value) / np.diff(log_W) for value in each] for each in (values, draws))
        if kind == "after_hit" and self.after is not None:
            later_W = shared.tokens_W >= self.after
            values, draws = ([value[..., later_W] for value in each] for each in (values, draws))
            log_W = log_W[later_W]
        return Aligned(values, draws, log_W if kind == "partial" else None)

    def log_tokens(self, tokens_W: Array) -> Array:
        """Compute ln(tokens + first window after step 0), the scale of t95."""
        return np.log(tokens_W + self.first)


def gather(runs: Sequence[RunData | Panel], seed: int = 0, by_task: bool = True) -> list[Panel]:
    """Build one panel per run. A run that is given twice is one observation and is used once. `seed`: of the resamples.

    The probe is taken after its last fine-tuning step. `by_task`: include its tasks. Monitors are resampled separately
    from each other and from the probe, which has different items. Panels pass through unchanged, so that several
    analyses can share the result of `gather`.
    """
    distinct = {run.path.resolve() if isinstance(run, RunData) else run.path: run for run in runs}
    return [run if isinstance(run, Panel) else _panel(run, seed, by_task) for run in distinct.values()]


def at_ceiling(hit_W: Array) -> int | None:
    """Return the first window at which a hit, or a bound of it, is at the ceiling; None if there is none."""
    reached = np.flatnonzero(hit_W >= CEILING)
    return int(reached[0]) if len(reached) else None


def monitors(panels: Sequence[Panel]) -> list[Name]:
    """Return the monitors' metrics that some run has, in the order of the catalogue."""
    return [each.key for each in shown("beside") if any(each.key in panel.curves for panel in panels)]


def targets(panels: Sequence[Panel]) -> list[tuple[str, str | None]]:
    """Return the (metric, task) pairs of the probe that some run has; task None is the overall probe."""
    return [
        (metric, task)
        for metric in TARGETS
        if any(f"probe/{metric}" in panel.curves for panel in panels)
        for task in (None, *tasks(panels, metric))
    ]


def target_name(metric: str, task: str | None) -> Name:
    """The name of a target's curve: of the probe, unless `metric` names a monitor, too."""
    return (metric if "/" in metric else f"probe/{metric}") + (f"/{task}" if task else "")


def tasks(panels: Sequence[Panel], metric: str) -> list[str]:
    """Return the probe's tasks for which some run has `metric`, sorted."""
    start = f"probe/{metric}/"
    return sorted({name.removeprefix(start) for panel in panels for name in panel.curves if name.startswith(start)})


def _panel(run: RunData, seed: int, by_task: bool) -> Panel:
    found: dict[Name, Curve] = {}
    for number, monitor in enumerate(SECOND_MONITORS):
        alone = [(each.name,) for each in shown("beside", monitor)]  # a gap in one must not affect another
        for group in groups("beside", monitor) if monitor == "heads" else alone:
            for metric, curve in curves(run, monitor, group, {}, seed=seed + number).items():
                found[f"{monitor}/{metric}"] = curve
    for metric in TARGETS:
        tags = probe_tags(run, metric)
        for curve in curves(run, "probe", (metric,), tags, seed=seed + len(SECOND_MONITORS)).values():
            found[f"probe/{metric}"] = curve
        if tags and by_task:
            rows = run.select("probe", metric, "task", **tags)
            for task in sorted(set(rows.task)) if len(rows) else ():
                only = curves(run, "probe", (metric,), tags | {"task": str(task)}, seed=seed + len(SECOND_MONITORS))
                found[f"probe/{metric}/{task}"] = only[metric]
    later = [float(t) for curve in found.values() for t in curve.tokens_W if t > 0]
    return Panel(run.path.resolve(), run.name, found, min(later, default=1.0), *_after(found.get(HIT)))


def _after(hit: Curve | None) -> tuple[float | None, str]:
    if hit is None:
        return None, "no needle records"
    reached = at_ceiling(hit.value_W)
    if reached is not None:
        return float(hit.tokens_W[reached]), f"hit >= {CEILING}"
    row = progress(hit)
    if row.t95 is None:
        return None, f"the hit never reaches {CEILING} and has no t95 ({row.reason})"
    return row.t95.value, f"t95 of the hit, which never reaches {CEILING}"


LARGEST_R = 1 - 1e-9  # a larger |r| counts as 1
PERCENTS = (2.5, 97.5)
RESIDUE = 1e-18  # a sum of squares below this share of its terms is rounding error


@dataclass(frozen=True)
class Points:
    """Two series of one run with W points; `trend_W` is partialled out of both unless it is None.

    `x_RW`, `y_RW`: their resamples over items, or the values themselves, [1, W], if there are none.
    """

    x_W: Array
    y_W: Array
    x_RW: Array
    y_RW: Array
    trend_W: Array | None = None

    @property
    def spare(self) -> int:
        """The number of points beyond those that the run's mean and trend use up."""
        return len(self.x_W) - (1 if self.trend_W is None else 2)


def pooled_correlation(runs: Sequence[Points], ranked: bool) -> float:
    """Correlate x with y within runs; nan if one of them does not vary. `ranked`: use ranks within runs."""
    products = [_products(p.x_W[None], p.y_W[None], _row(p.trend_W), ranked) for p in runs]
    return float(_r(np.sum(products, axis=0))[0])


def varies(runs: Sequence[Points], ranked: bool) -> tuple[bool, bool]:
    """Whether x, and whether y, varies within some run, beyond its trend if one is removed."""
    products = [_products(p.x_W[None], p.y_W[None], _row(p.trend_W), ranked) for p in runs]
    xx, yy, _ = np.sum(products, axis=0)[:, 0]
    return bool(xx > 0), bool(yy > 0)


def degrees(runs: Sequence[Points]) -> int:
    """Return the degrees of freedom of the pooled correlation: n - 2 for one run without a trend."""
    return sum(points.spare for points in runs) - 1


def pooled_interval(runs: Sequence[Points], ranked: bool, seed: int = 0) -> Estimate:
    """Compute the pooled correlation with its bootstrap interval; no interval if it is 1 or -1.

    This is a nested bootstrap. Each resample draws runs with replacement, then blocks of about W^(1/3) windows within
    each run, and one of the run's resamples of items. Fisher's z of the resamples is shifted to that of the estimate
    before its 95 % range is taken, because resampling adds item noise to values that already have it and so pulls
    correlations towards 0. Resamples in which a series does not vary are left out. Source: moving blocks, Kuensch 1989
    (Ann. Stat. 17); nesting, Davison and Hinkley 1997 sec. 3.8; the shift is our own.
    """
    value = pooled_correlation(runs, ranked)
    rng = np.random.default_rng(seed)
    product_KPR = np.stack([_resampled(points, ranked, rng) for points in runs])
    run_SR, row_SR = (
        rng.integers(len(runs), size=(len(runs), RESAMPLES)),
        rng.integers(RESAMPLES, size=(len(runs), RESAMPLES)),
    )
    if len(runs) == 1:
        row_SR = np.arange(RESAMPLES)[None]
    z_R = np.arctanh(_r(product_KPR[run_SR, :, row_SR].sum(0).T).clip(-LARGEST_R, LARGEST_R))
    z_R = z_R[np.isfinite(z_R)]
    if not z_R.size or abs(value) >= LARGEST_R:
        return Estimate(value)
    low, high = np.tanh(np.arctanh(value) + np.percentile(z_R - np.median(z_R), PERCENTS))
    return Estimate(value, float(low), float(high))


def block(windows: int) -> int:
    """Return the block length in windows: the rounded cube root of their number (Hall et al. 1995, Biometrika 82)."""
    return max(1, round(windows ** (1 / 3)))


def ranks(value_RW: Array) -> Array:
    """Rank values [R, W] within each row, from 0; ties share their mean rank."""
    other_R1W, own_RW1 = value_RW[:, None, :], value_RW[:, :, None]
    return (other_R1W < own_RW1).sum(-1) + ((other_R1W == own_RW1).sum(-1) - 1) / 2


def _resampled(points: Points, ranked: bool, rng: np.random.Generator) -> Array:
    window_RW = _blocks(len(points.x_W), rng)
    x_RW, y_RW = (
        np.take_along_axis(np.broadcast_to(value_RW, window_RW.shape), window_RW, axis=1)
        for value_RW in (points.x_RW, points.y_RW)
    )
    trend_RW = None if points.trend_W is None else points.trend_W[window_RW]
    return _products(x_RW, y_RW, trend_RW, ranked)


def _blocks(windows: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    length = block(windows)
    start_RB = rng.integers(windows - length + 1, size=(RESAMPLES, math.ceil(windows / length)))
    return (start_RB[:, :, None] + np.arange(length)).reshape(RESAMPLES, -1)[:, :windows]


def _products(x_RW: Array, y_RW: Array, trend_RW: Array | None, ranked: bool) -> Array:
    """Compute sums [3, R] of x x, y y and x y, after removing the mean and the trend from each row."""
    if ranked:
        x_RW, y_RW = ranks(x_RW), ranks(y_RW)
        trend_RW = None if trend_RW is None else ranks(trend_RW)
    (x_RW, y_RW), trend_RW = (_centred(x_RW), _centred(y_RW)), None if trend_RW is None else _centred(trend_RW)
    if trend_RW is not None:
        x_RW, y_RW = _detrended(x_RW, trend_RW), _detrended(y_RW, trend_RW)
    return np.stack([(x_RW**2).sum(1), (y_RW**2).sum(1), (x_RW * y_RW).sum(1)])


def _centred(value_RW: Array) -> Array:
    less_RW = value_RW - value_RW.mean(1, keepdims=True)
    return np.where((less_RW**2).sum(1, keepdims=True) <= RESIDUE * (value_RW**2).sum(1, keepdims=True), 0, less_RW)


def _detrended(value_RW: Array, trend_RW: Array) -> Array:
    square_R1 = (trend_RW**2).sum(1, keepdims=True)
    slope_R1 = (value_RW * trend_RW).sum(1, keepdims=True) / np.where(square_R1 > 0, square_R1, 1)
    less_RW = value_RW - slope_R1 * trend_RW
    return np.where((less_RW**2).sum(1, keepdims=True) <= RESIDUE * (value_RW**2).sum(1, keepdims=True), 0, less_RW)


def _r(product_PR: Array) -> Array:
    xx_R, yy_R, xy_R = product_PR
    scale_R = np.sqrt(xx_R * yy_R)
    return np.divide(xy_R, scale_R, out=np.full(xx_R.shape, np.nan), where=scale_R > 0).clip(-1, 1)


def _row(value_W: Array | None) -> Array | None:
    return None if value_W is None else value_W[None]
