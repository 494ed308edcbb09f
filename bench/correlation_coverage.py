"""How often the 95 % intervals of a correlation hold the planted one, by the bootstrap and by Fisher's z.

    python bench/correlation_coverage.py

writes bench/results/correlation_coverage.json. Series are first-order autoregressive; `noise` is what items add to both
(standard deviation, in units of the series'), and the planted correlation is then that of the noisy series; `hetero`
is the standard deviation of the planted one between runs, on the scale of Fisher's z; `trend`: both also follow log
tokens, which are partialled out.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lccp_sim.analysis.stats.correlation import fisher_interval
from lccp_sim.analysis.stats.pairs import Points, degrees, pooled_interval
from lccp_sim.files import write_atomic

RESULT = Path(__file__).parent / "results" / "correlation_coverage.json"
REPETITIONS = 300
WORLDS: list[dict[str, Any]] = [
    dict(runs=1, windows=14, r=0.0, ar=0.0, noise=0.0, hetero=0.0, trend=False),
    dict(runs=1, windows=14, r=0.6, ar=0.0, noise=0.0, hetero=0.0, trend=False),
    dict(runs=1, windows=8, r=0.6, ar=0.0, noise=0.0, hetero=0.0, trend=False),
    dict(runs=1, windows=14, r=0.6, ar=0.0, noise=0.0, hetero=0.0, trend=True),
    dict(runs=1, windows=14, r=0.0, ar=0.7, noise=0.0, hetero=0.0, trend=False),
    dict(runs=1, windows=14, r=0.6, ar=0.0, noise=0.5, hetero=0.0, trend=False),
    dict(runs=2, windows=14, r=0.6, ar=0.0, noise=0.0, hetero=0.0, trend=False),
    dict(runs=3, windows=14, r=0.6, ar=0.0, noise=0.0, hetero=0.0, trend=False),
    dict(runs=3, windows=14, r=0.0, ar=0.7, noise=0.0, hetero=0.0, trend=False),
    dict(runs=4, windows=14, r=0.6, ar=0.0, noise=0.0, hetero=0.4, trend=False),
    dict(runs=4, windows=14, r=0.6, ar=0.0, noise=0.5, hetero=0.0, trend=False),
]


def points(rng: np.random.Generator, world: dict[str, Any]) -> Points:
    """One run of a world."""
    windows, ar, noise = world["windows"], world["ar"], world["noise"]
    r = np.tanh(np.arctanh(world["r"]) + world["hetero"] * rng.standard_normal())
    own_2W = rng.standard_normal((2, windows))
    for window in range(1, windows):
        own_2W[:, window] = ar * own_2W[:, window - 1] + np.sqrt(1 - ar**2) * own_2W[:, window]
    both_2W = np.stack([own_2W[0], r * own_2W[0] + np.sqrt(1 - r**2) * own_2W[1]])
    trend_W = np.log1p(np.arange(windows)) if world["trend"] else None
    x_W, y_W = both_2W + noise * rng.standard_normal(both_2W.shape) + (0 if trend_W is None else 3 * trend_W)
    draws_2RW = noise * rng.standard_normal((2, 1000, windows))
    return Points(x_W, y_W, x_W + draws_2RW[0], y_W + draws_2RW[1], trend_W)


def coverage(world: dict[str, Any], repetitions: int = REPETITIONS) -> dict[str, Any]:
    """The world with the share of intervals that hold the planted correlation, and the bootstrap's mean width."""
    truth, held, widths = world["r"] / (1 + world["noise"] ** 2), {"bootstrap": 0, "fisher": 0}, []
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        runs = [points(rng, world) for _ in range(world["runs"])]
        found = pooled_interval(runs, ranked=False, seed=seed)
        held["bootstrap"] += found.low is not None and found.low <= truth <= found.high
        low, high = fisher_interval(found.value, degrees(runs))
        held["fisher"] += low <= truth <= high
        widths.append(found.high - found.low)
    shares = {name: round(count / repetitions, 3) for name, count in held.items()}
    return world | shares | {"width": round(float(np.mean(widths)), 2)}


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown table of docs/analysis.md."""
    names = {"runs": "runs", "windows": "windows", "r": "r", "ar": "autocorrelation", "noise": "noise of items"}
    names |= {"hetero": "spread between runs", "trend": "trend", "bootstrap": "bootstrap", "fisher": "Fisher"}
    lines = [f"| {' | '.join(names.values())} |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [("yes" if row[name] else "no") if name == "trend" else f"{row[name]:g}" for name in names]
        cells[-2:] = [f"{100 * row[name]:.0f} %" for name in ("bootstrap", "fisher")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    rows = [coverage(world) for world in WORLDS]
    write_atomic(RESULT, json.dumps({"repetitions": REPETITIONS, "worlds": rows}, indent=1) + "\n")
    print(table(rows))
