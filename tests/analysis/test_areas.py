"""Areas of the learning rate against their definition, and which runs are given any."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lccp_sim.analysis.areas import MEMORY, Areas, Rate, rate_of
from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.curve import Curve
from lccp_sim.analysis.stats.forecast import forecasts
from lccp_sim.analysis.stats.laws import Fit, fit_laws, gain_per_doubling, laws_of
from lccp_sim.analysis.stats.rule import decide
from lccp_sim.config import OptimConfig

STEPS, BATCH = 400, 1000
GRID = np.floor(np.array([0.0, *(STEPS * BATCH * 2.0 ** (-np.arange(13)[::-1] / 2))]))


def optim(schedule: str) -> OptimConfig:
    return OptimConfig(1e-3, schedule, 8, 120 if schedule == "wsd" else None)  # type: ignore[arg-type]


def rate(schedule: str) -> Rate:
    return Rate(np.array([optim(schedule).lr * optim(schedule).factor(step, STEPS) for step in range(STEPS)]), BATCH)


def curve(value_W: np.ndarray, of: Rate | None, metric: str = "answer_nll_nats", n: int = 0) -> Curve:
    return Curve("needle", metric, {}, GRID[: len(value_W)], value_W, np.zeros(len(value_W)), n=n, rate=of)


def run(schedule: str, finished: bool = True, every: int = 10, until: int = STEPS) -> RunData:
    """A run whose records are its logged rates alone."""
    steps = np.arange(every, until + 1, every)
    value = [optim(schedule).lr * optim(schedule).factor(step - 1, STEPS) for step in steps]
    records = pd.DataFrame({"step": steps, "tokens": steps * BATCH, "value": value}).assign(
        tier="training", monitor="train", metric="lr", n=1, stderr=np.nan, names=""
    )
    config = {"run": {"tokens": STEPS * BATCH, "batch_tokens": BATCH}, "optim": vars(optim(schedule))}
    nothing = pd.DataFrame()
    return RunData(Path("run"), records, nothing, nothing, config, nothing, [], finished)


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "linear"])
def test_areas_are_those_of_the_definition(schedule):
    of = rate(schedule)
    eta_S = of.rate_S / of.rate_S.max()
    forward, annealing = [0.0], [0.0]
    for i in range(STEPS):
        memory = sum((eta_S[k - 1] - eta_S[k]) * MEMORY ** (i - k) for k in range(of.peak + 1, i + 1))
        forward.append(forward[-1] + BATCH * eta_S[i])
        annealing.append(annealing[-1] + BATCH * memory)
    at = of.at(BATCH * np.arange(STEPS + 1.0))
    assert at.forward == pytest.approx(forward) and at.annealing == pytest.approx(annealing, abs=1e-6)
    assert at.annealed and not of.at(np.array([4000.0])).annealed, "a warm-up is no annealing"


def test_a_plateau_is_held_for_longer_and_another_schedule_is_stretched():
    end, whole = rate("wsd").at(GRID[-1:]), rate("wsd").doubled(GRID[-1])
    assert whole.forward[0] == pytest.approx(end.forward[0] + STEPS * BATCH)
    assert whole.annealing == pytest.approx(end.annealing)
    end, whole = rate("cosine").at(GRID[-1:]), rate("cosine").doubled(GRID[-1])
    assert whole.forward == pytest.approx(2 * end.forward) and whole.annealing[0] > 1.5 * end.annealing[0]


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "linear"])
def test_the_logged_rate_is_that_of_the_schedule(schedule):
    for seen in (run(schedule), run(schedule, finished=False, until=100)):
        found = rate_of(seen)
        assert found is not None and found.rate_S == pytest.approx(rate(schedule).rate_S, rel=0.02, abs=1e-5)


def test_a_constant_rate_has_no_areas_of_its_own():
    assert rate_of(run("constant")) is None, "a warm-up alone leaves laws in tokens"
    quiet = run("cosine")
    assert (
        rate_of(RunData(quiet.path, quiet.records.iloc[:1], *[pd.DataFrame()] * 2, {}, pd.DataFrame(), [], True))
        is None
    )


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
@pytest.mark.parametrize("law", ["log", "power", "cpt"])
def test_planted_parameters_are_found_under_a_schedule(schedule, law):
    first = float(rate(schedule).at(GRID).forward[1])
    planted = {
        "log": {"A": -0.4, "B": 8.0, "N0": 5e4},
        "power": {"E": 2.0, "A": 3 * first**0.8, "a": 0.8, "N0": first},
        "cpt": {"c": 5.0, "B": -2.5, "E": 5e-5, "beta": 1.5},
    }[law] | {"C2": 1e-6}
    at = rate(schedule).at(GRID)
    value_W = Fit(law, planted, 0.0).predict(at.forward, at.annealing)
    best = fit_laws(GRID, value_W, areas=at)[0]
    assert best.law == law and best.parameters == pytest.approx(planted, rel=2e-3)
    twice = rate(schedule).doubled(GRID[-1])
    truth = value_W[-1] - Fit(law, planted, 0.0).predict(twice.forward, twice.annealing)[0]
    assert gain_per_doubling(curve(value_W, rate(schedule))).value == pytest.approx(truth, abs=0.02)


def test_under_a_constant_rate_nothing_differs():
    value_W = Fit("log", {"A": -0.4, "B": 8.0, "N0": 5e4}, 0.0).predict(GRID)
    assert fit_laws(GRID, value_W, areas=Areas.constant(GRID)) == fit_laws(GRID, value_W)


def test_a_decay_is_not_taken_for_a_law_in_tokens():
    at = rate("cosine").at(GRID)
    value_W = 2.0 - 5e-6 * at.annealing  # only the falling rate lowers it
    assert laws_of(curve(value_W, rate("cosine")))[0].law == "constant"
    assert laws_of(curve(value_W, None))[0].law != "constant"


def test_the_rule_says_in_what_its_law_is_and_asks_for_a_window_more():
    at = rate("cosine").at(GRID)
    value_W = Fit("log", {"A": -0.4, "B": 8.0, "N0": 5e4}, 0.0).predict(at.forward, at.annealing)
    reasons = " ".join(decide(curve(value_W, rate("cosine"))).reasons)
    assert "in the forward area, with an annealing term, because the learning rate falls from 0.001" in reasons
    few = decide(curve(value_W[:6], Rate(rate("cosine").rate_S[:40], BATCH)))
    assert few.verdict == "not enough points" and "at least 7 because the rate falls" in few.reasons[0]


def test_windows_before_a_decay_do_not_foretell_what_it_does():
    value_W = Fit("log", {"A": -0.4, "B": 8.0, "N0": 5e4}, 0.0).predict(GRID)
    assert forecasts(curve(value_W, None), int(GRID[-1]))
    assert not forecasts(curve(value_W, rate("wsd")), int(GRID[-1]))


def test_a_gain_stays_in_the_room_of_its_metric():
    rising = np.append(np.linspace(0.05, 0.9, 12), [0.93, 0.97])
    gain = gain_per_doubling(curve(rising, None, "hit_frac", 60))
    assert gain.value <= 0.03 + 1e-9 and gain.high <= 0.03 + 1e-9
    falling = gain_per_doubling(curve(np.linspace(2.0, 0.01, 14), None))
    assert falling.high <= 0.01 + 1e-9
