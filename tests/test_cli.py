"""The command: its verbs from end to end, its exit statuses, and how a config comes about from words."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lccp_sim.cli import VERBS, main
from lccp_sim.configure.compose import check, compose
from lccp_sim.errors import ConfigError
from tests.home import build
from tests.train.tiny import WINDOWS


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose tiny run is finished."""
    root = build(tmp_path_factory.mktemp("home"))
    assert main(["train", "run=tiny", "--config-dir", f"{root}/configs"]) == 0
    return root


@pytest.fixture
def directory(home: Path) -> Path:
    """The finished run. Only to be read."""
    [found] = (home / "runs").glob("tiny-*")
    return found


def test_help_names_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


def test_a_misspelt_key_is_refused_without_torch() -> None:
    code = (
        "import sys; from lccp_sim.cli import main; "
        "words = ['train', 'run=smoke', 'optim.lrr=1', 'model.d_head=15', 'data.packin=best_fit']; "
        "sys.exit(3 * main(words) + ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines() == [
        "lccp: model.d_head=15: must be even: RoPE rotates pairs",
        "lccp: optim.lrr: no such key; did you mean 'lr'?",
        "lccp: data.packin: no such key; did you mean 'packing'?",
    ]


@pytest.mark.parametrize("argv", [[], ["trian"], ["measure"], ["train", "--no-such-flag"]])
def test_a_wrong_command_line_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "usage: lccp" in capsys.readouterr().err


def test_words_after_an_option_belong_to_the_words_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "nobody", "--root", str(tmp_path), "launcher=joblib"]) == 1
    assert "nobody" in capsys.readouterr().err
    assert main(["chain", "nobody", "--config-dir", str(tmp_path), "seed=1"]) == 1
    assert "nobody" in capsys.readouterr().err


def test_a_finished_run_says_so_and_writes_nothing(
    home: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    for more in ([], ["run.tokens=256"]):  # fewer tokens are done, too
        assert main(["train", "run=tiny", *more, "--config-dir", f"{home}/configs"]) == 0
        said = capsys.readouterr().out
        assert "done (3,072 tokens); a larger run.tokens extends it" in " ".join(said.split())
        assert "corpus" not in said
    after = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    changed = {path.name for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {".lock"}


def test_measure_finds_the_run_equal_and_a_planted_difference(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    out = ["--out", str(tmp_path / "out"), "--check"]
    assert main(["measure", str(copy), *out]) == 0
    measured = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    own = [line for line in (copy / "records.jsonl").read_text().splitlines() if '"monitor": "train"' not in line]
    assert measured == own
    assert f"check: {len(own):,} of {len(own):,} records equal" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out" / "samples").iterdir()} == {f"{w:08}.parquet" for w in WINDOWS}
    for part in (copy / "samples").iterdir():
        assert part.read_bytes() == (tmp_path / "out" / "samples" / part.name).read_bytes()

    row = json.loads(own[-1])
    row["value"] *= 1 + 1e-12
    (copy / "records.jsonl").write_text("\n".join([*own[:-1], json.dumps(row)]) + "\n")
    assert main(["measure", str(copy), *out]) == 1
    said = capsys.readouterr().out
    assert f"differs: {row['monitor']}/{row['metric']}" in said and f"{len(own) - 1:,} of {len(own):,}" in said

    (copy / "records.jsonl").write_text("\n".join(own[1:]) + "\n")
    assert main(["measure", str(copy), *out]) == 1
    assert "missing in the run" in capsys.readouterr().out


def test_several_runs_are_measured_into_folders_of_their_own(directory: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        copy = Path(shutil.copytree(directory, tmp_path / name))
        for path in (copy / "checkpoints").glob("window-*"):
            if path.stem != "window-00000003":
                path.unlink()
    assert main(["measure", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "out")]) == 0
    one, two = ((tmp_path / "out" / name / "records.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two and one
    assert main(["measure", str(tmp_path / "one")]) == 0
    assert (tmp_path / "one" / "measured" / "records.jsonl").read_bytes() == one


def test_report_writes_a_page(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(directory), "--out", str(tmp_path / "report")]) == 0
    assert "<html" in (tmp_path / "report" / "index.html").read_text()
    assert "index.html" in capsys.readouterr().out


def test_data_shows_the_corpus_and_starts_no_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set((home / "runs").iterdir())
    assert main(["data", "run=tiny", "run.name=other", "--config-dir", f"{home}/configs"]) == 0
    said = capsys.readouterr().out
    assert "prose" in said and "copies" in said and "documents of batch 0: " in said and ".txt" in said
    assert set((home / "runs").iterdir()) == before


def test_data_compares_the_packings_within_100_columns(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    points = "[{tokens: 0, shares: {copies: 0}, long_frac: 0.2}, {tokens: 2000, long_frac: 0.8}]"
    words = ["run=tiny", "data.bucket_tokens=[500]", f"data.schedule={points}", "run.tokens=99840"]
    assert main(["data", *words, "--compare-packings", "--config-dir", f"{home}/configs"]) == 0
    table, _, _ = capsys.readouterr().out.partition("documents of batch 0")
    assert "99,840 tokens in rows of 64, concatenate" in table and "at end" in table
    assert re.search(r"prose +<=500 +\d+ +[\d.]+k +80.0% +14.0% +\d+ +[\d.]+ +[\d.]+% +[\d.]+% +0.0%", table)
    assert re.search(r"prose +<=500 +best_fit +\d+ +100.0% +100.0% +\d+.\d%", table)
    assert re.search("warning: .* epochs over the run", table)
    assert max(len(line) for line in table.splitlines() if "warning" not in line) <= 100


def test_doctor_says_what_is_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--cache", str(tmp_path)]) in (0, 1)
    assert "torch" in capsys.readouterr().out


@pytest.mark.parametrize("mark", ["", "+", "++"])
def test_a_key_that_no_yaml_names_can_be_set(mark: str) -> None:
    assert check(["run=smoke", f"{mark}run.deterministic=true"]).run.deterministic
    assert check(["run=smoke", f"{mark}optim.lr=0.5"]).optim.lr == 0.5
    with pytest.raises(ConfigError, match=r"run.determinstic: no such key; did you mean 'deterministic'\?"):
        check(["run=smoke", f"{mark}run.determinstic=true"])


def test_a_key_can_be_taken_away() -> None:
    assert "probe" not in check(["run=smoke", "~monitors.probe"]).monitors.watch
    assert "probe" not in check(["run=smoke", "monitors.probe=null"]).monitors.watch


def test_groups_of_a_user_are_found_beside_ours(home: Path) -> None:
    composed = compose(["run=tiny", "model=tiny"], home / "configs")
    assert composed["run"]["name"] == "tiny" and composed["model"]["d_model"] == 128
    assert compose(["run=tiny"], home / "configs")["model"]["d_model"] == 32


def test_a_chain_follows_the_root_and_the_seed() -> None:
    assert compose(["run=tiny_base", "run.root=/a", "seed=3"])["run"]["init_from"] == "/a/tiny_short-s3-*"
    assert compose(["run=tiny_lccp", "seed=3"])["run"]["init_from"] == "bundled:tiny-s3"


def test_a_signal_from_outside_ends_with_0(home: Path) -> None:
    number = signal.SIGTERM
    words = ["run=tiny", f"run.name={number.name}", "run.tokens=1000000", "monitors.probe=null"]
    command = [sys.executable, "-m", "lccp_sim.cli", "train", *words, "--config-dir", f"{home}/configs"]
    root = str(Path(__file__).parents[1])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root}) as run:
        assert run.stdout
        for line in run.stdout:
            if line.startswith(f"step {WINDOWS[1]:>6} "):
                run.send_signal(number)
                break
        assert f"{number.name}: saved step" in run.stdout.read()
        assert run.wait() == 0
    [directory] = (home / "runs").glob(f"{number.name}-*")
    assert not (directory / "DONE").exists()
    assert list((directory / "checkpoints").glob("last-*.ckpt"))


def test_what_is_no_message_for_a_user_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from lccp_sim.train import run

    def broken(*args: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(run, "train", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["train", "run=smoke"])
