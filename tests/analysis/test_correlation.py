"""Monitors against the probe: planted relations are found, shared trends are not taken for one, and nothing raises."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr

from bench.correlation_coverage import RESULT, WORLDS, coverage, table
from lccp_sim.analysis.report.tables import (
    by_task_table,
    coefficients_table,
    comparisons_table,
    predictions_table,
)
from lccp_sim.analysis.run import FIELDS, RunData, load_run
from lccp_sim.analysis.stats.correlation import comparisons, correlation_p, correlations, over_tasks, williams
from lccp_sim.analysis.stats.curve import Absent, to_json
from lccp_sim.analysis.stats.pairs import Points, degrees, gather, pooled_correlation, pooled_interval, ranks
from lccp_sim.analysis.stats.prediction import predictions

GRID = np.array([0, *(31_250 * 2 ** (np.arange(13) / 2)).astype(int)])
LOG = np.log(GRID + GRID[1])
COLUMNS = ["step", "monitor", "metric", "item_id", "tags", "stratum", "value"]


def run_of(series, name="run", every=1, grid=GRID) -> RunData:
    """A run with records only. `series`: (monitor, metric, task or None) -> values at the windows; the probe's at
    every `every`-th of them, after 40 fine-tuning steps."""
    rows = []
    for (monitor, metric, task), value_W in series.items():
        tags = ({"sft_step": 40} if monitor == "probe" else {}) | ({"task": task} if task else {})
        for tokens, value in list(zip(grid, value_W, strict=True))[:: every if monitor == "probe" else 1]:
            row = dict(step=int(tokens) // 2048, tokens=int(tokens), tier="", monitor=monitor, metric=metric)
            rows.append(row | dict(value=float(value), n=40, stderr=0.01, names=",".join(sorted(tags))) | tags)
    records = pd.DataFrame(rows, columns=None if rows else [*FIELDS, "names"])
    empty = pd.DataFrame(columns=COLUMNS)
    return RunData(Path(name), records, empty, pd.DataFrame(), {}, pd.DataFrame(), [], True)


HIT, NLL = ("needle", "hit_frac", None), ("needle", "answer_nll_nats", None)
EXACT = ("probe", "exact_match_frac", None)


def pick(rows, **fields):
    (row,) = [row for row in rows if all(getattr(row, name) == value for name, value in fields.items())]
    return row


def test_one_run_as_scipy_has_it_at_the_windows_that_both_have():
    rng = np.random.default_rng(0)
    hit_W, exact_W = rng.random((2, len(GRID)))
    rows = correlations([run_of({HIT: hit_W, EXACT: exact_W}, every=2)])
    level = pick(rows, monitor="needle/hit_frac", kind="level")
    x_W, y_W, t_W = hit_W[::2], exact_W[::2], LOG[::2]
    assert (level.points, level.runs, level.df) == (len(x_W), 1, len(x_W) - 2)
    for mine, theirs in ((level.pearson, pearsonr(x_W, y_W)), (level.spearman, spearmanr(x_W, y_W))):
        assert (mine.value, mine.p) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert level.pearson.fisher == pytest.approx(tuple(pearsonr(x_W, y_W).confidence_interval()))
    slope = pick(rows, monitor="needle/hit_frac", kind="differences")
    assert slope.pearson.value == pytest.approx(pearsonr(np.diff(x_W) / np.diff(t_W), np.diff(y_W) / np.diff(t_W))[0])
    partial = pick(rows, monitor="needle/hit_frac", kind="partial")
    assert partial.pearson.value == pytest.approx(by_formula(x_W, y_W, t_W))
    assert partial.pearson.p == pytest.approx(correlation_p(by_formula(x_W, y_W, t_W), len(x_W) - 3))
    assert partial.spearman.value == pytest.approx(by_formula(rankdata(x_W), rankdata(y_W), rankdata(t_W)))


def by_formula(x_W, y_W, t_W):
    r = np.corrcoef([x_W, y_W, t_W])
    return (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))


def shared_trend(seed, tie=0.0, level=0.0):
    """Hit, NLL and probe that fall or rise with log tokens; what the probe has besides is `tie` of the NLL's own."""
    rng = np.random.default_rng(seed)
    own_W, other_W = rng.standard_normal((2, len(GRID)))
    rise_W = (LOG - LOG[0]) / (LOG[-1] - LOG[0])
    exact_W = level + 0.5 * rise_W - 0.05 * (tie * own_W + np.sqrt(1 - tie**2) * other_W)
    return {NLL: 4 - 3.5 * rise_W + 0.3 * own_W, HIT: np.minimum(1, 1.6 * rise_W), EXACT: exact_W}


def test_a_shared_trend_shows_in_levels_and_not_in_what_is_free_of_it():
    runs = [run_of(shared_trend(seed), f"run{seed}") for seed in range(4)]
    rows = [row for row in correlations(runs) if row.monitor == "needle/answer_nll_nats"]
    assert pick(rows, kind="level").pearson.value < -0.85 and pick(rows, kind="level").pearson.p < 1e-9
    for kind in ("partial", "differences"):
        row = pick(rows, kind=kind)
        assert row.pearson.p > 0.05 and row.pearson.low < 0 < row.pearson.high
        assert row.runs == 4 and row.interval.startswith("runs (4), windows in blocks of 2")


def test_what_they_share_besides_the_trend_is_found():
    runs = [run_of(shared_trend(seed, tie=0.9, level=seed), f"run{seed}") for seed in range(4)]
    for kind in ("partial", "differences", "level"):
        row = pick(correlations(runs), monitor="needle/answer_nll_nats", kind=kind)
        assert row.pearson.value < -0.7 and row.pearson.high < 0, "levels of runs differ and do not matter"
    after = pick(correlations(runs), monitor="needle/answer_nll_nats", kind="after_hit")
    assert after.after_rule == "hit >= 0.95" and after.points < 4 * len(GRID) and after.pearson.value < -0.5
    ended = [run_of(shared_trend(0) | {HIT: np.arange(len(GRID)) > 5})]
    row = pick(correlations(ended), monitor="needle/hit_frac", kind="after_hit")
    assert row.pearson is None and row.reason == Absent("constant after the hit", of=("needle/hit_frac",))


@pytest.mark.parametrize("world", [WORLDS[1], WORLDS[7], WORLDS[9]], ids=str)
def test_the_interval_covers_a_planted_correlation_as_the_bench_says(world):
    stored = {row["runs"]: row for row in json.loads(RESULT.read_text())["worlds"] if row["r"] and not row["noise"]}
    row = coverage(world, repetitions=60)
    assert 0.8 <= row["bootstrap"] <= 1 and row["width"] == pytest.approx(stored[row["runs"]]["width"], abs=0.15)


def test_items_widen_the_interval_and_do_not_move_it():
    rng = np.random.default_rng(0)
    x_W, y_W = 0.5 * rng.standard_normal((2, 14)) + np.arange(14) / 4
    noise_2RW = 0.5 * rng.standard_normal((2, 1000, 14))
    alone = pooled_interval([Points(x_W, y_W, x_W[None], y_W[None])], False)
    found = pooled_interval([Points(x_W, y_W, x_W + noise_2RW[0], y_W + noise_2RW[1])], False)
    assert found.value == alone.value and found.low < found.value < found.high
    width, narrower = (np.arctanh(each.high) - np.arctanh(each.low) for each in (found, alone))
    assert width > narrower


def test_the_page_has_the_table_of_the_bench():
    text = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text()
    assert table(json.loads(RESULT.read_text())["worlds"]) in text


def test_ranks_and_degrees_of_freedom():
    value_RW = np.array([[3.0, 1, 1, 2], [0, 0, 0, 1]])
    assert np.array_equal(ranks(value_RW), np.stack([rankdata(row) - 1 for row in value_RW]))
    x_W = np.arange(5.0)
    assert degrees([Points(x_W, x_W, x_W[None], x_W[None])] * 2) == 10 - 2 - 1
    assert degrees([Points(x_W, x_W, x_W[None], x_W[None], x_W)]) == 5 - 3
    assert np.isnan(pooled_correlation([Points(x_W, x_W, x_W[None], x_W[None], x_W)], False)), (
        "nothing is left but rounding"
    )


def test_williams_of_a_run_is_that_of_its_coefficients():
    series = shared_trend(0)
    row = pick(comparisons([run_of(series)]), monitor="needle/answer_nll_nats", kind="level")
    r = np.corrcoef([-series[NLL], series[HIT], series[EXACT]])
    assert (row.r, row.r_against, row.r_between) == pytest.approx((r[0, 2], r[1, 2], r[0, 1]))
    assert (row.t, row.p) == pytest.approx(williams(r[0, 2], r[1, 2], r[0, 1], len(GRID)))
    assert (row.n, row.against) == (len(GRID), "needle/hit_frac")


def test_holm_is_taken_over_tasks_of_the_same_monitor_and_kind():
    rng = np.random.default_rng(0)
    tasks = {("probe", "exact_match_frac", task): rng.random(len(GRID)) for task in "abc"}
    rows = correlations([run_of(shared_trend(0) | tasks)])
    family = [row for row in rows if row.task and (row.monitor, row.kind) == ("needle/hit_frac", "level")]
    assert [row.task for row in family] == ["a", "b", "c"]
    smallest = min(family, key=lambda row: row.pearson.p).pearson
    assert smallest.p_holm == pytest.approx(min(1, 3 * smallest.p))
    assert all(row.pearson.low is None and row.interval == "none" for row in family)
    assert pick(rows, task=None, monitor="needle/hit_frac", kind="level").pearson.p_holm is None
    assert over_tasks(["a", None, "a", "b"], [0.01, 0.5, 0.04, None]) == [pytest.approx(0.02), None, 0.04, None]


def test_a_monitor_that_carries_the_probe_predicts_runs_left_out_and_a_trend_alone_does_not():
    same = [run_of(shared_trend(seed), f"run{seed}") for seed in range(5)]
    trend = pick(predictions(same), monitor="needle/answer_nll_nats", after_hit=False)
    tied = [run_of(shared_trend(seed, 0.95), f"run{seed}") for seed in range(5)]
    tied = pick(predictions(tied), monitor="needle/answer_nll_nats", after_hit=False)
    assert tied.ratio < 0.9 and tied.wins >= 4 and tied.slope_agrees == 5
    assert trend.ratio > 1 and trend.runs == 5
    late = pick(predictions(same), monitor="needle/answer_nll_nats", after_hit=True)
    assert late.windows < trend.windows and late.reason is None


def test_the_error_of_a_prediction_is_that_of_a_line_fitted_on_the_other_runs():
    series = [shared_trend(seed, 0.5) for seed in range(3)]
    runs = [run_of(each, f"run{seed}") for seed, each in enumerate(series)]
    row = pick(predictions(runs), monitor="needle/answer_nll_nats", after_hit=False)
    errors = []
    for left in range(3):
        others = [each for number, each in enumerate(series) if number != left]
        line = np.polyfit(np.concatenate([o[NLL] for o in others]), np.concatenate([o[EXACT] for o in others]), 1)
        errors.append(np.abs(np.polyval(line, series[left][NLL]) - series[left][EXACT]))
    assert row.mae == pytest.approx(np.mean(errors))


def test_two_runs_do_not_make_a_prediction_and_a_run_given_twice_is_one():
    runs = [run_of(shared_trend(seed), f"run{seed}") for seed in range(2)]
    row = pick(predictions([*runs, runs[0]]), monitor="needle/hit_frac", after_hit=False)
    assert (row.runs, row.mae, row.reason) == (
        2,
        None,
        Absent("not enough runs", "2 runs have 2 windows with both, 3 are needed"),
    )
    panels = gather([*runs, runs[0]])
    assert len(panels) == 2 and predictions([*panels, panels[0]]) == predictions(runs)


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({HIT: np.full(14, 0.3)}, "level", "needle/hit_frac: constant"),
        ({EXACT: np.zeros(14)}, "level", "probe/exact_match_frac: constant"),
        (
            {HIT: np.full(14, 0.3)},
            "after_hit",
            "no hit to start after: the hit never reaches 0.95 and has no t95 (constant: 0.3",
        ),
        ({EXACT: 2 + 3 * LOG}, "partial", "probe/exact_match_frac: constant given log tokens"),
        ({EXACT: 2 + 3 * LOG}, "differences", "probe/exact_match_frac: constant in slope"),
    ],
)
def test_what_does_not_vary_has_a_reason(changes, kind, reason):
    rows = correlations([run_of(shared_trend(0) | changes)])
    row = pick(rows, monitor="needle/hit_frac", kind=kind)
    assert row.pearson is row.spearman is None and str(row.reason).startswith(reason)
    assert all(row.p is None for row in comparisons([run_of(shared_trend(0) | changes)]) if row.kind == kind)


def test_a_monotone_series_has_no_rank_correlation_given_tokens():
    row = pick(correlations([run_of(shared_trend(0) | {HIT: LOG**2})]), monitor="needle/hit_frac", kind="partial")
    assert row.pearson is not None and row.spearman is None
    assert row.reason == Absent("constant given log tokens", of=("ranks of needle/hit_frac",))


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_few_windows_have_a_reason(windows):
    series = {key: value_W[:windows] for key, value_W in shared_trend(0).items()}
    runs = [run_of(series, grid=GRID[:windows])]
    for row in [*correlations(runs), *comparisons(runs)]:
        assert row.reason and (row.kind == "after_hit" or row.reason.code == "not enough points")
    assert all(row.reason for row in predictions(runs))


def test_windows_that_do_not_meet_and_records_that_are_missing_have_reasons():
    apart = run_of(shared_trend(0))
    shifted = apart.records.tokens.where(apart.records.monitor != "probe", apart.records.tokens + 1)
    apart = replace(apart, records=apart.records.assign(tokens=shifted))
    assert all(row.reason.code == "no window has all" for row in correlations([apart]))
    assert correlations([]) == comparisons([]) == predictions([]) == []
    assert correlations([run_of({HIT: LOG})]) == [] and correlations([run_of({})]) == []
    assert comparisons([run_of({NLL: LOG, EXACT: LOG})]) == []


def test_gaps_and_records_written_twice_change_nothing_else():
    run = run_of(shared_trend(0, 0.5))
    gap = (run.records.metric == "hit_frac") & (run.records.tokens == GRID[5])
    twice = pd.concat([run.records[~gap], run.records[run.records.tokens == GRID[7]]], ignore_index=True)
    rows = correlations([replace(run, records=twice)])
    assert pick(rows, monitor="needle/hit_frac", kind="level").points == len(GRID) - 1
    assert pick(rows, monitor="needle/answer_nll_nats", kind="level").points == len(GRID)


def test_a_run_without_the_probe_does_not_count(make_run):
    runs = [load_run(make_run(seed=0)[0]), load_run(make_run(seed=1, without=("probe",))[0])]
    assert {row.runs for row in correlations(runs) if row.kind == "level" and row.reason is None} == {1}


def test_rows_of_simulated_runs_are_json(make_run):
    runs = [load_run(make_run(seed=seed, windows=16)[0]) for seed in range(3)]
    rows = [to_json(row) for made in (correlations, comparisons, predictions) for row in made(runs)]
    assert json.loads(json.dumps(rows, allow_nan=False))
    level = next(row for row in rows if row.get("kind") == "level")
    assert level["interval"] == "runs (3), windows in blocks of 3, paired items"


def test_the_page_has_what_was_computed_and_says_where_there_is_nothing():
    """Every table is made of the same rows as report.json; a kind without points has its reason in its cell."""
    rng = np.random.default_rng(1)
    runs = [
        run_of({HIT: 0.1 * rng.random(14) + LOG / 20, NLL: 5 - LOG / 4 + 0.1 * rng.random(14),
                EXACT: LOG / 30 + 0.05 * rng.random(14), (*EXACT[:2], "city"): rng.random(14)}, f"r{i}")
        for i in range(3)
    ]  # fmt: skip
    panels = gather(runs)
    rows, closer, ahead = correlations(panels), comparisons(panels), predictions(panels)
    head, body = coefficients_table(rows).head, {row[1]: row for row in coefficients_table(rows).rows}
    assert head[2:] == ["values", "slopes between windows", "values given log tokens", "values after the hit"]
    level = pick(rows, target="exact_match_frac", task=None, monitor="needle/hit_frac", kind="level")
    said = f"{level.pearson.value:.2f} ({level.pearson.low:.2f} to {level.pearson.high:.2f}), {level.points}"
    assert body["needle/hit_frac"][2] == said and level.points == 3 * 14
    assert all(cell.startswith("none: ") for cell in (row[-1] for row in body.values())), "the hit never gets there"
    (task,) = {row[1] for row in by_task_table(rows).rows}
    assert task == "city" and "(" in by_task_table(rows).rows[0][3]
    test = pick(closer, target="exact_match_frac", task=None, monitor="needle/answer_nll_nats", kind="level")
    assert comparisons_table(closer).rows[0][3:] == [f"{test.r:.2f}", f"{test.r_against:.2f}", f"{test.r_between:.2f}",
                                            str(test.n), f"{test.p:.3g}"]  # fmt: skip
    one = pick(ahead, target="exact_match_frac", task=None, monitor="needle/hit_frac", after_hit=False)
    (row,) = [row for row in predictions_table(ahead).rows if row[1:3] == ["needle/hit_frac", "all"]]
    assert row[3:] == [f"{one.mae:.3g}", f"{one.mae_tokens:.3g}", f"{one.ratio:.3g}", f"{one.wins} of 3", "42"]
