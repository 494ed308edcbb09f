"""Reading run directories: whole, live, incomplete and broken ones."""

import json

import pandas as pd
import pytest

from lccp_sim.analysis.run import load_run, parsed_at_once, parsed_by_line, tidy
from lccp_sim.analysis.stats.curve import curves
from lccp_sim.errors import ConfigError
from lccp_sim.records import Record
from lccp_sim.sums import change_sums


def test_a_run_is_read_with_its_tags_as_columns(make_run):
    path, world = make_run()
    run = load_run(path)
    assert run.finished and run.warnings == []
    assert run.samples.stratum[run.samples.monitor == "probe"].nunique() == 4, "2 tasks at 2 fine-tuning steps"
    assert run.tokens == world.run_tokens == run.setting("run.tokens")
    assert len(run.select("needle", "hit_frac")) == world.windows
    assert len(run.select("needle", "hit_frac", "length", span="value", variant="single")) == 3 * world.windows
    assert len(run.select("heads", "copy_hard_frac", "head", layer=2)) == 8 * world.windows
    assert run.select("needle", "hit_frac", length=512).empty, "rows of other tag names are other averages"
    assert run.select("needle", "no_such_frac", planet=1).empty
    assert len(run.corpus) == 2 and len(run.timing) == 4 * world.windows


def test_a_live_run_with_a_truncated_last_line_is_read(make_run):
    path, _ = make_run(done=False)
    whole = load_run(path)
    with open(path / "records.jsonl", "ab") as file:
        file.write(b'{"step": 976, "tok')
    with open(path / "timing.jsonl", "ab") as file:
        file.write(b'{"step": 9')
    run = load_run(path)
    assert not run.finished
    assert len(run.records) == len(whole.records) and len(run.timing) == len(whole.timing)
    assert len(run.warnings) == 1 and "last line is incomplete" in run.warnings[0]


def test_samples_of_a_window_without_records_are_left_out(make_run):
    path, _ = make_run()
    last = max((path / "samples").iterdir())
    (path / "samples" / "00099999.parquet").write_bytes(last.read_bytes())
    assert load_run(path).samples.step.max() == int(last.stem)


def test_a_window_without_samples_falls_back_to_standard_errors(make_run):
    path, _ = make_run()
    max((path / "samples").iterdir()).unlink()
    assert curves(load_run(path), "needle", ("hit_frac",), {})["hit_frac"].source == "standard errors"


def test_a_run_without_samples_and_side_files_warns(make_run):
    path, _ = make_run(samples=False)
    for name in ("config.yaml", "corpus.json", "timing.jsonl"):
        (path / name).unlink()
    run = load_run(path)
    assert run.samples.empty and run.config == {} and run.corpus.empty
    assert len(run.warnings) == 4


def test_samples_that_disagree_with_the_records_are_named(make_run):
    path, _ = make_run()
    text = (path / "records.jsonl").read_text().split("\n")
    rows = [json.loads(line) for line in text if line]
    for row in rows:
        if row["metric"] == "answer_nll_nats" and row["tags"] == {"span": "value"}:
            row["value"] *= 1.5
    (path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = load_run(path)
    curves(run, "needle", ("hit_frac", "answer_nll_nats"), {})
    assert run.warnings == ["needle/answer_nll_nats: the mean of the samples differs from the record's value"]


def test_what_is_no_run_is_refused_in_one_line(tmp_path, make_run):
    path, _ = make_run()
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [(tmp_path / "nowhere", "no such directory"), (empty, "holds no records.jsonl")]
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "records.jsonl").touch()
    cases.append((tmp_path / "new", "holds no records yet"))
    for folder, message in cases:
        with pytest.raises(ConfigError, match=message) as caught:
            load_run(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    lines = (path / "records.jsonl").read_bytes().split(b"\n")
    (path / "records.jsonl").write_bytes(b"\n".join([lines[0], b"{broken", *lines[1:]]))
    with pytest.raises(ConfigError, match="records.jsonl, line 2: not a record"):
        load_run(path)


@pytest.mark.parametrize(("name", "text"), [("config.yaml", "a: [1"), ("corpus.json", "{"), ("timing.jsonl", "{\n")])
def test_a_broken_side_file_is_refused_in_one_line(make_run, name, text):
    path, _ = make_run()
    (path / name).write_text(text)
    with pytest.raises(ConfigError, match=f"{name}: cannot be read") as caught:
        load_run(path)
    assert "\n" not in str(caught.value)


def test_reading_at_once_and_line_by_line_agree(make_run):
    path, _ = make_run()
    file = path / "records.jsonl"
    fast, slow = parsed_at_once(file.read_bytes()), parsed_by_line(file, [])
    assert fast is not None
    fast["names"] = fast.names.astype(slow.names.dtype)
    pd.testing.assert_frame_equal(fast[slow.columns], slow, check_dtype=False, check_exact=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "not a record"),
        ("", "not a record"),
        ('{"step": 1}', "missing"),
        ('{"value": NaN}', "not finite"),
        ('{"tier": "cosmic"}', "none of training"),
        ('{"planet": 1}', "unexpected"),
    ],
)
def test_a_line_that_is_no_record_is_named(make_run, line, message):
    path, _ = make_run(windows=2, without=("heads", "probe"))
    lines = (path / "records.jsonl").read_text().split("\n")
    if line.startswith('{"') and line != '{"step": 1}':
        line = json.dumps(json.loads(lines[0]) | json.loads(line))
    (path / "records.jsonl").write_text("\n".join([*lines[:6], line, *lines[6:]]))
    with pytest.raises(ConfigError, match=rf"line 7: not a record .*{message}|line 7: {message}") as caught:
        load_run(path)
    assert "\n" not in str(caught.value)


def test_a_tag_whose_name_is_no_text_is_a_damaged_record(make_run):
    path, _ = make_run(windows=2, without=("heads", "probe"))
    file = path / "records.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"tags": {"', b'"tags": {"\xe9', 1))
    with pytest.raises(ConfigError, match=r"records.jsonl, line \d+: not a record"):
        load_run(path)


def test_damage_that_no_parser_names_is_found_by_its_hash(make_run):
    path, _ = make_run(windows=2, without=("heads", "probe"))
    file = sorted((path / "samples").glob("*.parquet"))[-1]
    change_sums(path, known={f"samples/{file.name}": None})
    pd.read_parquet(file).assign(tags="{").to_parquet(file)
    with pytest.raises(ConfigError, match=f"{file.name}: is damaged or was edited") as caught:
        load_run(path)
    assert "\n" not in str(caught.value)
    file.write_bytes(b"PAR1" + file.read_bytes()[4:40] + b"PAR1")
    with pytest.raises(ConfigError, match="not a readable Parquet file") as caught:
        load_run(path)
    assert "\n" not in str(caught.value)


def test_tags_of_mixed_kinds_are_read_line_by_line(make_run):
    path, _ = make_run(windows=2, without=("heads", "probe"))
    with open(path / "records.jsonl", "a") as file:
        for tag in (1, "one"):
            record = Record(999, 999, "training", "other", "x_count", 1.0, 1, None, {"mixed": tag})
            file.write(record.line())
    run = load_run(path)
    assert list(run.select("other", "x_count", "mixed").mixed) == [1, "one"]
    assert set(tidy([run]).mixed.dropna()) == {"1", "one"}, "Parquet wants one type"


def test_two_runs_in_one_directory_are_noticed(make_run):
    first, _ = make_run()
    second, _ = make_run(seed=1, windows=10)
    both = (first / "records.jsonl").read_text() + (second / "records.jsonl").read_text()
    (first / "records.jsonl").write_text(both)
    (warning,) = [line for line in load_run(first).warnings if "records.jsonl" in line]
    assert "with different values (did two runs write here?)" in warning
    rows = [json.loads(line) for line in (second / "records.jsonl").read_text().split("\n") if line]
    shifted = "".join(json.dumps(row | {"step": row["step"] + 1}) + "\n" for row in rows)
    (second / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + shifted)
    (warning,) = [line for line in load_run(second).warnings if "records.jsonl" in line]
    assert "the step decreases, from 976 to 1" in warning and "line " in warning


def test_a_record_written_twice_is_used_once(make_run):
    path, _ = make_run()
    lines = (path / "records.jsonl").read_text()
    (path / "records.jsonl").write_text(lines + lines.split("\n")[0] + "\n")
    run = load_run(path)
    assert len(run.records) == lines.count("\n")
    assert "1 records occur twice" in run.warnings[0]
