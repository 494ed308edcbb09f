"""A gate on planted records: its three answers of every kind, what it refuses, and what it writes."""

import hashlib
import json
import os
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import t as student

from lccp_sim.analysis.format import number_apart
from lccp_sim.analysis.judge.criteria import read_gate
from lccp_sim.analysis.judge.gate import answer_gate
from lccp_sim.analysis.judge.intervals import share
from lccp_sim.analysis.run import RunData, load_run
from lccp_sim.cli import main
from lccp_sim.errors import ConfigError
from lccp_sim.records import Record
from tests.analysis.planted import CONFIG, hits, plant, spread

NLL, HIT, SHORT = "needle/answer_nll_nats", "needle/hit_frac", "perplexity/short_nll_nats"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three seeds, whose answer NLL falls from 4 to 0.9, 1.0 and 1.1, and whose needles are all hit at the end."""
    root = tmp_path_factory.mktemp("runs")
    made = []
    for seed, end in enumerate((0.9, 1.0, 1.1)):
        losses = [spread(4.0, 0.4), spread(2.0, 0.2, seed=1), spread(end, 0.1, seed=2)]
        loss = [Record(s, 1000 * s, "training", "train", "loss_nats", 3.0 - s - 0.01 * seed, 9) for s in range(3)]
        metrics = {
            NLL: losses,
            HIT: [hits(0), hits(4), hits(40)],
            SHORT: [spread(3.0 + s / 100, seed=s) for s in range(3)],
        }
        made.append(plant(root / f"s{seed}", metrics, changed={"seed": seed}, extra=loss))
    return made


@pytest.fixture(scope="module")
def loaded(runs: list[Path]) -> list[RunData]:
    return [load_run(run) for run in runs]


def gate(path: Path, criteria: dict[str, Any] | list[dict[str, Any]], **more: Any) -> Path:
    """A criteria file, older than any run."""
    named = criteria if isinstance(criteria, dict) else {f"c{i}": each for i, each in enumerate(criteria)}
    path.write_text(yaml.safe_dump({"written": "2020-01-31", "criteria": named} | more, sort_keys=False))
    os.utime(path, (0, 0))
    return path


def outcome(folder: Path, given: list[RunData], criterion: dict[str, Any], **more: Any) -> tuple[str, str]:
    [answer] = answer_gate(gate(folder / "gate.yaml", [criterion], **more), given).answers
    return answer.outcome, answer.reason


PASS, FAIL, OPEN = "pass", "fail", "cannot be told"
KINDS: dict[str, tuple[dict[str, Any], tuple[float, float, float]]] = {  # bounds that pass, fail, cannot be told
    "value at most": ({"metric": NLL, "side": "at_most"}, (1.1, 0.9, 1.0)),
    "value at least": ({"metric": NLL, "side": "at_least"}, (0.9, 1.1, 1.0)),
    "change at most": ({"metric": NLL, "of": "change", "side": "at_most"}, (-2.7, -3.3, -3.0)),
    "change at least": ({"metric": NLL, "of": "change", "side": "at_least"}, (-3.3, -2.7, -3.0)),
    "factor at most": ({"metric": NLL, "of": "factor", "side": "at_most"}, (0.27, 0.23, 0.25)),
    "factor at least": ({"metric": NLL, "of": "factor", "side": "at_least"}, (0.23, 0.27, 0.25)),
    "a cell": ({"metric": NLL, "tags": {"length": 512, "depth": 0.5}, "side": "at_most"}, (1.1, 0.9, 1.0)),
    "a share": ({"metric": HIT, "at": "50 %", "side": "at_most"}, (0.25, 0.02, 0.1)),
    "a change of a share": ({"metric": HIT, "of": "change", "at": 1000, "side": "at_least"}, (-0.01, 0.3, 0.1)),
    "earlier, by tokens": ({"metric": NLL, "at": "1.5k", "side": "at_most"}, (2.2, 1.8, 2.0)),
    "over seeds": ({"metric": NLL, "over": "seeds", "side": "at_most"}, (1.4, 0.7, 1.1)),
    "each run": ({"metric": NLL, "over": "items", "side": "at_most"}, (1.2, 0.8, 1.1)),
    "change over seeds": ({"metric": NLL, "over": "seeds", "of": "change", "side": "at_most"}, (-2.6, -3.4, -2.9)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_three_answers_of_every_kind(kind: str, loaded: list[RunData], tmp_path: Path) -> None:
    words, bounds = KINDS[kind]
    given = loaded if "over" in words else loaded[1:2]
    criterion = {key: value for key, value in words.items() if key != "side"}
    for bound, expected in zip(bounds, (PASS, FAIL, OPEN), strict=True):
        assert outcome(tmp_path, given, criterion | {words["side"]: bound})[0] == expected, bound


def test_one_end_or_the_value_may_decide_alone(loaded: list[RunData], tmp_path: Path) -> None:
    for side, by in (("at_most", "high"), ("at_least", "low")):
        assert outcome(tmp_path, loaded[1:2], {"metric": NLL, side: 1.0, "by": by})[0] == FAIL
    for side, by in (("at_most", "low"), ("at_least", "high")):
        assert outcome(tmp_path, loaded[1:2], {"metric": NLL, side: 1.0, "by": by})[0] == PASS
    for bound, expected in ((1.001, PASS), (0.999, FAIL)):
        assert outcome(tmp_path, loaded[1:2], {"metric": NLL, "at_most": bound, "by": "value"})[0] == expected


def test_forty_hits_of_forty_do_not_show_a_rate_of_one(loaded: list[RunData], tmp_path: Path) -> None:
    low, high = share(40, 40)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 40)), 1.0)
    for given in (loaded[:1], loaded):
        more = {"over": "seeds"} if given[1:] else {}
        assert outcome(tmp_path, given, {"metric": HIT, "at_least": low - 0.001} | more)[0] == PASS
        assert outcome(tmp_path, given, {"metric": HIT, "at_least": low + 0.001} | more)[0] == OPEN


def test_runs_of_one_seed_count_by_their_mean(tmp_path: Path) -> None:
    ends = [0.9, 1.0, 1.1]
    metrics = [{NLL: [spread(4.0), spread(2.0), spread(end, seed=2)]} for end in (*ends, 1.5)]
    seeds = [{"seed": 0}, {"seed": 1}, {"seed": 2}, {"seed": 2, "data": {"order_seed": 7}}]
    made = [
        load_run(plant(tmp_path / f"r{i}", m, changed=s)) for i, (m, s) in enumerate(zip(metrics, seeds, strict=True))
    ]
    path = gate(tmp_path / "gate.yaml", [{"metric": NLL, "at_most": 9}], seeds=3)
    [answer] = answer_gate(path, made).answers
    assert answer.outcome == PASS and answer.estimate is not None
    assert answer.estimate.value == pytest.approx((0.9 + 1.0 + 1.3) / 3)
    spread_of_seeds = np.std([0.9, 1.0, 1.3], ddof=1) / 3**0.5
    assert answer.estimate.high == pytest.approx(
        answer.estimate.value + student.ppf(0.975, 2) * spread_of_seeds, rel=0.1
    )
    assert outcome(tmp_path, made[2:], {"metric": NLL, "at_most": 9}, seeds=2) == (OPEN, "1 of 2 seeds needed")


def test_a_share_without_samples_has_the_same_interval(tmp_path: Path) -> None:
    metrics = {HIT: [hits(0), hits(4), hits(37)]}
    run = plant(tmp_path / "run", metrics, samples=False)
    [answer] = answer_gate(gate(tmp_path / "gate.yaml", [{"metric": HIT, "at_least": 0.5}]), [load_run(run)]).answers
    assert answer.estimate is not None and (answer.estimate.low, answer.estimate.high) == share(37, 40)


def test_a_metric_without_interval_is_judged_by_its_value_alone(loaded: list[RunData], tmp_path: Path) -> None:
    criterion = {"metric": "train/loss_nats", "at_most": 2.0}
    assert outcome(tmp_path, loaded[:1], criterion) == (
        OPEN,
        "its records have no interval; `by: value` judges the number alone",
    )
    assert outcome(tmp_path, loaded[:1], criterion | {"by": "value"}) == (PASS, "")
    assert outcome(tmp_path, loaded, criterion | {"over": "seeds"}) == (PASS, "")


@pytest.mark.parametrize(
    ("criterion", "more", "reason"),
    [
        ({"metric": NLL, "at_most": 9}, {"seeds": 3}, "1 of 3 seeds needed"),
        ({"metric": NLL, "at_most": 9, "over": "seeds"}, {}, "an interval over seeds needs two seeds or more"),
        ({"metric": NLL, "at_most": 9, "at": "3k"}, {}, "the run ended at 2k tokens, before 3k"),
        ({"metric": NLL, "at_most": 9, "of": "change", "at": 999}, {}, "there is no window after the first"),
        ({"metric": HIT, "at_least": 9, "of": "factor"}, {}, "its first value is not above 0, so there is no factor"),
    ],
)
def test_what_cannot_be_told_says_why(
    criterion: dict[str, Any], more: dict[str, Any], reason: str, loaded: list[RunData], tmp_path: Path
) -> None:
    assert outcome(tmp_path, loaded[:1], criterion, **more) == (OPEN, reason)


@pytest.mark.parametrize("at", ["end", "50 %", "last", 1000])
def test_the_end_of_another_trainers_run_is_told_only_if_it_is_marked(at: str | int, tmp_path: Path) -> None:
    """Of a loop, a Trainer or `lccp watch`; a share of a length that nobody knows cannot be told either."""
    path = plant(tmp_path / "run", {NLL: [spread(4.0), spread(2.0)]}, (0, 1000), done=False)
    (path / "config.yaml").rename(path / "measured.yaml")
    criterion = {"metric": NLL, "at_most": 5.0, "at": at}
    found = outcome(tmp_path, [load_run(path)], criterion)
    if at in ("end", "50 %"):
        said = "no end is marked after the last window, at 1k tokens; `at: last` judges that"
        assert found == (OPEN, said)
    else:
        assert found == (PASS, "")
    (path / "DONE").write_text('{"tokens": 1000}')
    assert outcome(tmp_path, [load_run(path)], criterion) == (PASS, "")


def test_fewer_than_six_items_are_not_judged_by_an_interval(tmp_path: Path) -> None:
    run = load_run(plant(tmp_path / "run", {NLL: [spread(2.0, items=5)]}, (0,)))
    criterion = {"metric": NLL, "at_most": 9}
    assert outcome(tmp_path, [run], criterion) == (
        OPEN,
        "an interval needs 6 items or more; `by: value` judges the number",
    )
    assert outcome(tmp_path, [run], criterion | {"by": "value"}) == (PASS, "")


def test_a_value_and_a_bound_that_differ_are_seen_to_differ(tmp_path: Path) -> None:
    run = load_run(plant(tmp_path / "run", {NLL: [spread(0.9496, 1e-5)]}, (0,)))
    path = gate(tmp_path / "gate.yaml", [{"metric": NLL, "at_least": 0.95}, {"metric": NLL, "at_least": 0.9495678}])
    first, second = answer_gate(path, [run]).rows()
    assert "0.9496 (0.9496 to 0.9496)" in first[3] and "at least 0.95 " in first[2] and first[1] == FAIL
    assert "0.95 (0.95 to 0.95)" in second[3] and "at least 0.9495678" in second[2] and second[1] == PASS
    for value, bound in ((0.9496, 0.95), (1234.4, 1234.0), (123456.789, 123456.7), (1e-10, 0.0), (2.0, 2.0)):
        shown = float(number_apart(value, bound))
        assert (shown > bound) == (value > bound) and shown == pytest.approx(value, rel=1e-2)


def test_a_date_that_is_not_before_the_run_is_said(loaded: list[RunData], tmp_path: Path) -> None:
    path = gate(tmp_path / "gate.yaml", [{"metric": NLL, "at_most": 9}], written="2999-01-01")
    [note] = answer_gate(path, loaded[:1]).notes
    assert "was written on 2999-01-01, which is in the future" in note
    [note] = answer_gate(path, loaded[:1], today=date(3000, 1, 1)).notes
    assert "was written on 2999-01-01, after the first window of s0" in note


def test_a_run_without_samples_has_a_first_window_too(tmp_path: Path) -> None:
    run = load_run(plant(tmp_path / "run", {NLL: [spread(2.0)]}, (0,), samples=False))
    path = gate(tmp_path / "gate.yaml", [{"metric": NLL, "at_most": 9}])
    assert not answer_gate(path, [run]).notes
    later = time.time() + 100
    os.utime(path, (later, later))
    [note] = answer_gate(path, [run]).notes
    assert "was changed after the first window of run" in note


@pytest.mark.parametrize("at", [1000, 1000.0, "1000", "1k"])
def test_tokens_may_be_written_as_yaml_reads_them(at: str | float, loaded: list[RunData], tmp_path: Path) -> None:
    criterion = {"metric": NLL, "at_most": 2.2, "at": at}
    assert outcome(tmp_path, loaded[:1], criterion) == (PASS, "")


def test_a_metric_without_tags_suggests_none(loaded: list[RunData], runs: list[Path], tmp_path: Path) -> None:
    path = gate(tmp_path / "gate.yaml", [{"metric": "train/loss_nats", "tags": {"length": 512}, "at_most": 9}])
    with pytest.raises(ConfigError, match="no record of train/loss_nats has tags; leave them out"):
        answer_gate(path, loaded[:1])


def test_files_that_cannot_be_written_are_one_line(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = gate(tmp_path / "gate.yaml", [{"metric": NLL, "at_most": 9}])
    for option in ("--json", "--markdown"):
        assert main(["gate", str(path), str(runs[0]), option, str(tmp_path)]) == 1
        said = capsys.readouterr()
        [line] = said.err.splitlines()
        assert f"{option} {tmp_path}: cannot be written (Is a directory)" in line and not said.out


def test_a_live_run_has_no_end_yet_but_its_windows_count(tmp_path: Path) -> None:
    metrics = {NLL: [spread(4.0), spread(2.0)]}
    run = load_run(plant(tmp_path / "run", metrics, (0, 1000), done=False))
    criterion = {"metric": NLL, "at_most": 3.0}
    assert outcome(tmp_path, [run], criterion) == (OPEN, "the run has not ended, it is at 1k of 2k tokens")
    assert outcome(tmp_path, [run], criterion | {"at": "75 %"}) == (OPEN, "the run is at 1k tokens, before 1.5k")
    assert outcome(tmp_path, [run], criterion | {"at": "50 %"}) == (PASS, "")


def test_the_exit_status_and_the_files(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = {PASS: {"metric": NLL, "at_most": 9.0}, FAIL: {"metric": NLL, "at_most": 0.1}}
    answers[OPEN] = {"metric": NLL, "at_most": 1.0}
    for names, status in (((PASS,), 0), ((PASS, OPEN), 2), ((PASS, OPEN, FAIL), 1)):
        path = gate(tmp_path / "gate.yaml", {f"a | {n}": answers[n] for n in names}, question="Does it?")
        files = [tmp_path / "out" / name for name in ("gate.json", "gate.md")]
        assert main(["gate", str(path), str(runs[1]), "--json", str(files[0]), "--markdown", str(files[1])]) == status
        data, page = json.loads(files[0].read_text()), files[1].read_text()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert data["criteria_file"]["sha256"] == digest and data["criteria_file"]["written"] == "2020-01-31"
        assert data["status"] == status and [each["outcome"] for each in data["answers"]] == list(names)
        assert (
            data["answers"][0]["estimate"]["value"] == pytest.approx(1.0)
            and data["answers"][0]["evidence"][0]["items"] == 40
        )
        assert digest in page and "written 2020-01-31" in page and "Does it?" in page and not data["notes"]
        [table] = [block for block in page.split("\n\n") if block.startswith("| criterion")]
        assert {line.replace("\\|", "").count("|") for line in table.splitlines()} == {6}
        said = capsys.readouterr().out
        assert digest in said and all(name in said for name in names)


def test_a_file_changed_after_the_first_window_is_said(loaded: list[RunData], tmp_path: Path) -> None:
    path = gate(tmp_path / "gate.yaml", [{"metric": NLL, "at_most": 9}])
    assert not answer_gate(path, loaded[:1]).notes
    os.utime(path)
    [note] = answer_gate(path, loaded[:1]).notes
    assert "was changed after the first window of s0" in note


WRONG: dict[str, tuple[str, str]] = {  # the file, and a part of the one line
    "no YAML": ("{", "cannot be read as YAML"),
    "a name twice": ("written: 2020-01-31\ncriteria: {a: {}, a: {}}", "the key 'a' occurs twice"),
    "no mapping": ("- a", "must be a group of keys"),
    "no day of a calendar": (
        "written: 2026-13-45\ncriteria: {}",
        "gate.written='2026-13-45': input should be a valid date",
    ),
    "a truth value": ("{metric: a/b, at_least: yes}", "criteria.a.at_least=True: is read by YAML as true or false"),
    "a truth value of seeds": ("written: 2020-01-31\nseeds: yes\ncriteria: {}", "gate.seeds=True: is read by YAML"),
    "at nothing": ("{metric: a/b, at_least: 0, at: null}", "criteria.a.at=None: must be end, last, a count of tokens"),
    "no date": ("criteria: {a: {metric: a/b, at_most: 1}}", "gate.written: this key is required"),
    "no criterion": ("written: 2020-01-31\ncriteria: {}", "is empty"),
    "a wrong key": ("written: 2020-01-31\nseeds: 1\ncriterion: {}", "did you mean 'criteria'?"),
    "a wrong key within": ("{metric: a/b, at_mots: 1}", "criteria.a.at_mots: no such key; did you mean 'at_most'?"),
    "no bound": ("{metric: needle/hit_frac}", "give one of the two"),
    "two bounds": ("{metric: needle/hit_frac, at_least: 0, at_most: 1}", "give one of the two"),
    "no number": ("{metric: needle/hit_frac, at_least: .nan}", "must be a finite number"),
    "half a token": ("{metric: needle/hit_frac, at_least: 0, at: 10.5}", "must be a count of tokens"),
    "no window": ("{metric: needle/hit_frac, at_least: 0, at: soon}", "must be a count of tokens"),
    "too late": ("{metric: needle/hit_frac, at_least: 0, at: 120 %}", "at most 100 % of the run"),
    "no metric": ("{metric: needle/hit_frc, at_least: 0}", "no record of it; did you mean 'needle/hit_frac'?"),
    "no monitor": ("{metric: hit_frac, at_least: 0}", "must be monitor/metric"),
    "no tag": (
        "{metric: needle/hit_frac, tags: {length: 500, depth: 0.5}, at_least: 0}",
        "did you mean {depth: 0.5, length: 512, span: value, variant: single}?",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_in_one_line(
    case: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = WRONG[case]
    if text.startswith("{m"):
        text = f"written: 2020-01-31\ncriteria:\n  a: {text}"
    (tmp_path / "gate.yaml").write_text(text)
    assert main(["gate", str(tmp_path / "gate.yaml"), str(runs[0])]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lccp: {tmp_path}/gate.yaml: ") and message in line


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optim": {"lr": 1e-2}}, "may differ only in their seed, but optim.lr is 0.001 in s0, 0.01 in other"),
        ({"monitors": CONFIG["monitors"] | {"needle": {"seed": 1}}}, "monitors.needle"),
        ({"run": CONFIG["run"] | {"threads": 4}}, ""),
    ],
)
def test_runs_of_one_gate_are_of_one_arm(
    changed: dict[str, Any], message: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = plant(tmp_path / "other", {NLL: [spread(4.0)] * 3}, changed=changed)
    path = gate(tmp_path / "gate.yaml", [{"metric": NLL, "at_most": 9}])
    assert main(["gate", str(path), str(runs[0]), str(other)]) == (1 if message else 0)
    assert message in capsys.readouterr().err


def test_records_of_different_items_and_a_run_given_twice_are_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = plant(tmp_path / "other", {NLL: [spread(4.0, items=30)] * 3}, changed={"seed": 9})
    path = gate(tmp_path / "gate.yaml", [{"metric": NLL, "at_most": 9}])
    for given, message in (
        (other, "10 of 40 items are in only one of s0 and other"),
        (runs[0], "counts each run once"),
    ):
        assert main(["gate", str(path), str(runs[0]), str(given)]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert message in line


def test_a_first_file_is_passed_by_the_run_that_it_was_made_from(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gate.yaml"
    assert main(["gate", "--init", str(runs[1]), str(path)]) == 0
    _, criteria = read_gate(path)
    assert {each.metric for each in criteria.values()} == {HIT, NLL, SHORT}
    assert main(["gate", str(path), str(runs[1])]) == 0
    assert main(["gate", "--init", str(runs[1]), str(path)]) == 1
    assert "exists already" in capsys.readouterr().err
