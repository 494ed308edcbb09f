"""Comparison of a study's arms: final values, seed by seed against the reference arm, and agreement of rankings.

Arms are paired by seed: the same seed has the same base and, if the axis allows it, the same batches in every arm. So
the difference from the reference is taken within a seed. Design note: two or three seeds give a t interval with 1 or 2
degrees of freedom, which is reported at its full width.

Repeats of a run have the same seed, base and text, but read the rows in another order. Their spread is the effect of
the order alone. One standard deviation per metric is pooled over arms and seeds, assuming equal scatter, because two or
three repeats say little about one arm.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import sqrt

import numpy as np
from scipy.stats import kendalltau, ttest_rel
from scipy.stats import t as student

from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.correlation import holm
from lccp_sim.analysis.stats.curve import LEVEL, Absent, Curve, Estimate, whole_curve

Repeats = Mapping[int, Sequence[float]]  # one number per repeat, by seed


@dataclass(frozen=True)
class Noise:
    """A standard deviation over repeats, pooled over `degrees` degrees of freedom."""

    spread: float
    degrees: int

    def floor(self, *sides: Repeats) -> float:
        """Return the 95 % bound on the effect of data order alone on a mean over seeds, or on a difference of two.

        Each side holds the repeats of its seeds; a seed's value is the mean of its repeats.
        """
        of_side = (sum(1 / len(own) for own in side.values()) / len(side) ** 2 for side in sides)
        return float(student.ppf((1 + LEVEL) / 2, self.degrees)) * self.spread * sqrt(sum(of_side))


def noise(groups: Iterable[Sequence[float]]) -> Noise | None:
    """Compute the pooled standard deviation within groups of repeats; None if no group has two."""
    several = [np.array(group) for group in groups if len(group) > 1]
    degrees = sum(len(group) - 1 for group in several)
    if not degrees:
        return None
    return Noise(sqrt(sum(float(((group - group.mean()) ** 2).sum()) for group in several) / degrees), degrees)


def gathered(
    first: Mapping[str, Mapping[int, Curve]], again: Sequence[Mapping[str, Mapping[int, Curve]]], change: bool = False
) -> dict[str, dict[int, list[float]]]:
    """Collect the final values of one metric (or with `change` their change) by arm and seed, the first run first."""

    def of(curve: Curve) -> float:
        return float(curve.value_W[-1] - (curve.value_W[0] if change else 0.0))

    return {
        arm: {
            seed: [of(curve), *(of(more[arm][seed]) for more in again if seed in more.get(arm, {}))]
            for seed, curve in seeds.items()
        }
        for arm, seeds in first.items()
        if seeds
    }


@dataclass(frozen=True)
class Moved:
    """The change of an arm's metric from first to last window, and the change that data order alone can cause.

    `spread`: of repeats at the end. `floor`: the largest change from order alone. `told`: whether this change exceeds
    it.
    """

    metric: str
    arm: str
    change: float
    spread: float
    floor: float
    degrees: int
    told: bool


def moved(curves: Mapping[str, Mapping[str, Mapping[int, Curve]]], again: Sequence[Mapping]) -> list[Moved]:
    """Return one row per metric and arm, for metrics that have repeats."""
    rows = []
    for metric, first in curves.items():
        more = [each.get(metric, {}) for each in again]
        ends, changes = gathered(first, more), gathered(first, more, change=True)
        at_end = noise(group for seeds in ends.values() for group in seeds.values())
        of_change = noise(group for seeds in changes.values() for group in seeds.values())
        if at_end is None or of_change is None:
            continue
        for arm, seeds in changes.items():
            change = float(np.mean([np.mean(own) for own in seeds.values()]))
            floor = of_change.floor(seeds)
            rows.append(Moved(metric, arm, change, at_end.spread, floor, at_end.degrees, abs(change) > floor))
    return rows


Runs = Mapping[str, Mapping[int, RunData]]
Curves = dict[str, dict[str, dict[int, Curve]]]
PROBE_METRICS = ("probe/exact_match_frac", "probe/answer_nll_nats")


@dataclass(frozen=True)
class Result:
    """The final value of a metric (`monitor/metric`) in one arm.

    `values`: by seed; `mean` and `spread` (standard deviation) are over seeds. `difference`: mean of the value minus
    the reference's at the same seed, with its 95 % t interval over `pairs` seeds. `p`: of the paired t test; `p_holm`:
    adjusted over the arms. These are None for the reference, and with fewer than two pairs. `rising`: whether more is
    better. `floor`: the largest difference that data order alone can cause; None without repeats. A seed's value is the
    mean over its repeats.
    """

    metric: str
    arm: str
    values: dict[int, float]
    mean: float
    spread: float | None
    pairs: int
    difference: Estimate | None
    p: float | None
    p_holm: float | None
    rising: bool
    floor: float | None = None

    @property
    def inside(self) -> bool:
        """Whether repeats differ as much as the arms do; then the difference does not count, whatever its p value."""
        return self.floor is not None and self.difference is not None and abs(self.difference.value) <= self.floor


@dataclass(frozen=True)
class Agreement:
    """Agreement of a monitor's ranking of the arms with that of a probe metric: Kendall's tau-b of arm means.

    Better arms come first. `p`: exact if there are no ties (scipy). Numbers are None if `reason` is given. With four
    arms, only tau = 1 has p < .05.
    """

    monitor: str
    probe: str
    arms: int
    tau: float | None
    p: float | None
    reason: Absent | None


def curves_of(runs: Runs, metrics: Sequence[str]) -> Curves:
    """Collect the curves by metric, arm and seed. Metrics that a run did not measure are left out."""
    return {
        metric: {
            arm: {seed: curve for seed, run in seeds.items() if (curve := whole_curve(run, metric)) is not None}
            for arm, seeds in runs.items()
        }
        for metric in metrics
    }


def results(curves: Curves, reference: str, again: Sequence[Curves] = ()) -> list[Result]:
    """Return one row for each metric and arm that has it, the reference first. `again`: the curves of each repeat."""
    rows = []
    for metric, found in curves.items():
        rising = next((c.rising for seeds in found.values() for c in seeds.values()), True)
        repeated = gathered(found, [each.get(metric, {}) for each in again])
        ends = {arm: {seed: float(np.mean(own)) for seed, own in seeds.items()} for arm, seeds in repeated.items()}
        order = sorted(ends, key=lambda arm: arm != reference)
        base = ends.get(reference, {})
        made = [_result(metric, arm, ends[arm], {} if arm == reference else base, rising) for arm in order]
        p_values = {row.arm: row.p for row in made if row.p is not None}
        adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
        scatter = noise(own for seeds in repeated.values() for own in seeds.values())
        for row in made:
            shared = {seed: repeated[row.arm][seed] for seed in row.values if seed in base}
            floor = None
            if scatter is not None and row.difference is not None:
                floor = scatter.floor(shared, {seed: repeated[reference][seed] for seed in shared})
            rows.append(replace(row, p_holm=adjusted.get(row.arm), floor=floor))
    return rows


def _result(metric: str, arm: str, ends: Mapping[int, float], base: Mapping[int, float], rising: bool) -> Result:
    value_S = np.array(list(ends.values()))
    spread = float(value_S.std(ddof=1)) if len(value_S) > 1 else None
    shared = [seed for seed in ends if seed in base]
    row = Result(metric, arm, dict(ends), float(value_S.mean()), spread, len(shared), None, None, None, rising)
    if len(shared) < 2:
        return row
    mine_S, theirs_S = np.array([ends[s] for s in shared]), np.array([base[s] for s in shared])
    mean = float((mine_S - theirs_S).mean())
    if np.ptp(mine_S - theirs_S) <= 1e-9 * abs(mean):  # nothing but rounding varies: no test
        return replace(row, difference=Estimate(mean))
    test = ttest_rel(mine_S, theirs_S)
    low, high = test.confidence_interval(LEVEL)
    return replace(row, difference=Estimate(mean, float(low), float(high)), p=float(test.pvalue))


def leverage(rows: Sequence[Result], metric: str) -> float | None:
    """Divide the spread of arm means by the spread of seeds within arms (root mean square); None without two of each.

    Above 1 the axis changes the metric more than a seed does.
    """
    mine = [row for row in rows if row.metric == metric]
    inside = [row.spread**2 for row in mine if row.spread is not None]
    if len(mine) < 2 or not inside or not np.mean(inside) > 0:
        return None
    return float(np.std([row.mean for row in mine], ddof=1) / np.sqrt(np.mean(inside)))


def agreements(rows: Sequence[Result]) -> list[Agreement]:
    """Compare each monitor with each probe metric, over the arms that have both."""
    means: dict[str, dict[str, float]] = {}
    for row in rows:
        means.setdefault(row.metric, {})[row.arm] = row.mean if row.rising else -row.mean
    monitors = [name for name in means if not name.startswith("probe/")]
    return [_agreement(monitor, probe, means) for monitor, probe in product(monitors, PROBE_METRICS) if probe in means]


def _agreement(monitor: str, probe: str, means: Mapping[str, Mapping[str, float]]) -> Agreement:
    shared = [arm for arm in means[monitor] if arm in means[probe]]
    x, y = ([means[name][arm] for arm in shared] for name in (monitor, probe))
    none = Agreement(monitor, probe, len(shared), None, None, None)
    if len(shared) < 3:
        return replace(none, reason=Absent("not enough arms", f"{len(shared)} have both, at least 3 are needed"))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return replace(none, reason=Absent("the same in all arms", of=(monitor if np.ptp(x) == 0 else probe,)))
    test = kendalltau(x, y)
    return replace(none, tau=float(test.statistic), p=float(test.pvalue))
