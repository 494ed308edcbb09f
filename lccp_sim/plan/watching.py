"""What the monitors of a run would send through the model, from their settings, and its share of the training FLOPs.

Nothing is prepared, so lengths are the limits that the settings name; texts stay a little below them. Left out: scoring
the rows that heads are judged by, and copying the model for the probe (docs/monitors.md, Cost, has the measured times).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lccp_sim.plan.shapes import Shape, forward_flops

ALONE = 50  # tokens of a needle with its question and answer, without a haystack: about


class Pass(NamedTuple):
    """How many sequences of a length, how many forwards each is worth (training 3), and whether all meet the head."""

    sequences: float
    tokens: int
    weight: float = 1.0
    head: bool = False


def _needle(m: Any) -> list[Pass]:
    variants = m.variants or {}
    held = {n: [v for v in variants if v != "interference" or n > m.interference_tokens] for n in m.lengths}
    controls = min(m.controls, m.items)
    grid = [Pass(m.items + controls + sum(variants[v] for v in held[n]), n) for n in m.lengths]
    return [*grid, Pass(controls * len(m.lengths), ALONE)]


def _perplexity(m: Any) -> list[Pass]:
    n = len(m.sources) * m.items
    short = n * (m.context_tokens - m.short_tokens) / m.short_tokens
    return [Pass(n, m.context_tokens, head=True), Pass(short, m.short_tokens, head=True)]


def _perplexity_once(m: Any) -> list[Pass]:
    if m.longppl is None:
        return []
    n, trunc, slide = len(m.sources) * m.items, m.longppl.trunc_tokens, m.longppl.sliding_tokens
    windows = math.ceil((m.context_tokens - trunc) / slide) - 1
    return [Pass(n, m.context_tokens, head=True), Pass(n * windows, trunc + slide, head=True)]


def _intervention(m: Any) -> list[Pass]:
    return [Pass(m.items * (4 + m.draws) / 2, n) for n in m.lengths]


def _probe(m: Any) -> list[Pass]:
    long = (m.short_tokens + m.long_tokens) // 2
    asked = m.items + m.decoded * sum(1 for weight in m.tasks.values() if weight)  # decoding sends them once more
    rows, frac, seeds = m.steps * m.rows, m.long_train_frac, len(m.seeds)
    tuned = [Pass(seeds * rows * (1 - frac), m.train_tokens, 3), Pass(seeds * rows * frac, long, 3)]
    return [Pass((1 + seeds) * asked, long), *tuned]


def _lengths(m: Any) -> list[Pass]:
    return [Pass(m.items, n) for n in m.lengths]


PASSES: dict[str, Callable[[Any], list[Pass]]] = {
    "needle": _needle,
    "heads": _lengths,
    "perplexity": _perplexity,
    "induction": _lengths,
    "intervention": _intervention,
    "routing": lambda m: [Pass(m.items, m.context_tokens)],
    "probe": _probe,
}
ONCE: dict[str, Callable[[Any], list[Pass]]] = {"perplexity": _perplexity_once}


def passes(monitor: Any, first: bool) -> list[Pass]:
    """What a monitor sends at one window, and at the first also what is sent once; nothing for unknown kinds."""
    tables = (PASSES, ONCE) if first else (PASSES,)
    return [each for table in tables if monitor.kind in table for each in table[monitor.kind](monitor)]


class Cost(NamedTuple):
    """Windows of a run; tokens of each, and those sent once; FLOPs over the run. A tuned token counts as three."""

    looks: int
    tokens_a_look: float
    tokens_once: float
    flops: float


def monitor_costs(
    monitors: Mapping[str, Any], windows: Sequence[int], shape: Shape, sparse_until: int = -1
) -> dict[str, Cost]:
    """The cost of each monitor, by its name, over a run with windows at the steps `windows`.

    Up to the step `sparse_until` what can be is measured once more with the sparse attention of training, and has a
    name of its own.
    """
    costs = {}
    for name, monitor in monitors.items():
        due = [step for index, step in enumerate(windows) if index % monitor.every == 0 or step == windows[-1]]
        each = PASSES[monitor.kind](monitor)
        once = ONCE[monitor.kind](monitor) if monitor.kind in ONCE else []
        flops = len(due) * _flops(each, shape) + _flops(once, shape)
        costs[name] = Cost(len(due), _tokens(each), _tokens(once), flops)
        if monitor.beside and (again := sum(step <= sparse_until for step in due)):
            costs[f"{name} as trained"] = Cost(again, _tokens(each), 0, again * _flops(each, shape, 1.0))
    return costs


def _tokens(passes: list[Pass]) -> float:
    return sum(p.sequences * p.tokens * p.weight for p in passes)


def _flops(passes: list[Pass], shape: Shape, sparse_frac: float = 0.0) -> float:
    flops = 0.0
    for p in passes:
        parts = forward_flops(shape, p.tokens, sparse_frac)
        each = sum(parts.values()) - (0 if p.head else parts["head"])
        flops += p.sequences * p.tokens * p.weight * each
    return flops
