"""Means over seeds: their resamples are those of the simulator, and arms are runs that differ in the seed alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from bench.simulate import NLL, World, items, simulate
from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.seeds import arms, over_seeds, pooled_over_seeds
from lccp_sim.analysis.stats.curve import Curve
from lccp_sim.analysis.stats.estimate import seed_weights, weights
from lccp_sim.analysis.stats.laws import Fit

CPT = Fit("cpt", {"c": 4.0, "B": -3.6, "E": 1 / 2e5, "beta": 1.5}, 0.0)
WORLD = World(CPT, items=60, seeds=3, seed_spread=0.3)


def of_seeds() -> list[Curve]:
    """The curve of each seed of WORLD, resampled over items alone."""
    value_SIW = items(WORLD, np.random.default_rng(0))[NLL]
    weight_RI = weights(np.zeros(WORLD.items))
    return [
        Curve("needle", NLL, {}, WORLD.tokens_W, value_IW.mean(0), value_IW.std(0, ddof=1) / WORLD.items**0.5,
              weight_RI @ value_IW, "paired items", WORLD.items)
        for value_IW in value_SIW
    ]  # fmt: skip


def test_the_mean_and_its_resamples_are_those_of_the_simulator():
    mean, planted = over_seeds(of_seeds()), simulate(WORLD)[NLL]
    assert mean.value_W == pytest.approx(planted.value_W) and mean.draws_RW == pytest.approx(planted.draws_RW)
    assert mean.source == "3 seeds, paired items" and mean.stderr_W == pytest.approx(mean.draws_RW.std(0, ddof=1))


def test_seeds_widen_the_interval_by_what_they_differ_in():
    seeds = of_seeds()
    apart = [replace(each, value_W=each.value_W + shift, draws_RW=each.draws_RW + shift)
             for each, shift in zip(seeds, (-1.0, 0.0, 1.0), strict=True)]  # fmt: skip
    low, high = np.percentile(over_seeds(apart).draws_RW[:, 0] - over_seeds(apart).value_W[0], [2.5, 97.5])
    assert high - low == pytest.approx(2 * student.ppf(0.975, 2) / 3**0.5, rel=0.15), "variance 1 between three seeds"
    assert (high - low) > 4 * np.ptp(np.percentile(over_seeds([seeds[0]] * 3).draws_RW[:, 0], [2.5, 97.5]))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_weights_of_seeds_make_the_interval_of_the_t_test(seeds):
    value_S = np.random.default_rng(seeds).standard_normal(seeds)
    draws_R = seed_weights(seeds, 100_000) @ value_S
    mean, half = value_S.mean(), student.ppf(0.975, seeds - 1) * value_S.std(ddof=1) / seeds**0.5
    assert np.percentile(draws_R, [2.5, 97.5]) == pytest.approx([mean - half, mean + half], rel=0.03)
    assert seed_weights(seeds).sum(1) == pytest.approx(1) and (seed_weights(1) == 1).all()


def test_only_shared_windows_count_and_one_seed_is_no_mean():
    seeds = of_seeds()
    short = replace(seeds[1], tokens_W=seeds[1].tokens_W[:9], value_W=seeds[1].value_W[:9],
                    stderr_W=seeds[1].stderr_W[:9], draws_RW=None)  # fmt: skip
    mean = over_seeds([seeds[0], short])
    assert list(mean.tokens_W) == list(WORLD.tokens_W[:9])
    assert mean.value_W == pytest.approx((seeds[0].value_W[:9] + short.value_W) / 2)
    assert over_seeds(seeds[:1]) is None


def test_arms_differ_in_more_than_the_seed():
    def found(name: str, **config: object) -> Findings:
        empty = pd.DataFrame()
        return Findings(RunData(Path(name), empty, empty, empty, dict(config), empty, [], True))

    runs = [
        found("a", seed=0, optim={"lr": 1}),
        found("b", seed=1, optim={"lr": 1}),
        found("c", seed=0, optim={"lr": 2}),
    ]
    assert [[each.run.path.name for each in arm] for arm in arms(runs)] == [["a", "b"], ["c"]]
    for each, curve in zip(runs, of_seeds(), strict=True):
        each.enter(curve)
        each.enter(replace(curve, tags={"length": 64}))
    over = pooled_over_seeds(runs[:2])
    assert list(over.curves) == [("needle", NLL, ())] and over.rows["needle", NLL, ()].interval.startswith("2 seeds")
