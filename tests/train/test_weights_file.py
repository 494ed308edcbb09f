"""One file of weights: it starts a run exactly as its checkpoint does, and what is wrong with it is said in a line."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lccp_sim.cli import main
from lccp_sim.errors import ConfigError
from lccp_sim.train.saved import weights_file
from lccp_sim.train.saved.checkpoint import checkpoints, read_checkpoint, resolve
from lccp_sim.train.saved.exchange import export_checkpoint
from lccp_sim.train.saved.weights_file import PREFIX, bundled, read_weights_file

UNWATCHED = {"monitors.probe": None, "monitors.intervention": None}


@pytest.fixture(scope="module")
def weights(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of the tiny run as one file, in fp32. Only to be read."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    assert main(["export", str(finished), str(path)]) == 0
    return path


def test_a_run_from_the_file_is_the_run_from_the_checkpoint(weights: Path, finished: Path, run) -> None:
    keys = {**UNWATCHED, "run.name": "next", "run.tokens": 256, "run.root": str(weights.parent / "runs")}
    from_checkpoint = run({**keys, "run.init_from": str(finished)})
    assert run({**keys, "run.init_from": str(weights)}) == from_checkpoint  # named by the hash of the weights


def test_the_file_holds_the_weights_and_the_facts(weights: Path, finished: Path) -> None:
    content, own = read_weights_file(weights), read_checkpoint(checkpoints(finished)[-1])
    assert content["lccp"] == own["lccp"]
    assert content["tokenizer.json"] == (finished / "tokenizer.json").read_text()
    wanted = {key: value for key, value in own["state_dict"].items() if key.startswith(PREFIX)}
    assert content["state_dict"].keys() == wanted.keys()
    assert all(torch.equal(content["state_dict"][key], value) for key, value in wanted.items())


def test_bf16_rounds_the_weights_alone(finished: Path, weights: Path, tmp_path: Path) -> None:
    assert export_checkpoint(str(finished), tmp_path / "half.safetensors", "bf16") == "weights for run.init_from"
    whole, half = read_weights_file(weights), read_weights_file(tmp_path / "half.safetensors")
    for key, value in whole["state_dict"].items():
        assert torch.equal(half["state_dict"][key], value.bfloat16().float())
    assert half["lccp"] == whole["lccp"]


def test_a_file_that_ships_is_named_without_its_place(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_file, "files", lambda _: tmp_path)
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "tiny-s0.safetensors").write_bytes(weights.read_bytes())
    assert resolve("bundled:tiny-s0") == bundled("tiny-s0") == tmp_path / "bases" / "tiny-s0.safetensors"
    with pytest.raises(ConfigError, match="'bundled:tiny-s1': must be one of tiny-s0; did you mean 'tiny-s0'"):
        resolve("bundled:tiny-s1")


def test_what_is_wrong_with_the_file_is_said_in_one_line(
    weights: Path, tmp_path: Path, make, capsys: pytest.CaptureFixture
) -> None:
    cut, foreign, other = (tmp_path / f"{name}.safetensors" for name in ("cut", "foreign", "other"))
    cut.write_bytes(weights.read_bytes()[:-9])
    save_file({"weight": torch.zeros(2)}, foreign)
    vocabulary = read_weights_file(weights)["tokenizer.json"].replace("<|document|>", "<|page|>")
    save_file(load_file(weights), other, {"lccp": _facts(weights), "tokenizer.json": vocabulary})
    for path in (cut, foreign):
        with pytest.raises(ConfigError, match="not weights that `lccp export RUN NAME.safetensors` wrote, or damaged"):
            read_weights_file(path)
    with pytest.raises(ConfigError, match="its tokenizer is not the one that the weights were trained with"):
        read_weights_file(other)
    assert main(["export", str(weights), str(tmp_path / "again.safetensors")]) == 1
    assert main(["export", str(tmp_path), str(weights)]) == 1
    assert capsys.readouterr().err.count("\n") == 2


def _facts(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return file.metadata()["lccp"]
