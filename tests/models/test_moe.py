"""The router's losses, its bias and the mixture, each against the formula that its docstring names."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lccp_sim.config import ModelConfig, RouterConfig
from lccp_sim.models.moe import MoE

D, E, K = 16, 4, 2
ROUTED = 3  # of 12 experts
ROUTERS = {
    "Hunyuan-A13B": RouterConfig(),
    "OLMoE": RouterConfig(renormalise=False),
    "gpt-oss": RouterConfig(scores="topk_softmax"),
    "DeepSeek-V3": RouterConfig(scores="sigmoid", scale=2.5, num_groups=4, num_groups_kept=2),
    "raw sigmoid": RouterConfig(scores="sigmoid", renormalise=False),
    "softmax in groups": RouterConfig(scale=0.5, num_groups=3, num_groups_kept=1),
}


def layer(**changes) -> MoE:
    torch.manual_seed(3)
    shape = {"d_model": D, "d_expert": 8, "num_experts": E, "num_experts_per_token": K, "experts": "loop"}
    moe = MoE(ModelConfig(rope=None, **(shape | changes)))
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
    for changes in ({}, {"num_shared_experts": 0}, {"num_experts_per_token": 1}, {"num_experts_per_token": E}):
        moe, x_BTD = layer(experts=backend, **changes), torch.randn(3, 10, D, requires_grad=True)
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


def route_one(logits: list[float], bias: list[float], rule: RouterConfig) -> dict[int, float]:
    """The experts of one token and their weights, in plain Python: the definition of every router."""
    exp = [math.exp(x) for x in logits]
    scores = {
        "softmax": [x / sum(exp) for x in exp],
        "topk_softmax": logits,
        "sigmoid": [1 / (1 + math.exp(-x)) for x in logits],
    }[rule.scores]
    choice = [score + b for score, b in zip(scores, bias, strict=True)]
    size = len(logits) // rule.num_groups
    groups = [range(first, first + size) for first in range(0, len(logits), size)]
    if rule.num_groups > 1:
        groups.sort(key=lambda group: -sum(sorted(choice[e] for e in group)[-2:]))
    allowed = [e for group in groups[: rule.num_groups_kept] for e in group]
    chosen = sorted(allowed, key=lambda e: -choice[e])[:ROUTED]
    weights = [exp[e] for e in chosen] if rule.scores == "topk_softmax" else [scores[e] for e in chosen]
    total = sum(weights) if rule.renormalise else 1.0
    return {e: rule.scale * weight / total for e, weight in zip(chosen, weights, strict=True)}


@pytest.mark.parametrize("rule", ROUTERS.values(), ids=ROUTERS)
def test_every_router_is_its_definition_token_by_token(rule: RouterConfig) -> None:
    moe, x_BTD = layer(num_experts=12, num_experts_per_token=ROUTED, router=rule), torch.randn(2, 20, D)
    moe.bias_E.uniform_(-0.3, 0.3)
    weight_TK, expert_TK, routing = moe.route(x_BTD)
    logits_TE = F.linear(x_BTD.flatten(0, 1), moe.router.weight)
    for t in range(40):
        want = route_one(logits_TE[t].tolist(), moe.bias_E.tolist(), rule)
        got = dict(zip(expert_TK[t].tolist(), weight_TK[t].tolist(), strict=True))
        assert got == pytest.approx(want, rel=1e-5)
    assert routing.count_E.tolist() == torch.bincount(expert_TK.flatten(), minlength=12).tolist()
    score = logits_TE.sigmoid() if rule.scores == "sigmoid" else logits_TE.softmax(-1)
    mean_BE = (score / score.sum(-1, keepdim=True)).view(2, 20, 12).mean(1)
    share_BE = torch.stack([torch.bincount(e.flatten(), minlength=12) / e.numel() for e in expert_TK.chunk(2)])
    torch.testing.assert_close(routing.balance_loss, 12 * (share_BE * mean_BE).sum(-1).mean())


def test_weights_pass_gradients_to_the_router_as_autograd_would() -> None:
    for rule in ROUTERS.values():
        moe, x_BTD = layer(num_experts=12, num_experts_per_token=ROUTED, router=rule), torch.randn(1, 9, D)
        weight_TK, expert_TK, _ = moe.route(x_BTD)
        logits_TE = F.linear(x_BTD[0], moe.router.weight)
        dense = {"softmax": logits_TE.softmax(-1), "sigmoid": logits_TE.sigmoid(), "topk_softmax": logits_TE.exp()}
        want_TK = dense[rule.scores].gather(1, expert_TK)
        if rule.renormalise:
            want_TK = want_TK / want_TK.sum(1, keepdim=True)
        cotangent = torch.randn(weight_TK.shape)
        got, want = (torch.autograd.grad(w, moe.router.weight, cotangent)[0] for w in (weight_TK, rule.scale * want_TK))
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_the_first_router_is_what_it_was_to_the_last_bit() -> None:
    """Runs that were begun with it must go on in the same bytes."""
    moe, x_BTD = layer(num_experts=12, num_experts_per_token=ROUTED), torch.randn(2, 20, D)
    moe.bias_E.uniform_(-0.1, 0.1)
    prob_BTE = F.linear(x_BTD, moe.router.weight).softmax(-1)
    want_BTK = (prob_BTE + moe.bias_E).topk(ROUTED, dim=-1).indices
    weight_BTK = prob_BTE.gather(-1, want_BTK)
    weight_BTK = weight_BTK / weight_BTK.sum(-1, keepdim=True)
    weight_TK, expert_TK, _ = moe.route(x_BTD)
    assert torch.equal(expert_TK, want_BTK.flatten(0, 1)) and torch.equal(weight_TK, weight_BTK.flatten(0, 1))
    cotangent = torch.randn(2, 20, ROUTED)
    got, want = (
        torch.autograd.grad(weight, moe.router.weight, cotangent.view_as(weight))[0]
        for weight in (weight_TK, weight_BTK)
    )
    assert torch.equal(got, want)


def test_softmax_over_the_chosen_is_a_renormalised_softmax() -> None:
    x_BTD = torch.randn(2, 30, D)
    one, other = (layer(router=RouterConfig(scores=scores)) for scores in ("softmax", "topk_softmax"))
    torch.testing.assert_close(one.route(x_BTD)[0], other.route(x_BTD)[0])
    assert torch.equal(one.route(x_BTD)[1], other.route(x_BTD)[1])


def test_scores_that_all_underflow_give_no_nan() -> None:
    moe = layer(router=RouterConfig(scores="sigmoid"))
    with torch.no_grad():
        moe.router.weight.fill_(-100.0)
    weight_TK, _, routing = moe.route(torch.ones(1, 3, D))
    assert weight_TK.eq(0).all() and routing.balance_loss == 0


def test_the_router_is_that_of_deepseek() -> None:
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    rule = ROUTERS["DeepSeek-V3"]
    theirs = DeepseekV3TopkRouter(
        DeepseekV3Config(
            hidden_size=D, n_routed_experts=12, num_experts_per_tok=ROUTED, n_group=rule.num_groups,
            topk_group=rule.num_groups_kept, routed_scaling_factor=rule.scale,
        )
    )  # fmt: skip
    ours, x_BTD = layer(num_experts=12, num_experts_per_token=ROUTED, router=rule), torch.randn(2, 30, D)
    ours.bias_E.uniform_(-0.3, 0.3)
    with torch.no_grad():
        theirs.weight.copy_(ours.router.weight)
        theirs.e_score_correction_bias.copy_(ours.bias_E)
        _, weight_TK, expert_TK = theirs(x_BTD)
        mine_TK, chosen_TK, _ = ours.route(x_BTD)
    order, mine = expert_TK.argsort(-1), chosen_TK.argsort(-1)
    assert torch.equal(expert_TK.gather(1, order), chosen_TK.gather(1, mine))
    torch.testing.assert_close(weight_TK.gather(1, order), mine_TK.gather(1, mine))
