"""t95 and what is computed from it, against curves whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from lccp_sim.analysis.run import load_run
from lccp_sim.analysis.stats.curve import Curve, Estimate, curves, whole_curve
from lccp_sim.analysis.stats.estimate import weights
from lccp_sim.analysis.stats.saturation import isotonic, lag, progress, tokens_reached, tokens_to, value_at

GRID = np.array([0, *(31_250 * 2 ** (np.arange(13) / 2))])
ONLY_NEEDLE = ("precondition", "heads", "induction", "perplexity", "probe", "routing")


def curve(value_W, metric="answer_nll_nats", draws_RW=None) -> Curve:
    value_W = np.asarray(value_W, float)
    tokens_W = GRID[: len(value_W)]
    return Curve("needle", metric, {}, tokens_W, value_W, np.zeros_like(value_W), draws_RW)


def test_tokens_to_of_a_straight_line_in_log_tokens_is_exact():
    value_W = 4 - 0.5 * np.log(GRID + GRID[1])
    way = np.log(GRID[-1] + GRID[1]) - np.log(GRID[1])
    assert tokens_to(GRID, value_W) == pytest.approx(np.exp(np.log(GRID[1]) + 0.95 * way) - GRID[1], rel=1e-12)


def test_value_at_and_tokens_to_are_inverse():
    value_W = np.linspace(0, 1, len(GRID)) ** 2
    assert value_at(GRID, value_W, tokens_to(GRID, value_W)) == pytest.approx(0.95)


def test_isotonic_pools_what_goes_the_wrong_way():
    assert isotonic(np.array([0.0, 0.6, 0.4, 1.0]), rising=True).tolist() == pytest.approx([0, 0.5, 0.5, 1])
    assert isotonic(np.array([3.0, 1.0, 2.0, 0.0]), rising=False).tolist() == pytest.approx([3, 1.5, 1.5, 0])


def test_planted_t95_is_recovered(make_run):
    path, world = make_run(items=60, without=ONLY_NEEDLE)
    both = curves(load_run(path), "needle", ("hit_frac", "answer_nll_nats"), {})
    hit, nll = progress(both["hit_frac"]), progress(both["answer_nll_nats"])
    assert hit.t95.value == pytest.approx(world.hit_t95, rel=0.2)
    assert nll.t95.value == pytest.approx(world.nll_t95, rel=0.02)
    assert hit.bracket[0] < hit.t95.value <= hit.bracket[1]
    gap = lag(both["hit_frac"], both["answer_nll_nats"])
    assert gap.factor.value == pytest.approx(world.factor, rel=0.1)
    assert gap.index.value == pytest.approx(world.nll_t95 / world.hit_t95, rel=0.2)
    assert gap.index.above(1) and gap.factor.above(gap.same_shape.value)


def test_intervals_cover_the_truth_in_most_worlds_and_say_something(make_world, simulated):
    repetitions, covered, widths = 12, {"hit": 0, "nll": 0, "factor": 0}, []
    for seed in range(repetitions):
        world = replace(make_world, seed=seed)
        both = simulated(world)
        estimates = {
            "hit": (progress(both["hit_frac"]).t95, world.hit_t95),
            "nll": (progress(both["answer_nll_nats"]).t95, world.nll_t95),
            "factor": (lag(both["hit_frac"], both["answer_nll_nats"]).factor, world.factor),
        }
        for name, (estimate, truth) in estimates.items():
            covered[name] += estimate.low <= truth <= estimate.high
        widths.append(estimates["nll"][0].high - estimates["nll"][0].low)
    assert min(covered.values()) >= 0.8 * repetitions, covered
    assert np.median(widths) < 0.03 * make_world.run_tokens


def test_t50_t90_t95_follow_each_other_and_are_exact_on_a_line_in_log_tokens():
    line_W = 4 - 0.5 * np.log(GRID + GRID[1])
    row = progress(curve(line_W))
    way = np.log(GRID[-1] / GRID[1] + 1)
    wanted = [GRID[1] * (np.exp(frac * way) - 1) for frac in (0.5, 0.9, 0.95)]
    assert [row.t50.value, row.t90.value, row.t95.value] == pytest.approx(wanted)
    nothing = progress(curve([0.3] * 8, "hit_frac"))
    assert nothing.t50 is nothing.t90 is None


def test_what_was_reached_before_the_first_window_is_known_to_that_stretch_only():
    value_W = 2.0 * 0.2 ** (GRID > 0) + 0.0 * GRID
    early = tokens_reached(
        curve(value_W, draws_RW=value_W + 1e-6 * np.random.default_rng(0).standard_normal((50, len(GRID))))
    )
    assert (early[0].low, early[0].high) == (0, GRID[1])


def test_what_moves_all_items_of_a_checkpoint_widens_the_interval():
    rng = np.random.default_rng(0)
    value_W = 4 - 0.5 * np.log(GRID + GRID[1]) + 0.05 * rng.standard_normal(len(GRID))
    draws_RW = value_W + 0.1 * rng.standard_normal((400, 1))  # items differ, and all the same at every window
    few = curve(value_W, draws_RW=draws_RW)
    alone, whole = tokens_reached(few)[2], progress(few).t95
    assert alone.high - alone.low < 1e-6 * alone.value < 0.05 * whole.value < whole.high - whole.low


def test_intervals_of_paired_items_are_narrower_than_those_of_standard_errors(make_run):
    path, _ = make_run(without=ONLY_NEEDLE)
    run = load_run(path)
    paired = progress(curves(run, "needle", ("answer_nll_nats",), {})["answer_nll_nats"])
    unpaired = progress(curves(load_run_without_samples(path), "needle", ("answer_nll_nats",), {})["answer_nll_nats"])
    assert (paired.interval, unpaired.interval) == ("paired items", "standard errors")
    assert paired.t95.high - paired.t95.low < 0.5 * (unpaired.t95.high - unpaired.t95.low)


def load_run_without_samples(path):
    for file in (path / "samples").iterdir():
        file.unlink()
    return load_run(path)


def test_resampled_means_have_the_variance_of_the_mean_even_in_small_cells():
    rng = np.random.default_rng(0)
    value_WI = rng.standard_normal((1, 300 * 3))
    stratum_I = np.repeat(np.arange(300), 3)
    draws_RW = weights(stratum_I, resamples=4000) @ value_WI.T
    within = value_WI.reshape(300, 3).var(axis=1, ddof=1).mean()
    assert draws_RW.var() == pytest.approx(within / 900, rel=0.1)
    assert draws_RW.mean() == pytest.approx(value_WI.mean(), abs=0.002)


def test_resampling_is_paired_over_windows():
    item_I = np.random.default_rng(0).standard_normal(50)
    draws_RW = weights(np.zeros(50), resamples=200) @ np.stack([item_I, item_I - 1]).T
    assert np.ptp(draws_RW[:, 0]) > 0.1
    assert (draws_RW[:, 0] - draws_RW[:, 1]) == pytest.approx(1.0)


def test_cells_of_one_item_are_pooled_so_that_the_interval_does_not_vanish():
    draws_RW = weights(np.arange(12), resamples=500) @ np.arange(12.0)[:, None]
    assert draws_RW.std() == pytest.approx(np.arange(12).std(ddof=1) / np.sqrt(12), rel=0.15)


@pytest.mark.parametrize(
    ("value_W", "metric", "reason"),
    [
        ([0.3] * 8, "hit_frac", "constant: 0.3 at every window"),
        ([0.5, 0.4, 0.4, 0.4, 0.3, 0.3, 0.3, 0.2], "hit_frac", "no improvement: 0.5 at the start, 0.2 at the end"),
        ([1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0], "answer_nll_nats", "no improvement: 1 at the start, 3 at the end"),
        ([0.1], "hit_frac", "not enough points: 1 window, at least 6 are needed"),
        ([0.1, 0.2, 0.3, 0.4, 0.5], "hit_frac", "not enough points: 5 windows, at least 6 are needed"),
    ],
)
def test_no_t95_has_a_reason(value_W, metric, reason):
    row = progress(curve(value_W, metric))
    assert (row.t95, str(row.reason)) == (None, reason)
    assert row.reason.code == reason.partition(":")[0]
    assert (row.first, row.last) == (value_W[0], value_W[-1])


def test_an_improvement_within_noise_has_no_t95():
    value_W = np.linspace(0.50, 0.51, 10)
    draws_RW = value_W + 0.05 * np.random.default_rng(0).standard_normal((1000, 10))
    row = progress(curve(value_W, "hit_frac", draws_RW))
    assert row.t95 is None and str(row.reason).startswith("no improvement beyond noise: 0.01, interval -0.")


def test_a_rise_that_is_lost_again_is_no_improvement():
    row = progress(curve([0.0, 0.3, 0.9, 0.9, 0.5, 0.2, 0.0, 0.0], "hit_frac"))
    assert row.t95 is None and str(row.reason) == "no improvement: 0 at the start, 0 at the end"


def test_curves_of_the_same_shape_have_index_one_and_the_factor_of_that_shape():
    shape_W = np.log(GRID / GRID[1] + 1) / np.log(GRID[-1] / GRID[1] + 1)
    gap = lag(curve(shape_W, "hit_frac"), curve(5 - 4.9 * shape_W))
    assert gap.index.value == pytest.approx(1)
    assert gap.factor.value == pytest.approx(gap.same_shape.value) == pytest.approx(1 + 0.05 * (5 / 0.1 - 1))
    assert gap.index_log.value > 1


def test_lag_without_a_t95_of_the_hit_is_none():
    assert lag(curve([0.0] * 8, "hit_frac"), curve(np.linspace(4, 1, 8))) is None


def test_an_nll_that_stops_with_the_hit_shows_no_further_fall():
    rng = np.random.default_rng(1)
    hit_W = np.array([0, 0.2, 0.5, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])
    nll_W = np.array([4, 3, 2, 1, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8])
    noise = rng.standard_normal((2, 1000, 10)) * 0.02
    gap = lag(curve(hit_W, "hit_frac", hit_W + noise[0]), curve(nll_W, draws_RW=nll_W + noise[1]))
    assert not gap.factor.above(1.2) and gap.factor.low < 1.05


def test_an_estimate_without_draws_claims_nothing():
    assert not Estimate.of(5.0).above(0) and not Estimate.of(-5.0).below(0)
    assert Estimate.of(1.0, np.array([np.nan, np.nan])).low is None


def test_bias_correction_moves_the_interval_towards_the_estimate():
    draws_R = np.random.default_rng(0).standard_normal(4000) + 1  # resamples that lie one standard error too high
    corrected = Estimate.of(0.0, draws_R)
    assert corrected.high < np.percentile(draws_R, 97.5) - 0.5
    assert Estimate.of(1.0, draws_R).low == pytest.approx(np.percentile(draws_R, 2.5), abs=0.1)


def test_head_summaries_are_resampled_with_the_items_of_the_needle(make_run):
    path, _ = make_run(without=("perplexity", "probe", "routing"))
    run = load_run(path)
    both = curves(run, "heads", ("retrieval_heads_count", "initial_heads_mean_frac"), {})
    mean = progress(both["initial_heads_mean_frac"])
    assert both["retrieval_heads_count"].source == mean.interval == "paired items"
    assert run.warnings == []
    assert mean.t95.low < mean.t95.value < mean.t95.high
    assert both["retrieval_heads_count"].draws_RW[:, 0].std() > 0


def test_control_items_do_not_thin_out_the_answer_items(make_run):
    path, world = make_run(without=("heads", "perplexity", "probe", "routing"))
    run = load_run(path)
    answers = curves(run, "needle", ("answer_nll_nats",), {})["answer_nll_nats"]
    assert answers.n == 15 * world.items
    assert curves(run, "needle", ("control_nll_nats", "gain_nats"), {})["gain_nats"].n == 30
    assert run.warnings == []


def test_the_probe_is_resampled_after_fine_tuning_alone(make_run):
    path, _ = make_run(without=("needle", "heads", "perplexity", "routing"))
    run = load_run(path)
    whole = whole_curve(run, "probe/exact_match_frac")
    tuned = curves(run, "probe", ("exact_match_frac",), {"sft_step": 40})["exact_match_frac"]
    assert whole.value_W == pytest.approx(tuned.value_W) and whole.draws_RW == pytest.approx(tuned.draws_RW)
    assert whole.draws_RW.mean(0) == pytest.approx(whole.value_W, abs=0.02) and run.warnings == []
