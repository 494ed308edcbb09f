"""What the order of the data does by itself: the spread of runs that differ in nothing else, and what exceeds it.

Repeats of a run have its seed, base and text, and read the rows in another order. What a reader would question: one
standard deviation a metric is pooled over arms and seeds, which takes all of them to scatter alike, because two or
three repeats tell little of one arm's own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.stats import t as student

from lccp_sim.analysis.stats.curve import LEVEL, Curve

Runs = Mapping[int, Sequence[float]]  # a number of each repeat, by seed


@dataclass(frozen=True)
class Noise:
    """A standard deviation over repeats, pooled over `degrees` degrees of freedom."""

    spread: float
    degrees: int

    def floor(self, *sides: Runs) -> float:
        """What a mean over seeds (or a difference of two such means) may reach by order alone, at the 95 % level.

        Each side has its seeds' repeats; a seed counts by the mean of its own.
        """
        of_side = (sum(1 / len(own) for own in side.values()) / len(side) ** 2 for side in sides)
        return float(student.ppf((1 + LEVEL) / 2, self.degrees)) * self.spread * sqrt(sum(of_side))


def noise(groups: Iterable[Sequence[float]]) -> Noise | None:
    """The pooled standard deviation inside groups of repeats; None where no group has two."""
    several = [np.array(group) for group in groups if len(group) > 1]
    degrees = sum(len(group) - 1 for group in several)
    if not degrees:
        return None
    return Noise(sqrt(sum(float(((group - group.mean()) ** 2).sum()) for group in several) / degrees), degrees)


def gathered(
    first: Mapping[str, Mapping[int, Curve]], again: Sequence[Mapping[str, Mapping[int, Curve]]], change: bool = False
) -> dict[str, dict[int, list[float]]]:
    """Where the curves of one metric end, by arm and seed, the first run's before its repeats'; or their `change`."""

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
    """How far a metric of an arm moves from first to last window, and what the order of the data moves it by.

    `spread`: of repeats at the end. `floor`: what a change may reach by order alone; `told`: this one exceeds it.
    """

    metric: str
    arm: str
    change: float
    spread: float
    floor: float
    degrees: int
    told: bool


def moved(curves: Mapping[str, Mapping[str, Mapping[int, Curve]]], again: Sequence[Mapping]) -> list[Moved]:
    """One row a metric and arm, of the metrics that some run has repeats of."""
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
