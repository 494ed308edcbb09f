"""Arms compared: differences are paired t tests within seeds, Holm goes over arms, ranks agree as Kendall says."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, t

from lccp_sim.analysis.report.study_page import write_study
from lccp_sim.analysis.run import FIELDS, RunData
from lccp_sim.analysis.stats.arms import Result, agreements, curves_of, leverage, results

HIT, NLL, PROBE = "needle/hit_frac", "needle/answer_nll_nats", "probe/exact_match_frac"


def run_of(ends: dict[str, float], name: str = "run") -> RunData:
    """A run of two windows: every metric begins at 0.5 and ends at its value; the probe after fine-tuning."""
    rows = []
    for metric, end in ends.items():
        monitor, _, short = metric.partition("/")
        tags = {"sft_step": 32} if monitor == "probe" else {}
        for step, value in ((0, 0.5), (10, end)):
            row = dict(step=step, tokens=step * 1000, tier="", monitor=monitor, metric=short, value=value)
            rows.append(row | dict(n=10, stderr=0.01, names=",".join(tags)) | tags)
    empty = pd.DataFrame(columns=["step", "monitor", "metric", "item_id", "tags", "stratum", "value"])
    return RunData(Path(name), pd.DataFrame(rows, columns=None), empty, pd.DataFrame(), {"seed": 0}, empty, [], True)


def ended(runs: dict, metrics: list[str], reference: str) -> list[Result]:
    return results(curves_of(runs, metrics), reference)


def study(ends: dict[str, list[float]], metric: str = HIT) -> dict[str, dict[int, RunData]]:
    return {arm: {seed: run_of({metric: end}) for seed, end in enumerate(values)} for arm, values in ends.items()}


def test_differences_are_paired_by_seed():
    rows = ended(study({"b": [0.5, 0.7, 0.6], "a": [0.3, 0.4, 0.2]}), [HIT], "a")
    assert [row.arm for row in rows] == ["a", "b"], "the reference first"
    reference, other = rows
    assert reference.difference is None and reference.p is None
    assert other.mean == pytest.approx(0.6) and other.spread == pytest.approx(0.1)
    difference_S = np.array([0.2, 0.3, 0.4])
    half = t.ppf(0.975, 2) * difference_S.std(ddof=1) / 3**0.5
    assert other.difference.value == pytest.approx(0.3)
    assert [other.difference.low, other.difference.high] == pytest.approx([0.3 - half, 0.3 + half])
    assert other.p == pytest.approx(2 * t.sf(0.3 / (difference_S.std(ddof=1) / 3**0.5), 2)) == other.p_holm


def test_holm_goes_over_the_arms_of_one_metric():
    rows = ended(study({"a": [0.1, 0.2, 0.15], "b": [0.2, 0.31, 0.24], "c": [0.5, 0.58, 0.57]}), [HIT], "a")
    p = {row.arm: row.p for row in rows if row.p is not None}
    least = min(p, key=lambda arm: p[arm])
    found = {row.arm: row.p_holm for row in rows}
    assert found[least] == pytest.approx(2 * p[least]) and found["a"] is None


def test_seeds_that_only_one_arm_has_make_no_pair():
    runs = study({"a": [0.1, 0.2, 0.3], "b": [0.4]})
    (row,) = [row for row in ended(runs, [HIT], "a") if row.arm == "b"]
    assert row.pairs == 1 and row.difference is None and row.spread is None
    same = ended(study({"a": [0.1, 0.2], "b": [0.2, 0.3]}), [HIT], "a")[1]
    assert same.difference.value == pytest.approx(0.1) and same.difference.low is None, "no spread, no interval"


def test_leverage_is_the_spread_of_arms_over_that_of_seeds():
    rows = ended(study({"a": [0.1, 0.2, 0.3], "b": [0.5, 0.6, 0.7]}), [HIT], "a")
    assert leverage(rows, HIT) == pytest.approx(np.std([0.2, 0.6], ddof=1) / 0.1)
    assert leverage(ended(study({"a": [0.1, 0.2]}), [HIT], "a"), HIT) is None


def test_ranks_agree_where_better_is_better():
    """The NLL falls where the probe rises: turned so that up is better, both put the arms in one order."""
    ends = {"a": (1.0, 0.1, 0.2), "b": (0.8, 0.3, 0.1), "c": (0.5, 0.2, 0.4), "d": (0.1, 0.9, 0.6)}
    runs = {arm: {0: run_of({NLL: nll, HIT: hit, PROBE: probe})} for arm, (nll, hit, probe) in ends.items()}
    found = {each.monitor: each for each in agreements(ended(runs, [NLL, HIT, PROBE], "a"))}
    nll, probe = [-value[0] for value in ends.values()], [value[2] for value in ends.values()]
    assert found[NLL].tau == pytest.approx(kendalltau(nll, probe).statistic) and found[NLL].arms == 4
    assert found[HIT].tau < found[NLL].tau
    few = agreements(ended({arm: runs[arm] for arm in "ab"}, [NLL, PROBE], "a"))
    assert "at least 3 are needed" in few[0].reason.detail and few[0].tau is None


def test_the_page_shows_what_was_computed(tmp_path):
    runs = study({"a": [0.1, 0.2, 0.15], "b": [0.5, 0.58, 0.57]})
    for arm, seeds in runs.items():
        for seed, run in seeds.items():
            object.__setattr__(run, "path", tmp_path / f"{arm}{seed}")
            run.path.mkdir()
            (run.path / "corpus.json").write_text(f'{{"hash": "{seed}"}}')
    weak = runs["a"][0]
    row = {**weak.records.iloc[0], "monitor": "precondition", "value": 0.65, "names": "length", "length": 128}
    object.__setattr__(weak, "records", pd.concat([weak.records, pd.DataFrame([row])], ignore_index=True))
    weak.config.update(run={"context_tokens": 1024}, data={"old_context_tokens": 128})
    page = write_study("s", ["Why?", "Not this."], "a", [HIT, NLL], runs, tmp_path / "out", ["c: failed, disk full."])
    text, markdown = page.read_text(), (page.parent / "report.md").read_text()
    (row,) = [row for row in ended(runs, [HIT], "a") if row.arm == "b"]
    assert f"{row.difference.value:.3g} ({row.difference.low:.3g} to {row.difference.high:.3g})" in markdown
    assert all(each in text for each in ("Why?", "Not this.", "c: failed, disk full.", "data:image/png"))
    table = pd.read_csv(page.parent / "results.csv")
    assert list(table["mean"]) == pytest.approx([0.15, 0.55]) and "difference.value" in table
    assert set(FIELDS) <= set(pd.read_parquet(page.parent / "records.parquet").columns)
    assert "| 0 | no | a; b |" in markdown and "| 1 | yes | a, b |" in markdown, "another context is another batch"
    assert "a, seed 0: the precondition is not met (The base retrieves" in text and "b, seed 0" not in text
