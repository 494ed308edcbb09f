"""The tool that holds a refactoring: it names what differs, and tells numbers from words."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.golden import Commands, Failed, Found, checkpoint_hashes, main, without_texts

RECORD = '{"step": 0, "tokens": 0, "monitor": "needle", "metric": "hit_frac", "value": 0.25}\n'
REPORT = {"run": "tiny", "t95": {"tokens": 512, "low": None}, "summary": ["The hit rises."], "levelled": True}


def plant(root: Path) -> Path:
    """A folder as a run leaves it, as far as the tool looks at it."""
    run = root / "tiny-s0-0123abcd"
    (run / "samples").mkdir(parents=True)
    (run / "report").mkdir()
    (run / "checkpoints").mkdir()
    (run / "records.jsonl").write_text(RECORD * 2)
    (run / "timing.jsonl").write_text(str(root))
    (run / "samples" / "00000000.parquet").write_bytes(b"rows")
    (run / "decisions.jsonl").write_text('{"verdict": "improving", "gain": 0.5}\n')
    (run / "report" / "report.json").write_text(json.dumps(REPORT))
    (run / "report" / "results.csv").write_text("metric,value\nhit,0.25\n")
    (run / "report" / "tiers.png").write_bytes(b"a picture")
    save(run, 1.0)
    return run


def save(run: Path, value: float, facts: str = "") -> None:
    content = {"state_dict": {"w": torch.full((2, 3), value)}, "optimizer_states": [{"step": 4}], "lccp": facts}
    torch.save(content, run / "checkpoints" / "window-00000012.ckpt")


def manifest(run: Path) -> Path:
    """The manifest of a planted folder, in a file."""
    found = Found()
    found.run("tiny", run)
    found.report("tiny/report", run / "report")
    path = run.parent / "manifest.json"
    path.write_text(json.dumps({"failed": [], "versions": {}, "numbers": found.numbers, "words": found.words}))
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """The manifest of a planted folder, and a second such folder, to be changed."""
    return manifest(plant(tmp_path / "before")), plant(tmp_path / "after")


def compared(before: Path, run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    """The exit status, and what was printed."""
    status = main(["compare", str(before), str(manifest(run)), *words])
    return status, capsys.readouterr().out.splitlines()


def test_equal_folders_are_equal_wherever_they_lie(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before, run = pair
    save(run, 1.0, "the same tensors in another file")
    status, said = compared(before, run, capsys)
    assert (status, len(said)) == (0, 1) and said[0].startswith("equal: ")


@pytest.mark.parametrize(
    ("file", "old", "new", "name"),
    [
        ("records.jsonl", "0.25", "0.26", "numbers: tiny/records.jsonl"),
        ("samples/00000000.parquet", "rows", "rowz", "numbers: tiny/samples/00000000.parquet"),
        ("report/results.csv", "0.25", "0.26", "numbers: tiny/report/results.csv"),
        ("report/tiers.png", "a picture", "a pixture", "words: tiny/report/tiers.png"),
        ("report/report.json", "The hit rises.", "Hit: rising.", "words: tiny/report/report.json"),
        ("decisions.jsonl", "improving", "levelled", "words: tiny/decisions.jsonl"),
    ],
)
def test_what_changed_is_named_and_nothing_else(
    file: str, old: str, new: str, name: str, pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before, run = pair
    text = (run / file).read_text()
    (run / file).write_text(text.replace(old, new))
    assert (run / file).read_text() != text
    assert compared(before, run, capsys) == (1, [f"{name}: differs"])
    assert compared(before, run, capsys, "--numbers")[0] == int(name.startswith("numbers"))


@pytest.mark.parametrize(("old", "new"), [("512", "513"), ("null", "0"), ('"low"', '"from"'), ("true", "false")])
def test_a_number_of_the_report_changes_both_of_its_hashes(
    old: str, new: str, pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before, run = pair
    path = run / "report" / "report.json"
    path.write_text(path.read_text().replace(old, new))
    names = [
        "numbers: tiny/report/report.json without its texts: differs",
        "words: tiny/report/report.json: differs",
    ]
    assert compared(before, run, capsys) == (1, names)


def test_a_weight_a_missing_file_a_new_one_and_another_name_are_named(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before, run = pair
    save(run, 1.0 + 2**-23)
    (run / "records.jsonl").unlink()
    (run / "corpus.json").write_text("{}")
    status, said = compared(before, run.rename(run.with_name("tiny-s0-89abcdef")), capsys)
    assert status == 1 and set(said) == {
        "numbers: tiny/directory's name: differs",
        "numbers: tiny/records.jsonl: is gone",
        "numbers: tiny/corpus.json: is new",
        "numbers: tiny/checkpoints/window-00000012/weights: differs",
    }


def test_a_folder_of_parts_has_the_hashes_of_a_file(tmp_path: Path) -> None:
    run = plant(tmp_path)
    folder = tmp_path / "window-00000012.ckpt"
    dcp.save({"state_dict/w": torch.full((2, 3), 1.0)}, checkpoint_id=folder, no_dist=True)
    torch.save({"state_dict": {}, "optimizer_states": [{"step": 4}]}, folder / "rest.pt")
    assert checkpoint_hashes(folder) == checkpoint_hashes(run / "checkpoints" / "window-00000012.ckpt")


def test_texts_are_taken_out_with_their_places() -> None:
    assert without_texts({"a": "b", "c": [1, "two", None], "d": ["e"], "f": {"g": "h"}}) == {"c": [1, None]}


def test_a_run_that_a_signal_ended_is_no_manifest(tmp_path: Path) -> None:
    run = plant(tmp_path)
    (run / "config.yaml").touch()
    with pytest.raises(Failed, match="tiny-s0-0123abcd is not finished"):
        Found().run("tiny", run)


def test_a_folder_without_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"has no lccp_sim in it|was imported already"):
        Commands(tmp_path, tmp_path / "root")
