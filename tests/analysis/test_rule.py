"""The rule for saturation: it never looks ahead, it needs two windows in a row, and it says why."""

from dataclasses import replace

import numpy as np
import pytest

from lccp_sim.analysis.stats.curve import Curve, Estimate
from lccp_sim.analysis.stats.equivalence import Equivalence
from lccp_sim.analysis.stats.laws import Fit
from lccp_sim.analysis.stats.rule import EPS, decide, kneedle, looks
from lccp_sim.errors import ConfigError

FIRST = 31_250.0
GRID = np.array([0, *(FIRST * 2 ** (np.arange(13) / 2))])
LOG_W = Fit("log", {"A": -0.4, "B": 8.0, "N0": 5e4}, 0.0).predict(GRID)
POWER_W = Fit("power", {"E": 0.5, "A": 3 * FIRST**0.9, "a": 0.9, "N0": FIRST}, 0.0).predict(GRID)


def curve(value_W, noise=0.01, seed=0, metric="answer_nll_nats") -> Curve:
    rng = np.random.default_rng(seed)
    value_W = np.asarray(value_W, float)
    value_W = value_W + noise * rng.standard_normal(len(value_W))
    draws_RW = value_W + noise * rng.standard_normal((200, len(value_W)))
    return Curve("needle", metric, {}, GRID[: len(value_W)], value_W, np.full(len(value_W), noise), draws_RW)


def cut(whole: Curve, windows: int) -> Curve:
    return replace(
        whole,
        tokens_W=whole.tokens_W[:windows],
        value_W=whole.value_W[:windows],
        stderr_W=whole.stderr_W[:windows],
        draws_RW=whole.draws_RW[:, :windows],
    )


def test_a_power_law_saturates_and_a_log_law_does_not():
    power, log = decide(curve(POWER_W)), decide(curve(LOG_W))
    assert (power.verdict, log.verdict) == ("saturated", "improving")
    assert (power.law, log.law) == ("power", "log")
    assert power.gain.high < EPS * power.gain_so_far and log.gain.low > EPS * log.gain_so_far
    assert power.since_tokens in GRID.astype(int) and power.since_tokens < GRID[-1]
    assert log.since_tokens is None
    assert "consecutive windows" in power.reasons[-1]


def test_the_rule_never_looks_ahead():
    whole = curve(POWER_W)
    seen = looks(whole)
    for windows in range(6, len(GRID) + 1):
        assert looks(cut(whole, windows)) == seen[: windows - 5]
    since = decide(whole).since_tokens
    first = next(n for n in range(1, len(GRID) + 1) if decide(cut(whole, n)).verdict == "saturated")
    assert decide(cut(whole, first)).since_tokens == since == int(GRID[first - 2]), "two consecutive windows"
    changed = replace(whole, value_W=np.append(whole.value_W[:-1], 9.0))
    assert looks(changed)[:-1] == seen[:-1]


def test_one_window_is_not_enough_and_a_later_rise_takes_the_verdict_back():
    whole = curve(POWER_W)
    held = [look.holds(EPS) for look in looks(whole)]
    once = decide(cut(whole, 6 + held.index(True)))
    assert once.verdict == "not told apart" and once.since_tokens is None
    assert "two consecutive ones are needed" in once.reasons[-1]
    falls_W = POWER_W - np.where(GRID > GRID[9], 0.6 * np.log(np.maximum(GRID, 1) / GRID[9]), 0)
    assert decide(curve(falls_W)).verdict != "saturated"


@pytest.mark.parametrize("windows", [1, 2, 5])
def test_too_few_windows(windows):
    said = decide(curve(LOG_W[:windows]))
    assert (said.verdict, said.since_tokens, said.gain, said.law) == ("not enough points", None, None, None)
    assert said.reasons == [f"{windows} window{'s' * (windows > 1)}; the rule needs at least 6"]


@pytest.mark.parametrize("value_W", [np.full(10, 2.0), np.linspace(2, 3, 10)], ids=["flat", "worse"])
def test_what_did_not_improve_has_nothing_to_saturate(value_W):
    for noise in (0.0, 0.02):
        said = decide(curve(value_W, noise))
        assert said.verdict == "not told apart" and "within noise" in said.reasons[-1]


def test_a_curve_without_resamples_is_judged_by_its_scatter_alone():
    alone = replace(curve(POWER_W), draws_RW=None)
    assert decide(alone).verdict == "saturated"
    assert decide(replace(curve(LOG_W), draws_RW=None)).verdict == "improving"


def test_the_probe_can_only_take_the_verdict_away():
    kept = Equivalence(1, 2, 400, Estimate(0.0, -0.01, 0.01), 0.05, True, None)
    lost = replace(kept, change=Estimate(0.1, 0.0, 0.2), holds=False)
    assert decide(curve(POWER_W), probe=kept).verdict == "saturated"
    assert decide(curve(POWER_W), probe=lost).verdict == "not told apart"
    assert decide(curve(LOG_W), probe=kept).verdict == "improving"
    assert "is not shown to be stable to within 0.05" in decide(curve(POWER_W), probe=lost).reasons[-1]


@pytest.mark.parametrize("eps", [0.0, -1, 1.0, float("nan")])
def test_eps_is_a_share(eps):
    with pytest.raises(ConfigError, match="share of the gain so far"):
        decide(curve(LOG_W), eps)


def test_kneedle_finds_a_knee_in_a_log_law_and_moves_it_with_the_run():
    knees = [kneedle(curve(LOG_W[:windows], noise=0.0)) for windows in (8, 11, 14)]
    assert None not in knees and knees[0] < knees[1] < knees[2]
    assert kneedle(curve([2.0] * 8, noise=0.0)) is None and kneedle(curve(-LOG_W, noise=0.0)) is None
