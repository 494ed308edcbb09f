"""The point at which a metric has made most of its own improvement, and the later gain of another metric.

t95 is the number of tokens to 95 % of *this run's own* improvement, read from an isotonic fit; t50 and t90 likewise.
None of them is a point of saturation: a curve that keeps improving has a later t95 in a longer run, and the t95 of the
same curve depends on its scale (nats or log nats). So it is reported with the run length, the last doubling of tokens,
and what a curve of the other metric's shape would show. Design note: intervals include the scatter of checkpoints about
a smooth law, so a curve that follows no law gets wide intervals.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from lccp_sim.analysis.stats.curve import Absent, Curve, Estimate
from lccp_sim.analysis.stats.estimate import Array
from lccp_sim.analysis.stats.laws import LAW_WINDOWS, scattered
from lccp_sim.records import Tag

FRACS = (0.5, 0.9, 0.95)
FRAC = FRACS[-1]
FEW_POINTS = "not enough points"


@dataclass(frozen=True)
class Progress:
    """How a metric changed in a run. Tokens are this run's; `improvement` is positive if the metric got better.

    `t50`, `t90`, `t95`: tokens to 50, 90, 95 % of this run's own improvement, None if `reason` is given. `bracket`: the
    windows around t95; the curve between them was not measured. `last_doubling`: the improvement from half of the run's
    tokens to its end; None with too few windows.
    """

    monitor: str
    metric: str
    tags: Mapping[str, Tag]
    windows: int
    run_tokens: int
    first: float
    last: float
    improvement: Estimate
    last_doubling: Estimate | None
    t50: Estimate | None
    t90: Estimate | None
    t95: Estimate | None
    bracket: tuple[int, int] | None
    reason: Absent | None
    interval: str
    n: int


@dataclass(frozen=True)
class Lag:
    """The gain of `late` (answer NLL) after the t95 of `early` (hit); None if there is nothing to compare.

    `factor`: late at early's t95 divided by late at the end; `nats`: their difference. `same_shape`: the factor if late
    had exactly early's shape, 1 + (1 - .95) (first / last - 1). `index`: t95(late) / t95(early), the deceptive index;
    `index_log`: the same with late on a log scale.
    """

    factor: Estimate
    nats: Estimate
    same_shape: Estimate
    index: Estimate | None
    index_log: Estimate | None


def isotonic(value_W: Array, rising: bool) -> Array:
    """Fit the monotone curve [W] closest to `value_W` by least squares, with equal weights of windows.

    Source: Barlow et al. 1972, pool adjacent violators, by scipy.optimize.isotonic_regression.
    """
    return isotonic_regression(value_W, increasing=rising).x


def tokens_to(tokens_W: Array, fit_W: Array, frac: float = FRAC) -> float:
    """Find the tokens at which a monotone curve has covered `frac` of its change; nan if it is constant.

    Linear in `axis` between windows. The curve between two windows was not measured: see Progress.bracket.
    """
    way_W = np.abs(fit_W - fit_W[0])
    if way_W[-1] == 0:
        return float("nan")
    right = int(np.argmax(way_W >= frac * way_W[-1]))
    share = (frac * way_W[-1] - way_W[right - 1]) / (way_W[right] - way_W[right - 1])
    left, right = axis(tokens_W, tokens_W[right - 1 : right + 1])
    return float(np.exp(left + share * (right - left)) - tokens_W[1])


def axis(tokens_W: Array, tokens: Any) -> Any:
    """Compute ln(tokens + first window after step 0), the scale for interpolation between windows.

    Windows lie on a logarithmic grid and losses fall about linearly in log tokens (arXiv 2604.02650 sec. 7.1); linear
    interpolation in tokens would place t95 of such a curve 1-2 % late. The offset allows for step 0.
    """
    return np.log(tokens + tokens_W[1])


def tokens_reached(curve: Curve) -> list[Estimate]:
    """Find the tokens to each share FRACS of the curve's own improvement, with intervals; nan if it did not improve.

    The resamples are the curve's own; see `scattered` for what they should include in addition to items. Between step 0
    and the next window nothing was measured, so an estimate there has an interval that covers at least this stretch.
    """
    fit_W = isotonic(curve.value_W, curve.rising)
    fits = [] if curve.draws_RW is None else [isotonic(draw_W, curve.rising) for draw_W in curve.draws_RW]
    found = []
    for frac in FRACS:
        draws_R = np.array([tokens_to(curve.tokens_W, draw_W, frac) for draw_W in fits]) if fits else None
        estimate = Estimate.of(tokens_to(curve.tokens_W, fit_W, frac), draws_R)
        if estimate.low is not None and estimate.high is not None and estimate.value <= curve.tokens_W[1]:
            estimate = replace(estimate, low=0.0, high=max(estimate.high, float(curve.tokens_W[1])))
        found.append(estimate)
    return found


def scattering(curve: Curve) -> Curve:
    """Add the scatter of checkpoints to the curve's resamples; without resamples the curve is returned unchanged."""
    return curve if curve.draws_RW is None else replace(curve, draws_RW=scattered(curve))


def progress(curve: Curve) -> Progress:
    """Compute how the metric changed, and t50, t90, t95 if it improved beyond the noise of items and checkpoints."""
    return _progress(scattering(curve))


def _progress(curve: Curve) -> Progress:
    sign = 1.0 if curve.rising else -1.0
    tokens_W, value_W, draws_RW = curve.tokens_W, curve.value_W, curve.draws_RW
    half = tokens_W[-1] / 2
    improvement = Estimate.of(
        sign * (value_W[-1] - value_W[0]), None if draws_RW is None else sign * (draws_RW[:, -1] - draws_RW[:, 0])
    )
    last_doubling = (
        None
        if len(tokens_W) < LAW_WINDOWS
        else Estimate.of(
            sign * (value_W[-1] - value_at(tokens_W, value_W, half)),
            None if draws_RW is None else sign * (draws_RW[:, -1] - value_at(tokens_W, draws_RW, half)),
        )
    )
    reason: Absent | None = None
    bracket: tuple[int, int] | None = None
    found: list[Estimate | None] = [None] * len(FRACS)
    if len(tokens_W) < LAW_WINDOWS:
        reason = Absent(FEW_POINTS, f"{_count(len(tokens_W), 'window')}, at least {LAW_WINDOWS} are needed")
    elif np.ptp(value_W) == 0:
        reason = Absent("constant", f"{value_W[0]:.3g} at every window")
    elif improvement.value <= 0:
        reason = Absent("no improvement", f"{value_W[0]:.3g} at the start, {value_W[-1]:.3g} at the end")
    elif improvement.low is not None and improvement.low <= 0:
        low, high = improvement.low, improvement.high
        reason = Absent("no improvement beyond noise", f"{improvement.value:.2g}, interval {low:.2g} to {high:.2g}")
    else:
        times = tokens_reached(curve)
        right, found = int(np.searchsorted(tokens_W, times[-1].value)), [*times]
        bracket = int(tokens_W[right - 1]), int(tokens_W[right])
    return Progress(
        monitor=curve.monitor,
        metric=curve.metric,
        tags=curve.tags,
        windows=len(tokens_W),
        run_tokens=int(tokens_W[-1]),
        first=float(value_W[0]),
        last=float(value_W[-1]),
        improvement=improvement,
        last_doubling=last_doubling,
        t50=found[0],
        t90=found[1],
        t95=found[2],
        bracket=bracket,
        reason=reason,
        interval=curve.source,
        n=curve.n,
    )


def lag(early: Curve, late: Curve) -> Lag | None:
    """Compute the gain of `late` after early's t95, both recomputed in each resample; None if early has no t95.

    The values of `late` are measured values, not those of the isotonic fit, which can only fall. So the factor can be
    below 1, and its interval can include 1. The two curves must share their windows and their resamples.
    """
    early, late = scattering(early), scattering(late)
    first = _progress(early)
    if first.t95 is None or np.any(late.value_W <= 0):
        return None
    tokens_W = early.tokens_W
    pieces = [(value_at(tokens_W, late.value_W, first.t95.value), late.value_W[-1], late.value_W[0])]
    if first.t95.draws is not None and late.draws_RW is not None:
        draws = zip(late.draws_RW, first.t95.draws, strict=True)
        at_R = np.array([value_at(tokens_W, draw_W, start) for draw_W, start in draws])
        pieces.append((at_R, late.draws_RW[:, -1], late.draws_RW[:, 0]))

    def estimate(quantity: Callable[[Any, Any, Any], Any]) -> Estimate:
        return Estimate.of(*(quantity(*piece) for piece in pieces))

    return Lag(
        factor=estimate(lambda at, end, origin: at / end),
        nats=estimate(lambda at, end, origin: at - end),
        same_shape=estimate(lambda at, end, origin: 1 + (1 - FRAC) * (origin / end - 1)),
        index=_index(first.t95, _progress(late).t95),
        index_log=_index(first.t95, _progress(logarithm(late)).t95),
    )


def logarithm(curve: Curve) -> Curve:
    """Take the natural logarithm of a curve; resampled values at or below 0 become the smallest positive float."""
    tiny = np.finfo(float).tiny
    draws_RW = None if curve.draws_RW is None else np.log(np.maximum(curve.draws_RW, tiny))
    return replace(curve, value_W=np.log(curve.value_W), stderr_W=curve.stderr_W / curve.value_W, draws_RW=draws_RW)


def value_at(tokens_W: Array, value_W: Array, tokens: float) -> Any:
    """Interpolate the value at `tokens`, linear in `axis` between windows; `value_W` may have leading axes."""
    if len(tokens_W) == 1:
        return value_W[..., 0]
    if np.isnan(tokens):
        return float("nan")
    right = int(np.clip(np.searchsorted(tokens_W, tokens), 1, len(tokens_W) - 1))
    x, before, after = (axis(tokens_W, t) for t in (tokens, tokens_W[right - 1], tokens_W[right]))
    return value_W[..., right - 1] + (x - before) / (after - before) * (value_W[..., right] - value_W[..., right - 1])


def _index(early: Estimate, later: Estimate | None) -> Estimate | None:
    if later is None:
        return None
    both = early.draws is not None and later.draws is not None
    return Estimate.of(later.value / early.value, later.draws / early.draws if both else None)  # type: ignore[operator]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
