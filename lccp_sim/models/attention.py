"""Grouped-query attention over packed documents, with a tap on what the softmax sees.

A packed row is never masked with a [T, T] matrix: causal attention is called once per document, on slices of the
flattened row. So nothing leaks between documents by construction, and the fast causal kernel is always the one in use.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lccp_sim.config import ModelConfig
from lccp_sim.models import kernels
from lccp_sim.models.language_model import Attended, Tap


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, any shape. Source: arXiv 1910.07467, equation 4."""

    def __init__(self, width: int, eps: float, gain: float = 1.0):
        super().__init__()
        self.eps, self.gain = eps, gain
        self.weight = nn.Parameter(torch.full((width,), gain))

    def forward(self, x: Tensor) -> Tensor:
        return kernels.RMSNorm.apply(x, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Causal attention with GQA, RoPE and QK-norm before or after RoPE (Hunyuan-A13B normalises after it)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        c, self.layer = config, layer
        self.num_heads, self.num_kv_heads, self.d_head, self.qk_norm = c.num_heads, c.num_kv_heads, c.d_head, c.qk_norm
        self.qkv = nn.Linear(c.d_model, (c.num_heads + 2 * c.num_kv_heads) * c.d_head, bias=False)
        self.out = nn.Linear(c.num_heads * c.d_head, c.d_model, bias=False)
        if c.qk_norm != "none":
            self.q_norm = RMSNorm(c.d_head, c.norm_eps, c.qk_norm_gain)
            self.k_norm = RMSNorm(c.d_head, c.norm_eps, c.qk_norm_gain)
        self.scale = c.d_head**-0.5
        self.tap: Tap | None = None
        self.gate_N: Tensor | None = None

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], bounds: Tensor) -> Tensor:
        """[B, T, D]. `bounds` are the offsets of the documents in the flattened [B*T] tokens, first 0, last B*T."""
        B, T, _ = x_BTD.shape
        heads = self.qkv(x_BTD).view(B, T, -1, self.d_head)
        # q and k lie side by side: one pass turns and normalises both.
        qk, v_BTMH = heads.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=2)
        if self.qk_norm == "after_rope":
            qk = kernels.RotateNorm.apply(qk, *rope, self.qk_weight(), self.q_norm.eps)
        else:
            if self.qk_norm == "before_rope":
                qk = kernels.RMSNorm.apply(qk, self.qk_weight().to(qk.dtype), self.q_norm.eps)
            qk = kernels.Rotate.apply(qk, *rope)
        q_BTNH, k_BTMH = qk.split((self.num_heads, self.num_kv_heads), dim=2)
        if self.tap is not None:
            start_BT = None if len(bounds) == B + 1 else first_keys(bounds, B, T).to(x_BTD.device)
            self.tap(self.layer, Attended(q_BTNH, k_BTMH, self.scale, start_BT=start_BT))
        # v alone: as a view it would keep all of qkv for the backward pass.
        y_BTNH = attend(q_BTNH, k_BTMH, v_BTMH.contiguous(), self.scale, bounds)
        if self.gate_N is not None:
            y_BTNH = y_BTNH * self.gate_N[:, None].to(y_BTNH.dtype)
        return self.out(y_BTNH.flatten(2))

    def qk_weight(self) -> Tensor:
        """The QK-norm's weight of each head of q, then of k, [N + M, H]."""
        q, k = self.q_norm.weight.expand(self.num_heads, -1), self.k_norm.weight.expand(self.num_kv_heads, -1)
        return torch.cat((q, k))


def first_keys(bounds: Tensor, B: int, T: int) -> Tensor:
    """[B, T] int64: the place in its row of the first token of each token's document; no document spans two rows."""
    return (bounds[:-1] % T).repeat_interleave(bounds.diff()).view(B, T)


def attend(q_BTNH: Tensor, k_BTMH: Tensor, v_BTMH: Tensor, scale: float, bounds: Tensor) -> Tensor:
    """[B, T, N, H]: causal attention inside each document; `bounds` [documents + 1] int64 on the CPU."""
    B, T, N, H = q_BTNH.shape
    gqa = N != k_BTMH.shape[2]
    flat = [x.flatten(0, 1) for x in (q_BTNH, k_BTMH, v_BTMH)]
    lengths = bounds.diff()
    pieces = []
    # Neighbours of one length share a call: rows of one document each are a single one.
    values, counts = lengths.unique_consecutive(return_counts=True)
    start = 0
    for length, count in zip(values.tolist(), counts.tolist(), strict=True):
        stop = start + length * count
        q, k, v = (x[start:stop].unflatten(0, (count, length)).transpose(1, 2) for x in flat)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
        pieces.append(y.transpose(1, 2).reshape(length * count, N, H))
        start = stop
    y_RNH = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return y_RNH.view(B, T, N, H)
