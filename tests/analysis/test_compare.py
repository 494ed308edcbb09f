"""Two planted runs compared: what is told apart, how sure the intervals are, and what may not be compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_ind, ttest_rel
from statsmodels.stats.proportion import confint_proportions_2indep

from bench import judge_intervals as bench
from lccp_sim.analysis.judge.compare import Compared, Difference, compare_runs
from lccp_sim.analysis.judge.intervals import (
    FEWEST_ITEMS,
    ItemCurve,
    Scatter,
    change_of_shares,
    difference_of_shares,
)
from lccp_sim.analysis.run import load_run
from lccp_sim.cli import main
from lccp_sim.errors import ConfigError
from lccp_sim.records import Record
from tests.analysis.planted import CONFIG, hits, plant, spread
from tests.test_docs import ROOT

NLL, HIT, SHORT = "needle/answer_nll_nats", "needle/hit_frac", "perplexity/short_nll_nats"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Items that scatter widely, and alike in both: B's answers are 0.1 nats better, its other text no different."""
    root, hard = tmp_path_factory.mktemp("pair"), spread(2.0, 1.0)
    mine = {NLL: [hard + 2, hard], HIT: [hits(0), hits(20)], SHORT: [hard, hard]}
    better, same = hard - spread(0.1, 0.1, seed=1), hard + spread(0.005, 0.1, seed=2)
    theirs = {NLL: [hard + 2, better], HIT: [hits(0), hits(21)], SHORT: [hard, same]}
    return plant(root / "a", mine, (0, 2000)), plant(root / "b", theirs, (0, 2000), changed={"seed": 1})


def row(found: Compared, name: str) -> Difference:
    [wanted] = [each for each in found.rows if each.metric == name]
    return wanted


def test_items_are_paired_and_what_is_told_apart_is_said(pair: tuple[Path, Path]) -> None:
    found = compare_runs(*map(load_run, pair))
    nll, short = row(found, NLL), row(found, SHORT)
    assert nll.difference.value == pytest.approx(-0.1) and nll.answer == "B lower" and nll.needed is None
    low, high = nll.difference.low, nll.difference.high
    assert low is not None and high is not None and high - low == pytest.approx(2 * 1.96 * 0.1 / 40**0.5, rel=0.15)
    assert short.answer == "undecided" and short.paired and short.items == 40
    assert short.needed == pytest.approx((2.8 * 0.1 / 0.005) ** 2, rel=0.3)
    assert row(found, HIT).answer == "undecided" and row(found, HIT).difference.value == pytest.approx(1 / 40)
    assert row(compare_runs(*map(load_run, pair), [0]), NLL).answer == "equal"
    turned = row(compare_runs(*map(load_run, pair[::-1])), NLL)
    assert turned.answer == "B higher" and turned.difference.value == pytest.approx(0.1)


def test_two_windows_of_one_run_are_compared(pair: tuple[Path, Path]) -> None:
    run = load_run(pair[0])
    nll = row(compare_runs(run, run, [0, 2000]), NLL)
    assert nll.difference.value == pytest.approx(-2) and (nll.a_tokens, nll.b_tokens) == (0, 2000)


def measured(before_I: np.ndarray, after_I: np.ndarray) -> ItemCurve:
    return bench.curve_of(before_I, after_I, np.zeros(len(before_I), int))


@pytest.mark.parametrize("kind", ["nats", "shares", "rare misses"])
def test_the_paired_interval_holds_the_planted_difference(kind: str) -> None:
    rng, held, truth, before, after = np.random.default_rng(0), 0, 0.15, 0.5, 0.65
    if kind == "rare misses":
        truth, before, after = 0.03, 0.96, 0.99
    repetitions, widths, apart = 300, [], []
    for _ in range(repetitions):
        hard_I = rng.standard_normal(60)
        if kind == "nats":  # log-normal, as losses are
            before_I = np.exp(0.5 * hard_I) + 0.1 * rng.standard_normal(60)
            after_I = np.exp(0.5 * hard_I) + 0.1 * rng.standard_normal(60) + truth * rng.exponential(size=60)
        else:  # each item has one luck, and draws it anew half the time
            luck_I = rng.random(60)
            before_I = (luck_I < before).astype(float)
            after_I = (np.where(rng.random(60) < 0.5, luck_I, rng.random(60)) < after).astype(float)
        found = measured(before_I, after_I).estimate(1, "change")
        assert found.low is not None and found.high is not None
        held += found.low <= truth <= found.high
        widths.append(found.high - found.low)
        apart.append(2 * 1.96 * np.sqrt((before_I.var(ddof=1) + after_I.var(ddof=1)) / 60))
    assert 0.92 <= held / repetitions <= 0.99
    if kind != "rare misses":  # of which so few are seen that the unpaired interval is often a point
        assert np.mean(widths) < 0.9 * np.mean(apart), "pairing pays"


@pytest.mark.parametrize("kind", bench.KINDS)
@pytest.mark.parametrize("layout", bench.LAYOUTS)
def test_two_equal_models_are_seldom_told_apart_however_few_the_items(kind: str, layout: str) -> None:
    """A small version of bench/judge_intervals.py: one of 200 is 2.2 standard errors above the nominal 5 %."""
    told = [bench.rates(kind, layout, n, 200)["told_apart"] for n in bench.SIZES]
    assert told[0] == 0 and max(told) <= 0.085 and np.mean(told[1:]) <= 0.06


def test_the_published_simulation_holds_its_bound() -> None:
    found = json.loads((ROOT / "bench" / "results" / "judge_intervals.json").read_text())
    assert found["fewest_items"] == FEWEST_ITEMS and len(found["rows"]) == 45
    assert max(row["told_apart"] for row in found["rows"]) <= 0.06


def test_intervals_of_few_items_are_those_of_students_t() -> None:
    """One cell: the paired t-test. Two cells of another scatter: Welch's test of the two means."""
    rng = np.random.default_rng(0)
    before_I, after_I = rng.standard_normal((2, 8))
    found = measured(before_I, after_I).estimate(1, "change")
    expected = ttest_rel(after_I, before_I).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    cells = np.repeat([0, 1], 4)
    item_IW, scale_I = np.stack([np.zeros(8), before_I], axis=1), np.where(cells == 1, 1, -1)
    scatter = Scatter.of_items(item_IW * scale_I[:, None] * [0, 1], cells)
    welch = ttest_ind(before_I[4:], before_I[:4], equal_var=False)
    half = np.diff(welch.confidence_interval())[0] / 2
    low, high = scatter.interval(np.zeros(2), np.array([0.0, 1.0]))
    assert high - low == pytest.approx(half), "of half the difference of two means, which share the items"
    assert scatter.quantile(np.array([0.0, 1.0])) == pytest.approx(student.ppf(0.975, welch.df))


def test_a_factor_is_just_told_from_the_ends_of_its_interval() -> None:
    """Fieller's interval inverts the paired t-test of `after - r before`."""
    rng = np.random.default_rng(1)
    before_I = 3 + rng.standard_normal(12)
    after_I = 0.5 * before_I + 0.3 * rng.standard_normal(12)
    curve = measured(before_I, after_I)
    found = curve.estimate(1, "factor")
    assert found.low is not None and found.high is not None and found.low < found.value < found.high
    for end in (found.low, found.high):
        assert ttest_rel(after_I, end * before_I).pvalue == pytest.approx(0.05)
    unsure = measured(before_I - 2.9, after_I).estimate(1, "factor")
    assert unsure.low is None and np.isfinite(unsure.value), "its first value is not told from 0"


def test_shares_without_samples_differ_as_statsmodels_says() -> None:
    for before, after in (((3, 10), (9, 10)), ((10, 10), (10, 10)), ((0, 7), (4, 12))):
        expected = confint_proportions_2indep(*after, *before, method="newcomb")
        assert difference_of_shares(before, after) == pytest.approx(expected, abs=1e-6)


def test_too_few_items_are_shown_but_not_judged(tmp_path: Path) -> None:
    apart = [{NLL: [spread(mean, 0.01, items=5, seed=int(mean))]} for mean in (1.0, 2.0)]
    a, b = (load_run(plant(tmp_path / name, each, (0,))) for name, each in zip("ab", apart, strict=True))
    found = compare_runs(a, b)
    [only] = found.rows
    assert only.answer == "too few items" and not only.told and only.difference.above(0)
    assert any(line.startswith("too few items: fewer than 6") for line in found.foot())


@pytest.mark.parametrize("samples", [True, False])
@pytest.mark.parametrize("count", [0, 2, 5])
def test_equal_shares_of_too_few_items_are_not_called_undecided(count: int, samples: bool, tmp_path: Path) -> None:
    a, b = (load_run(plant(tmp_path / n, {HIT: [hits(count, 5)]}, (0,), samples=samples)) for n in "ab")
    [only] = compare_runs(a, b).rows
    assert only.answer in ("equal", "too few items") and only.needed is None


def test_the_change_of_a_share_has_its_hand_made_interval() -> None:
    before_I, after_I = hits(30), np.concatenate([hits(28, 30), hits(5, 10)])  # 2 lost, 5 gained of 40
    change = 3 / 42
    half = student.ppf(0.975, 39) * np.sqrt((5.5 + 2.5) / 42 - change**2) / np.sqrt(42)
    assert change_of_shares(before_I, after_I) == pytest.approx((change - half, change + half))


def test_needed_items_tell_the_difference_in_four_of_five_samples() -> None:
    rng, told = np.random.default_rng(0), 0
    n = round((2.8 * 0.5 / 0.15) ** 2)
    for _ in range(200):
        before_I = rng.standard_normal(n)
        told += measured(before_I, before_I + 0.15 + 0.5 * rng.standard_normal(n)).estimate(1, "change").above(0)
    assert 0.7 <= told / 200 <= 0.9


def test_a_difference_without_samples_is_unpaired_and_says_so(tmp_path: Path) -> None:
    hard = spread(2.0, 1.0)
    a, b = (plant(tmp_path / n, {NLL: [hard + d]}, (0,), samples=False) for n, d in (("a", 0.0), ("b", 0.1)))
    found = compare_runs(load_run(a), load_run(b))
    low, high = row(found, NLL).difference.low, row(found, NLL).difference.high
    assert not row(found, NLL).paired and "undecided (unpaired)" in found.table()[0]
    wide = 2 * student.ppf(0.975, 78) * (2 / 40) ** 0.5
    assert low is not None and high is not None and high - low == pytest.approx(wide)
    assert any(line.startswith("unpaired: ") for line in found.foot())


def other(**changed: Any) -> dict[str, Any]:
    return {"monitors": CONFIG["monitors"] | changed}


def answer_tokens(count: float) -> list[Record]:
    return [Record(0, 0, "mechanistic", "heads", "answer_tokens_count", count, 40)]


UNLIKE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "settings": (
        {},
        {"changed": other(needle={"seed": 1, "lengths": [512]})},
        "monitors.needle.seed is 0 in a and 1 in b",
    ),
    "a grid": ({}, {"changed": {"monitors": {}}, "items": 30}, "10 of 40 items are in only one of a and b"),
    "a tokenizer": ({"tokenizer": "{}"}, {"tokenizer": "[]"}, "the tokenizers of a and b differ"),
    "answers": ({"extra": answer_tokens(90)}, {"extra": answer_tokens(80)}, "answers have 90 tokens in a and 80 in b"),
    "text": ({"held_out": 10}, {"held_out": 11}, "source code holds out 10 tokens in a and 11 in b"),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_different_items_are_refused_in_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for name, words in zip("ab", UNLIKE[case][:2], strict=True):
        changed = words.get("changed", other(needle={"seed": 0, "haystack": "code"}) if "held_out" in words else {})
        losses = [spread(2.0, items=words.get("items", 40))]
        paths.append(plant(tmp_path / name, {NLL: losses}, (0,), changed=changed, extra=words.get("extra", [])))
        if "tokenizer" in words:
            (paths[-1] / "tokenizer.json").write_text(words["tokenizer"])
        if "held_out" in words:
            sources = [{"source": "code", "held_out_tokens": words["held_out"]}]
            (paths[-1] / "corpus.json").write_text(json.dumps({"sources": sources}))
    assert main(["compare", *map(str, paths)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"a and b cannot be compared: {NLL}: {UNLIKE[case][2]}" in line


def test_a_monitor_of_other_items_is_left_out_and_the_rest_compared(pair: tuple[Path, Path], tmp_path: Path) -> None:
    changed = other(perplexity={"items": 30}, needle=CONFIG["monitors"]["needle"] | {"variants": {"heldout": 3}})
    b = plant(tmp_path / "b", {NLL: [spread(2.0)], SHORT: [spread(2.0, items=30)]}, (0,), changed=changed)
    found = compare_runs(load_run(pair[0]), load_run(b), [0, 0])
    assert [each.metric for each in found.rows] == [NLL]
    assert found.left_out == {SHORT: "monitors.perplexity.items is 40 in a and 30 in b"}
    assert found.foot()[0].startswith(
        "left out: 1 metrics of perplexity, of different items: monitors.perplexity.items"
    )


def test_the_command_shows_and_writes_the_same(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "compared.json"
    assert main(["compare", *map(str, pair), "--json", str(out), "--tokens", "2k"]) == 0
    data, said = json.loads(out.read_text()), capsys.readouterr().out
    assert {each["metric"] for each in data["rows"]} == {NLL, HIT, SHORT}
    assert all(each["metric"] in said and each["answer"] in said for each in data["rows"])
    assert "1 of 3 metrics differ" in said and "A: a at 2k tokens" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--json", "/dev/null/no.json"],
            "--json /dev/null/no.json: cannot be written (",
        ),
        (["--tokens", "soon"], "--tokens='soon': must be a count of tokens"),
        (["--tokens", "1", "2", "3"], "takes one count, or one each"),
        (["--tokens", "3k"], "--tokens 3000: a has records from 0 to 2000 tokens"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    words: list[str], message: str, pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, pair), *words]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_run_is_not_compared_with_itself_or_with_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run = load_run(pair[0])
    with pytest.raises(ConfigError, match="given twice at the same tokens"):
        compare_runs(run, run)
    lone = plant(tmp_path / "lone", {"perplexity/nll_nats": [spread(2.0)]}, (0,))
    with pytest.raises(ConfigError, match="they share no metric"):
        compare_runs(run, load_run(lone), [0])
