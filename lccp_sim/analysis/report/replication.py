"""Tables on the page of the paper's study in addition to the answers: needles, the probe, and the cost of stopping.

All are over seeds; a seed's value is the mean over its data orders. The paper (arXiv 2604.02650, section 5) warns that
training that stops when the needle score reaches its ceiling stops too early. For each signal the probe is read at its
first window at or after the signal, so the cost is never overstated, and compared with the end of the same run.
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
    """The cost of stopping at one signal. `at`: the tokens at which it says stop, by seed.

    `read_at`: the tokens of the probe window used; infinite if a seed has none. `exact_match`: the probe there. `cost`:
    exact match at the end minus that at `read_at`, over items and the seeds that have such a window; None if none has.
    """

    signal: str
    at: tuple[float, ...]
    read_at: tuple[float, ...]
    exact_match: Estimate | None
    cost: Estimate | None


def stopping_costs(seeds: Sequence[Orders]) -> list[StoppingCost]:
    """Compute the cost of each signal, the earliest rule first; [] if the runs have no probe or no single needles."""
    needles, match = longest_needles(seeds), curves_of_seeds(seeds, "probe", "exact_match_frac", {})
    if needles is None or match is None:
        return []
    length, hits, nlls = needles
    signals: list[tuple[str, list[Curve], Callable[[Curve], float]]] = [
        (f"hit at {length} tokens first reaches 0.95", hits, ceiling),
        (f"hit at {length} tokens has made 95 % of its improvement", hits, _t95),
        (f"answer NLL at {length} tokens has made 95 % of its improvement", nlls, _t95),
        ("the logarithm of this NLL has made 95 % of its improvement", nlls, _t95_log),
    ]
    return [_cost(name, [at(curve) for curve in curves], match) for name, curves, at in signals]


def needle_table(seeds: Sequence[Orders]) -> Table:
    """Tabulate needles by variant and length: hit and answer NLL at the first window, a quarter of the run, the end."""
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
    note = "Means over seeds, on the value's tokens. Quarter: the window nearest to a quarter of the run's tokens."
    return Table("Needles by variant and length", head, rows, note)


def probe_over_seeds_table(seeds: Sequence[Orders]) -> Table:
    """Tabulate exact match over seeds, overall and by task, one window of the probe per row."""
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
    note += f"in standard errors over items, by seed: {', '.join(number(error) for error in errors)}."
    return Table("The probe", ["tokens", "exact match", *(task for task, own in by_task.items() if own)], rows, note)


def _at_quarters(curves: Sequence[Curve]) -> list[float]:
    """Average over seeds at the first window, the window nearest to a quarter of the tokens, and the last."""
    tokens_W = curves[0].tokens_W
    places = [0, int(np.argmin(np.abs(tokens_W - tokens_W[-1] / 4))), -1]
    return [float(np.mean([curve.value_W[place] for curve in curves])) for place in places]


def cost_table(costs: Sequence[StoppingCost]) -> Table:
    """Tabulate the cost of stopping, one signal per row."""
    rows = []
    for each in costs:
        at, read = (", ".join(map(tokens, places)) for places in (each.at, each.read_at))
        rows.append(
            [each.signal, at, read, *(interval(e) if e else "not defined" for e in (each.exact_match, each.cost))]
        )
    note = (
        "Tokens are listed by seed. The probe is read at its first window at or after the signal. In parentheses: 95 % "
    )
    note += "intervals over items and the seeds that have such a window. Never: not within the run."
    head = ["signal", "says stop at", "probe read at", "exact match there", "gain over the rest of the run"]
    return Table("The cost of stopping", head, rows, note)


def _cost(signal: str, at: list[float], match: Sequence[Curve]) -> StoppingCost:
    """Compute the gain of the probe after a signal, over the seeds that have a probe window there."""
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
