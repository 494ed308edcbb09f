"""A run that was killed and resumed is the run that was not: the same bytes and weights, nothing logged twice."""

import csv
import errno
import io
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from lccp_sim.config import Config
from lccp_sim.monitors import Perplexity
from lccp_sim.train.loop.module import LccpModule
from lccp_sim.train.run import train
from lccp_sim.train.saved import checkpoint, journal
from tests.train.tiny import STEPS, WINDOWS, assert_same_run


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# Each of these makes this process die at a certain place of a certain step. They are called in a forked child alone.


def at_step(step: int) -> None:
    """In the forward of the update that takes `step` to `step + 1`."""
    plain = LccpModule.training_step
    LccpModule.training_step = lambda self, *a: die() if self.global_step == step else plain(self, *a)  # type: ignore


def in_monitor(step: int) -> None:
    """While a monitor looks, at the window at or after `step`."""
    plain, left = Perplexity.score, [1 + sum(window < step for window in WINDOWS)]

    def score(self: Any, *a: Any) -> Any:
        left[0] -= 1
        return plain(self, *a) if left[0] else die()

    Perplexity.score = score  # type: ignore[method-assign]


def before_checkpoint(step: int) -> None:
    """After the records of the window at or after `step`, before its checkpoint."""
    plain = L.Trainer.save_checkpoint

    def save(self: Any, path: Any, *a: Any, **k: Any) -> None:
        die() if self.global_step >= step and "window" in str(path) else plain(self, path, *a, **k)

    L.Trainer.save_checkpoint = save  # type: ignore[method-assign]


def in_checkpoint(step: int) -> None:
    """Between the manifest of the checkpoint at or after `step` and the file."""
    plain = checkpoint.write_atomic

    def write(path: Path, data: Any) -> None:
        plain(path, data)
        if int(path.stem.split("-")[1]) >= step:
            die()

    checkpoint.write_atomic = write  # type: ignore[assignment]


def in_records(step: int) -> None:
    """In the middle of the records of the window at or after `step`: half a line is left."""

    def append(path: Path, lines: Any) -> None:
        text = "".join(lines)
        last = path.name == "records.jsonl" and f'"step": {step},' in text
        with open(path, "a") as file:
            file.write(text[: len(text) // 2] if last else text)
        if last:
            die()

    journal.append_lines = append  # type: ignore[assignment]


PLACES = (at_step, in_monitor, before_checkpoint, in_checkpoint)


def killed(config: Config, say: Console, plant: Callable[[int], None], step: int, seconds: int = 1) -> None:
    """Trains in a child of this process, which dies as `plant(step)` says. Fails where it lives on.

    Event files are read in the order of the second in their names: the child believes to live `seconds` ago.
    """
    sys.stdout.flush(), sys.stderr.flush()
    child = os.fork()
    if not child:
        try:
            event_file_writer.time = SimpleNamespace(time=lambda: time.time() - seconds)  # type: ignore[assignment]
            plant(step)
            train(config, say)
        finally:
            os._exit(0)  # nothing of the child may come back into the tests
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def choices(seed: int) -> list[tuple[Callable[[int], None], int]]:
    """Two places to die, the second at a later step (or the same: nothing was gained in between)."""
    rng = random.Random(seed)
    first, second = sorted(rng.sample(range(STEPS), 2))
    return [(rng.choice(PLACES), first), (rng.choice(PLACES), second)]


def shown(where: list[tuple[Callable[[int], None], int]]) -> str:
    return "-then-".join(f"{plant.__name__}-{step}" for plant, step in where)


CASES = [
    *(choices(seed) for seed in (0, 1, 4)),
    [(in_monitor, 0), (in_checkpoint, 0)],
    [(before_checkpoint, 0), (before_checkpoint, STEPS)],
]


@pytest.mark.parametrize("where", CASES, ids=shown)
def test_killed_twice_and_resumed_is_the_uninterrupted_run(
    where: list, make: Callable[..., Config], say: Console, finished: Path
) -> None:
    config = make()
    for seconds, (plant, step) in zip((120, 60), where, strict=True):
        killed(config, say, plant, step, seconds)
    directory = train(config, say)
    assert (directory / "DONE").exists()
    assert_same_run(directory, finished)
    assert scalars(directory) == scalars(finished)
    assert images(directory) == images(finished)
    assert cells(directory) == cells(finished)


def test_half_a_line_of_records_is_forgotten(make: Callable[..., Config], say: Console, finished: Path) -> None:
    config = make()
    killed(config, say, in_records, 6)
    assert_same_run(train(config, say), finished)


def in_bytes(step: int) -> None:
    """With half of the bytes of the checkpoint at or after `step` on disk."""
    plain = torch.save

    def save(content: Any, file: Any) -> None:
        if content["global_step"] >= step:
            held = io.BytesIO()
            plain(content, held)
            file.write(held.getvalue()[: held.tell() // 2])
            file.flush()
            die()
        plain(content, file)

    torch.save = save


@pytest.mark.parametrize("plant", [in_bytes, in_checkpoint])
def test_killed_while_a_checkpoint_is_written_in_the_background(
    plant: Callable[[int], None], make: Callable[..., Config], say: Console, finished: Path
) -> None:
    config = make({"run.checkpoints": "background"})
    killed(config, say, plant, 6)
    assert_same_run(train(config, say), finished)


def test_what_is_written_in_the_background_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on while the writer is held; the next checkpoint waits until this one is whole."""
    held, plain, done = threading.Event(), torch.save, []

    def save(content: Any, file: Any) -> None:
        assert held.wait(60)
        plain(content, file)
        done.append(content["global_step"])

    monkeypatch.setattr(torch, "save", save)
    files, weight = checkpoint.BackgroundIO(), torch.zeros(3)
    for step in (1, 2):
        files.save_checkpoint({"global_step": step, "lccp": {}, "w": weight}, tmp_path / f"last-{step:08d}.ckpt")
        assert done[: step - 1] == list(range(1, step))
        weight += 1
        held.set()
    files.teardown()
    read = [checkpoint.read_checkpoint(tmp_path / f"last-{step:08d}.ckpt")["w"].tolist() for step in (1, 2)]
    assert read == [[0] * 3, [1] * 3]


def test_a_checkpoint_that_cannot_be_written_in_the_background_ends_the_run(
    make: Callable[..., Config], say: Console, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    config, plain = make({"run.checkpoints": "background"}), torch.save

    def full(content: Any, file: Any) -> None:
        if content["global_step"] >= 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(content, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="could not be written .*No space left.*earlier checkpoints are intact"):
            train(config, say)
    assert_same_run(train(config, say), finished)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("where", [LccpModule, Perplexity], ids=["in a step", "in a window"])
def test_a_signal_saves_and_the_run_goes_on_from_there(
    number: signal.Signals,
    where: type,
    make: Callable[..., Config],
    say: Any,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "training_step" if where is LccpModule else "score"
    plain, calls, before = getattr(where, name), [], signal.getsignal(number)

    def send(self: Any, *a: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return plain(self, *a)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, send)
        directory = train(make(), say)
    assert f"{number.name}: saved step" in say.file.getvalue()
    assert not (directory / "DONE").exists()
    assert signal.getsignal(number) == before
    train(make(), say)
    assert "resuming last-" in say.file.getvalue()
    assert_same_run(directory, finished)


def events(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory / "tensorboard"), {"images": 0, "scalars": 0}).Reload()


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by TensorBoard tag. Fails where a step comes twice."""
    read = events(directory)
    found = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    for tag, points in found.items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), (tag, steps)
    return found


def images(directory: Path) -> dict[str, list[int]]:
    """Steps by TensorBoard tag."""
    read = events(directory)
    return {tag: [e.step for e in read.Images(tag)] for tag in read.Tags()["images"]}


def cells(directory: Path) -> dict[tuple[int, str], str]:
    """The filled cells of all CSV files of a run, by step and column. Fails where one comes twice."""
    found: dict[tuple[int, str], str] = {}
    for path in sorted(directory.glob("csv/*/metrics.csv")):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                for column, value in row.items():
                    if value and column != "step":
                        assert (int(row["step"]), column) not in found, (path, column, row["step"])
                        found[int(row["step"]), column] = value
    return found


def test_tensorboard_shows_few_scalars_and_four_images(finished: Path) -> None:
    tags = scalars(finished)
    assert {"needle/hit_frac", "train/loss_nats", "heads/retrieval_heads_count", "perplexity/nll_nats"} <= tags.keys()
    assert len(tags) <= 60
    assert [step for step, _ in tags["needle/hit_frac"]] == WINDOWS
    probed = {"probe/exact_match": [0, 6, 12]}  # every third window
    shown = {name: WINDOWS for name in ("needle/hit", "needle/answer_nll", "heads/copy_hard")}
    assert images(finished) == shown | probed | {"heads/copy_hard_longbio": [0, 4, 8, 12]}
    assert {column for _, column in cells(finished)} >= tags.keys()
