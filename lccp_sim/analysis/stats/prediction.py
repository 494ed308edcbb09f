"""Whether a monitor predicts the probe in a run that it was not fitted on.

A line from monitor to probe is fitted on the other runs and judged by its mean absolute error in the left-out run, next
to a line from log tokens alone. Design note: the two errors are compared as a ratio without an interval, because too
few runs support one; the number of runs in which the monitor wins is reported as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.curve import Absent
from lccp_sim.analysis.stats.estimate import Array
from lccp_sim.analysis.stats.pairs import Name, Panel, gather, monitors, target_name, targets

MIN_RUNS = 3
PREDICTION_WINDOWS = 2


@dataclass(frozen=True)
class Prediction:
    """The error of predicting the probe from `monitor` in left-out runs.

    `mae`: mean absolute error, in the unit of the target. `mae_tokens`: with log tokens alone. `ratio`: mae /
    mae_tokens, below 1 if the monitor helps. `wins`: the number of the `runs` runs in which its error is smaller.
    `slope_agrees`: the number of fits whose slope has the sign of the fit to all runs. `after_hit`: windows after the
    hit only. Numbers are None if `reason` is given.
    """

    target: str
    task: str | None
    monitor: Name
    after_hit: bool
    windows: int
    runs: int
    mae: float | None
    mae_tokens: float | None
    ratio: float | None
    wins: int | None
    slope_agrees: int | None
    reason: Absent | None


def predictions(runs: Sequence[RunData | Panel]) -> list[Prediction]:
    """Predict each target by each monitor, leaving one run out, over all windows and over those after the hit."""
    panels = gather(runs)
    return [
        predict(panels, target, task, monitor, after_hit)
        for target, task in targets(panels)
        for monitor in monitors(panels)
        for after_hit in (False, True)
    ]


def predict(panels: Sequence[Panel], target: str, task: str | None, monitor: Name, after_hit: bool) -> Prediction:
    """Predict one target by one monitor; a run counts if it has at least two windows with both."""
    names = (monitor, target_name(target, task))
    data = [each for panel in panels if (each := _series(panel, names, after_hit)) is not None]
    windows = sum(len(y_W) for _, _, y_W in data)

    row = Prediction(target, task, monitor, after_hit, windows, len(data), None, None, None, None, None, None)
    if len(data) < MIN_RUNS:
        where = " after the hit" if after_hit else ""
        found = f"{len(data)} runs have {PREDICTION_WINDOWS} windows{where} with both"
        return replace(row, reason=Absent("not enough runs", f"{found}, {MIN_RUNS} are needed"))
    for place, name in ((0, monitor), (2, names[1])):
        if all(np.ptp(np.concatenate([run[place] for run in data[:i] + data[i + 1 :]])) == 0 for i in range(len(data))):
            return replace(row, reason=Absent("constant", of=(name,)))
    errors = [[_left_out(data, left, place) for left in range(len(data))] for place in (0, 1)]
    mae, mae_tokens = (float(np.concatenate([error for error, _ in each]).mean()) for each in errors)
    wins = sum(float(a.mean()) < float(b.mean()) for (a, _), (b, _) in zip(*errors, strict=True))
    whole = _fit(data, 0)[1]
    agrees = sum(bool(np.sign(slope) == np.sign(whole)) for _, slope in errors[0])
    if not mae_tokens > 0:
        return replace(row, mae=mae, mae_tokens=mae_tokens, reason=Absent("log tokens predict the probe exactly"))
    return replace(row, mae=mae, mae_tokens=mae_tokens, ratio=mae / mae_tokens, wins=wins, slope_agrees=agrees)


def errors_left_out(panels: Sequence[Panel], target: str, monitor: Name) -> list[float] | None:
    """Compute the mean absolute error of predicting the target from `monitor` in each run, left out of the fit.

    None with fewer than 3 runs that have two windows with both.
    """
    data = [
        each for panel in panels if (each := _series(panel, (monitor, target_name(target, None)), False)) is not None
    ]
    if len(data) < MIN_RUNS:
        return None
    return [float(_left_out(data, left, 0)[0].mean()) for left in range(len(data))]


def _series(panel: Panel, names: Sequence[Name], after_hit: bool) -> tuple[Array, Array, Array] | None:
    """Return monitor, log tokens and target [W] of a run."""
    shared = panel.shared(*names)
    if shared is None or (after_hit and panel.after is None):
        return None
    kept_W = shared.tokens_W >= (panel.after if after_hit and panel.after is not None else 0)
    if kept_W.sum() < PREDICTION_WINDOWS:
        return None
    x_W, y_W = (shared.value_W[name][kept_W] for name in names)
    return x_W, panel.log_tokens(shared.tokens_W[kept_W]), y_W


def _left_out(data: Sequence[tuple[Array, Array, Array]], left: int, place: int) -> tuple[Array, float]:
    """Compute absolute errors [W] in the run `left` of a line fitted on the others, and its slope."""
    level, slope = _fit([run for number, run in enumerate(data) if number != left], place)
    return np.abs(level + slope * data[left][place] - data[left][2]), slope


def _fit(data: Sequence[tuple[Array, Array, Array]], place: int) -> tuple[float, float]:
    """Fit the least-squares line: level and slope; slope 0 if the monitor does not vary."""
    x_W, y_W = (np.concatenate([run[index] for run in data]) for index in (place, 2))
    centred_W = x_W - x_W.mean()
    square = float(centred_W @ centred_W)
    slope = float(centred_W @ y_W) / square if square > 0 else 0.0
    return float(y_W.mean() - slope * x_W.mean()), slope
