"""AdamW in one update is torch's plain one, and a checkpoint of either goes on as the other."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lccp_sim.models.optimizer import adamw

SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95)}


def weights(device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (5, 3), (3, 2, 4), (4,)
    return [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]


def groups(of: list[Tensor]) -> list[dict[str, Any]]:
    return [{"params": of[:2], "weight_decay": 0.1}, {"params": of[2:], "weight_decay": 0.0}]


def walk(optimizer: torch.optim.AdamW, steps: int) -> None:
    """Updates by the gradients of a function that has no minimum nearby."""
    for _ in range(steps):
        optimizer.zero_grad()
        sum(weight.sin().sum() for group in optimizer.param_groups for weight in group["params"]).backward()
        optimizer.step()


def test_it_is_the_adamw_of_torch() -> None:
    ours, theirs = weights(), weights()
    walk(adamw(groups(ours), **SETTINGS), 20)
    walk(torch.optim.AdamW(groups(theirs), foreach=False, **SETTINGS), 20)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("foreach", [None, False, True])
def test_a_checkpoint_says_nothing_of_how_the_update_is_computed(foreach: bool | None) -> None:
    theirs = weights()
    plain = torch.optim.AdamW(groups(theirs), foreach=foreach, **SETTINGS)
    walk(plain, 3)
    ours = [weight.detach().clone().requires_grad_() for weight in theirs]
    optimizer = adamw(groups(ours), **SETTINGS)
    optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert all(group["fused"] and not group["foreach"] for group in optimizer.param_groups)
    for each in (plain, optimizer):
        walk(each, 3)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_weights_without_numbers_are_updated_one_by_one() -> None:
    optimizer = adamw(groups(weights("meta")), **SETTINGS)
    assert not any(group["fused"] for group in optimizer.param_groups)
    walk(optimizer, 1)
