"""What the page of the paper's study shows beside the answers: needles, the probe, and what stopping would have cost.

All over seeds; a seed's value is the mean over its orders of the data. The paper (arXiv 2604.02650, section 5) warns
that training which stops once the needle score is at its ceiling stops too soon. For each signal the probe is read at
its first window at or after the signal, so the cost is never overstated, and compared with the end of the same run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lccp_sim.analysis.format import interval, number, tokens
from lccp_sim.analysis.report.tables import Table
from lccp_sim.analysis.seeds import Orders, ceiling, curves_of_seeds, drawn, longest_needles, over
from lccp_sim.analysis.stats.curve import Curve, Estimate
from lccp_sim.analysis.stats.saturation import isotonic, tokens_to
from lccp_sim.records import Tag


@dataclass(frozen=True)
class StoppingCost:
    """One signal: the tokens of each seed at which it says stop, the probe then read at, and what the rest adds.

    `cost`: exact match at the end less that at `read_at`, over items and those seeds that have such a window; None if
    none has. The others are infinite in `read_at`.
    """

    signal: str
    at: tuple[float, ...]
    read_at: tuple[float, ...]
    exact_match: Estimate | None
    cost: Estimate | None


def stopping_costs(seeds: Sequence[Orders]) -> list[StoppingCost]:
    """A row for each signal, the earliest rule first; [] where the runs have no probe or no single needles."""
    needles, match = longest_needles(seeds), curves_of_seeds(seeds, "probe", "exact_match_frac", {})
    if needles is None or match is None:
        return []
    length, hits, nlls = needles
    signals: list[tuple[str, list[Curve], Callable[[Curve], float]]] = [
        (f"hit at {length} tokens first at 0.95", hits, ceiling),
        (f"hit at {length} tokens has made 95 % of its way", hits, _t95),
        (f"answer NLL at {length} tokens has made 95 % of its fall", nlls, _t95),
        ("logarithm of this NLL has made 95 % of its fall", nlls, _t95_log),
    ]
    return [_cost(name, [at(curve) for curve in curves], match) for name, curves, at in signals]


def needle_table(seeds: Sequence[Orders]) -> Table:
    """One row a variant and length of needle: hit and answer NLL at the first window, a quarter of the run, the end."""
    cells = sorted(
        {
            (str(tags["variant"]), int(tags["length"]))
            for monitor, metric, named in seeds[0][0].curves
            if monitor == "needle" and metric == "hit_frac" and {"variant", "length"} <= set(tags := dict(named))
        },
        key=lambda cell: (cell[0] != "single", *cell),
    )
    rows = []
    for variant, length in cells:
        cell: dict[str, Tag] = {"variant": variant, "length": length, "span": seeds[0][0].run.span()}
        found = [curves_of_seeds(seeds, "needle", metric, cell) for metric in ("hit_frac", "answer_nll_nats")]
        if all(found):
            ends = [_at_quarters(curves) for curves in found if curves]
            rows.append([variant, str(length), *(number(value) for three in ends for value in three)])
    head = [
        "needle",
        "tokens",
        *(f"{what}, {when}" for what in ("hit", "NLL") for when in ("first", "quarter", "last")),
    ]
    note = "Means over seeds of the value's tokens; the quarter is the window nearest to a quarter of the run's tokens."
    return Table("Needles by variant and length", head, rows, note)


def probe_over_seeds_table(seeds: Sequence[Orders]) -> Table:
    """One row a window of the probe: exact match over seeds, and of each task."""
    match = curves_of_seeds(seeds, "probe", "exact_match_frac", {})
    if match is None:
        return Table("The probe", [], [], "")
    tasks = sorted({str(tags["task"]) for _, metric, named in seeds[0][0].curves
                    if metric == "exact_match_frac" and "task" in (tags := dict(named))})  # fmt: skip
    last: dict[str, Tag] = {"sft_step": seeds[0][0].steps_sft[-1]} if seeds[0][0].steps_sft else {}
    by_task = {task: curves_of_seeds(seeds, "probe", "exact_match_frac", last | {"task": task}) for task in tasks}
    rows = []
    for place, tokens_ in enumerate(match[0].tokens_W):
        whole = over([float(c.value_W[place]) for c in match], [drawn(c)[:, place] for c in match])
        parts = [number(float(np.mean([c.value_W[place] for c in own]))) for own in by_task.values() if own]
        rows.append([tokens(tokens_), interval(whole), *parts])
    gains_SR = [drawn(c)[:, -1] - drawn(c)[:, 0] for c in match]
    moved = over([float(c.value_W[-1] - c.value_W[0]) for c in match], gains_SR)
    errors = [g_R.mean() / g_R.std() for g_R, c in zip(gains_SR, match, strict=True) if c.draws_RW is not None]
    note = f"Exact match after fine-tuning, 95 % intervals over seeds and items. First to last: {interval(moved)}; "
    note += f"in standard errors over items, seed by seed: {', '.join(number(error) for error in errors)}."
    return Table("The probe", ["tokens", "exact match", *(task for task, own in by_task.items() if own)], rows, note)


def _at_quarters(curves: Sequence[Curve]) -> list[float]:
    """The mean over seeds at the first window, the one nearest to a quarter of the tokens, and the last."""
    tokens_W = curves[0].tokens_W
    places = [0, int(np.argmin(np.abs(tokens_W - tokens_W[-1] / 4))), -1]
    return [float(np.mean([curve.value_W[place] for curve in curves])) for place in places]


def cost_table(costs: Sequence[StoppingCost]) -> Table:
    """One row a signal."""
    rows = []
    for each in costs:
        at, read = (", ".join(map(tokens, places)) for places in (each.at, each.read_at))
        rows.append(
            [each.signal, at, read, *(interval(e) if e else "not defined" for e in (each.exact_match, each.cost))]
        )
    note = (
        "Tokens are by seed. The probe is read at its first window that is not before the signal's; in brackets 95 % "
    )
    note += "intervals over items and those seeds that have such a window. `never`: not within the run."
    head = ["signal", "says stop at", "probe read at", "exact match there", "what the rest of the run adds"]
    return Table("What stopping would have cost", head, rows, note)


def _cost(signal: str, at: list[float], match: Sequence[Curve]) -> StoppingCost:
    """What the probe gains after a signal, over those seeds that have a window of it there."""
    places = [int(np.searchsorted(curve.tokens_W, tokens_)) for curve, tokens_ in zip(match, at, strict=True)]
    pairs = [(c, p) for c, p in zip(match, places, strict=True) if p < len(c.tokens_W)]
    read = tuple(float([*curve.tokens_W, np.inf][place]) for curve, place in zip(match, places, strict=True))
    if not pairs:
        return StoppingCost(signal, tuple(at), read, None, None)
    there = over([float(c.value_W[p]) for c, p in pairs], [drawn(c)[:, p] for c, p in pairs])
    rest = over(
        [float(c.value_W[-1] - c.value_W[p]) for c, p in pairs], [drawn(c)[:, -1] - drawn(c)[:, p] for c, p in pairs]
    )
    return StoppingCost(signal, tuple(at), read, there, rest)


def _t95(curve: Curve) -> float:
    found = tokens_to(curve.tokens_W, isotonic(curve.value_W, curve.rising))
    return found if np.isfinite(found) else float("inf")


def _t95_log(curve: Curve) -> float:
    found = tokens_to(curve.tokens_W, isotonic(np.log(np.maximum(curve.value_W, 1e-12)), curve.rising))
    return found if np.isfinite(found) else float("inf")
