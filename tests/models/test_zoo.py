"""Shapes of known models have the parameters that were published, and those of transformers to the last one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lccp_sim.config import ModelConfig
from lccp_sim.configure.parse import parse, parse_kind
from lccp_sim.models.positions import POSITIONS
from lccp_sim.models.transformer import Transformer

ROOT = Path(__file__).parents[2]
SHAPES = {path.stem: path for path in sorted((ROOT / "lccp_sim" / "configs" / "model").glob("*.yaml"))}
# Billions in all and active for a token, embeddings included, with the digits that were published.
PUBLISHED = {
    "hunyuan_a13b": ("80", "13"),
    "olmoe_1b_7b": ("6.9", "1.3"),
    "qwen3_30b_a3b": ("30.5", "3.3"),
    "qwen3_235b_a22b": ("235", "22"),
    "mixtral_8x7b": ("46.7", "12.9"),
    "llama3_8b": ("8.03", "8.03"),
    "qwen3_0_6b": ("0.6", "0.6"),
    "smollm2_135m": ("0.135", "0.135"),
}
BODY = {"qwen3_30b_a3b": "29.9", "qwen3_235b_a22b": "234", "qwen3_0_6b": "0.44"}  # without embeddings
OURS = {"tiny": 1024, "small": 16384, "base_1b_7b": 65536}  # and the vocabulary that their counts are stated for
ORDER = (*OURS, *PUBLISHED)
QWEN = {
    "model_type": "qwen3_moe", "vocab_size": 151936, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6,
}  # fmt: skip
# What the published config.json say.
THEIRS: dict[str, dict[str, Any]] = {
    "hunyuan_a13b": {
        "model_type": "hunyuan_v1_moe", "vocab_size": 128167, "hidden_size": 4096, "intermediate_size": 3072,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "num_experts": 64, "moe_topk": 8, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    },
    "olmoe_1b_7b": {
        "model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024,
        "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64,
        "num_experts_per_tok": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    },
    "qwen3_30b_a3b": QWEN | {
        "hidden_size": 2048, "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32
    },
    "qwen3_235b_a22b": QWEN | {
        "hidden_size": 4096, "moe_intermediate_size": 1536, "num_hidden_layers": 94, "num_attention_heads": 64
    },
    "mixtral_8x7b": {
        "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    },
    "llama3_8b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "rms_norm_eps": 1e-5, "rope_theta": 5e5,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "qwen3_0_6b": {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    },
    "smollm2_135m": {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5, "rope_theta": 1e5,
    },
}  # fmt: skip


def shape(name: str) -> ModelConfig:
    plain = yaml.safe_load(SHAPES[name].read_text())
    return parse(ModelConfig, plain | {"rope": parse_kind(POSITIONS, plain["rope"], "model.rope")}, "model")


def counts(name: str) -> tuple[int, int, int]:
    """Parameters in all, active for a token, and of the embeddings, instantiated where they need no memory."""
    config = shape(name)
    with torch.device("meta"):
        model = Transformer(config, config.vocab_size or OURS[name])
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = [w for block in model.layers if (m := block.moe) is not None for w in (m.gate_EFD, m.up_EFD, m.down_EFD)]
    idle = sum(w[config.num_experts_per_token :].numel() for w in experts)
    return total, total - idle, sum({id(w): w.numel() for w in (model.embedding.weight, model.head_weight)}.values())


def stated(count: int, digits: str) -> bool:
    """Whether a count is the published number of billions: rounded to its digits, or cut there."""
    unit = 10 ** (9 - len(digits.partition(".")[2]))
    return round(float(digits) * 1e9 / unit) in (round(count / unit), count // unit)


def test_every_shape_is_published_or_ours() -> None:
    assert SHAPES.keys() == PUBLISHED.keys() | OURS.keys() and THEIRS.keys() == PUBLISHED.keys()
    assert all((shape(name).vocab_size is None) == (name in OURS) for name in SHAPES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_were_published(name: str) -> None:
    (total, active, embeddings), (all_of_it, used) = counts(name), PUBLISHED[name]
    assert stated(total, all_of_it) and stated(active, used), (total, active)
    assert name not in BODY or stated(total - embeddings, BODY[name])


@pytest.mark.parametrize("name", THEIRS)
def test_parameters_are_those_of_transformers(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**THEIRS[name])
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config)
    assert counts(name)[0] == sum(parameter.numel() for parameter in theirs.parameters())
    ours = shape(name)
    assert ours.norm_eps == config.rms_norm_eps and ours.rope.base == config.rope_parameters["rope_theta"]


def test_a_number_is_stated_where_its_digits_are() -> None:
    assert stated(30_532_122_624, "30.5") and stated(3_353_032_704, "3.3") and stated(12_879_925_248, "12.9")
    assert not stated(30_532_122_624, "30.6") and not stated(3_353_032_704, "3.2")


def test_the_shape_of_the_middle_is_what_its_name_says() -> None:
    total, active, _ = counts("base_1b_7b")
    assert stated(total, "7") and stated(active, "1.0")


def row(name: str) -> str:
    """What docs/models.md says of a shape."""
    c, (total, active, embeddings) = shape(name), counts(name)
    experts = f"{c.num_experts_per_token} of {c.num_experts} x {c.d_expert}" + " + 1" * c.num_shared_experts
    inner = f"dense {c.d_dense}" if c.num_dense_layers else experts
    millions = " | ".join(f"{n / 1e6:,.1f}" for n in (total, active, embeddings))
    heads = f"{c.num_heads} / {c.num_kv_heads} / {c.d_head}"
    vocabulary = f"{c.vocab_size or OURS[name]:,}"
    return f"| `{name}` | {c.num_layers} | {c.d_model} | {heads} | {inner} | {vocabulary} | {millions} |"


def test_the_table_of_the_documents_is_counted() -> None:
    lines = (ROOT / "docs" / "models.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("| `") and line.split("`")[1] in SHAPES] == [*map(row, ORDER)]
