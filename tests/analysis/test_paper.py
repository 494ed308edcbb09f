"""What arXiv 2604.02650 prints about correlations, and what docs/paper.md says of it, against a recomputation."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests

from bench.paper_numbers import (
    BENCHMARKS,
    CORRELATIONS,
    RESULT,
    N,
    by_chance,
    coefficients,
    comparison,
    critical_r,
    shared_trend,
    williams_range,
)
from lccp_sim.analysis.stats.correlation import correlation_p, fisher_interval, holm, williams

TEXT = (Path(__file__).parents[2] / "docs" / "paper.md").read_text()
CELLS = [(monitor, number) for monitor in CORRELATIONS for number in range(len(BENCHMARKS))]


@pytest.mark.parametrize(("monitor", "number"), CELLS)
def test_a_printed_p_is_the_t_test_of_the_printed_r_with_six_points_and_no_other_number(monitor, number):
    r, p = CORRELATIONS[monitor][number]

    def could_be(n: int) -> bool:  # r and p are both rounded to four digits
        low, high = (correlation_p(abs(r) + step, n - 2) for step in (5e-5, -5e-5))
        return low - 5e-5 <= p <= high + 5e-5

    assert [n for n in range(4, 13) if could_be(n)] == [6] == [N]


def test_the_intervals_are_as_wide_as_the_page_says():
    intervals = {cell: fisher_interval(CORRELATIONS[cell[0]][cell[1]][0], N - 2) for cell in CELLS}
    expected = {("NIAH PPL", 0): (-0.99, -0.38), ("NIAH score", 0): (0.14, 0.98), ("retrieval heads", 0): (0.04, 0.98)}
    for cell, (low, high) in expected.items():
        assert intervals[cell] == pytest.approx((low, high), abs=0.005)
    assert all(low < 0 < high for (_, number), (low, high) in intervals.items() if number == 2)
    assert min(high - low for low, high in intervals.values()) == pytest.approx(0.99 - 0.44, abs=0.01)
    assert "the tightest reaches from -0.99 to -0.44" in TEXT


def test_the_means_that_the_page_names_are_those_of_the_printed_coefficients():
    for monitor, mean in (("NIAH score", ".7486"), ("NIAH PPL", ".8210")):
        assert np.mean([abs(r) for r, _ in CORRELATIONS[monitor]]) == pytest.approx(float(mean), abs=1e-4)
        assert mean in TEXT


def test_williams_finds_no_difference_at_any_assumed_correlation():
    ranges = [williams_range(number) for number in range(len(BENCHMARKS))]
    assert (min(low for low, _ in ranges), max(high for _, high in ranges)) == pytest.approx((0.11, 0.80), abs=0.005)


def test_independent_monotone_series_reach_the_printed_coefficients():
    trend = json.loads(RESULT.read_text())
    assert min(s for kind in ("steps", "saturating") for c in CORRELATIONS for s in printed(trend, kind, c)) >= 0.5
    assert min(trend[kind]["level"]["median"] for kind in ("steps", "saturating")) > 0.9
    again = by_chance(pairs=20_000, seed=1)
    for kind in ("steps", "saturating"):
        for name, row in again[kind].items():
            assert row["share_below_p_05"] == pytest.approx(trend[kind][name]["share_below_p_05"], abs=0.012)
            assert row["median"] == pytest.approx(trend[kind][name]["median"], abs=0.012)


def printed(trend: dict, kind: str, monitor: str) -> list[float]:
    return trend[kind]["level"]["share_at_least_printed"][monitor]


def test_the_page_has_the_tables_as_computed():
    for table in (coefficients(), comparison(), shared_trend()):
        assert table in TEXT


def test_critical_values_of_the_t_test():
    values = [critical_r(n - 2) for n in (6, 8, 10, 12, 16, 20)]
    assert values == pytest.approx([0.811, 0.707, 0.632, 0.576, 0.497, 0.444], abs=5e-4)
    assert all(
        correlation_p(r, n - 2) == pytest.approx(0.05) for r, n in zip(values, (6, 8, 10, 12, 16, 20), strict=True)
    )


def test_williams_keeps_its_level_where_both_monitors_correlate_alike():
    rng = np.random.default_rng(0)
    target_PW, *noise = rng.standard_normal((3, 4000, 8))
    a_PW, b_PW = (target_PW + noise_PW for noise_PW in noise)
    rejected = []
    for target_W, a_W, b_W in zip(target_PW, a_PW, b_PW, strict=True):
        r = np.corrcoef([target_W, a_W, b_W])
        rejected.append(williams(r[0, 1], r[0, 2], r[1, 2], 8)[1] < 0.05)
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.015)


def test_the_rank_interval_covers_as_fisher_and_fieller_say():
    assert fisher_interval(0.5, 18) == pytest.approx(
        np.tanh(np.arctanh(0.5) + np.array([-1, 1]) * 1.96 / 17**0.5), abs=1e-4
    )
    low, high = fisher_interval(0.5, 18, ranks=True)
    assert np.arctanh(high) - np.arctanh(low) == pytest.approx(2 * norm.ppf(0.975) * (1.06 / 17) ** 0.5)


def test_what_has_no_answer_is_none_and_not_an_exception():
    assert fisher_interval(1.0, 4) is None and fisher_interval(0.5, 1) is None
    assert correlation_p(1.0, 4) == 0.0
    assert williams(0.9, 0.1, 0.95, 6) is None, "no three series have these coefficients"
    assert williams(0.9, 0.9, 1.0, 6) is None and williams(0.9, 0.8, 0.7, 3) is None
    with pytest.raises(ValueError, match="df = 0"):
        correlation_p(0.5, 0)


def test_holm_is_that_of_statsmodels_and_ignores_what_is_missing():
    for p_I in np.random.default_rng(0).random((20, 9)) ** 3:
        assert holm(p_I) == pytest.approx(multipletests(p_I, method="holm")[1])
    assert holm([0.01, float("nan"), 0.04, 0.03])[:1] == pytest.approx([0.03])
    assert np.isnan(holm([0.01, float("nan")])[1]) and holm([]) == []
