"""Several runs as one command: each starts from the one before, and mistakes are found before the first."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lccp_sim.cli import main
from lccp_sim.config import Config


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Config]:
    """The configs that were trained; each run is finished at once."""
    found: list[Config] = []

    def train(config: Config, console: Console) -> Path:
        found.append(config)
        directory = tmp_path / f"run-{len(found)}"
        directory.mkdir()
        (directory / "DONE").touch()
        return directory

    monkeypatch.setattr("lccp_sim.train.run.train", train)
    return found


def test_each_run_starts_from_the_one_before(trained: list[Config], tmp_path: Path) -> None:
    assert main(["chain", "tiny_sft", "tiny_rl", "run.init_from=here.ckpt", "seed=3"]) == 0
    assert [config.run.init_from for config in trained] == ["here.ckpt", str(tmp_path / "run-1")]
    assert [config.objective.kind for config in trained] == ["sft", "rl"] and {c.seed for c in trained} == {3}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tiny_sft", "tiny_lr"], "lccp: run=tiny_lr: no such config; there are"),
        (
            ["seed=3"],
            "lccp: chain: no run named, only key=value; name the runs in order: lccp chain tiny_sft tiny_",
        ),
        (["tiny_sft", "run=tiny_rl"], "lccp: chain: run=tiny_rl: name runs without run=, as in lccp chain tiny_sft"),
        (["tiny_sft", "tiny_rl", "objective.group=1"], "lccp: objective.group: no such key"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(
    words: list[str], line: str, trained: list[Config], capsys: Any
) -> None:
    assert main(["chain", *words]) == 1
    assert capsys.readouterr().err.startswith(line) and not trained


def test_a_run_that_a_signal_ended_ends_the_chain(
    trained: list[Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lccp_sim.train.run.train", lambda config, console: trained.append(config) or tmp_path)
    assert main(["chain", "tiny_sft", "tiny_rl"]) == 1 and len(trained) == 1
