"""Forecasts from the first windows of a run, compared with what was measured later.

The laws are fitted to the windows up to a cutoff and averaged by their Akaike weights, separately in each resample.
Design note: the same items are measured at every window, so a shift that a resample applies to all windows alike is
removed. The interval covers future values of these items, not of other items. If the learning rate is not constant, the
forecast follows the schedule, which is known in advance. Windows before the rate falls give no forecast for a time
after it, because they say nothing about the effect of annealing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from lccp_sim.analysis.stats.curve import Curve, Estimate
from lccp_sim.analysis.stats.estimate import Array
from lccp_sim.analysis.stats.laws import LAW_WINDOWS, law_predictions, scattered, windows_needed
from lccp_sim.analysis.stats.saturation import isotonic, tokens_to
from lccp_sim.records import Tag

WINDOW_SHARES = (1 / 3, 1 / 2, 2 / 3)  # of the run's windows
GAIN = 0.9  # of the run's own improvement: the gain whose tokens are predicted
HORIZON = 10  # times the run's tokens: a later time is reported as "never"
FORECAST_DRAWS = 300


@dataclass(frozen=True)
class Forecast:
    """A forecast from the first `windows` windows, which end at `tokens`, for the run's end at `end` tokens.

    `final`: the value predicted for the end, with the interval in which a measurement should lie. `came`: the measured
    value (None until the run gets there). `last_seen`: the value at the cutoff, the naive forecast of no further
    change. `reach`: the tokens predicted to GAIN of the run's own improvement, inf beyond the horizon (under a
    schedule: beyond its end). `reached`: the tokens that it took. Both are None if the run did not improve or has not
    ended.
    """

    monitor: str
    metric: str
    tags: Mapping[str, Tag]
    share: float
    windows: int
    tokens: int
    end: int
    final: Estimate
    last_seen: float
    came: float | None
    reach: Estimate | None
    reached: float | None

    @property
    def held(self) -> bool | None:
        """Whether the measured value lies in the interval; None if there is no measurement yet, or no interval."""
        if self.came is None or self.final.low is None or self.final.high is None:
            return None
        return self.final.low <= self.came <= self.final.high


def forecasts(curve: Curve, planned: int) -> list[Forecast]:
    """Make one forecast for each share of the windows; before `planned` tokens, also one from all windows.

    A cutoff with fewer than MIN_WINDOWS windows has no forecast.
    """
    windows = len(curve.tokens_W)
    if planned > 1.01 * curve.tokens_W[-1]:
        return [_forecast(curve, windows, 1.0, planned)] if _able(curve, windows, planned) else []
    end = int(curve.tokens_W[-1])
    cuts = [(share, round(share * windows)) for share in WINDOW_SHARES]
    return [_forecast(curve, cut, share, end) for share, cut in cuts if _able(curve, cut, end)]


def _able(curve: Curve, windows: int, end: float) -> bool:
    """Whether the first windows can predict the end: they are enough, and include annealing if the end does."""
    seen = replace(curve, tokens_W=curve.tokens_W[:windows])
    knows = seen.areas.annealed or not curve.areas_at(np.array([end])).annealed
    return knows and windows >= max(LAW_WINDOWS, windows_needed(seen))


def predict_values(curve: Curve, ahead: Array) -> tuple[Array, Array]:
    """Predict the values at the tokens `ahead` by the laws: a row for the curve and one per resample, [1 + R, ahead].

    Also return the same with the scatter of single windows, as a measurement would have it.
    """
    noisy_RW = scattered(curve)
    path_RN = law_predictions(curve, curve.areas_at(ahead))
    path_RN[1:] -= (noisy_RW - curve.value_W).mean(1, keepdims=True)  # the shift that a resample applies to all windows
    noise_R = noisy_RW[:, -1] - (curve.value_W[-1] if curve.draws_RW is None else curve.draws_RW[:, -1])
    noise_R = np.random.default_rng(1).permutation(noise_R)  # from another window than the resample's own
    return path_RN, np.vstack([path_RN[:1], path_RN[1:] + noise_R[:, None]])


def _forecast(curve: Curve, windows: int, share: float, end: int) -> Forecast:
    tokens_W = curve.tokens_W
    seen = replace(
        curve,
        tokens_W=tokens_W[:windows],
        value_W=curve.value_W[:windows],
        stderr_W=curve.stderr_W[:windows],
        draws_RW=None if curve.draws_RW is None else curve.draws_RW[:FORECAST_DRAWS, :windows],
    )
    over = end <= tokens_W[-1]
    grid = np.geomspace(seen.tokens_W[-1], HORIZON * end if curve.rate is None else end, 120)
    path_RN, measured_RN = predict_values(seen, np.append(grid, end))
    reach, reached = None, None
    sign = 1.0 if curve.rising else -1.0
    fit_W = sign * isotonic(curve.value_W, curve.rising)
    if over and fit_W[-1] > fit_W[0]:
        reached = tokens_to(tokens_W, fit_W, GAIN)
        level = fit_W[0] + GAIN * (fit_W[-1] - fit_W[0])
        reach = open_estimate(first_at(grid, sign * path_RN[:, :-1] - level))
    bounded_R = _bounded(curve, measured_RN[:, -1])
    return Forecast(
        monitor=curve.monitor,
        metric=curve.metric,
        tags=curve.tags,
        share=share,
        windows=windows,
        tokens=int(seen.tokens_W[-1]),
        end=end,
        final=Estimate.of(bounded_R[0], bounded_R[1:]),
        last_seen=float(seen.value_W[-1]),
        came=float(curve.value_W[-1]) if over else None,
        reach=reach,
        reached=reached,
    )


def first_at(grid_N: Array, above_RN: Array) -> Array:
    """Return the tokens [R] at which paths first reach 0, log-linear between grid points; inf if never."""
    right_R = (above_RN >= 0).argmax(1)
    left_R = np.maximum(right_R - 1, 0)
    rows = np.arange(len(above_RN))
    low_R, high_R = above_RN[rows, left_R], above_RN[rows, right_R]
    share_R = np.where(right_R > 0, -low_R / np.where(high_R > low_R, high_R - low_R, 1), 0)
    crossed_R = grid_N[left_R] * (grid_N[right_R] / grid_N[left_R]) ** share_R
    return np.where((above_RN >= 0).any(1), crossed_R, np.inf)


def open_estimate(tokens_R: Array) -> Estimate:
    """Estimate tokens when some resamples lie beyond the horizon: these count as later than all others."""
    low, high = np.quantile(tokens_R[1:], [0.025, 0.975], method="nearest")
    return Estimate(float(tokens_R[0]), float(low), float(high))


def _bounded(curve: Curve, value_R: Array) -> Array:
    """Clip values to the metric's bounds, which laws do not know."""
    return np.clip(value_R, *curve.row.bounds)
