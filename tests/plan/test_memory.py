"""Memory that the plan foretells is what a pass allocates at its peak, and layouts share it out."""

import dataclasses

import pytest
import torch

from bench.plan_accuracy import LAYOUTS, RANKS, SHAPES, memory_line, model_config
from lccp_sim.models import attention, experts, kernels, loss
from lccp_sim.models.lighthouse import LighthouseAttention
from lccp_sim.plan import memory as planned
from lccp_sim.plan.memory import Layout, Memory, Place, memory
from lccp_sim.plan.shapes import counts, shape_of

CONFIG, VOCABULARY, _ = SHAPES["16 experts"]
SHAPE = shape_of(CONFIG, VOCABULARY)


def of(layout: Layout, tokens: int = 1024, bf16: bool = True) -> Memory:
    return memory(CONFIG, SHAPE, tokens, layout, Place(bf16, gpu=True))


@pytest.mark.parametrize(
    ("name", "bf16", "checkpointed", "gpu"),
    [
        ("tiny", False, False, False),
        ("16 experts", True, False, False),
        ("grouped products", False, False, False),
        ("lighthouse", False, False, False),
        ("lighthouse", True, True, False),
        ("no shared, no norm", False, False, True),
        ("16 experts", True, False, True),
        ("grouped products", False, True, False),
    ],
)
def test_the_peak_is_predicted_within_15_percent(name: str, bf16: bool, checkpointed: bool, gpu: bool) -> None:
    config, vocab_size, _ = SHAPES[name]
    small = dataclasses.replace(config, num_layers=2), vocab_size, 512
    assert memory_line(small, bf16, checkpointed, gpu)["ratio"] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("name", "bf16"), [("tiny", False), ("16 experts", True)])
def test_every_other_block_checkpointed_is_predicted_as_well(name: str, bf16: bool) -> None:
    config, vocab_size, _ = SHAPES[name]
    one = dataclasses.replace(config, num_layers=4), vocab_size, 512
    two = memory_line(one, bf16, True, False, every=2)
    assert two["ratio"] == pytest.approx(1, abs=0.15)
    all_, none = (memory_line(one, bf16, checkpointed, False) for checkpointed in (True, False))
    assert all_["measured"] < two["measured"] < none["measured"]


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize(
    ("layout", "bf16", "checkpointed", "exact"),
    [
        ("dp=8", False, False, False),
        ("dp=8", True, True, False),
        ("dp=8", True, False, True),
        ("dp=4, ep=2", False, True, False),
        ("dp=2, ep=2, cp=2", True, False, False),
    ],
)
def test_the_peak_of_a_rank_is_predicted_as_well(
    name: str, layout: str, bf16: bool, checkpointed: bool, exact: bool
) -> None:
    config, vocab_size, _ = SHAPES[name]
    small = dataclasses.replace(config, num_layers=3), vocab_size, 256
    line = memory_line(small, bf16, checkpointed, False, layout=LAYOUTS[layout], exact=exact)
    assert line["ratio"] == pytest.approx(1, abs=0.15)


def test_a_dense_stage_needs_the_memory_of_the_larger_stage() -> None:
    """Of a narrow budget that is the dense one, of a wide one the sparse one."""
    for budget, larger in ((2, "dense"), (32, "sparse")):
        sparse = LighthouseAttention(3, 8, budget, tile_budget=2)
        both = dataclasses.replace(sparse, dense_from_tokens=1)
        needs = {}
        for name, each in (("dense", None), ("sparse", sparse), ("both", both)):
            config = dataclasses.replace(CONFIG, attention=each)
            needs[name] = memory(config, SHAPE, 2048, Layout(), Place(False, gpu=False), row=1024).activations
        assert needs["both"] == needs[larger] == max(needs.values()) != min(needs.values())


def test_constants_are_those_of_the_code_that_is_planned() -> None:
    assert planned.LOGIT_ROWS == loss.CHUNK_ROWS and planned.SLICE_ROWS == kernels.ROWS
    assert planned.WINDOW_BLOCK == attention.SMALLEST_BLOCK


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("width", [256, 512, 516, 514])
@pytest.mark.parametrize("name", ["auto", "loop"])
def test_experts_run_where_the_model_lets_them(name: str, width: int, bf16: bool, gpu: bool) -> None:
    config = model_config(d_model=width, experts=name)
    dtype = torch.bfloat16 if bf16 else torch.float32
    chosen = experts.choose_backend(name, width, config.d_expert, torch.device("cuda" if gpu else "cpu"), dtype)
    fused = planned._fused(config, Place(bf16, gpu))
    assert fused == (name == "auto" and chosen is experts.loop)


def test_state_is_what_adamw_holds_and_is_cut_over_all_devices() -> None:
    weights = counts(SHAPE).total
    assert of(Layout()).state == 16 * weights  # weights, gradients and two moments, all fp32
    for layout in (Layout(dp=4), Layout(ep=4), Layout(cp=4), Layout(2, 2, 1)):
        assert of(layout).state == 4 * weights


def test_what_each_kind_of_shard_saves() -> None:
    one, both = of(Layout(dp=8)), of(Layout(dp=4, ep=2))
    assert both.step < 0.9 * one.step and both.copies == one.copies  # half of the experts are gathered
    assert both.activations == one.activations
    shared = of(Layout(dp=4, cp=2), tokens=512)
    assert one.activations / 2 < shared.activations < 0.6 * one.activations  # keys and values of the whole row stay


def test_checkpointing_keeps_a_block_and_inputs() -> None:
    needs = of(Layout(), tokens=4096)
    kept, again = needs.activations + needs.step, needs.activations_checkpointed + needs.step_checkpointed
    assert again < 0.5 * kept and needs.total_checkpointed < needs.total
    assert needs.activations_checkpointed > CONFIG.num_layers * 4096 * CONFIG.d_model * 4
    assert of(Layout(), bf16=False).copies == 0
