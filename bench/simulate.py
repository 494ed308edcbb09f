"""Studies with a planted truth: to see what the analysis makes of them, and to plan how large a real one must be.

Items have answer NLLs that scatter log-normally about a planted law, each with a difficulty of its own that stays, and
a hit is an NLL below a threshold, so that both curves and the truth of both come from one distribution. What a reader
would question: noise is independent between windows; training that drifts would make intervals too narrow.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import norm

from lccp_sim.analysis.areas import Areas, Rate
from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.cpt_law import CptLaw
from lccp_sim.analysis.stats.curve import Curve
from lccp_sim.analysis.stats.estimate import RESAMPLES, Array, seed_weights, weights
from lccp_sim.analysis.stats.laws import Fit
from lccp_sim.analysis.stats.rule import EPS, decide
from lccp_sim.analysis.stats.saturation import isotonic, tokens_to
from lccp_sim.config import OptimConfig
from lccp_sim.records import HEADLINE

HIT, NLL = "hit_frac", "answer_nll_nats"
STEPS = 1000
NORMAL_Z, NORMAL_P = np.polynomial.hermite_e.hermegauss(15)


@dataclass(frozen=True)
class World:
    """A planted study. Spreads are standard deviations of log NLL, but `seed_spread`, which is one of log tokens.

    `law`: mean answer NLL of all items in nats, at a seed of ordinary speed. `item_spread`: between items, the same at
    every window. `noise`: of an item at a window. `wobble`: of all items of a seed at a window together, as weights
    that differ from one window to the next give. `seed_spread`: how fast seeds learn. `threshold`: the answer NLL
    below which an item is a hit, in nats. Items are the same for all seeds. `schedule`: that of the learning rate, of
    STEPS steps; other than constant, the law is in its areas, and seeds must not differ in speed.
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
    schedule: str = "constant"
    tokens_W: Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tokens = self.run_tokens * 2.0 ** (-np.arange(self.windows - 1) / 2)
        object.__setattr__(self, "tokens_W", np.array([0.0, *np.floor(tokens[::-1])]))

    def truth(self, metric: str, tokens: float | Array) -> Array:
        """The planted mean of a metric over all items and seeds there could be, at `tokens`, of their shape."""
        tokens = np.asarray(tokens, float)[..., None] * np.exp(self.seed_spread * NORMAL_Z)
        return self._seen(metric, self.mean(tokens)) @ NORMAL_P / NORMAL_P.sum()

    @cached_property
    def rate(self) -> Rate | None:
        """The learning rate of each step; None for a constant one."""
        if self.schedule == "constant":
            return None
        decay = round(0.3 * STEPS) if self.schedule == "wsd" else None
        optim = OptimConfig(1e-3, self.schedule, STEPS // 50, decay)  # type: ignore[arg-type]
        return Rate(np.array([optim.lr * optim.factor(step, STEPS) for step in range(STEPS)]), self.run_tokens // STEPS)

    def mean(self, tokens: Array) -> Array:
        """The planted mean answer NLL of a seed of ordinary speed, of the tokens' shape."""
        at = self.areas(tokens)
        return self.law.predict(at.forward, at.annealing)

    def areas(self, tokens: Array) -> Areas:
        """The areas of the learning rate at tokens."""
        return Areas.constant(tokens) if self.rate is None else self.rate.at(tokens)

    def _seen(self, metric: str, mean: Array) -> Array:
        if metric != HIT:
            return mean
        spread = np.sqrt(self.item_spread**2 + self.noise**2 + self.wobble**2)
        return norm.cdf((np.log(self.threshold / mean) + spread**2 / 2) / spread)

    def truth_tokens(self, metric: str, frac: float) -> float:
        """Tokens at which the planted curve has made `frac` of its way from step 0 to the end of the run."""
        first, last = self.truth(metric, 0.0), self.truth(metric, self.run_tokens)
        return float(brentq(lambda t: (self.truth(metric, t) - first) / (last - first) - frac, 0, self.run_tokens))

    def truth_gain(self, metric: str) -> float:
        """The planted improvement from the end of the run to that of one twice as long, scheduled alike."""
        if self.rate is None:
            then = self.truth(metric, 2.0 * self.run_tokens)
        else:
            at = self.rate.doubled(self.run_tokens)
            then = self._seen(metric, self.law.predict(at.forward, at.annealing))[0]
        gain = float(then - self.truth(metric, self.run_tokens))
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
    mean_SW = world.mean(speed_S * world.tokens_W)
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
            "needle", metric, {}, world.tokens_W, mean_IW.mean(0), stderr_W, draws_RW, "paired items", world.items,
            world.rate,
        )  # fmt: skip
    return result


def domains(
    laws: dict[str, CptLaw], schedule: str = "constant", shares: Iterable[float] = (0.0,), seed: int = 0
) -> list[dict[str, Curve]]:
    """For each share of replay the loss of each domain, by metric, under planted laws: 40 texts, the same everywhere.

    A text has a level of its own (0.3 nats) and noise (0.02) at each window; all texts share a wobble of 0.002.
    """
    world, rng = World(Fit("constant", {"c": 1.0}, 0.0), schedule=schedule), np.random.default_rng(seed)
    tokens_W, weight_RI = world.tokens_W, weights(np.zeros(40), 300, seed)
    at = world.areas(tokens_W)
    level_I1, found = 0.3 * rng.standard_normal((40, 1)), []
    for share in shares:
        made = {}
        for metric, law in laws.items():
            noise_IW = 0.02 * rng.standard_normal((40, len(tokens_W))) + 0.002 * rng.standard_normal(len(tokens_W))
            value_IW = law.predict(at, share) + level_I1 + noise_IW
            made[metric] = Curve(
                "perplexity", metric, {}, tokens_W, value_IW.mean(0), value_IW.std(0, ddof=1) / np.sqrt(40),
                weight_RI @ value_IW, "paired items", 40, world.rate,
            )  # fmt: skip
        found.append(made)
    return found


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
