"""Checkpoints of transformers as ours: the same logits within and beyond their context, and the same gradients."""

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lccp_sim.config import ModelConfig, RouterConfig
from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign.architectures import (
    ARCHITECTURES,
    choose_architecture,
    function_of,
    read_settings,
    write_config,
)
from lccp_sim.models.foreign.hf_folder import inspect
from lccp_sim.models.foreign.weights import read_weights
from lccp_sim.models.positions import AlphaRope, BaseRope, Llama3Rope, NtkRope, YarnRope
from lccp_sim.models.transformer import Transformer
from tests.models.checkpoints import ALPHA, CONTEXT, ROPES, VARIANTS, V, build, save

CASES = [(variant, rope) for variant in VARIANTS for rope in ROPES if rope == "default" or variant in ARCHITECTURES]
CASES += [("hunyuan_v1_moe", "alpha")]


def settings_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())


def load(path: Path) -> Transformer:
    """Our model of a folder of transformers, in fp32."""
    name, config = read_settings(settings_of(path), str(path))
    model = Transformer(config, config.vocab_size or 0)
    model.load_state_dict(read_weights(inspect(path).stream(), name, config, torch.float32, str(path)))
    return model.eval()


def tokens(length: int) -> Tensor:
    return torch.randint(3, V, (2, length), generator=torch.Generator().manual_seed(length))


def logits(model: Transformer, tokens_BT: Tensor) -> Tensor:
    """[B, T, V]."""
    return model.logits(model(tokens_BT).hidden_BTD.flatten(0, 1)).view(*tokens_BT.shape, -1)


@pytest.mark.parametrize(("variant", "rope"), CASES, ids=lambda each: each)
@torch.no_grad()
def test_logits_within_and_beyond_the_context(variant: str, rope: str, tmp_path: Path) -> None:
    theirs = save(tmp_path, variant, (ROPES | {"alpha": ALPHA})[rope])
    ours = load(tmp_path)
    for length in (CONTEXT // 2, 4 * CONTEXT):
        tokens_BT = tokens(length)
        wanted = theirs(tokens_BT).logits
        assert wanted.std() > 0.1
        assert (logits(ours, tokens_BT) - wanted).abs().max() <= 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(variant: str, tmp_path: Path) -> None:
    theirs, tokens_BT = save(tmp_path / "model", variant), tokens(48)
    ours, targets = load(tmp_path / "model"), tokens(48).roll(-1, 1).flatten()
    F.cross_entropy(theirs(tokens_BT).logits.flatten(0, 1), targets).backward()
    F.cross_entropy(logits(ours, tokens_BT).flatten(0, 1), targets).backward()
    gradients = copy.deepcopy(theirs)
    for parameter, source in zip(gradients.parameters(), theirs.parameters(), strict=True):
        parameter.data = source.grad
    gradients.save_pretrained(tmp_path / "gradients")  # so that they come over as weights do
    wanted = load(tmp_path / "gradients").state_dict()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad - wanted[name]).norm() <= 1e-3 * wanted[name].norm(), name


@pytest.mark.parametrize(("variant", "rope"), [*CASES, ("hunyuan_v1_moe, bias", "alpha")])
def test_a_written_config_is_the_one_that_was_read(variant: str, rope: str) -> None:
    name, config = read_settings(build(variant, (ROPES | {"alpha": ALPHA})[rope]).config.to_dict(), "theirs")
    written = write_config(name, config)
    assert read_settings(written, "ours") == (name, config)
    older = {key: value for key, value in written.items() if key != "rope_parameters"}
    newer = {key: value for key, value in written.items() if key not in ("rope_theta", "rope_scaling")}
    assert read_settings(older, "older")[1] == read_settings(newer, "newer")[1] == config


@pytest.mark.parametrize("rope", [NtkRope(1e4, 4.0), AlphaRope(1e4, 1000.0)])
def test_what_an_architecture_has_no_word_for_becomes_a_base(rope: Any) -> None:
    _, config = read_settings(build("llama").config.to_dict(), "llama")
    written = write_config("llama", dataclasses.replace(config, rope=rope))
    assert written["rope_scaling"] is None
    again = read_settings(written, "llama")[1].rope
    assert isinstance(again, BaseRope)
    torch.testing.assert_close(again.frequencies(8)[0], rope.frequencies(8)[0], rtol=1e-12, atol=0)


def test_configs_as_they_were_published() -> None:
    hunyuan = {
        "model_type": "hunyuan_v1_moe", "vocab_size": 128167, "hidden_size": 4096, "num_hidden_layers": 2,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
        "moe_intermediate_size": [3072, 3072], "num_experts": 64, "moe_topk": [8, 8], "num_shared_expert": [1, 1],
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "use_qk_norm": True, "max_position_embeddings": 32768,
        "rope_theta": 10000.0, "rope_scaling": {
            "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "type": "dynamic"
        },
    }  # fmt: skip
    _, config = read_settings(hunyuan, "config.json")
    assert (
        config.rope == AlphaRope(1e4, 1000.0) and config.num_experts_per_token == 8 and config.num_shared_experts == 1
    )
    llama = {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": {
            "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3",
            "original_max_position_embeddings": 8192,
        },
    }  # fmt: skip
    _, config = read_settings(llama, "config.json")
    assert config.rope == Llama3Rope(5e5, 8.0, 1.0, 4.0, 8192) and config.d_head == 128 and not config.tie_embeddings
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    qwen = llama | {"model_type": "qwen3", "rope_scaling": yarn, "rope_theta": 1e6}
    assert read_settings(qwen, "config.json")[1].rope == YarnRope(1e6, 4.0, 32768)
    mixtral = {key: value for key, value in llama.items() if not key.startswith("rope")}
    mixtral |= {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    assert read_settings(mixtral, "config.json")[1].rope == BaseRope(1e6)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown": ("llama", {"model_type": "lama"}, "can be imported: hunyuan_v1_moe, olmoe, qwen3_moe, mixtral, llama, "
                "qwen3; did you mean 'llama'"),
    "another activation": ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu': must be 'silu'"),
    "quantised": ("llama", {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}: must be None"),
    "biases elsewhere": ("llama", {"mlp_bias": True}, "mlp_bias=True: must be False"),
    "clipped": ("olmoe", {"clip_qkv": 8.0}, "clip_qkv=8.0: must be None"),
    "every other layer": ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step=2: must be 1"),
    "dense in the middle": ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers=[1]: must be the first layers"),
    "more shared experts": ("hunyuan_v1_moe", {"num_shared_expert": 2}, "num_shared_expert=2: must be 1"),
    "another k in a layer": ("hunyuan_v1_moe", {"moe_topk": [2, 1, 2]}, "num_experts_per_tok=[2, 1, 2]"),
    "a window without pattern": (
        "qwen3", {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full"] * 2 + ["sliding"]},
        "must be full in every n-th layer"),
    "a window where none is": ("llama", {"sliding_window": 8}, "sliding_window=8: must be null"),
    "no width": ("llama", {"hidden_size": None}, "config.json: has no hidden_size; put the complete config.json there"),
    "dynamic": (
        "llama", {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_type='dynamic': cannot be"),
    "half of the channels": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: must be 1.0"),
    "two bases": ("llama", {"rope_theta": 1e6}, "rope_theta is 5000 and 1e+06 in different places"),
    "a word for a number": ("llama", {"num_hidden_layers": "three"}, "num_hidden_layers='three': must be an integer"),
    "a list for a group": ("llama", {"rope_scaling": [1]}, "config.json: damaged ("),
    "no heads": ("llama", {"num_attention_heads": 0, "head_dim": None}, "config.json: damaged ("),
    "not above 0": ("llama", {"num_hidden_layers": 0}, "model.num_layers=0: input should be greater than 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_config_that_cannot_be_ours(case: str) -> None:
    variant, changes, message = WRONG[case]
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        read_settings(build(variant).config.to_dict() | changes, "config.json")
    assert "\n" not in str(raised.value)


def ours(**changes: Any) -> ModelConfig:
    return ModelConfig(rope=BaseRope(1e4), **({"vocab_size": V, "d_model": 32, "d_head": 8, "num_heads": 4} | changes))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_kv_heads": 2}, "hunyuan_v1_moe"),
        ({"num_kv_heads": 2, "router": RouterConfig(scores="topk_softmax")}, "hunyuan_v1_moe"),
        ({"num_kv_heads": 4, "qk_norm": "full_width", "num_shared_experts": 0}, "olmoe"),
        ({"num_kv_heads": 4, "qk_norm": "before_rope", "num_shared_experts": 0, "window_tokens": 9}, "qwen3_moe"),
        ({"num_kv_heads": 4, "qk_norm": "none", "num_shared_experts": 0}, "mixtral"),
        ({"num_kv_heads": 4, "qk_norm": "none", "num_dense_layers": 4, "d_dense": 8}, "llama"),
        ({"num_kv_heads": 4, "qk_norm": "before_rope", "num_dense_layers": 4, "d_dense": 8}, "qwen3"),
    ],
)
def test_the_architecture_that_a_config_is(changes: dict[str, Any], name: str) -> None:
    config = ours(**changes)
    assert choose_architecture(config) == name
    assert function_of(read_settings(write_config(name, config), "")[1]) == function_of(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_shared_experts": 2}, "the nearest, hunyuan_v1_moe, has no model.num_shared_experts=2;"),
        ({"qkv_bias": True}, "the nearest, hunyuan_v1_moe, has no model.qkv_bias=True;"),
        (
            {"router": RouterConfig(scores="sigmoid", scale=2.5)},
            "model.router.scores='sigmoid', model.router.scale=2.5;",
        ),
        ({"window_tokens": 8}, "has no model.window_tokens=8;"),
        (
            {"num_heads": 3, "qk_norm": "none", "num_dense_layers": 4, "d_dense": 8},
            "not a multiple of model.num_heads=3",
        ),
    ],
)
def test_a_config_that_no_architecture_has(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        choose_architecture(ours(**{"num_kv_heads": 1, **changes}))
