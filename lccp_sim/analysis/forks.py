"""The effect of the window at which fine-tuning and RL branch off one run: pass@1, and its predictors.

The arms of a study branch off the same run (one per seed) at several windows. Their final pass@1 is a curve over these
windows, so the method for predicting the probe also applies here: a line from monitor to pass@1, fitted on the other
seeds. Design note: windows of a run share its seed and its base, so only held-out seeds are a test, and they are few.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import ttest_1samp

from lccp_sim.analysis.chain import Phase, phases_of
from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.arms import Noise, Runs, noise
from lccp_sim.analysis.stats.curve import LEVEL, Curve, Estimate, whole_curve
from lccp_sim.analysis.stats.pairs import Panel, gather, monitors, target_name, targets
from lccp_sim.analysis.stats.prediction import Prediction, predict

PASS = "answers/pass_at_1_frac"
PASS_LAST = "last/pass_at_1_frac"  # over windows: after the last phase
PASS_FIRST = "window/pass_at_1_frac"  # over windows: at the window itself

Values = dict[str, dict[int, list[float]]]  # by arm and seed, one a repeat


@dataclass(frozen=True)
class Forks:
    """Chains that branch off `source` (by seed) at `windows` (training tokens, by arm).

    `stages`: pass@1 at the window, and after each later phase, by the phase's name.
    """

    source: dict[int, RunData]
    windows: dict[str, int]
    stages: dict[str, Values]

    @property
    def last(self) -> Values:
        """pass@1 after the last phase."""
        return list(self.stages.values())[-1]


@dataclass(frozen=True)
class Spread:
    """The spread of pass@1 over windows at a stage: the standard deviation in each seed, and its mean.

    `change`: from the previous stage, paired by seed, with its 95 % t interval; `noise`: standard deviation of repeats.
    """

    stage: str
    by_seed: dict[int, float]
    mean: float
    change: Estimate | None
    noise: float | None

    @property
    def said(self) -> str:
        """The effect of the phase on the differences, in words."""
        if self.change is None:
            return ""
        return "widens" if self.change.above(0) else "narrows" if self.change.below(0) else "undecided"


def forks(runs: Runs, repeats: Sequence[Runs] = ()) -> Forks | None:
    """The chains of a study if its arms branch off one run per seed at different windows, else None."""
    chains = [{arm: {s: phases_of(run) for s, run in seeds.items()} for arm, seeds in each.items()} for each in
              (runs, *repeats)]  # fmt: skip
    first = chains[0]
    places = {_fork([seeds[s] for seeds in first.values() if s in seeds]) for seeds in first.values() for s in seeds}
    if len(places) != 1 or (place := places.pop()) is None:
        return None
    source, windows, stages = {}, {}, dict[str, Values]()
    for arm, seed, phases in ((a, s, p) for each in chains for a, seeds in each.items() for s, p in seeds.items()):
        source[seed], windows[arm] = phases[place].run, phases[place].tokens
        for name, value in _passes(phases[place + 1 :]):
            stages.setdefault(name, {}).setdefault(arm, {}).setdefault(seed, []).append(value)
    return Forks(source, windows, stages) if len(stages) > 1 else None


def _fork(chains: Sequence[Sequence[Phase]]) -> int | None:
    """The phase that all chains of a seed share, and from which they branch off at different windows."""
    for place in range(min(map(len, chains)) - 1):
        at = [chain[place] for chain in chains]
        if len({each.run.path.resolve() for each in at}) > 1:
            return None
        if len({each.tokens for each in at}) > 1:
            return place
    return None


def _passes(phases: Sequence[Phase]) -> list[tuple[str, float]]:
    """pass@1 at the window and at the end of each phase, with the names of these moments; [] if any is missing."""
    curves = [whole_curve(phase.run, PASS) for phase in phases]
    if not phases or any(curve is None for curve in curves):
        return []
    found = [curve for curve in curves if curve is not None]
    after = [(f"after {phase.label}", float(c.value_W[-1])) for phase, c in zip(phases, found, strict=True)]
    return [("at the window", float(found[0].value_W[0])), *after]


def panels_of(found: Forks) -> list[Panel]:
    """The monitors of each seed's run, with pass@1 at its windows and after the last phase as two more curves."""
    seeds = {run.path.resolve(): seed for seed, run in found.source.items()}
    return [
        replace(panel, curves=panel.curves | {
            name: curve for name, values in ((PASS_LAST, found.last), (PASS_FIRST, next(iter(found.stages.values()))))
            if (curve := _curve(found, values, seeds[panel.path])) is not None
        })
        for panel in gather(list(found.source.values()), by_task=False)
    ]  # fmt: skip


def _curve(found: Forks, values: Values, seed: int) -> Curve | None:
    means = sorted((found.windows[arm], float(np.mean(own[seed]))) for arm, own in values.items() if seed in own)
    if not means:
        return None
    tokens_W, value_W = np.array(means).T
    monitor, _, metric = PASS.partition("/")
    return Curve(monitor, metric, {}, tokens_W, value_W, np.full(len(means), np.nan))


def monitor_predictions(found: Forks) -> list[Prediction]:
    """Rate how well each monitor predicts the final pass@1 of held-out seeds.

    The best monitor comes first, undefined values last.
    """
    panels = panels_of(found)
    names = [*monitors(panels), *(target_name(*each) for each in targets(panels)), PASS_FIRST]
    rows = [predict(panels, PASS_LAST, None, name, after_hit=False) for name in names]
    return sorted(rows, key=lambda row: np.inf if row.ratio is None else row.ratio)


def noise_of(values: Values) -> Noise | None:
    """The scatter that fine-tuning and RL alone cause: runs from the same window with their data in another order."""
    return noise(own for seeds in values.values() for own in seeds.values())


def least_error(found: Forks) -> float | None:
    """The lower bound on the mean absolute error of predicting the final pass@1 (mean of repeats).

    It is the error of the true mean, which is normal with the spread of repeats. None without repeats.
    """
    scatter = noise_of(found.last)
    times = float(np.mean([1 / len(own) for seeds in found.last.values() for own in seeds.values()]))
    return None if scatter is None else scatter.spread * float(np.sqrt(2 / np.pi * times))


def spreads(found: Forks) -> list[Spread]:
    """The spread over windows at each stage, in the seeds that have all windows there."""
    rows: list[Spread] = []
    for stage, values in found.stages.items():
        complete = set.intersection(*(set(seeds) for seeds in values.values()))
        by_seed = {
            seed: float(np.std([np.mean(seeds[seed]) for seeds in values.values()], ddof=1))
            for seed in sorted(complete)
        }
        if not by_seed:
            continue
        change = _paired(by_seed, rows[-1].by_seed) if rows else None
        scatter = noise_of(values)
        rows.append(
            Spread(
                stage,
                by_seed,
                float(np.mean(list(by_seed.values()))),
                change,
                None if scatter is None else scatter.spread,
            )
        )
    return rows


def _paired(after: Mapping[int, float], before: Mapping[int, float]) -> Estimate | None:
    gaps = np.array([after[seed] - before[seed] for seed in after if seed in before])
    return over_few(gaps) if len(gaps) else None


def over_few(values_S: np.ndarray) -> Estimate:
    """The mean over seeds with its 95 % t interval; no interval for a single seed, or if all agree."""
    mean = float(values_S.mean())
    if len(values_S) < 2 or np.ptp(values_S) <= 1e-9 * abs(mean):
        return Estimate(mean)
    low, high = ttest_1samp(values_S, 0).confidence_interval(LEVEL)
    return Estimate(mean, float(low), float(high))
