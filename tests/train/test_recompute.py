"""Blocks that run again in the backward pass change no number, and nothing is counted twice."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lccp_sim.config import Config, ModelConfig
from lccp_sim.models.loss import cross_entropy
from lccp_sim.models.positions import BaseRope
from lccp_sim.models.transformer import Block, Output, Transformer, initialise
from lccp_sim.train.loop.recompute import recompute
from lccp_sim.train.saved.run_directory import run_directory

CONFIG = ModelConfig(rope=BaseRope(1e4), d_model=32, num_layers=3, num_heads=2, num_kv_heads=1, d_expert=16)
ROWS = torch.randint(1, 64, (2, 24), generator=torch.Generator().manual_seed(0))


def learned(model: Transformer) -> tuple[Output, dict[str, Any]]:
    """What a forward pass gave, and the gradients of the backward pass after it."""
    out = model(ROWS)
    loss = cross_entropy(out.hidden_BTD.flatten(0, 1), model.head_weight, ROWS.roll(-1).flatten(), ROWS.numel())
    (loss + out.balance_loss + out.z_loss).backward()
    return out, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("every", "times"), [(None, [1, 1, 1]), (1, [2, 2, 2]), (2, [2, 1, 2])])
def test_blocks_run_again_and_give_the_same(
    every: int | None, times: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, other = (initialise(Transformer(CONFIG, 64), 0) for _ in range(2))
    wanted, gradients = learned(plain)
    calls = dict.fromkeys(range(3), 0)
    forward = Block.forward

    def counted(block: Block, *inputs: Any) -> Any:
        calls[block.attention.layer] += 1
        return forward(block, *inputs)

    monkeypatch.setattr(Block, "forward", counted)
    recompute(other, every)
    tuned = copy.deepcopy(other)  # as the probe makes one
    for model in (tuned, other):
        recompute(model, every)  # Lightning may ask twice
        calls |= dict.fromkeys(calls, 0)
        got, mine = learned(model)
        assert list(calls.values()) == times
        assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
        assert mine.keys() == gradients.keys() and all(torch.equal(mine[name], gradients[name]) for name in mine)
    with torch.no_grad():
        other(ROWS)
    assert list(calls.values()) == [each + 1 for each in times]


def test_it_is_no_part_of_the_run(make: Callable[..., Config]) -> None:
    assert run_directory(make(), None) == run_directory(make({"run.recompute_every": 2}), None)
