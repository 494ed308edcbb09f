"""Laws against planted parameters, AICc against statsmodels, nesting, and curves with little in them."""

import numpy as np
import pytest
import statsmodels.api as sm

from lccp_sim.analysis.stats.curve import Curve
from lccp_sim.analysis.stats.laws import (
    FREE_PARAMETERS,
    LAWS,
    Fit,
    fit_laws,
    gain_per_doubling,
    laws_of,
    onto_scale,
    scattered,
)
from lccp_sim.errors import ConfigError

FIRST = 31_250.0
GRID = np.array([0, *(FIRST * 2 ** (np.arange(13) / 2))])
PLANTED = {
    "constant": {"c": 2.0},
    "log": {"A": -0.4, "B": 8.0, "N0": 5e4},
    "power": {"E": 0.5, "A": 3 * FIRST**0.8, "a": 0.8, "N0": FIRST},
    "cpt": {"c": 3.0, "B": -2.5, "E": 5e-6, "beta": 1.5},
    "broken_stick": {"A": -0.5, "B": 9.0, "C": 0.4, "N0": FIRST, "Nb": 2.5e5},
}


def planted(law: str) -> Fit:
    return Fit(law, PLANTED[law], 0.0)


def curve(value_W, metric="answer_nll_nats", draws_RW=None, n=0) -> Curve:
    value_W = np.asarray(value_W, float)
    return Curve("needle", metric, {}, GRID[: len(value_W)], value_W, np.zeros_like(value_W), draws_RW, n=n)


@pytest.mark.parametrize("law", LAWS)
def test_planted_parameters_are_found_again(law):
    best = fit_laws(GRID, planted(law).predict(GRID))[0]
    assert best.law == law
    assert best.parameters == pytest.approx(PLANTED[law], rel=1e-3)
    assert best.predict(2 * GRID[-1]) == pytest.approx(planted(law).predict(2 * GRID[-1]), rel=1e-5)
    assert best.tail_error == pytest.approx(0, abs=1e-4)


def test_aicc_is_that_of_statsmodels_and_of_the_formula():
    rng = np.random.default_rng(0)
    stderr_W = np.linspace(0.2, 0.1, len(GRID))
    value_W = planted("log").predict(GRID) + stderr_W * rng.standard_normal(len(GRID))
    fits = {fit.law: fit for fit in fit_laws(GRID, value_W, stderr_W)}
    for law, k in (("constant", 2), ("log", 4)):
        shape_W = np.log(GRID + fits["log"].parameters["N0"])
        design = sm.add_constant(shape_W) if law == "log" else np.ones(len(GRID))
        weight_W = 1 / stderr_W**2
        theirs = sm.WLS(value_W, design, weights=weight_W / weight_W.mean()).fit()
        correction = 2 * k + 2 * k * (k + 1) / (len(GRID) - k - 1)
        assert fits[law].aicc == pytest.approx(-2 * theirs.llf + correction, rel=1e-9)
        assert np.ravel(fits[law].predict(GRID)) == pytest.approx(theirs.fittedvalues, rel=1e-9)


def test_the_cpt_law_holds_the_power_law_and_in_its_limit_the_log_law():
    for law, error in (("power", 1e-5), ("log", 0.02)):
        value_W = planted(law).predict(GRID)
        cpt = next(fit for fit in fit_laws(GRID, value_W) if fit.law == "cpt")
        assert cpt.predict(GRID) == pytest.approx(value_W, abs=error)
    small = 1e-6
    near = Fit("cpt", {"c": 0.0, "B": -0.4 / small, "E": 1 / 5e4, "beta": small}, 0.0)
    assert near.predict(GRID) == pytest.approx(-0.4 * np.log1p(GRID / 5e4), abs=1e-4)


def test_a_law_of_more_parameters_is_not_chosen_for_noise():
    rng = np.random.default_rng(0)
    chosen = [fit_laws(GRID, 0.05 * rng.standard_normal(len(GRID)))[0].law for _ in range(40)]
    assert chosen.count("constant") >= 32
    chosen = [
        fit_laws(GRID, planted("log").predict(GRID) + 0.03 * rng.standard_normal(len(GRID)))[0].law for _ in range(40)
    ]
    assert chosen.count("log") >= 32


def test_what_too_few_windows_carry():
    value_W = planted("log").predict(GRID)
    assert [fit_laws(GRID[:n], value_W[:n]) for n in (1, 5)] == [[], []]
    six = fit_laws(GRID[:6], value_W[:6])
    assert {fit.law for fit in six} == {"constant", "log", "power"}
    assert all(fit.tail_error is None for fit in six)
    assert {fit.law for fit in fit_laws(GRID[:7], value_W[:7])} == {"constant", "log", "power", "cpt"}
    assert len(fit_laws(GRID, value_W)) == len(LAWS) == len(FREE_PARAMETERS)
    assert np.isnan(gain_per_doubling(curve(value_W[:5])).value)


@pytest.mark.parametrize("metric", ["answer_nll_nats", "hit_frac"])
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_constant_curve_is_constant_and_gains_nothing(metric, level):
    flat = curve([level] * 8, metric, n=50)
    assert laws_of(flat)[0].law == "constant"
    gain = gain_per_doubling(flat)
    assert (gain.value, gain.low, gain.high) == pytest.approx((0, 0, 0), abs=1e-6)


@pytest.mark.parametrize(
    ("tokens", "value"),
    [(GRID, [*range(13), np.nan]), (GRID[::-1], GRID), (GRID, [1.0, 2.0]), (np.zeros(8), np.ones(8))],
)
def test_what_cannot_be_fitted_is_refused(tokens, value):
    with pytest.raises(ConfigError, match="must be finite and of the same length"):
        fit_laws(tokens, np.asarray(value, float))


@pytest.mark.parametrize("law", LAWS)
def test_the_gain_of_a_doubling_is_that_of_the_planted_law(law):
    value_W = planted(law).predict(GRID)
    truth = float(planted(law).predict(GRID[-1]) - planted(law).predict(2 * GRID[-1]))
    assert gain_per_doubling(curve(value_W)).value == pytest.approx(truth, abs=0.02)
    assert gain_per_doubling(curve(value_W), planted(law)).value == pytest.approx(truth, abs=0.02)
    assert gain_per_doubling(curve(-value_W, "score")).value == pytest.approx(truth, abs=0.02), "more is better"


def test_a_share_of_items_is_not_predicted_above_one():
    rising = 1 / (1 + np.exp(3 - 2 * np.log(GRID / FIRST + 1)))
    draws_RW = np.clip(rising + 0.03 * np.random.default_rng(0).standard_normal((300, len(GRID))), 0, 1)
    gain = gain_per_doubling(curve(rising, "hit_frac", draws_RW, n=200))
    assert 0 <= gain.value < 1 - rising[-1] and gain.high <= 1 - rising[-1] + 0.03
    scaled, scale = onto_scale(curve([0.0, 0.5, 1.0], "hit_frac", n=9))
    assert scale.back(scaled.value_W) == pytest.approx([0.05, 0.5, 0.95]), "half an item of ten"


def test_noise_is_added_for_what_items_do_not_explain_and_only_for_that():
    rng = np.random.default_rng(0)
    law_W = planted("log").predict(GRID)
    added = {"items": [], "windows": []}
    for _ in range(30):
        noise_RW = 0.05 * rng.standard_normal((300, len(GRID)))
        value_W = law_W + 0.05 * rng.standard_normal(len(GRID))
        for name, draws_RW in (("items", value_W + noise_RW), ("windows", np.repeat(value_W[None], 300, axis=0))):
            stated = Curve("m", "x_nats", {}, GRID, value_W, np.full(len(GRID), 0.05), draws_RW)
            added[name].append((scattered(stated) - draws_RW).std())
    assert np.median(added["windows"]) == pytest.approx(0.05, rel=0.2)
    assert np.median(added["items"]) < 0.035
