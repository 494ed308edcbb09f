"""Texts, a cache for all runs of a session, and functions that make and train the tiny run of `tiny.py`."""

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from lccp_sim.config import Config
from lccp_sim.configure.load import load_config
from lccp_sim.data.tokenizer import train_tokenizer
from lccp_sim.records import Record
from lccp_sim.train.run import train
from lccp_sim.train.window.images import window_maps
from lccp_sim.train.window.tensorboard import Board
from tests import home
from tests.train.foreign import MONITORS
from tests.train.tiny import WORDS, plain


@pytest.fixture(autouse=True)
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go without the verdict and drawn maps in TensorBoard, which take seconds; `finished` has them."""
    monkeypatch.setattr(Board, "_verdict", lambda self, last: "")
    monkeypatch.setattr("lccp_sim.train.window.logs.window_images", blank_images)


def blank_images(records: list[Record]) -> dict[str, np.ndarray]:
    """An image of one pixel for each map."""
    return {name: np.zeros((1, 1, 3), np.uint8) for name in window_maps(records)}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `texts` of 36 files of 100 to 600 words, and beside it the cache that all runs of the session share."""
    root = tmp_path_factory.mktemp("shared")
    rng = random.Random(0)
    (root / "texts").mkdir()
    for index in range(36):
        words = rng.choices(WORDS, k=rng.choice([100, 300, 600])) + [str(rng.randrange(1000))]
        (root / "texts" / f"{index:02}.txt").write_text(f"Part {index}: {' '.join(words)}.\n", encoding="utf-8")
    return root


@pytest.fixture
def settings(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A function ({dotted key: value}) -> the tiny run's plain values with these keys set; it lies in `tmp_path`."""
    monkeypatch.delenv("LCCP_CACHE", raising=False)

    def make(changes: dict[str, Any] | None = None) -> dict[str, Any]:
        tree = plain(tmp_path / "runs", shared)
        for key, value in (changes or {}).items():
            *path, last = key.split(".")
            branch = tree
            for part in path:
                branch = branch[part]
            branch[last] = value
        return tree

    return make


@pytest.fixture
def make(settings: Callable[..., dict[str, Any]]) -> Callable[..., Config]:
    """A function ({dotted key: value}) -> the checked config of the tiny run with these keys set."""
    return lambda changes=None: load_config(settings(changes))


@pytest.fixture
def say() -> Console:
    """A console that keeps what it is told: `say.file.getvalue()`."""
    return Console(file=io.StringIO(), width=400, highlight=False)


@pytest.fixture
def run(make: Callable[..., Config], say: Console) -> Callable[..., Path]:
    """A function ({dotted key: value}) -> the directory of the tiny run, trained, resumed or extended."""
    return lambda changes=None: train(make(changes), say)


@pytest.fixture(scope="session")
def finished(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, finished and never interrupted: what the others are compared with. Only to be read."""
    directory = train(load_config(plain(tmp_path_factory.mktemp("finished"), shared)), Console(file=io.StringIO()))
    assert (directory / "DONE").exists(), "a signal ended the run that all tests read"
    return directory


@pytest.fixture(scope="module")
def measuring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's place: texts, config groups whose run `look` measures them, and a tokenizer in `tokenizer.json`."""
    root = home.build(tmp_path_factory.mktemp("home"))
    run = yaml.safe_load((root / "configs" / "run" / "tiny.yaml").read_text())
    run["defaults"] = [each for each in run["defaults"] if "override /monitors" not in each]
    monitors = root / "configs" / "monitors" / "look.yaml"
    monitors.write_text(yaml.safe_dump(MONITORS))
    run["defaults"].append({"override /monitors": "look"})
    (root / "configs" / "run" / "look.yaml").write_text("# @package _global_\n" + yaml.safe_dump(run, sort_keys=False))
    trained = train_tokenizer(400, iter([" ".join(WORDS)] * 20 + [str(number) for number in range(1000)]))
    trained.save(str(root / "tokenizer.json"))
    return root
