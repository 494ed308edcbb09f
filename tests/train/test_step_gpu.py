"""bench/step_gpu.py at toy size: every part of it runs, and what it writes can be read."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import step_gpu
from lccp_sim.models.experts import EXPERTS

CELLS = {("small", 32_768): None, ("small", 524_288): 1, ("base_1b_7b", 32_768): 1}


def numbers(tree: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a tree, with the keys that lead to it."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from numbers(value, f"{path}/{key}")
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield path, tree


def test_the_toy_writes_what_a_gpu_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "step.json"
    before = step_gpu.RESULT.read_bytes() if step_gpu.RESULT.exists() else None
    monkeypatch.setattr(sys, "argv", ["step_gpu", "--toy", "--out", str(out)])
    step_gpu.main()
    assert before == (step_gpu.RESULT.read_bytes() if step_gpu.RESULT.exists() else None)
    found = json.loads(out.read_text())
    assert found["toy"] and found["device"] == "cpu" and len(found["cells"]) == len(found["long"]) == 1
    [cell], [long] = found["cells"], found["long"]
    for line in (cell, long):
        assert line["ours"].keys() == {"seconds", "tokens_per_second", "flops", "mfu", "peak_bytes"}
        assert line["planned_bytes"] > 0
    assert cell["parts_seconds"].keys() == {"attention", "experts", "head_and_loss", "optimizer", "rest"}
    assert (cell["recompute_every"], long["recompute_every"]) == (None, 1)
    parts = sum(cell["parts_seconds"].values())
    assert parts == pytest.approx(cell["ours"]["seconds"][1])
    assert {"attention products", "attention scores", "experts", "head", "sum"} <= cell["kernels_seconds"].keys()
    assert cell["backends"].keys() == {"auto", *EXPERTS} - {"loop"}
    usable = {name for name, line in cell["backends"].items() if "refused" not in line}
    assert {"auto", "grouped_mm"} <= usable
    for name in usable:
        assert {"pairs", "seconds", "ratio", "ratio_quartiles"} <= cell["backends"][name].keys()
    assert cell["theirs"]["paired"]["ratio"] > 0
    assert all(math.isfinite(value) and (value > 0 or path.endswith("rest")) for path, value in numbers(found))


def test_a_cell_that_fails_says_why_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    monkeypatch.setattr(step_gpu, "ours", full)
    monkeypatch.setattr(step_gpu, "theirs", full)
    case = step_gpu.case_of("small", 64, torch.device("cpu"), 2, toy=True)
    line = step_gpu.cell(case, compare=True)
    assert line["refused"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB."
    assert line["theirs"]["refused"] == "none of them ran" and line["kernels_seconds"]["sum"] > 0


def test_what_a_gpu_would_not_hold_is_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=139 * 2**30))
    gpu = torch.device("cuda")
    asked = {(name, tokens): step_gpu.case_of(name, tokens, gpu, 1, toy=False).every for name, tokens in CELLS}
    assert asked == CELLS
    small = step_gpu.case_of("small", 524_288, gpu, 1, toy=False)
    assert step_gpu.planned_bytes(small) < 100 * 2**30 < step_gpu.planned_bytes(small._replace(every=None))


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_theirs_is_recomputed_as_well(experts: str) -> None:
    case = step_gpu.case_of("small", 64, torch.device("cpu"), 2, toy=True)
    plain, again = (step_gpu.theirs(each, experts, "sdpa")() for each in (case, case._replace(every=1)))
    assert math.isfinite(plain) and math.isfinite(again)


def test_without_a_gpu_only_the_toy_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["step_gpu"])
    with pytest.raises(SystemExit):
        step_gpu.main()
    assert "--toy runs it at toy size on a CPU" in capsys.readouterr().err
