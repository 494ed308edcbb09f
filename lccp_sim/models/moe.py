"""Mixture of experts: an fp32 router, routed SwiGLU experts and a shared one.

Four routers in one: softmax over all experts with renormalised weights (Hunyuan-A13B, Qwen3-MoE, Mixtral) or raw ones
(OLMoE), softmax over the chosen (gpt-oss), sigmoid with a group limit (DeepSeek-V3). No token is dropped. The balance
loss is taken per sequence and then averaged, so that one micro-batch equals four; losses and counts are returned, never
stored.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lccp_sim.config import ModelConfig
from lccp_sim.models import experts, kernels
from lccp_sim.models.comm import Comm

LEAST_SCORE_SUM = 1e-20  # the least sum of scores: all of them may underflow


class Routed(NamedTuple):
    """The result of a router: two losses (fp32 scalars, means over sequences) and each expert's rows [E] int64."""

    balance_loss: Tensor
    z_loss: Tensor
    count_E: Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products of `x`: autocast's if it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x). Source: arXiv 2002.05202, equation 6."""

    def __init__(self, d_model: int, d_hidden: int):
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        rows = x.flatten(0, -2).to(dtype)
        return kernels.SwiGLUFunction.apply(rows, self.gate_up.weight.to(dtype), self.down.weight.to(dtype)).view_as(x)


class Router(nn.Linear):
    """Logits of the experts, in fp32 for rows of any dtype, with autocast off."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float())


class MoE(nn.Module):
    """y = shared(x) + sum over the chosen experts of weight * expert(x)."""

    bias_E: Tensor
    comm: Comm = Comm()

    def __init__(self, config: ModelConfig):
        super().__init__()
        c, self.rule = config, config.router
        self.num_experts, self.top_k, self.backend = c.num_experts, c.num_experts_per_token, c.experts
        self.router = Router(c.d_model, c.num_experts, bias=False)
        shape = (c.num_experts, c.d_expert, c.d_model)
        self.gate_EFD, self.up_EFD, self.down_EFD = (nn.Parameter(torch.empty(shape)) for _ in range(3))
        self.shared = SwiGLU(c.d_model, c.num_shared_experts * c.d_expert) if c.num_shared_experts else None
        # Shifts only the selection, not the weights: balance without a loss (arXiv 2408.15664, equation 1).
        self.register_buffer("bias_E", torch.zeros(c.num_experts))

    def forward(self, x_BTD: Tensor, text_BT: Tensor | None = None) -> tuple[Tensor, Routed]:
        """[B, T, D] and the routing. Tokens outside `text_BT` (bool; None: all are text) are padding without expert."""
        x_TD = x_BTD.flatten(0, 1)
        weight_TK, expert_TK, routing = self.route(x_BTD, text_BT)
        x_TD = x_TD.to(compute_dtype(x_TD))
        run = experts.choose_backend(self.backend, x_TD.shape[1], self.gate_EFD.shape[1], x_TD.device, x_TD.dtype)
        order_R = expert_TK.flatten().argsort(stable=True)
        # Padding comes after the last expert. Grouped products include it, because removing it would synchronise.
        if text_BT is not None and (run is not experts.grouped_mm or self.comm.experts_apart):
            order_R = order_R[: int(routing.count_E.sum())]
        row_R = order_R // self.top_k
        weight_R = weight_TK.flatten()[order_R].to(x_TD.dtype)
        gate_EFD, up_EFD, down_EFD = (w.to(x_TD.dtype) for w in (self.gate_EFD, self.up_EFD, self.down_EFD))
        if self.backend == "auto" and run is experts.loop and not self.comm.experts_apart:
            y_TD = kernels.mixture(x_TD, row_R, weight_R, gate_EFD, up_EFD, down_EFD, routing.count_E.tolist())
        else:
            y_RD = self.comm.dispatch(run, x_TD[row_R], gate_EFD, up_EFD, down_EFD, routing.count_E) * weight_R[:, None]
            y_TD = torch.zeros_like(x_TD).index_add(0, row_R, y_RD)
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)
        return y_TD.view_as(x_BTD), routing

    def route(self, x_BTD: Tensor, text_BT: Tensor | None = None) -> tuple[Tensor, Tensor, Routed]:
        """Weights and experts of each token, both [B*T, K], and the routing, all in fp32. Padding: expert E, weight 0.

        The balance loss is E * sum_e f_e P_e with f_e the share of the top-k slots, 1 when balanced, and P_e the mean
        score, scaled to sum to 1 over the experts (arXiv 2101.03961, equation 4; for sigmoids 2412.19437, equations 17
        to 20). The z loss is the mean of logsumexp squared (arXiv 2202.08906, equation 5).
        """
        rule = self.rule
        with torch.autocast(x_BTD.device.type, enabled=False):
            logits_BTE = self.router(x_BTD)
            if rule.scores == "sigmoid":
                score_BTE = logits_BTE.sigmoid()
                prob_BTE = score_BTE / score_BTE.sum(-1, keepdim=True).clamp_min(LEAST_SCORE_SUM)
            else:
                prob_BTE = logits_BTE.softmax(-1)
                score_BTE = logits_BTE if rule.scores == "topk_softmax" else prob_BTE
            expert_BTK = self.choose(score_BTE.detach())
            weight_BTK = score_BTE.gather(-1, expert_BTK)
            if rule.scores == "topk_softmax":
                weight_BTK = weight_BTK.softmax(-1)
            elif rule.renormalise:
                weight_BTK = weight_BTK / weight_BTK.sum(-1, keepdim=True).clamp_min(LEAST_SCORE_SUM)
            weight_BTK = weight_BTK * rule.scale
            B, T, E = prob_BTE.shape
            if text_BT is not None:
                padding_BT1 = ~text_BT[..., None]
                expert_BTK = expert_BTK.masked_fill(padding_BT1, E)
                weight_BTK = weight_BTK.masked_fill(padding_BT1, 0)
            # Not bincount, which synchronises with a GPU. A token's experts are distinct.
            chosen_BTE = torch.zeros(B, T, E + 1, dtype=torch.bool, device=x_BTD.device).scatter(-1, expert_BTK, True)
            count_BE = chosen_BTE.sum(1)[:, :E]
            square_BT = logits_BTE.logsumexp(-1).square()
            if text_BT is None:
                share_BE, mean_BE = self.comm.mean(count_BE / (T * self.top_k)), self.comm.mean(prob_BTE.mean(1))
                balance_loss = E * (share_BE * mean_BE).sum(-1).mean()
                z_loss = square_BT.mean()
            else:
                text_B1, share_BE = self.comm.mean(text_BT.sum(1, keepdim=True)), self.comm.mean(count_BE)
                part_BT = text_BT / text_B1.clamp_min(LEAST_SCORE_SUM)  # of the mean over a sequence's text
                share_BE = share_BE / share_BE.sum(1, keepdim=True).clamp_min(LEAST_SCORE_SUM)
                mean_BE = self.comm.mean((part_BT[..., None] * prob_BTE).sum(1))
                balance_loss = E * (share_BE * mean_BE).sum(-1).mean()
                z_loss = (part_BT * square_BT).sum(1).mean()
        routing = Routed(balance_loss, z_loss, count_BE.sum(0))
        return weight_BTK.flatten(0, 1), expert_BTK.flatten(0, 1), routing

    def choose(self, score_BTE: Tensor) -> Tensor:
        """The experts of each token by score and bias, [B, T, K]; with groups, chosen within the groups that are kept.

        Groups are ranked by the sum of their best two. Source: arXiv 2412.19437, section 2.1.2, and its reference code.
        """
        choice_BTE = score_BTE + self.bias_E
        if self.rule.num_groups > 1:
            choice_BTGE = choice_BTE.unflatten(-1, (self.rule.num_groups, -1))
            rank_BTG = choice_BTGE.topk(2, dim=-1).values.sum(-1)
            kept = rank_BTG.topk(self.rule.num_groups_kept, dim=-1).indices
            out_BTG = torch.ones_like(rank_BTG, dtype=torch.bool).scatter(-1, kept, False)
            choice_BTE = choice_BTGE.masked_fill(out_BTG[..., None], float("-inf")).flatten(-2)
        return choice_BTE.topk(self.top_k, dim=-1).indices
