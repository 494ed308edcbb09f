"""Padding at the end of a row: routed nowhere, counted nowhere, and the text before it does not notice."""

import pytest
import torch

from lccp_sim.config import ModelConfig, RouterConfig
from lccp_sim.models.moe import MoE
from lccp_sim.models.positions import BaseRope
from lccp_sim.models.transformer import Transformer, initialise

LENGTHS = (7, 12, 3)


def text() -> torch.Tensor:
    return torch.arange(12) < torch.tensor(LENGTHS)[:, None]


def model(experts: str = "auto", scores: str = "softmax") -> Transformer:
    config = ModelConfig(
        rope=BaseRope(base=1e4), d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, d_head=8, num_experts=4,
        d_expert=8, experts=experts, router=RouterConfig(scores=scores),
    )  # fmt: skip
    return initialise(Transformer(config, 50), 0)


def bounds() -> torch.Tensor:
    return torch.tensor([0, 7, 12, 24, 27, 36])


@pytest.mark.parametrize("experts", ["auto", "loop", "grouped_mm"])
@pytest.mark.parametrize("scores", ["softmax", "topk_softmax", "sigmoid"])
def test_a_padded_batch_is_its_rows_alone(experts: str, scores: str) -> None:
    of, text_BT = model(experts, scores), text()
    tokens_BT = torch.randint(1, 50, (3, 12), generator=torch.Generator().manual_seed(0)) * text_BT
    out = of(tokens_BT, None, bounds(), text_BT)
    alone = [of(tokens_BT[i : i + 1, :length]) for i, length in enumerate(LENGTHS)]
    for i, length in enumerate(LENGTHS):
        torch.testing.assert_close(out.hidden_BTD[i, :length], alone[i].hidden_BTD[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(out.count_LE, sum(each.count_LE for each in alone))
    torch.testing.assert_close(out.balance_loss, sum(each.balance_loss for each in alone) / 3)
    torch.testing.assert_close(out.z_loss, sum(each.z_loss for each in alone) / 3)
    grads = []
    for loss in (
        out.hidden_BTD[text_BT].square().sum() + out.balance_loss + out.z_loss,
        sum(each.hidden_BTD.square().sum() + (each.balance_loss + each.z_loss) / 3 for each in alone),
    ):
        grads.append(torch.autograd.grad(loss, list(of.parameters())))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_a_batch_that_is_all_text_is_as_without_the_mask() -> None:
    of = model()
    tokens_BT = torch.randint(1, 50, (3, 12), generator=torch.Generator().manual_seed(1))
    masked, plain = of(tokens_BT, text_BT=torch.ones(3, 12, dtype=torch.bool)), of(tokens_BT)
    assert torch.equal(masked.hidden_BTD, plain.hidden_BTD) and torch.equal(masked.count_LE, plain.count_LE)
    torch.testing.assert_close(masked.balance_loss, plain.balance_loss)
    torch.testing.assert_close(masked.z_loss, plain.z_loss)


def test_the_experts_of_padding_are_none() -> None:
    layer = model().layers[0].moe
    assert isinstance(layer, MoE)
    x_BTD = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(2))
    _, expert_TK, routing = layer.route(x_BTD, text())
    flat = text().flatten()
    assert (expert_TK[~flat] == 4).all() and (expert_TK[flat] < 4).all()
    assert int(routing.count_E.sum()) == sum(LENGTHS) * 2
    assert torch.equal(routing.count_E, torch.bincount(expert_TK[flat].flatten(), minlength=4))
