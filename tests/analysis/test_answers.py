"""The paper's findings: planted curves give the answers that they were planted for, by the rules that stand beside."""

from dataclasses import replace

import numpy as np
import pytest

from bench.simulate import NLL, World, run_data
from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.report.answers import NO, OPEN, YES, answers, table
from lccp_sim.analysis.stats.curve import Curve
from lccp_sim.analysis.stats.laws import Fit

GRID = np.array([0, *(31_250 * 2 ** (np.arange(13) / 2))])
LOG = Fit("log", {"A": -0.4, "B": 8.0, "N0": 5e4}, 0.0).predict(GRID)
POWER = Fit("power", {"E": 0.5, "A": 3 * 31_250.0**0.9, "a": 0.9, "N0": 31_250.0}, 0.0).predict(GRID)
RUN = run_data(World(Fit("power", {"E": 0.3, "A": 3.5 * 31_250.0**0.9, "a": 0.9, "N0": 31_250.0}, 0.0)))


def curve(monitor: str, metric: str, value_W: np.ndarray, seed: int = 0) -> Curve:
    rng = np.random.default_rng([seed, len(metric)])
    value_W = value_W + 0.004 * rng.standard_normal(len(GRID))
    draws_RW = value_W + 0.004 * rng.standard_normal((300, len(GRID)))
    return Curve(monitor, metric, {}, GRID, value_W, np.full(len(GRID), 0.004), draws_RW, "paired items", 100)


def planted(hit: np.ndarray, nll: np.ndarray, ppl: np.ndarray, heads: np.ndarray, seed: int = 0) -> Findings:
    records = RUN.records[RUN.records.metric == "none of them"]
    found = Findings(replace(RUN, records=records))
    for monitor, metric, value_W in (
        ("needle", "hit_frac", hit), ("needle", NLL, nll), ("perplexity", "ppl", ppl),
        ("heads", "initial_heads_mean_frac", heads),
    ):  # fmt: skip
        found.enter(curve(monitor, metric, value_W, seed))
    return found


LEVELS = 0.95 - 0.85 * (1 + GRID / 10_000) ** -2.0
RISES = 0.2 + 0.1 * np.log2(1 + GRID / 31_250)
FLAT = np.full(len(GRID), 0.4)


def told(seeds: list[Findings]) -> dict[str, str]:
    return {each.finding: each.answer for each in answers(seeds)}


SATURATES = "the NIAH score saturates within the run"
GOES_ON = "the answer's likelihood improves after the score has saturated"
LAW, MEAN = "held-out perplexity is A log N + B", "the mean score of the initial retrieval heads grows"


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_score_that_levels_above_a_falling_nll_is_the_papers_finding(seeds):
    found = told([planted(LEVELS, LOG, 10 * LOG, RISES, seed) for seed in range(seeds)])
    assert found == {SATURATES: YES, GOES_ON: YES, LAW: YES, MEAN: YES}


def test_what_goes_the_other_way_is_not_reproduced():
    found = told([planted(RISES, POWER, 10 * POWER, 0.8 - RISES / 2)])
    assert found == {SATURATES: NO, GOES_ON: NO, LAW: NO, MEAN: NO}


def test_what_does_not_move_cannot_be_told():
    found = told([planted(FLAT, FLAT, 10 * LOG, FLAT)])
    assert found[SATURATES] == OPEN and found[GOES_ON] == OPEN and found[MEAN] == OPEN


def test_each_answer_stands_beside_its_rule_and_numbers():
    made = answers([planted(LEVELS, LOG, 10 * LOG, RISES)])
    rows = table(made, 1).rows
    assert [row[2] for row in rows] == [answer.answer for answer in made]
    assert all(all(row) for row in rows) and "saturated" in rows[0][3]
