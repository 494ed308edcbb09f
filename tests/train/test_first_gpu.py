"""The checks for the first GPU run on a CPU, and each of them can fail."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import first_gpu, step_gpu
from bench.first_gpu import CHECKS, CRITERIA, Place
from lccp_sim import cli
from lccp_sim.models import experts


class Forked:
    """A child of this process that runs `lccp`, in place of a program of its own: the libraries are imported."""

    def __init__(self, words: Sequence[str], folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.returncode: int | None = None
        sys.stdout.flush(), sys.stderr.flush()
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            os.environ["LCCP_CACHE"] = str(folder.parent / "cache")
            os.chdir(folder)
            log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            status = cli.main(list(words)) or 0
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)

    def poll(self) -> int | None:
        child, status = os.waitpid(self.pid, os.WNOHANG)
        self.returncode = os.waitstatus_to_exitcode(status) if child else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(torch.device("cpu"), True, tmp_path)


def test_a_dry_run_passes_and_writes_each_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_gpu, "start", Forked)
    monkeypatch.setattr(step_gpu, "main", lambda argv: Path(argv[-1]).write_text('{"cells": [{}]}'))
    assert first_gpu.main(["--dry", "--out", str(tmp_path)]) == 0
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in CHECKS}
    passed = {name: line["passed"] for name, line in found.items()}
    assert passed == dict.fromkeys(CHECKS, True) | {"memory": None, "waits": None}
    assert CRITERIA.keys() == CHECKS.keys() and all(found[name]["criterion"] == CRITERIA[name] for name in CHECKS)
    named = found["precision"]["found"].keys()
    assert {"logits", "loss", "embedding.weight", "blocks.1.moe.down_EFD", "blocks.0.attention.qkv.weight"} <= named
    used = {line["backend"] for line in found["experts"]["found"]["lines"] if "refused" not in line}
    assert used == {"loop", "grouped_mm"}
    assert found["resume"]["found"]["killed_before_its_end"] and found["resume"]["found"]["compared"] > 20


def test_a_wrong_weight_gradient_of_a_backend_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if groups were rounded down to multiples of 64 in the gradient alone."""

    def wrong(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, count_E: Tensor) -> Tensor:
        y = experts.loop(x, gate, up, down, count_E)
        rounded = experts.loop(x, gate, up, down, torch.tensor([int(n) for n in count_E]))
        kept = torch.cat([torch.arange(int(n)) < int(n) // 64 * 64 for n in count_E])
        return y.detach() + (rounded - rounded.detach()) * kept[:, None]

    monkeypatch.setitem(first_gpu.EXPERTS, "grouped_mm", wrong)
    verdict = first_gpu.experts(place)
    assert verdict.passed is False
    bad = [line for line in verdict.found["lines"] if line.get("passed") is False]
    assert {line["backend"] for line in bad} == {"grouped_mm"}


def test_attention_across_documents_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = first_gpu.attend

    def leaks(q: Tensor, k: Tensor, v: Tensor, scale: float, bounds: Tensor, window: int | None) -> Tensor:
        return plain(q, k, v, scale, torch.tensor([0, 96, 192]), window)

    monkeypatch.setattr(first_gpu, "attend", leaks)
    assert first_gpu.attention(place).passed is False


def test_a_gradient_that_is_off_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = first_gpu.one_pass

    def off(model: torch.nn.Module, *rest: object, **more: object) -> first_gpu.Pass:
        got = plain(model, *rest, **more)  # type: ignore[arg-type]
        if model.config.experts == "auto":  # type: ignore[union-attr]
            got.gradients["norm.weight"][3] *= 2
        return got

    monkeypatch.setattr(first_gpu, "one_pass", off)
    verdict = first_gpu.precision(place)
    assert verdict.passed is False and max(verdict.found, key=verdict.found.__getitem__) == "norm.weight"
