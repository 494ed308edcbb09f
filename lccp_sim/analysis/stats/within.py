"""Correlations inside runs, pooled over runs, and their bootstrap.

Each run's own mean (and, where asked, its own trend in log tokens) is removed before products are added up over runs:
a run that is better throughout says nothing about windows. Questionable: windows are resampled in short blocks, which
keeps neighbours together but knows nothing of a trend longer than a block, so an interval of a coefficient that still
has the trend in it is about this trend, not about what the two series have in common besides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lccp_sim.analysis.stats.curve import Estimate
from lccp_sim.analysis.stats.estimate import RESAMPLES, Array

MOST = 1 - 1e-9  # a larger |r| counts as 1
PERCENTS = (2.5, 97.5)
TINY = 1e-18  # a sum of squares below this share of what it was made of is rounding
Index = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Points:
    """Two series of one run, of W points; `trend_W` is partialled out of both unless it is None.

    `x_RW` and `y_RW` are their resamples over items, or the values themselves, [1, W], where there are none.
    """

    x_W: Array
    y_W: Array
    x_RW: Array
    y_RW: Array
    trend_W: Array | None = None

    @property
    def spare(self) -> int:
        """Points beyond those that the run's mean and trend use up."""
        return len(self.x_W) - (1 if self.trend_W is None else 2)


def pooled(runs: Sequence[Points], ranked: bool) -> float:
    """The correlation of x with y inside runs; nan where one of them does not vary. `ranked`: of ranks inside runs."""
    products = [_products(p.x_W[None], p.y_W[None], _row(p.trend_W), ranked) for p in runs]
    return float(_r(np.sum(products, axis=0))[0])


def varies(runs: Sequence[Points], ranked: bool) -> tuple[bool, bool]:
    """Whether x, and whether y, varies inside some run, beyond its trend where one is taken out."""
    products = [_products(p.x_W[None], p.y_W[None], _row(p.trend_W), ranked) for p in runs]
    xx, yy, _ = np.sum(products, axis=0)[:, 0]
    return bool(xx > 0), bool(yy > 0)


def degrees(runs: Sequence[Points]) -> int:
    """Degrees of freedom of the pooled correlation: n - 2 for one run without a trend."""
    return sum(points.spare for points in runs) - 1


def interval(runs: Sequence[Points], ranked: bool, seed: int = 0) -> Estimate:
    """The pooled correlation with its bootstrap interval; none where it is 1 or -1.

    In each resample: as many runs as there are, with replacement; in each of these, blocks of about cube root of W
    windows; and one of the run's resamples of items. Fisher's z of the resamples is shifted onto that of the estimate
    before its 95 % range is taken: noise of items is added to what has it already, so that resamples lie too near 0.
    Resamples in which a series does not vary are left out. Source: moving blocks, Kuensch 1989 (Ann. Stat. 17);
    nesting, Davison and Hinkley 1997 sec. 3.8; the shift is ours.
    """
    value = pooled(runs, ranked)
    rng = np.random.default_rng(seed)
    product_KPR = np.stack([_resampled(points, ranked, rng) for points in runs])
    run_SR, row_SR = (
        rng.integers(len(runs), size=(len(runs), RESAMPLES)),
        rng.integers(RESAMPLES, size=(len(runs), RESAMPLES)),
    )
    if len(runs) == 1:
        row_SR = np.arange(RESAMPLES)[None]
    z_R = np.arctanh(_r(product_KPR[run_SR, :, row_SR].sum(0).T).clip(-MOST, MOST))
    z_R = z_R[np.isfinite(z_R)]
    if not z_R.size or abs(value) >= MOST:
        return Estimate(value)
    low, high = np.tanh(np.arctanh(value) + np.percentile(z_R - np.median(z_R), PERCENTS))
    return Estimate(value, float(low), float(high))


def block(windows: int) -> int:
    """Windows in a block: the cube root of their number, rounded (Hall, Horowitz and Jing 1995, Biometrika 82)."""
    return max(1, round(windows ** (1 / 3)))


def ranks(value_RW: Array) -> Array:
    """Ranks [R, W] inside each row, from 0; equal values share the mean of theirs."""
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


def _blocks(windows: int, rng: np.random.Generator) -> Index:
    length = block(windows)
    start_RB = rng.integers(windows - length + 1, size=(RESAMPLES, math.ceil(windows / length)))
    return (start_RB[:, :, None] + np.arange(length)).reshape(RESAMPLES, -1)[:, :windows]


def _products(x_RW: Array, y_RW: Array, trend_RW: Array | None, ranked: bool) -> Array:
    """Sums [3, R] of x x, y y and x y, after the mean and the trend were taken out of each row."""
    if ranked:
        x_RW, y_RW = ranks(x_RW), ranks(y_RW)
        trend_RW = None if trend_RW is None else ranks(trend_RW)
    (x_RW, y_RW), trend_RW = (_centred(x_RW), _centred(y_RW)), None if trend_RW is None else _centred(trend_RW)
    if trend_RW is not None:
        x_RW, y_RW = _detrended(x_RW, trend_RW), _detrended(y_RW, trend_RW)
    return np.stack([(x_RW**2).sum(1), (y_RW**2).sum(1), (x_RW * y_RW).sum(1)])


def _centred(value_RW: Array) -> Array:
    less_RW = value_RW - value_RW.mean(1, keepdims=True)
    return np.where((less_RW**2).sum(1, keepdims=True) <= TINY * (value_RW**2).sum(1, keepdims=True), 0, less_RW)


def _detrended(value_RW: Array, trend_RW: Array) -> Array:
    square_R1 = (trend_RW**2).sum(1, keepdims=True)
    slope_R1 = (value_RW * trend_RW).sum(1, keepdims=True) / np.where(square_R1 > 0, square_R1, 1)
    less_RW = value_RW - slope_R1 * trend_RW
    return np.where((less_RW**2).sum(1, keepdims=True) <= TINY * (value_RW**2).sum(1, keepdims=True), 0, less_RW)


def _r(product_PR: Array) -> Array:
    xx_R, yy_R, xy_R = product_PR
    scale_R = np.sqrt(xx_R * yy_R)
    return np.divide(xy_R, scale_R, out=np.full(xx_R.shape, np.nan), where=scale_R > 0).clip(-1, 1)


def _row(value_W: Array | None) -> Array | None:
    return None if value_W is None else value_W[None]
