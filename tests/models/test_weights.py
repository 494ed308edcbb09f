"""Weights on disk: shards, round trips to the byte, and files that are not what they should be."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lccp_sim.config import ModelConfig
from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign.architectures import read_settings, write_config
from lccp_sim.models.foreign.hf_folder import HF_INDEX, inspect
from lccp_sim.models.foreign.weights import read_weights, untied, write_weights
from lccp_sim.models.positions import BaseRope
from lccp_sim.models.transformer import Transformer, initialise
from tests.models.checkpoints import VARIANTS, save


def read(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[str, ModelConfig, dict[str, Tensor]]:
    name, config = read_settings(json.loads((folder / "config.json").read_text()), str(folder))
    return name, config, read_weights(inspect(folder).stream(), name, config, dtype, str(folder))


def write(folder: Path, name: str, config: ModelConfig, state: dict[str, Tensor], **how: object) -> None:
    folder.mkdir()
    write_weights(state, name, config, folder, **({"dtype": torch.float32} | how))
    (folder / "config.json").write_text(json.dumps(write_config(name, config)))


def tensors(folder: Path) -> dict[str, Tensor]:
    return {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}


BOTH = [*((variant, torch.float32) for variant in VARIANTS), ("hunyuan_v1_moe", torch.bfloat16)]


@pytest.mark.parametrize(("variant", "dtype"), BOTH)
def test_export_import_export_is_equal_to_the_byte(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = save(tmp_path / "theirs", variant)
    write(tmp_path / "one", *read(tmp_path / "theirs"), dtype=dtype, shard=20_000)
    write(tmp_path / "two", *read(tmp_path / "one", dtype), dtype=dtype, shard=20_000)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert HF_INDEX in names and len(names) > 3
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    theirs, ours = tensors(tmp_path / "theirs"), tensors(tmp_path / "one")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key].to(dtype)) for key in ours)
    again = type(model).from_pretrained(tmp_path / "one", dtype=dtype)
    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_shards_as_transformers_writes_them_and_one_file(tmp_path: Path) -> None:
    save(tmp_path / "sharded", "qwen3_moe", max_shard_size="20KB")
    assert (tmp_path / "sharded" / HF_INDEX).exists()
    save(tmp_path / "whole", "qwen3_moe")
    one, other = read(tmp_path / "sharded")[2], read(tmp_path / "whole")[2]
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_scaled_embedding_is_exported_exactly() -> None:
    config = ModelConfig(rope=BaseRope(1e4), d_model=48, num_layers=2, scale_embeddings=True, vocab_size=30)
    model = initialise(Transformer(config, 30), 0)
    state, plain = untied(model.state_dict(), config)
    assert not plain.scale_embeddings and not plain.tie_embeddings
    other = Transformer(plain, 30)
    other.load_state_dict(state)
    tokens_BT = torch.arange(30)[None]
    hidden_TD = model(tokens_BT).hidden_BTD[0]
    assert torch.equal(hidden_TD, other(tokens_BT).hidden_BTD[0])
    assert torch.equal(model.logits(hidden_TD), other.logits(hidden_TD))


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """None; edits the tensors of a folder's one file."""
    path = folder / "model.safetensors"
    held = load_file(path)
    edit(held)
    save_file(held, path, {"format": "pt"})


Q = "model.layers.1.self_attn.q_proj.weight"
EDITS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "wrong shape": (
        lambda held: held.update({Q: torch.zeros(3, 32)}),
        f"{Q} has shape (3, 32), but config.json implies (32, 32)",
    ),
    "missing": (lambda held: held.pop(Q), f"{Q} is not in the weights; fetch the checkpoint again"),
    "extra": (
        lambda held: held.update({"v_head.weight": torch.zeros(2)}),
        "v_head.weight is in the weights, not in ll",
    ),
    "whole numbers": (lambda held: held.update({Q: held[Q].to(torch.int8)}), f"{Q} is stored as I8; convert"),
    "a tied head that is not": (
        lambda held: held.update({"lm_head.weight": held["model.embed_tokens.weight"] + 1}),
        "lm_head.weight and model.embed_tokens.weight differ, but config.json ties them",
    ),
}


@pytest.mark.parametrize("case", EDITS)
def test_weights_that_do_not_fit(case: str, tmp_path: Path) -> None:
    edit, message = EDITS[case]
    save(tmp_path, "llama, tied and bias")
    change(tmp_path, edit)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(tmp_path)


def test_what_old_checkpoints_carry_along_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, "llama, tied and bias")
    before = read(tmp_path)[2]
    extra = {"lm_head.weight": before["embedding.weight"].clone()}
    extra |= {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    change(tmp_path, lambda held: held.update(extra))
    after = read(tmp_path)[2]
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_a_missing_shard_a_torn_one_and_a_damaged_index(tmp_path: Path) -> None:
    save(tmp_path, "llama", max_shard_size="20KB")
    name = sorted(path.name for path in tmp_path.glob("*.safetensors"))[1]
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=f"{name}: damaged .*; fetch it again"):
        read(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=f"{name} is missing, listed in {HF_INDEX}; fetch the rest of the shards"):
        read(tmp_path)
    (tmp_path / HF_INDEX).write_text("{")
    with pytest.raises(ConfigError, match=f"{HF_INDEX}: damaged"):
        read(tmp_path)
