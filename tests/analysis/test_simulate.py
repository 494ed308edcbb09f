"""The simulator: its truth is what its items average to, and its frames are what the analysis reads."""

from dataclasses import replace

import numpy as np
import pytest

from bench.simulate import HIT, NLL, World, items, plan, run_data, simulate
from lccp_sim.analysis.stats.curve import curves
from lccp_sim.analysis.stats.laws import Fit
from lccp_sim.analysis.stats.saturation import progress

POWER = Fit("power", {"E": 0.3, "A": 3.5 * 31_250.0**0.9, "a": 0.9, "N0": 31_250.0}, 0.0)
WORLD = World(POWER, items=60)


@pytest.mark.parametrize("seed_spread", [0.0, 0.5])
def test_many_items_and_seeds_average_to_the_planted_truth(seed_spread):
    world = replace(WORLD, items=400, seeds=200, seed_spread=seed_spread, windows=8)
    for metric, value_SIW in items(world, np.random.default_rng(0)).items():
        mean_W, truth_W = value_SIW.mean((0, 1)), world.truth(metric, world.tokens_W)
        assert mean_W == pytest.approx(truth_W, rel=0.1, abs=0.03)


def test_planted_tokens_lie_where_the_planted_share_of_the_way_is_made():
    for metric in (HIT, NLL):
        first, last = WORLD.truth(metric, 0.0), WORLD.truth(metric, WORLD.run_tokens)
        at = WORLD.truth(metric, WORLD.truth_tokens(metric, 0.9))
        assert (at - first) / (last - first) == pytest.approx(0.9)
        assert WORLD.truth_gain(metric) > 0


def test_hits_are_items_below_the_threshold_and_keep_their_difficulty():
    value = items(WORLD, np.random.default_rng(0))
    assert (value[HIT] == (value[NLL] < WORLD.threshold)).all()
    nll_IW = np.log(value[NLL][0])
    assert np.corrcoef(nll_IW[:, 0], nll_IW[:, -1])[0, 1] > 0.7


def test_resamples_scatter_as_studies_do():
    world = replace(WORLD, wobble=0.0)
    last = np.array([simulate(world, seed, 50)[NLL].value_W[-1] for seed in range(200)])
    assert simulate(world, 0)[NLL].draws_RW[:, -1].std() == pytest.approx(last.std(), rel=0.35)
    spread = [simulate(replace(world, seeds=4, seed_spread=s), 0)[NLL].draws_RW[:, 3].std() for s in (0.0, 1.0)]
    assert spread[1] > 1.5 * spread[0], "seeds that differ widen the resamples"


def test_the_frames_of_a_simulated_run_read_like_a_run():
    run = run_data(WORLD, seed=3)
    read = curves(run, "needle", (HIT, NLL), {})
    wanted = simulate(WORLD, seed=3)
    for metric in (HIT, NLL):
        assert read[metric].source == "paired items" and run.warnings == []
        assert read[metric].value_W == pytest.approx(wanted[metric].value_W)
        assert read[metric].stderr_W == pytest.approx(wanted[metric].stderr_W)
    assert progress(read[NLL]).t95 is not None and run.tokens == WORLD.run_tokens


def test_a_plan_shows_what_more_items_buy():
    table = plan(WORLD, windows=(14,), items=(20, 320), seeds=(1,), repetitions=12)
    few, many = table.to_dict("records")
    assert (few["items"], many["items"], many["power"]) == (20, 320, 1.0)
    assert many["nll_t95_high"] - many["nll_t95_low"] < few["nll_t95_high"] - few["nll_t95_low"]
    assert few["nll_t95_low"] <= 1.1 and few["nll_t95_high"] >= 0.9
