"""`lccp compare A B` of checkpoints: it measures both as `lccp measure` does, once, with the same items."""

import json
import shutil
from pathlib import Path

import pytest

from lccp_sim.cli import check, main
from lccp_sim.errors import ConfigError
from lccp_sim.train import series
from tests.train.foreign import folder
from tests.train.others import measured_after


def test_two_checkpoints_are_measured_once_and_compared(
    measuring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of one name; they are measured again if a file or a setting changes, and a third shares their records."""
    a, b = (folder(measuring, tmp_path / name / "final", seed=seed) for seed, name in enumerate("ab"))
    words = ["compare", str(a), str(b), "run=look", "--config-dir", str(measuring / "configs")]
    assert main([*words, "--json", str(tmp_path / "compared.json")]) == 0
    outs = [measuring / "runs" / f"{name}-final-measured" for name in "ab"]
    for path, out in zip((a, b), outs, strict=True):
        assert (out / "records.jsonl").read_text() == measured_after(measuring, {0: path}, tmp_path / "after")
    rows = json.loads((tmp_path / "compared.json").read_text())["rows"]
    assert {row["metric"] for row in rows} >= {"needle/answer_nll_nats", "perplexity/nll_nats"}
    assert all(row["paired"] for row in rows if row["items"]) and not any(row["told"] for row in rows if row["few"])
    assert main(["compare", *map(str, outs)]) == 0, "what was measured is a run"
    capsys.readouterr()

    measured: list[Path] = []
    plain = series.measure
    monkeypatch.setattr(series, "measure", lambda path, *rest: (measured.append(path), plain(path, *rest)))
    assert main(words) == 0 and not measured
    assert capsys.readouterr().out.count("measured before, in") == 2
    folder(measuring, a, seed=3)
    assert main(words) == 0 and measured == [a]
    assert main([*words, "monitors.needle.seed=5"]) == 0 and measured == [a, a, b]
    capsys.readouterr()
    assert main(["compare", *map(str, outs), "monitors.needle.seed=5"]) == 1
    assert main(["compare", str(a), str(a), *words[3:]]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "says how to measure checkpoints, but both paths hold records already" in errors[0]
    assert "given twice, or named like another path" in errors[1]


def test_two_checkpoints_of_a_run_and_one_that_was_measured(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / finished.name
    shutil.copytree(finished, run)
    first, *_, last = sorted((run / "checkpoints").glob("window-*.ckpt"))
    assert main(["compare", str(first), str(last)]) == 0
    said = capsys.readouterr().out
    assert f"A: {run.name}/measured-{first.stem} at 0 tokens" in said
    assert main(["compare", str(run / f"measured-{first.stem}"), str(last)]) == 0
    assert capsys.readouterr().out.count("measured before, in") == 1


def test_a_setting_that_is_wrong_for_one_of_them_is_one_line(
    measuring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = folder(measuring, tmp_path / "one")
    words = ["run=look", "--config-dir", str(measuring / "configs")]
    assert main(["compare", str(one), str(tmp_path / "nowhere"), *words]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "nowhere: no such directory" in line


@pytest.mark.parametrize(("given", "count"), [(1000, 1000), (1000.0, 1000), (1000.5, None), (True, None), (-1.0, None)])
def test_tokens_of_a_series_may_be_written_as_yaml_reads_them(given: float, count: int | None, tmp_path: Path) -> None:
    """A whole number with a decimal point is a count; others are refused with their place."""
    config = check(["run=measure"])
    (tmp_path / "series.yaml").write_text(f"checkpoints: [{{path: nowhere, tokens: {str(given).lower()}}}]")
    said = "nowhere: no such checkpoint" if count else r"checkpoints\[0\].tokens=.*: must be an integer >= 0"
    with pytest.raises(ConfigError, match=said):
        series.of_list(tmp_path / "series.yaml", config)
