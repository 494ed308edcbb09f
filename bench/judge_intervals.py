"""How often `lccp compare` tells two equal models apart, and how often an interval of `lccp gate` holds the truth.

Each trial draws items for two models of equal skill, with the intervals that the verbs use. A hit is a coin of the same
rate for both models, NLL is log-normal: a difficulty that both share, and noise of each. `layouts` are the cells of the
grid: one, or cells of two items or of unequal scatter. Rates are shares of trials, with their standard error.
`interval_excludes_0` ignores the rule that fewer than FEWEST_ITEMS items judge nothing. `value_held`: how often the
interval of one model's value holds its true mean.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lccp_sim.analysis.judge.compare import SAME
from lccp_sim.analysis.judge.intervals import FEWEST_ITEMS, ItemCurve
from lccp_sim.analysis.stats.curve import Curve

SIZES = (4, 8, 15, 30, 100)
KINDS = ("hit rate .5", "hit rate .9", "log-normal NLL")
LAYOUTS = ("one cell", "cells of two", "two unequal cells")
Array = npt.NDArray[Any]


def curve_of(before_I: Array, after_I: Array, stratum_I: Array) -> ItemCurve:
    """The curve of two windows with these items."""
    item_IW, nothing_W = np.stack([before_I, after_I], axis=1).astype(float), np.zeros(2)
    draws_RW, n = item_IW.mean(0)[None], len(item_IW)
    curve = Curve("needle", "x_frac", {}, nothing_W, item_IW.mean(0), nothing_W, draws_RW, "paired items", n)
    return ItemCurve(curve, item_IW, stratum_I, n)


def drawn(kind: str, layout: str, n: int, rng: np.random.Generator) -> ItemCurve:
    """Items of two equal models."""
    stratum_I = {"one cell": np.zeros(n, int), "cells of two": np.arange(n) // 2}.get(layout, np.arange(n) % 2)
    if kind.startswith("hit"):
        rate = float(kind.split()[-1])
        # An item is easy, hard or neither for both models, so that their hits go together.
        rate_I = np.clip(rate + rng.choice([-1, 0, 1], n) * min(rate, 1 - rate) / 2, 0, 1)
        return curve_of(rng.random(n) < rate_I, rng.random(n) < rate_I, stratum_I)
    scale_I = np.where((layout == "two unequal cells") & (stratum_I == 1), 5.0, 1.0)
    shared_I = rng.standard_normal(n)
    before_I, after_I = (scale_I * np.exp(0.7 * shared_I + 0.7 * rng.standard_normal(n)) for _ in range(2))
    return curve_of(before_I, after_I, stratum_I)


def rates(kind: str, layout: str, n: int, trials: int, seed: int = 0) -> dict[str, float]:
    """The shares of trials of one kind, layout and number of items."""
    rng = np.random.default_rng([seed, KINDS.index(kind), LAYOUTS.index(layout), n])
    excludes, held = 0, 0
    for _ in range(trials):
        found = drawn(kind, layout, n, rng)
        change = found.estimate(1, "change")
        excludes += change.above(SAME) or change.below(-SAME)
        if layout == "one cell":
            value, truth = found.estimate(1), float(kind.split()[-1]) if kind.startswith("hit") else np.exp(0.7**2)
            held += value.low is not None and value.high is not None and value.low <= truth <= value.high
    share = excludes / trials
    error = float(np.sqrt(share * (1 - share) / trials))
    told = {"told_apart": share if n >= FEWEST_ITEMS else 0.0, "interval_excludes_0": share, "stderr": error}
    return told | ({"value_held": held / trials} if layout == "one cell" else {})


def main() -> None:
    """Simulate every case and write the rates."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "judge_intervals.json")
    given = parser.parse_args()
    rows = [
        {"kind": kind, "layout": layout, "items": n} | rates(kind, layout, n, given.trials)
        for kind in KINDS
        for layout in LAYOUTS
        for n in SIZES
    ]
    for row in rows:
        print(json.dumps(row))
    found = {"trials": given.trials, "fewest_items": FEWEST_ITEMS, "rows": rows}
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
