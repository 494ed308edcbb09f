"""Counts of weights are those of the built models, and FLOPs those that torch counts."""

from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.flop_counter import sdpa_flop_count

from bench.plan_accuracy import SHAPES, flops_line, model_config
from lccp_sim.config import ModelConfig
from lccp_sim.configure.load import load_config
from lccp_sim.configure.parse import parse, parse_kind
from lccp_sim.errors import ConfigError
from lccp_sim.models.lighthouse import LighthouseAttention
from lccp_sim.models.positions import POSITIONS
from lccp_sim.models.transformer import Transformer
from lccp_sim.plan.shapes import counted_shape, counts, forward_flops, mean_keys, shape_of, sparse_frac, training_flops
from tests.train.tiny import BATCH, STEPS, plain

MODELS = sorted((Path(__file__).parents[2] / "lccp_sim" / "configs" / "model").glob("*.yaml"))
ODD = {
    "biases": {"qkv_bias": True, "out_bias": True, "qk_norm": "full_width", "num_kv_heads": 2},
    "dense": {"num_dense_layers": 4, "d_dense": 96, "qk_norm": "none", "tie_embeddings": False},
    "mixed": {"num_dense_layers": 1, "d_dense": 96, "num_shared_experts": 2, "window_tokens": 8},
}
TOTALS = {  # billions in all and active, as published (arXiv 2508.10925, 2412.19437)
    "gpt_oss_20b": (20.91, 3.61),
    "gpt_oss_120b": (116.83, 5.13),
    "deepseek_v3": (671.0, 37.0),
}


def shipped(path: Path) -> ModelConfig:
    plain = yaml.safe_load(path.read_text())
    return parse(ModelConfig, plain | {"rope": parse_kind(POSITIONS, plain["rope"], "model.rope")}, "model")


def built(config: ModelConfig, vocab_size: int) -> tuple[int, int]:
    """Weights in all and active, of the model on the meta device."""
    with torch.device("meta"):
        model = Transformer(config, vocab_size)
    total = sum(p.numel() for p in model.parameters())
    routed = sum(p.numel() for name, p in model.named_parameters() if name.endswith("_EFD"))
    return total, total - routed * (config.num_experts - config.num_experts_per_token) // config.num_experts


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_shipped_model_has_exactly_the_weights_of_the_built_one(path: Path) -> None:
    config = shipped(path)
    vocab_size = config.vocab_size or 1000
    assert counts(shape_of(config, vocab_size))[:2] == built(config, vocab_size)


@pytest.mark.parametrize("name", ODD)
def test_every_kind_of_part_is_counted(name: str) -> None:
    config = model_config(**ODD[name])
    assert counts(shape_of(config, 100))[:2] == built(config, 100)


@pytest.mark.parametrize("name", TOTALS)
def test_a_counted_model_is_that_of_transformers_and_of_its_report(name: str) -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, GptOssConfig, GptOssForCausalLM

    small = {"num_hidden_layers": 24, "num_local_experts": 32}
    with torch.device("meta"):
        if name == "deepseek_v3":
            model, each, of = DeepseekV3ForCausalLM(DeepseekV3Config()), 8, 256
        else:
            config = GptOssConfig(**(small if name == "gpt_oss_20b" else {}))
            model, each, of = GptOssForCausalLM(config), 4, config.num_local_experts
    shape = counted_shape(name)
    found = counts(shape)
    assert found.total == sum(p.numel() for p in model.parameters())
    matrices = {n: p for n, p in model.named_parameters() if p.ndim > 1 and not n.endswith("bias")}
    products = sum(
        p.numel() * each // of if p.ndim == 3 else p.numel() for n, p in matrices.items() if "embed_tokens" not in n
    )
    flops = forward_flops(shape, 4096)
    assert sum(flops.values()) - flops["attention scores"] == 2 * products
    total, active = TOTALS[name]
    ours = found.active if name == "deepseek_v3" else found.active_without_lookup
    assert found.total / 1e9 == pytest.approx(total, abs=0.05) and ours / 1e9 == pytest.approx(active, rel=0.02)


def test_an_unknown_shape_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"--counted gpt_oss_12b: no such shape; .*did you mean 'gpt_oss_120b'\?"):
        counted_shape("gpt_oss_12b")


@pytest.mark.parametrize(("context", "window"), [(1, None), (7, None), (7, 1), (7, 3), (7, 7), (7, 20)])
def test_the_mean_of_the_keys_is_that_of_all_queries(context: int, window: int | None) -> None:
    seen = [min(query + 1, window or context) for query in range(context)]
    assert mean_keys(context, window) == pytest.approx(sum(seen) / context)


@pytest.mark.parametrize(
    "name", ["16 experts", "windows", "first layer dense, untied", "full-width norm, biases", "lighthouse"]
)
def test_flops_are_those_that_torch_counts(name: str) -> None:
    assert flops_line(name, 256 if name == "lighthouse" else 136)["ratio"] == pytest.approx(1, abs=1e-9)


def test_causal_attention_is_its_share_of_the_square_that_torch_counts() -> None:
    config, vocab_size, _ = SHAPES["tiny"]
    tokens, size = 96, (1, config.num_heads, 96, config.d_head)
    square = config.num_layers * sdpa_flop_count(size, size, size)
    scores = forward_flops(shape_of(config, vocab_size), tokens)["attention scores"]
    assert scores * tokens == pytest.approx(square * (tokens + 1) / (2 * tokens))


def test_sparse_stages_count_by_their_share_and_dense_layers_never(tmp_path: Path) -> None:
    attention = LighthouseAttention(3, 4, 16, tile_budget=8, dense_layers=(0,))
    shapes = {each: shape_of(model_config(attention=each), 100) for each in (None, attention)}
    dense, mine, sparse = (
        forward_flops(shapes[each], 1024, frac)["attention scores"]
        for each, frac in ((None, 1.0), (attention, 0.25), (attention, 1.0))
    )
    assert forward_flops(shapes[attention], 1024)["attention scores"] == dense, "as monitors see it"
    entries = 1024 // 16 + 2 * 4 * 16
    assert sparse == pytest.approx(dense / 4 * (1 + 3 * entries * (entries + 1) / (1024 * 1025)))
    assert mine == pytest.approx(0.75 * dense + 0.25 * sparse)
    tree = plain(tmp_path, tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("the house")
    keys = {"kind": "lighthouse", "levels": 3, "factor": 2, "budget": 4, "tile_budget": 2}
    for until, frac in ((None, 1.0), (BATCH, 1 / STEPS), (2 * BATCH + 1, 3 / STEPS)):
        model = tree["model"] | {"attention": {**keys, "dense_from_tokens": until}}
        assert sparse_frac(load_config(tree | {"model": model})) == frac


def test_attention_grows_with_the_context_alone() -> None:
    shape = shape_of(SHAPES["tiny"][0], 1024)
    short, long = forward_flops(shape, 127), forward_flops(shape, 255)
    assert long.pop("attention scores") == 2 * short.pop("attention scores")
    assert long == short and training_flops(shape, 127) > 3 * sum(short.values())
