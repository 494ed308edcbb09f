"""The deceptive index against its null, fold changes after the hit, where the truth is planted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from bench.deceptive_null import RESULT, WORLDS, rejected, table
from lccp_sim.analysis.run import load_run
from lccp_sim.analysis.stats.curve import to_json
from lccp_sim.analysis.stats.deceptive import deceptive, hit_given_nll, null_hits, own_scale
from lccp_sim.analysis.stats.estimate import weights
from lccp_sim.analysis.stats.pairs import NLL

ONLY_NEEDLE = ("precondition", "heads", "induction", "perplexity", "probe", "routing")
WHOLE = '{"depth": 0.0, "length": 128, "span": "value", "variant": "single"}'


def planted_run(run, hit, seed=0, items=120, spread=0.4):
    """The run with its needle values replaced: NLL falls with log tokens, items differ; `hit(nll, level, tokens)`."""
    rng = np.random.default_rng(seed)
    windows = run.select("needle", "hit_frac")[["step", "tokens"]].drop_duplicates()
    tokens_W = windows.tokens.to_numpy(float)
    level_I1 = np.exp(spread * rng.standard_normal((items, 1)))
    mean_W = 4 - 3.6 * np.log1p(tokens_W / 5e4) / np.log1p(tokens_W[-1] / 5e4)
    nll_IW = mean_W * level_I1 * np.exp(0.15 * rng.standard_normal((items, len(tokens_W))))
    hit_IW = np.broadcast_to(hit(nll_IW, level_I1, tokens_W), nll_IW.shape).astype(float)
    records, samples = [], []
    for metric, value_IW in (("hit_frac", hit_IW), ("answer_nll_nats", nll_IW)):
        for (step, tokens), value_I in zip(windows.itertuples(index=False), value_IW.T, strict=True):
            common = dict(step=step, monitor="needle", metric=metric)
            stderr = value_I.std(ddof=1) / items**0.5
            row = dict(tokens=tokens, tier="probabilistic", value=value_I.mean(), n=items, stderr=stderr, names="")
            records.append(common | row)
            tags = dict(tags=WHOLE, stratum=WHOLE, variant="single", span="value", length=128, depth=0.0)
            samples += [common | tags | dict(item_id=f"i{i}", value=value) for i, value in enumerate(value_I)]
    kept = run.records[run.records.monitor != "needle"]
    return replace(run, records=pd.concat([pd.DataFrame(records), kept]), samples=pd.DataFrame(samples))


@pytest.fixture(scope="module")
def base(planted):
    return load_run(planted[0])


def index_of(run):
    return next(row for row in deceptive(run).runs[0].indices if row.late == NLL)


@pytest.mark.parametrize("threshold", [1.0, 2.0, 3.5])
def test_a_hit_that_is_a_threshold_of_nll_is_within_the_null_however_large_its_index(base, threshold):
    for seed in range(3):
        row = index_of(planted_run(base, lambda nll, level, tokens: nll < threshold, seed))
        assert row.p > 0.2 and row.exceeds is False and row.reason is None
        assert row.null.low <= row.index.value <= row.null.high
        assert row.excess.low <= 1 <= row.excess.high
    assert (row.index.value > 2) == (threshold == 3.5), "the raw index alone would have called this deceptive"


def test_thresholds_of_the_items_own_do_not_exceed(base):
    row = index_of(planted_run(base, lambda nll, level, tokens: nll / level < 1.2))
    assert row.p < 0.05 < row.p_own and row.exceeds is False


def test_hits_that_come_earlier_than_any_function_of_nll_exceed(base):
    early = planted_run(base, lambda nll, level, tokens: np.broadcast_to(tokens > 1.2e5, nll.shape))
    row = index_of(early)
    assert row.exceeds and row.p < 0.01 and row.p_own < 0.01
    assert row.excess.low > 1.5 and row.index.value > row.null.high


def test_the_null_keeps_its_level_for_a_noisy_link(base):
    def noisy(nll, level, tokens):
        return np.random.default_rng(nll[0, 0].view("uint64")).random(nll.shape) < 1 / (1 + (nll / 1.2) ** 3)

    assert sum(index_of(planted_run(base, noisy, seed)).exceeds for seed in range(8)) == 0


def test_derived_hits_have_the_mean_of_the_observed_ones_and_of_a_threshold_are_the_observed_ones():
    rng = np.random.default_rng(0)
    nll_IW = rng.exponential(size=(400, 6)) * np.linspace(2, 0.2, 6)
    hit_IW = (rng.random(nll_IW.shape) < np.exp(-nll_IW)).astype(float)
    given_IW = hit_given_nll(nll_IW, hit_IW)
    assert given_IW.mean() == pytest.approx(hit_IW.mean())
    order = np.argsort(nll_IW.ravel())
    assert (np.diff(given_IW.ravel()[order]) <= 1e-12).all(), "falls with NLL"
    weight_RI = weights(np.zeros(400), resamples=400)
    assert null_hits(given_IW, weight_RI).mean(0) == pytest.approx(given_IW.mean(0), abs=0.01)
    threshold_IW = (nll_IW < 0.7).astype(float)
    assert np.array_equal(hit_given_nll(nll_IW, threshold_IW), threshold_IW)
    assert null_hits(threshold_IW, weight_RI) == pytest.approx(weight_RI @ threshold_IW)
    assert own_scale(nll_IW).mean(1) == pytest.approx(0) and np.isfinite(own_scale(0 * nll_IW)).all()


def test_equal_nlls_get_equal_hits():
    nll_IW = np.array([[1.0, 1.0, 0.5], [1.0, 0.5, 0.5]])
    assert hit_given_nll(nll_IW, np.array([[0.0, 1, 1], [0, 1, 0]])).tolist() == pytest.approx(
        np.array([[1 / 3, 1 / 3, 2 / 3], [1 / 3, 2 / 3, 2 / 3]])
    )


def test_the_fold_change_is_that_of_the_windows(make_run):
    path, world = make_run(hit=(0.1, 0.98), hit_scale=50_000.0, without=ONLY_NEEDLE, items=20)
    run = load_run(path)
    mean, wilson = deceptive(run).runs[0].ceilings
    nll = run.select("needle", "answer_nll_nats").set_index("tokens").value
    hit = run.select("needle", "hit_frac").set_index("tokens").value
    assert mean.tokens == min(hit.index[hit >= 0.95]) < wilson.tokens
    for row in (mean, wilson):
        assert row.fold.value == pytest.approx(nll[row.tokens] / nll.iloc[-1])
        assert row.fold.low < row.fold.value < row.fold.high
        assert row.nats.value == pytest.approx(nll[row.tokens] - nll.iloc[-1])


def test_a_hit_below_its_ceiling_has_a_reason(make_run):
    path, _ = make_run(hit=(0.1, 0.8), without=ONLY_NEEDLE)
    for row in deceptive(load_run(path)).runs[0].ceilings:
        assert row.fold is None and row.reason.code == "never reaches 0.95"
    path, _ = make_run(hit=(0.1, 1.0), hit_scale=1e4, without=ONLY_NEEDLE, items=2, seed=1)
    mean, wilson = deceptive(load_run(path)).runs[0].ceilings
    assert mean.fold and wilson.reason.detail == "30 items are too few"


@pytest.mark.parametrize(
    "changes",
    [{"windows": 1}, {"windows": 2}, {"samples": False}, {"without": ("needle",)}, {"without": ("probe",)},
     {"hit": (1.0, 1.0)}, {"hit": (0.0, 0.0)}, {"nll": (2.0, 2.0)}],
    ids=str,
)  # fmt: skip
def test_what_is_missing_has_a_reason_and_the_rest_is_json(make_run, changes):
    path, _ = make_run(**changes)
    found = deceptive(load_run(path))
    data = json.loads(json.dumps(to_json(found), allow_nan=False))
    for row in data["runs"][0]["indices"]:
        assert (row["p"] is None) == bool(row["reason"]), row
    for row in data["runs"][0]["ceilings"]:
        assert (row["fold"] is None) == bool(row["reason"])
    assert all("3 are needed" in row["reason"] for row in data["predictions"])


def test_without_samples_there_is_an_index_and_no_null(make_run):
    path, _ = make_run(samples=False)
    row = next(row for row in deceptive(load_run(path)).runs[0].indices if row.late == NLL)
    assert row.index.value > 1 and row.p is None and "no samples" in row.reason.code


def test_other_needles_have_an_index_of_their_own(base):
    whole, part = (deceptive(base, tags).runs[0] for tags in ({}, dict(variant="single", length=512, span="value")))
    assert part.items == whole.items / 3 and part.indices[0].index.value != whole.indices[0].index.value
    assert deceptive(base, {"length": 7}).runs[0].indices[0].reason.code == "no needle records with these tags"


def test_a_run_given_twice_is_one_run(base):
    assert len(deceptive([base, base, base]).runs) == 1


def test_the_page_has_the_table_of_the_bench_and_one_of_its_rows_comes_out_again():
    text = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text()
    stored = json.loads(RESULT.read_text())["worlds"]
    assert table(stored) in text and list(stored) == list(WORLDS)
    name = "NLL / the item's level < 1.2"
    again = rejected(name, repetitions=8)
    assert (again["common"], again["both"]) == (1.0, 0.0)
    assert again["index"] == pytest.approx(stored[name]["index"], rel=0.2)


def test_seventy_three_items_without_a_miss_are_the_least_that_pass():
    assert [n for n in range(1, 100) if proportion_confint(n, n, method="wilson")[0] >= 0.95][0] == 73
