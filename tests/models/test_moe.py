"""The router's losses, its bias and the mixture, each against the formula that its docstring names."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lccp_sim.models.moe import MoE

D, E, K = 16, 4, 2


def layer(**changes) -> MoE:
    torch.manual_seed(3)
    moe = MoE(
        **({"d_model": D, "d_expert": 8, "num_experts": E, "top_k": K, "num_shared": 1, "backend": "loop"} | changes)
    )
    for weight in moe.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return moe


def plain(moe: MoE, x_BTD: Tensor) -> Tensor:
    """Every expert on every token, weighted by a matrix that is zero off the top k."""
    prob = F.linear(x_BTD, moe.router.weight).softmax(-1)
    chosen = (prob + moe.bias_E).topk(moe.top_k, dim=-1).indices
    weight = torch.zeros_like(prob).scatter(-1, chosen, prob.gather(-1, chosen))
    weight = weight / weight.sum(-1, keepdim=True)
    gate, up = (torch.einsum("btd,efd->btef", x_BTD, w) for w in (moe.gate_EFD, moe.up_EFD))
    y = torch.einsum("bte,btef,efd->btd", weight, F.silu(gate) * up, moe.down_EFD)
    return y if moe.shared is None else y + moe.shared(x_BTD)


def test_the_mixture_is_the_weighted_sum_of_all_experts(backend: str) -> None:
    check_mixture(backend)


def test_auto_is_the_same_sum_without_gathering_rows() -> None:
    check_mixture("auto")


def check_mixture(backend: str) -> None:
    for changes in ({}, {"num_shared": 0}, {"top_k": 1}, {"top_k": E}):
        moe, x_BTD = layer(backend=backend, **changes), torch.randn(3, 10, D, requires_grad=True)
        (y, _), want = moe(x_BTD), plain(moe, x_BTD)
        torch.testing.assert_close(y, want, atol=1e-5, rtol=1e-5)
        leaves = (x_BTD, *moe.parameters())
        grads = (torch.autograd.grad(z.square().sum(), leaves, allow_unused=True) for z in (y, want))
        for got, expected in zip(*grads, strict=True):
            # With one expert a token the renormalised weight is 1, and the router learns from its losses alone.
            torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)


def test_the_balance_loss_is_one_when_balanced_and_more_when_skewed() -> None:
    moe = layer()
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[:, :E] = torch.eye(E)
    balanced = torch.zeros(1, E, D)
    balanced[0, :, :E] = 6 * torch.eye(E) + 6 * torch.eye(E).roll(1, 0)
    _, routing = moe(balanced)
    assert routing.count_E.tolist() == [K * E // E] * E
    torch.testing.assert_close(routing.balance_loss, torch.tensor(1.0))
    _, skewed = moe(balanced[:, :1].expand(1, E, D))
    assert sorted(skewed.count_E.tolist()) == [0, 0, E, E] and skewed.balance_loss > 1.9


def test_losses_are_per_sequence_so_one_batch_is_four_micro_batches() -> None:
    moe, x_BTD = layer(), torch.randn(4, 10, D)
    _, whole = moe(x_BTD)
    parts = [moe(x_BTD[b : b + 1])[1] for b in range(4)]
    for index in range(2):
        torch.testing.assert_close(whole[index], torch.stack([p[index] for p in parts]).mean())
    assert torch.equal(whole.count_E, sum(p.count_E for p in parts))
    # Not so for a loss over the whole batch: it is smaller, as sequences that differ balance each other.
    _, merged = moe(x_BTD.reshape(1, 40, D))
    assert (merged.balance_loss - whole.balance_loss).abs() > 1e-3


def test_the_z_loss_is_the_mean_squared_logsumexp() -> None:
    moe, x_BTD = layer(), torch.randn(2, 5, D)
    want = F.linear(x_BTD, moe.router.weight).exp().sum(-1).log().pow(2).mean()
    torch.testing.assert_close(moe(x_BTD)[1].z_loss, want)


def test_the_bias_moves_the_selection_and_not_the_weights() -> None:
    moe, x_BTD = layer(), torch.randn(2, 30, D)
    weight_before, expert_before, _ = moe.route(x_BTD)
    moe.bias_E += 0.5
    weight_same, expert_same, _ = moe.route(x_BTD)
    assert torch.equal(weight_before, weight_same) and torch.equal(expert_before, expert_same), "a common bias is none"
    moe.bias_E[1] += 100
    weight_TK, expert_TK, routing = moe.route(x_BTD)
    assert (expert_TK == 1).any(1).all() and routing.count_E[1] == 60
    prob = F.linear(x_BTD, moe.router.weight).softmax(-1).flatten(0, 1).gather(1, expert_TK)
    torch.testing.assert_close(weight_TK, prob / prob.sum(1, keepdim=True))
    moe(x_BTD)[0].sum().backward()
    assert moe.bias_E.grad is None


def test_the_router_stays_in_fp32_under_autocast() -> None:
    moe, x_BTD = layer(), torch.randn(2, 5, D)
    with torch.autocast("cpu", torch.bfloat16):
        y, routing = moe(x_BTD)
        weight_TK, *_ = moe.route(x_BTD)
    assert y.dtype == torch.bfloat16
    assert weight_TK.dtype == routing.balance_loss.dtype == torch.float32
    torch.testing.assert_close(weight_TK, moe.route(x_BTD)[0], rtol=0, atol=0)
    torch.testing.assert_close(y.float(), moe(x_BTD)[0], rtol=0.05, atol=0.05)
