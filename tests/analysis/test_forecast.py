"""Forecasts, on curves whose end is known."""

import dataclasses

import numpy as np
import pytest

from lccp_sim.analysis.stats.curve import Curve
from lccp_sim.analysis.stats.forecast import forecasts


def made(value_W, tokens_W, metric="answer_nll_nats", noise=0.0, seed=0, items=40):
    """A curve whose items differ in level, with noise at each window and item."""
    rng = np.random.default_rng(seed)
    level_I = rng.standard_normal(items)
    value_IW = value_W + 0.3 * level_I[:, None] + noise * rng.standard_normal((items, len(tokens_W)))
    weight_RI = rng.multinomial(items - 1, np.full(items, 1 / items), size=400) / (items - 1)
    stderr_W = value_IW.std(0, ddof=1) / np.sqrt(items)
    return Curve(
        "needle", metric, {}, tokens_W, value_IW.mean(0), stderr_W, weight_RI @ value_IW, "paired items", items
    )


TOKENS = np.array([0, *1000 * 2 ** np.arange(0, 9.5, 0.5)])
LOG = 6 - 0.4 * np.log(TOKENS + 1000)


def test_a_log_law_is_predicted_from_half_and_two_thirds():
    curve = made(LOG, TOKENS, noise=0.05)
    found = forecasts(curve, int(TOKENS[-1]))
    assert [round(f.share, 2) for f in found] == [0.33, 0.5, 0.67]
    for f in found[1:]:
        assert f.held and f.final.low < curve.value_W[-1] < f.final.high
        assert abs(f.final.value - f.came) < abs(f.last_seen - f.came)
        assert f.reach.low <= f.reached <= f.reach.high
    assert found[2].final.high - found[2].final.low < found[1].final.high - found[1].final.low


def test_the_future_does_not_leak_into_a_forecast():
    curve = made(LOG, TOKENS, noise=0.05)
    broken = dataclasses.replace(curve, value_W=np.where(TOKENS > TOKENS[14], 9.0, curve.value_W))
    ours, theirs = (forecasts(each, int(TOKENS[-1]))[1] for each in (curve, broken))
    assert ours.final.value == theirs.final.value and ours.final.low == theirs.final.low
    assert theirs.held is False and theirs.came == 9.0


def test_a_flat_curve_never_reaches_what_came_later():
    value_W = np.where(TOKENS < TOKENS[12], 3.0, 1.0)
    f = forecasts(made(value_W, TOKENS, noise=0.05), int(TOKENS[-1]))[1]
    assert np.isinf(f.reach.value) and f.reached > TOKENS[11] and not f.held


def test_a_live_run_is_predicted_from_all_windows():
    (f,) = forecasts(made(LOG, TOKENS, noise=0.05), int(4 * TOKENS[-1]))
    assert (f.share, f.windows, f.came, f.held, f.reach) == (1.0, len(TOKENS), None, None, None)
    truth = 6 - 0.4 * np.log(f.end + 1000)
    assert f.final.low - 0.15 < truth < f.final.high + 0.15


def test_too_few_windows_foretell_nothing():
    assert forecasts(made(LOG[:5], TOKENS[:5]), int(TOKENS[4])) == []


@pytest.mark.parametrize("metric", ["hit_frac", "answer_nll_nats"])
def test_forecasts_stay_in_bounds(metric):
    value_W = np.linspace(0.2, 0.99, len(TOKENS)) if metric == "hit_frac" else np.linspace(3, 0.01, len(TOKENS))
    for f in forecasts(made(value_W, TOKENS, metric, noise=0.01), int(TOKENS[-1])):
        assert f.final.low >= 0 and (metric != "hit_frac" or f.final.high <= 1)


def test_held_covers_about_as_often_as_it_says():
    held = [forecasts(made(LOG, TOKENS, noise=0.1, seed=seed), int(TOKENS[-1]))[2].held for seed in range(20)]
    assert sum(held) >= 16
