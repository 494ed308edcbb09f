"""Studies with a planted truth: to see what the analysis makes of them, and to plan how large a real one must be.

Items have answer NLLs that scatter log-normally about a planted law, each with a difficulty of its own that stays, and
a hit is an NLL below a threshold, so that both curves and the truth of both come from one distribution. What a reader
would question: noise is independent between windows; training that drifts would make intervals too narrow.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import norm

from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.curve import Curve
from lccp_sim.analysis.stats.estimate import RESAMPLES, Array, seed_weights, weights
from lccp_sim.analysis.stats.laws import Fit
from lccp_sim.analysis.stats.rule import EPS, decide
from lccp_sim.analysis.stats.saturation import isotonic, tokens_to
from lccp_sim.records import HEADLINE

HIT, NLL = "hit_frac", "answer_nll_nats"
NORMAL_Z, NORMAL_P = np.polynomial.hermite_e.hermegauss(15)


@dataclass(frozen=True)
class World:
    """A planted study. Spreads are standard deviations of log NLL, but `seed_spread`, which is one of log tokens.

    `law`: mean answer NLL of all items in nats, at a seed of ordinary speed. `item_spread`: between items, the same at
    every window. `noise`: of an item at a window. `wobble`: of all items of a seed at a window together, as weights
    that differ from one window to the next give. `seed_spread`: how fast seeds learn. `threshold`: the answer NLL
    below which an item is a hit, in nats. Items are the same for all seeds.
    """

    law: Fit
    run_tokens: int = 2_000_000
    windows: int = 14
    items: int = 120
    seeds: int = 1
    item_spread: float = 0.5
    noise: float = 0.2
    wobble: float = 0.01
    seed_spread: float = 0.0
    threshold: float = 1.0
    tokens_W: Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tokens = self.run_tokens * 2.0 ** (-np.arange(self.windows - 1) / 2)
        object.__setattr__(self, "tokens_W", np.array([0.0, *np.floor(tokens[::-1])]))

    def truth(self, metric: str, tokens: float | Array) -> Array:
        """The planted mean of a metric over all items and seeds there could be, at `tokens`, of their shape."""
        tokens = np.asarray(tokens, float)[..., None] * np.exp(self.seed_spread * NORMAL_Z)
        mean = self.law.predict(tokens)
        if metric == HIT:
            spread = np.sqrt(self.item_spread**2 + self.noise**2 + self.wobble**2)
            mean = norm.cdf((np.log(self.threshold / mean) + spread**2 / 2) / spread)
        return mean @ NORMAL_P / NORMAL_P.sum()

    def truth_tokens(self, metric: str, frac: float) -> float:
        """Tokens at which the planted curve has made `frac` of its way from step 0 to the end of the run."""
        first, last = self.truth(metric, 0.0), self.truth(metric, self.run_tokens)
        return float(brentq(lambda t: (self.truth(metric, t) - first) / (last - first) - frac, 0, self.run_tokens))

    def truth_gain(self, metric: str) -> float:
        """The planted improvement from the end of the run to twice its tokens."""
        gain = float(self.truth(metric, 2.0 * self.run_tokens) - self.truth(metric, self.run_tokens))
        return gain if metric == HIT else -gain


def items(world: World, rng: np.random.Generator) -> dict[str, Array]:
    """Values [seeds, items, windows] of hit and answer NLL (nats), by metric."""
    shape = world.seeds, world.items, len(world.tokens_W)
    speed_S = np.exp(world.seed_spread * rng.standard_normal((world.seeds, 1)))
    scatter_SIW = (
        world.item_spread * rng.standard_normal((1, world.items, 1))
        + world.noise * rng.standard_normal(shape)
        + world.wobble * rng.standard_normal((world.seeds, 1, shape[2]))
    )
    variance = world.item_spread**2 + world.noise**2 + world.wobble**2
    mean_SW = world.law.predict(speed_S * world.tokens_W)
    nll_SIW = mean_SW[:, None] * np.exp(scatter_SIW - variance / 2)
    return {HIT: (nll_SIW < world.threshold).astype(float), NLL: nll_SIW}


def simulate(world: World, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Curve]:
    """The curves of hit and answer NLL, by metric, averaged over seeds; their resamples share items and seeds."""
    rng = np.random.default_rng(seed)
    values = items(world, rng)
    weight_RI = weights(np.zeros(world.items), resamples, seed)
    weight_RS = seed_weights(world.seeds, resamples, seed + 1)
    result = {}
    for metric, value_SIW in values.items():
        draws_RW = sum(
            weight_R[:, None] * (weight_RI @ value_IW)
            for weight_R, value_IW in zip(weight_RS.T, value_SIW, strict=True)
        )
        mean_IW = value_SIW.mean(0)
        stderr_W = mean_IW.std(0, ddof=1) / np.sqrt(world.items)
        result[metric] = Curve(
            "needle", metric, {}, world.tokens_W, mean_IW.mean(0), stderr_W, draws_RW, "paired items", world.items
        )  # fmt: skip
    return result


def run_data(world: World, seed: int = 0) -> RunData:
    """What `load_run` would give for the first seed of a simulated study: its records and samples, and nothing else."""
    values = items(world, np.random.default_rng(seed))
    records: list[dict[str, Any]] = []
    samples = []
    for metric, value_SIW in values.items():
        for number, tokens in enumerate(world.tokens_W.astype(int)):
            value_I = value_SIW[0, :, number]
            named = {"step": number, "monitor": "needle", "metric": metric}
            stderr = value_I.std(ddof=1) / np.sqrt(world.items)
            records.append(
                named
                | {"tokens": tokens, "tier": "probabilistic", "value": value_I.mean(), "n": world.items}
                | {"stderr": stderr, "names": ""}
            )
            of_item = {"item_id": [str(i) for i in range(world.items)], "value": value_I}
            tags = {"tags": "{}", "stratum": "{}", "variant": "single", "span": HEADLINE}
            samples.append(pd.DataFrame(of_item).assign(**named, **tags))
    config = {"seed": seed, "run": {"name": "simulated", "tokens": world.run_tokens}}
    timing = pd.DataFrame(columns=["step", "tokens", "what", "seconds", "forward_tokens"])
    tables = pd.DataFrame(records), pd.concat(samples, ignore_index=True), timing
    return RunData(Path(f"simulated-s{seed}"), *tables, config, pd.DataFrame(), [], True)


def plan(
    world: World,
    windows: Iterable[int] = (8, 14, 20),
    items: Iterable[int] = (60, 240),
    seeds: Iterable[int] = (1, 3),
    repetitions: int = 50,
    eps: float = EPS,
) -> pd.DataFrame:
    """One row for each size of study: how widely t95 scatters, and how often the rule calls the NLL saturated.

    `hit_t95_low`, `hit_t95_high`, `nll_t95_low`, `nll_t95_high`: the middle 95 % of what studies of this size
    find, over the planted t95; `power`: the share of them with the verdict "saturated" on the answer NLL.
    """
    rows = []
    for many_windows, many_items, many_seeds in product(windows, items, seeds):
        study = replace(world, windows=many_windows, items=many_items, seeds=many_seeds)
        found: dict[str, list[float]] = {HIT: [], NLL: []}
        saturated = 0
        for seed in range(repetitions):
            both = simulate(study, seed, resamples=200)
            for metric, curve in both.items():
                found[metric].append(tokens_to(curve.tokens_W, isotonic(curve.value_W, curve.rising)))
            saturated += decide(both[NLL], eps).verdict == "saturated"
        row: dict[str, float] = {"windows": many_windows, "items": many_items, "seeds": many_seeds}
        for name, metric in (("hit", HIT), ("nll", NLL)):
            low, high = np.nanpercentile(found[metric], [2.5, 97.5]) / study.truth_tokens(metric, 0.95)
            row |= {f"{name}_t95_low": low, f"{name}_t95_high": high}
        rows.append(row | {"power": saturated / repetitions})
    return pd.DataFrame(rows)
