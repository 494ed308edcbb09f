"""What the monitors of a run would send through the model (`Monitor.passes`), and its share of the training FLOPs.

Nothing is prepared, so lengths are the limits that the settings name; texts stay a little below them. Left out: scoring
the rows that heads are judged by, and copying the model for the probe (docs/monitors.md, Cost, has the measured times).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lccp_sim.plan.shapes import Shape, forward_flops


class Cost(NamedTuple):
    """Looks of a run; tokens of each, and those sent once; FLOPs over the run. A tuned token counts as three."""

    looks: int
    tokens_a_look: float
    tokens_once: float
    flops: float


def monitor_costs(monitors: Mapping[str, Any], windows: Sequence[int], shape: Shape) -> dict[str, Cost]:
    """The cost of each monitor, by its name, over a run that looks at the steps `windows`."""
    costs = {}
    for name, monitor in monitors.items():
        looks = sum(index % monitor.every == 0 or index == len(windows) - 1 for index in range(len(windows)))
        each, once = monitor.passes(), monitor.reference_passes()
        flops = looks * _flops(each, shape) + _flops(once, shape)
        costs[name] = Cost(looks, sum(p.sent for p in each), sum(p.sent for p in once), flops)
    return costs


def _flops(passes: Sequence[Any], shape: Shape) -> float:
    flops = 0.0
    for p in passes:
        parts = forward_flops(shape, p.tokens)
        each = sum(parts.values()) - (0 if p.head else parts["head"])
        flops += p.sent * each
    return flops
