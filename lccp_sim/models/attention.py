"""Grouped-query attention over packed documents, with a tap on what the softmax sees.

A packed row is never masked with a [T, T] matrix: causal attention is called once per document, on slices of the
flattened row. So nothing can leak between documents, and the fast causal kernel is used wherever a document fits the
window. A longer document is split into blocks of queries: each block sees its own stretch of keys through one band mask
that all blocks share. On a GPU in half precision, one call of a variable-length kernel takes all documents and any
window.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.varlen import varlen_attn

from lccp_sim.config import ModelConfig
from lccp_sim.models import kernels
from lccp_sim.models.comm import Comm
from lccp_sim.models.language_model import Attended, Tap, picked

SMALLEST_BLOCK = 64  # queries of a block, so that narrow windows do not make thousands of tiny products
VARLEN_WIDTHS = range(8, 257, 8)  # head widths that the variable-length kernel takes


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, any shape. Source: arXiv 1910.07467, equation 4."""

    def __init__(self, width: int, eps: float, gain: float = 1.0):
        super().__init__()
        self.eps, self.gain = eps, gain
        self.weight = nn.Parameter(torch.full((width,), gain))

    def forward(self, x: Tensor) -> Tensor:
        return kernels.RMSNormFunction.apply(x, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Causal attention with GQA, RoPE, a window, biases and QK-norm, each if the config asks for it.

    Hunyuan-A13B normalises each head after RoPE, Qwen3 each head before it, OLMoE all of q and all of k before it.
    """

    comm: Comm = Comm()

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        c, self.layer = config, layer
        self.num_heads, self.num_kv_heads, self.d_head, self.qk_norm = c.num_heads, c.num_kv_heads, c.d_head, c.qk_norm
        self.window, self.sparse = c.window(layer), c.attention and c.attention.at(layer, c.num_layers)
        self.qkv = nn.Linear(c.d_model, (c.num_heads + 2 * c.num_kv_heads) * c.d_head, bias=c.qkv_bias)
        self.out = nn.Linear(c.num_heads * c.d_head, c.d_model, bias=c.out_bias)
        if c.qk_norm != "none":
            full = c.qk_norm == "full_width"
            self.q_norm = RMSNorm(c.d_head * (c.num_heads if full else 1), c.norm_eps, c.qk_norm_gain)
            self.k_norm = RMSNorm(c.d_head * (c.num_kv_heads if full else 1), c.norm_eps, c.qk_norm_gain)
        self.scale = c.d_head**-0.5
        self.tap: Tap | None = None
        self.gate_N: Tensor | None = None

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        bounds: Tensor,
        sparse: bool = False,
        place_BA: Tensor | None = None,
    ) -> Tensor:
        """[B, T, D]. `bounds` are the offsets of the documents in the flattened [B*T] tokens, first 0, last B*T.

        `sparse`: use the sparse attention of the config if this layer has any. A tap always sees dense attention.
        `place_BA`: the queries asked for, in rows of one document each; the result is [B, A, D].
        """
        B, T, _ = x_BTD.shape
        heads = self.qkv(x_BTD).view(B, T, -1, self.d_head)
        # q and k lie side by side: one pass turns and normalises both.
        qk, v_BTMH = heads.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=2)
        chooses = self.sparse if sparse else None
        # Before QK-norm, which gives all tokens the same norm; the rotation does not change norms.
        loud_BTX = (
            vector_norm(qk.detach(), dim=-1, dtype=torch.promote_types(qk.dtype, torch.float32)) if chooses else None
        )
        if self.qk_norm == "after_rope":
            qk = kernels.RotateNormFunction.apply(qk, *rope, self.qk_weight().to(qk.dtype), self.q_norm.eps)
        else:
            if self.qk_norm == "before_rope":
                qk = kernels.RMSNormFunction.apply(qk, self.qk_weight().to(qk.dtype), self.q_norm.eps)
            elif self.qk_norm == "full_width":
                q, k = qk.split((self.num_heads, self.num_kv_heads), dim=2)
                qk = torch.cat((self.q_norm(q.flatten(2)), self.k_norm(k.flatten(2))), dim=-1).view_as(qk)
            qk = kernels.RotateFunction.apply(qk, *rope)
        q_BTNH, k_BTMH = qk.split((self.num_heads, self.num_kv_heads), dim=2)
        if self.tap is not None:
            start_BT = None if len(bounds) == B + 1 else first_keys(bounds, B, T).to(x_BTD.device)
            self.tap(self.layer, Attended(q_BTNH, k_BTMH, self.scale, self.window, start_BT=start_BT))
        if chooses:
            y_BTNH = chooses.attend(q_BTNH, k_BTMH, v_BTMH, self.scale, bounds, loud_BTX)
            y_BTNH = y_BTNH if place_BA is None else picked(y_BTNH, place_BA)
        elif place_BA is not None:
            y_BTNH = attend_at(picked(q_BTNH, place_BA), k_BTMH, v_BTMH, self.scale, place_BA, self.window)
        else:
            # v alone: as a view it would keep all of qkv for the backward pass.
            v_BTMH = v_BTMH.contiguous()
            y_BTNH = self.comm.attend(attend, q_BTNH, k_BTMH, v_BTMH, self.scale, bounds, self.window)
        if self.gate_N is not None:
            y_BTNH = y_BTNH * self.gate_N[:, None].to(y_BTNH.dtype)
        return self.out(y_BTNH.flatten(2))

    def qk_weight(self) -> Tensor:
        """The QK-norm weights of the heads of q, then of k, [N + M, H]."""
        q, k = self.q_norm.weight.expand(self.num_heads, -1), self.k_norm.weight.expand(self.num_kv_heads, -1)
        return torch.cat((q, k))


def first_keys(bounds: Tensor, B: int, T: int) -> Tensor:
    """[B, T] int64: for each token, the index in its row of its document's first token. No document spans two rows."""
    return (bounds[:-1] % T).repeat_interleave(bounds.diff()).view(B, T)


def attend(
    q_BTNH: Tensor, k_BTMH: Tensor, v_BTMH: Tensor, scale: float, bounds: Tensor, window: int | None = None
) -> Tensor:
    """[B, T, N, H]: causal attention inside each document, to the last `window` tokens if a window is given.

    `bounds` [documents + 1] int64 on the CPU.
    """
    if q_BTNH.is_cuda and takes_varlen(q_BTNH, bounds, window):
        return attend_varlen(q_BTNH, k_BTMH, v_BTMH, scale, bounds, window)
    return attend_by_document(q_BTNH, k_BTMH, v_BTMH, scale, bounds, window)


def attend_by_document(
    q_BTNH: Tensor, k_BTMH: Tensor, v_BTMH: Tensor, scale: float, bounds: Tensor, window: int | None = None
) -> Tensor:
    """[B, T, N, H]: as `attend`, with one call for each run of documents of equal length, on any device."""
    gqa = q_BTNH.shape[2] != k_BTMH.shape[2]

    def dense(*heads_GTXH: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in heads_GTXH)
        if window is None or q.shape[2] <= window:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa).transpose(1, 2)
        return banded(q, k, v, scale, window).transpose(1, 2)

    return by_document(dense, bounds, q_BTNH, k_BTMH, v_BTMH)


def takes_varlen(q_BTNH: Tensor, bounds: Tensor, window: int | None) -> bool:
    """Whether `attend_varlen` takes these rows and saves calls. Rows of one document each are a single call anyway."""
    half = q_BTNH.dtype in (torch.bfloat16, torch.float16) and q_BTNH.shape[-1] in VARLEN_WIDTHS
    return half and (len(bounds) > len(q_BTNH) + 1 or window is not None)


def attend_varlen(
    q_BTNH: Tensor,
    k_BTMH: Tensor,
    v_BTMH: Tensor,
    scale: float,
    bounds: Tensor,
    window: int | None = None,
    kernel: Callable[..., Any] = varlen_attn,
) -> Tensor:
    """[B, T, N, H]: as `attend`, in one call of `kernel` for all documents of all rows.

    The kernel counts a window as the number of tokens to the left of the query's own: `window` - 1.
    """
    longest = int(bounds.diff().max())  # on the CPU, so nothing waits for a GPU
    offsets = sent(bounds.to(torch.int32), q_BTNH.device)
    left = -1 if window is None or window >= longest else window - 1
    q, k, v = (x.flatten(0, 1) for x in (q_BTNH, k_BTMH, v_BTMH))
    gqa = q.shape[1] != k.shape[1]
    y: Tensor = kernel(q, k, v, offsets, offsets, longest, longest, scale=scale, window_size=(left, 0), enable_gqa=gqa)
    return y.unflatten(0, q_BTNH.shape[:2])


def sent(x: Tensor, device: torch.device) -> Tensor:
    """`x` on the device, through pinned memory on a GPU: copying pageable memory waits for all queued work."""
    pinned = device.type == "cuda" and torch.cuda.is_available()
    return (x.pin_memory() if pinned else x).to(device, non_blocking=True)


def by_document(function: Callable[..., Tensor], bounds: Tensor, *inputs_BTX: Tensor) -> Tensor:
    """[B, T, ...]: the results of `function` on each document's part of the inputs, each [G, length, ...].

    G neighbouring documents of equal length share a call, so rows of one document each are a single call.
    """
    B, T = inputs_BTX[0].shape[:2]
    flat = [x.flatten(0, 1) for x in inputs_BTX]
    values, counts = bounds.diff().unique_consecutive(return_counts=True)
    pieces, start = [], 0
    for length, count in zip(values.tolist(), counts.tolist(), strict=True):
        stop = start + length * count
        pieces.append(function(*(x[start:stop].unflatten(0, (count, length)) for x in flat)).flatten(0, 1))
        start = stop
    y_RX = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return y_RX.unflatten(0, (B, T))


def attend_at(
    q_BANH: Tensor, k_BTMH: Tensor, v_BTMH: Tensor, scale: float, place_BA: Tensor, window: int | None = None
) -> Tensor:
    """[B, A, N, H]: as `attend` in rows of one document each, for the queries at `place_BA` alone."""
    age_BAT = place_BA[..., None] - torch.arange(k_BTMH.shape[1], device=place_BA.device)
    seen_BAT = (age_BAT >= 0) if window is None else (age_BAT >= 0) & (age_BAT < window)
    q, k, v = (x.transpose(1, 2) for x in (q_BANH, k_BTMH, v_BTMH))
    gqa = q.shape[1] != k.shape[1]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_BAT[:, None], scale=scale, enable_gqa=gqa)
    return y.transpose(1, 2)


def attend_pieces(
    q_BSNH: Tensor,
    k_BTMH: Tensor,
    v_BTMH: Tensor,
    scale: float,
    bounds: Tensor,
    window: int | None,
    starts: Sequence[int],
) -> Tensor:
    """[B, S, N, H]: as `attend`, for S of the T tokens of each row: pieces of equal length that begin at `starts`.

    Keys, values and `bounds` cover all T tokens of each row.
    """
    (B, S, N, _), T = q_BSNH.shape, k_BTMH.shape[1]
    size, rows = S // len(starts), []
    for row in range(B):
        for index, first in enumerate(starts):
            low, high = row * T + first, row * T + first + size
            for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                begin, end = max(start, low) - row * T, min(stop, high) - row * T
                if begin >= end:
                    continue
                shift = index * size - first
                q = q_BSNH[row, begin + shift : end + shift].transpose(0, 1)[None]
                k, v = (x[row, start - row * T : end].transpose(0, 1)[None] for x in (k_BTMH, v_BTMH))
                seen: Tensor = causal_lower_right(end - begin, k.shape[2])
                if window is not None and k.shape[2] > window:
                    place = torch.arange(k.shape[2], device=q.device)
                    query = place[-(end - begin) :, None]
                    seen = (place <= query) & (place > query - window)
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=N != k.shape[1])
                rows.append(y[0].transpose(0, 1))
    return torch.cat(rows).view_as(q_BSNH)


def banded(q_BNTH: Tensor, k_BMTH: Tensor, v_BMTH: Tensor, scale: float, window: int) -> Tensor:
    """[B, N, T, H]: causal attention to the last `window` < T tokens; time and memory grow with T x window."""
    (B, N, T, _), M = q_BNTH.shape, k_BMTH.shape[1]
    # The window does not restrict the first `window` queries.
    q, k, v = (x[:, :, :window] for x in (q_BNTH, k_BMTH, v_BMTH))
    first_BNTH = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=N != M)
    size = max(SMALLEST_BLOCK, window // 2)
    # Pad the end to fill the last block: no real query sees the padding, and its own output is dropped.
    q, k, v = (F.pad(x, (0, 0, 0, -(T - window) % size)) for x in (q_BNTH[:, :, window:], k_BMTH, v_BMTH))
    q = q.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1)
    k, v = (x.unfold(2, window + size, size).permute(0, 2, 1, 4, 3).flatten(0, 1) for x in (k, v))
    key, query = torch.arange(window + size, device=q.device), torch.arange(size, device=q.device)[:, None]
    seen = (key > query) & (key <= query + window)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=N != M)
    y_BNTH = y.unflatten(0, (B, -1)).transpose(1, 2).flatten(2, 3)[:, :, : T - window]
    return torch.cat((first_BNTH, y_BNTH), dim=2)
