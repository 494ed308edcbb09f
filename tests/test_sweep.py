"""Sweeps: a run for each combination; what is done is skipped, what failed left alone; launchers agree to the byte."""

from pathlib import Path

import pytest
from rich.console import Console

from lccp_sim.cli import main
from lccp_sim.errors import ConfigError
from lccp_sim.verbs.sweep import Schedule, jobs_of, launching, print_outcomes, sweep

TINY = ["run=smoke_study", "run.tokens=2048"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [*TINY, f"run.root={tmp_path / 'runs'}"]


def test_jobs_are_all_combinations_the_last_axis_fastest():
    assert jobs_of(["run=smoke", "optim.lr=1e-3,2e-3", "seed=0,1"]) == [
        ["run=smoke", "optim.lr=0.001", "seed=0"],
        ["run=smoke", "optim.lr=0.001", "seed=1"],
        ["run=smoke", "optim.lr=0.002", "seed=0"],
        ["run=smoke", "optim.lr=0.002", "seed=1"],
    ]
    assert jobs_of(["seed=range(3)"]) == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert jobs_of(["monitors.needle.lengths=[1,2]"]) == [["monitors.needle.lengths=[1,2]"]], "a list is one value"


@pytest.mark.parametrize(
    ("word", "why"),
    [("seed=0,0", "names a value twice"), ("seed=choice()", "seed="), ("seed=range(0)", "without values")],
)
def test_an_axis_is_of_different_values(word, why):
    with pytest.raises(ConfigError, match=why):
        jobs_of([word])


def test_launchers_are_named_and_set():
    assert launching(["run=smoke", "launcher=joblib", "hydra.launcher.n_jobs=2"]) == (
        ["run=smoke"], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    )  # fmt: skip
    assert launching(["run=smoke"]) == (["run=smoke"], [])
    with pytest.raises(ConfigError, match="did you mean 'joblib'"):
        launching(["launcher=jobib"])


def test_the_time_left_is_that_of_what_is_still_to_be_trained():
    schedule = Schedule(runs=4, flops=100.0, began=1000.0)
    assert schedule.line(1, 1001.0) == "run 1 of 4: 0 ended"
    schedule.over(40.0, trained=False)  # done before: it took no time
    assert schedule.line(2, 1002.0) == "run 2 of 4: 1 ended"
    schedule.over(20.0, trained=True)
    assert schedule.line(3, 1060.0) == "run 3 of 4: 2 ended, about 2 min left"


def test_a_wrong_config_stops_the_sweep_before_it_starts(words, tmp_path, capsys):
    assert main(["train", "-m", *words, "optim.lr=1e-3,-1"]) == 1
    assert "optim.lr=-1" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    assert main(["train", "-m", *words, "optim.lrr=1,2"]) == 1
    assert "did you mean 'lr'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="are one run"):
        sweep([words, [*words, "run.threads=1", "run.log_every_steps=6"]])


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list]:
    root = tmp_path_factory.mktemp("swept")
    words = [*TINY, f"run.root={root}"]
    return root, sweep(jobs_of([*words, "seed=0,1"]))


def test_a_sweep_trains_what_single_runs_train(swept, tmp_path):
    root, outcomes = swept
    assert [each.state for each in outcomes] == ["finished", "finished"]
    assert main(["train", *TINY, f"run.root={tmp_path}", "seed=1"]) == 0
    (alone,) = tmp_path.glob("smoke_study-s1-*")
    assert (alone / "records.jsonl").read_bytes() == (Path(outcomes[1].directory) / "records.jsonl").read_bytes()
    assert not list(root.glob("*/FAILED")) and len(list(root.glob("smoke_study-*/DONE"))) == 2


def test_what_is_finished_is_skipped_and_what_failed_is_left_alone(swept, monkeypatch):
    root, before = swept
    words = jobs_of([*TINY, f"run.root={root}", "seed=0,1,2"])
    import lccp_sim.train.run as module

    calls, train = [], module._train

    def failing(config, *args):
        calls.append(config.seed)
        if config.seed == 2:
            train(config, *args)
            raise OSError("No space left on device")
        return train(config, *args)

    monkeypatch.setattr(module, "_train", failing)
    stamps = [(Path(each.directory) / "DONE").stat().st_mtime_ns for each in before]
    outcomes = sweep(words)
    assert [each.state for each in outcomes] == ["finished", "finished", "failed"]
    assert "No space left" in outcomes[2].reason and Path(outcomes[2].directory, "FAILED").exists()
    assert [(Path(each.directory) / "DONE").stat().st_mtime_ns for each in before] == stamps
    monkeypatch.setattr(module, "_train", train)
    again = sweep(words)
    assert again[2].state == "failed" and "--retry tries again" in again[2].reason
    assert print_outcomes(again, Console(quiet=True)) == 1
    retried = sweep(words, retry=True)
    assert retried[2].state == "finished" and not Path(retried[2].directory, "FAILED").exists()


def test_joblib_gives_the_same_records(swept, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra lccp-sim[joblib] is not installed")
    _, before = swept
    jobs = jobs_of([*TINY, f"run.root={tmp_path}", "seed=0,1"])
    outcomes = sweep(jobs, ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])
    for one, other in zip(before, outcomes, strict=True):
        assert other.state == "finished"
        assert Path(one.directory, "records.jsonl").read_bytes() == Path(other.directory, "records.jsonl").read_bytes()


def test_a_launcher_that_is_not_installed_is_named(words, monkeypatch):
    with pytest.raises(ConfigError, match="pip install 'lccp-sim"):
        sweep([words], ["hydra/launcher=none_such"])
