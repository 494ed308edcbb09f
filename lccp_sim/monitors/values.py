"""Values that monitors measure, one per item, and their summary as records.

Per-item values are kept for intervals and paired tests. A record is their mean with its standard error.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from lccp_sim.records import Record, Tag

Tags = dict[str, Tag]


class Value(NamedTuple):
    """One number about one item. `tags`: the item's cell in the grid."""

    monitor: str
    metric: str
    item: str
    tags: Tags
    value: float


class Moment(NamedTuple):
    """The time of a measurement: optimizer steps and training tokens of this run."""

    step: int
    tokens: int


def summarise(
    values: Iterable[Value], moment: Moment, tier: str, cell: Callable[[Value], Tags | None] = lambda value: value.tags
) -> list[Record]:
    """Summarise values as one record per (monitor, metric, cell): mean, number of items, standard error over items.

    `cell` maps a value to the tags of its record, or to None to skip it. Order: first appearance.
    """
    groups: dict[tuple, list[float]] = defaultdict(list)
    for value in values:
        tags = cell(value)
        if tags is not None:
            groups[value.monitor, value.metric, tuple(sorted(tags.items()))].append(value.value)
    records = []
    for (monitor, metric, tags), numbers in groups.items():
        mean, stderr = mean_and_stderr(numbers)
        records.append(Record(*moment, tier, monitor, metric, mean, len(numbers), stderr, dict(tags)))
    return records


def mean_and_stderr(numbers: list[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error (None for a single number)."""
    n = len(numbers)
    mean = math.fsum(numbers) / n
    if n == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (n - 1) / n)
