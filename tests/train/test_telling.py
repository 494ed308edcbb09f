"""Long work tells what it does, whoever asks for it: import, export, a run from a folder, and monitors' items."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lccp_sim.cli import main
from lccp_sim.progress import Work
from lccp_sim.train import run
from lccp_sim.train.parallel.meeting import RankEnvironment
from lccp_sim.train.run import train
from tests.train.foreign import folder
from tests.train.test_exchange import DENSE, QUIET


class Heard(Work):
    """All that was told, and whether the console that should show it is a quiet one."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, float]] = []
        self.quiet: list[bool] = []

    def __call__(self, said: str, share: float) -> None:
        assert 0 <= share <= 1
        self.lines.append((said, share))

    def beside(self) -> "Heard":
        return self

    def about(self, words: str) -> list[tuple[str, float]]:
        return [line for line in self.lines if words in line[0]]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    """What every verb tells from here on."""
    found = Heard()

    @contextmanager
    def shown(console: Console) -> Iterator[Heard]:
        found.quiet.append(console.quiet)
        yield found

    for module in ("progress", "train.run", "train.series"):
        monkeypatch.setattr(f"lccp_sim.{module}.shown_on", shown)
    return found


@pytest.fixture(scope="module")
def llama(measuring: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of transformers: 21 tensors. Only to be read."""
    return folder(measuring, tmp_path_factory.mktemp("hub") / "tiny-llama", bos_token_id=0, eos_token_id=0)


def test_import_and_export_tell_how_far_they_are(llama: Path, heard: Heard, tmp_path: Path) -> None:
    assert main(["import", str(llama), str(tmp_path / "mine")]) == 0
    weights = heard.about("reading weights: ")
    assert heard.lines[0] == ("opening tiny-llama", 0.0) and heard.lines[-1] == ("writing mine", 0.0)
    assert len(weights) == 21 and weights[-1] == ("reading weights: 21 of 21 tensors", 1.0)
    assert [share for _, share in weights] == sorted(share for _, share in weights)
    heard.lines.clear()
    assert main(["export", str(tmp_path / "mine"), str(tmp_path / "theirs")]) == 0
    assert heard.lines == [("reading window-00000000.ckpt", 0.0), ("writing weights: 0 of 1 files", 0.0)]


def test_measure_tells_of_the_items_that_it_prepares(
    llama: Path, heard: Heard, measuring: Path, tmp_path: Path
) -> None:
    look = ["run=look", "--config-dir", str(measuring / "configs"), "--out", str(tmp_path / "out")]
    assert main(["measure", str(llama), *look]) == 0
    assert heard.about("preparing ") == [
        ("preparing induction: monitor 1 of 3", 0.0),
        ("preparing needle: monitor 2 of 3", pytest.approx(1 / 3)),
        ("preparing perplexity: monitor 3 of 3", pytest.approx(2 / 3)),
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_from_a_folder_tells_what_it_reads_on_the_first_rank(
    rank: int, llama: Path, heard: Heard, make: Callable[..., Any], say: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "place_here", lambda: RankEnvironment(world=2, rank=rank))
    changes = {"run.init_from": str(llama), "run.tokens": 256, "run.name": "told", "model": DENSE, "monitors": QUIET}
    train(make(changes), say)
    assert heard.quiet[0] == bool(rank) and not any(heard.quiet[1:])
    start = heard.lines[: heard.lines.index(("hashing the weights of tiny-llama", 0.0))]
    assert start[0] == ("opening tiny-llama", 0.0) and start[-1] == ("reading weights: 21 of 21 tensors", 1.0)
    assert heard.about("preparing ") == [("preparing needle: monitor 1 of 1", 0.0)]
    heard.lines.clear()
    [base] = Path(make().run.root).glob("told-*")
    train(make(changes | {"run.init_from": str(base), "run.name": "again"}), say)
    assert heard.lines[0] == ("reading window-00000001.ckpt", 0.0)
