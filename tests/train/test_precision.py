"""bf16 on a CPU that emulates it is refused for training, and `auto` takes what the device is good at."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lccp_sim.cli import main
from lccp_sim.config import Config
from lccp_sim.errors import ConfigError
from lccp_sim.train.loop import precision
from lccp_sim.train.loop.precision import SLOWER, settle
from lccp_sim.train.run import train
from lccp_sim.train.saved.run_directory import run_directory
from lccp_sim.verbs.doctor import machine_rows

UNITS, ASKED = precision.bf16_units, torch.cpu.get_capabilities
RESULT = Path(__file__).parents[2] / "bench" / "results" / "bf16_cpu.json"


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_units", list)


@pytest.mark.usefixtures("emulated")
def test_training_in_emulated_bf16_is_refused_before_anything_is_written(
    make: Callable[..., Config], say: Console
) -> None:
    config = make({"run.precision": "bf16", "run.accelerator": "cpu"})
    with pytest.raises(ConfigError, match=f"run.precision='bf16': this CPU has no bf16 .* {SLOWER} times .*=fp32"):
        train(config, say)
    assert not list(Path(config.run.root).glob("*"))


def test_auto_is_settled_before_the_run_has_a_directory(make: Callable[..., Config]) -> None:
    auto = make({"run.precision": "auto"})
    for native, name in ((True, "bf16"), (False, "fp32")):
        assert settle(auto, native).run.precision == name
        assert run_directory(settle(auto, native), None) == run_directory(make({"run.precision": name}), None)
        assert settle(make({"run.precision": "bf16"}), native).run.precision == "bf16"  # what is named stays


@pytest.mark.usefixtures("emulated")
def test_a_run_under_auto_trains_and_its_config_names_the_precision(run: Callable[..., Path]) -> None:
    directory = run({"run.precision": "auto", "run.accelerator": "cpu"})
    assert "precision: fp32" in (directory / "config.yaml").read_text()


@pytest.mark.parametrize(("has", "units"), [({"avx512_bf16": True, "amx_bf16": False}, ["avx512_bf16"]), ({}, [])])
def test_the_cpu_is_asked_for_its_instructions(
    has: dict[str, bool], units: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True} | has)
    monkeypatch.setattr(precision, "bf16_units", UNITS)
    assert precision.bf16_units() == units
    assert precision.bf16_is_native("cpu") == bool(units)
    row = next(row for row in machine_rows() if row.name == "cpu")
    assert ("bf16 in hardware" in row.value) == bool(units)
    assert ("refused for training: use run.precision=fp32 or auto" in row.value) != bool(units)


@pytest.mark.usefixtures("emulated")
def test_plan_on_a_cpu_that_emulates_bf16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def planned(*words: str) -> tuple[int, dict]:
        status = main(["plan", "run=tiny_lccp", *words, "--json", str(tmp_path / "plan.json")])
        return status, json.loads((tmp_path / "plan.json").read_text())["hardware"]

    status, hardware = planned("run.precision=bf16")
    assert status == 1 and "run.precision='bf16': this CPU has no bf16" in capsys.readouterr().err
    as_fp32 = planned("run.precision=auto")
    assert as_fp32[0] == 0 and as_fp32[1]["precision"] == "fp32"
    assert hardware["flops"] == pytest.approx(as_fp32[1]["flops"] / SLOWER)
    assert planned("run.precision=auto", "--hardware", "h100")[1]["precision"] == "bf16"


def test_the_factor_is_the_measured_one() -> None:
    rows = {row["size"]: row["bf16_over_fp32"] for row in json.loads(RESULT.read_text())["held_to_avx2"]}
    assert round(rows[512]) == SLOWER == round(min(rows.values()))
    assert round(rows[1024]) == 93
