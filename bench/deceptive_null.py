"""How often a deceptive index exceeds its null: the two nulls, in worlds where hits are or are not a function of NLL.

    python bench/deceptive_null.py

writes bench/results/deceptive_null.json. The NLL of 120 items falls from 4 to 0.4 nats, linearly in log tokens, times a
level of the item's own (log standard deviation 0.4) and noise at each window (0.15).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lccp_sim.analysis.stats.deceptive import hit_given_nll, null_hits, own_scale, t95_of
from lccp_sim.analysis.stats.estimate import weights
from lccp_sim.files import write_atomic

RESULT = Path(__file__).parent / "results" / "deceptive_null.json"
REPETITIONS, ITEMS, RESAMPLES = 100, 120, 300
GRID = np.array([0, *(31_250 * 2 ** (np.arange(13) / 2))])
Array = npt.NDArray[np.float64]


def link(nll_IW: Array) -> Array:
    """P(hit) of a noisy threshold."""
    return 1 / (1 + (nll_IW / 1.2) ** 3)


WORLDS: dict[str, Callable[..., Any]] = {  # (NLL, level, uniform numbers by item and window, by item) -> hits
    "NLL < 0.8": lambda nll, level, each, item: nll < 0.8,
    "NLL < 3.5": lambda nll, level, each, item: nll < 3.5,
    "noisy threshold, new at each window": lambda nll, level, each, item: each < link(nll),
    "noisy threshold, once an item": lambda nll, level, each, item: item < link(nll),
    "NLL / the item's level < 1.2": lambda nll, level, each, item: nll / level < 1.2,
    "all items after 120 000 tokens": lambda nll, level, each, item: np.broadcast_to(GRID > 1.2e5, nll.shape),
}


def p_values(hits: Callable[..., Any], seed: int) -> tuple[float, float, float]:
    """The index, and its p value under both nulls, in one world."""
    rng = np.random.default_rng(seed)
    level_I1 = np.exp(0.4 * rng.standard_normal((ITEMS, 1)))
    mean_W = 4 - 3.6 * np.log1p(GRID / 5e4) / np.log1p(GRID[-1] / 5e4)
    nll_IW = mean_W * level_I1 * np.exp(0.15 * rng.standard_normal((ITEMS, len(GRID))))
    hit_IW = np.asarray(hits(nll_IW, level_I1, rng.random(nll_IW.shape), rng.random((ITEMS, 1))), float)
    weight_RI = weights(np.zeros(ITEMS), resamples=RESAMPLES, seed=seed)
    late_R = t95_of(GRID, weight_RI @ nll_IW, rising=False)
    index = (t95_of(GRID, nll_IW.mean(0)[None], rising=False) / t95_of(GRID, hit_IW.mean(0)[None], rising=True))[0]
    found = []
    for x_IW in (nll_IW, own_scale(nll_IW)):
        null_R = late_R / t95_of(GRID, null_hits(hit_given_nll(x_IW, hit_IW), weight_RI, seed), rising=True)
        found.append(float((1 + (null_R >= index).sum()) / (1 + np.isfinite(null_R).sum())))
    return float(index), found[0], found[1]


def rejected(name: str, repetitions: int = REPETITIONS) -> dict[str, float]:
    """Median index, and the shares of worlds in which p is below 5 % under each null and under both."""
    index_N, one_N, own_N = np.array([p_values(WORLDS[name], seed) for seed in range(repetitions)]).T
    shares = {"common": one_N < 0.05, "own_scale": own_N < 0.05, "both": np.maximum(one_N, own_N) < 0.05}
    return {"index": round(float(np.median(index_N)), 2)} | {key: float(value.mean()) for key, value in shares.items()}


def table(rows: dict[str, dict[str, float]]) -> str:
    """The Markdown table of docs/analysis.md."""
    lines = ["| an item hits where | median index | one function of NLL | on the item's own scale | exceeds: both |"]
    lines.append("|---|---|---|---|---|")
    for name, row in rows.items():
        shares = [f"{100 * row[key]:.0f} %" for key in ("common", "own_scale", "both")]
        cells = [name, f"{row['index']:.2f}", *shares]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    found = {name: rejected(name) for name in WORLDS}
    write_atomic(RESULT, json.dumps({"repetitions": REPETITIONS, "items": ITEMS, "worlds": found}, indent=1) + "\n")
    print(table(found))
