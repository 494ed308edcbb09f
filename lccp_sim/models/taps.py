"""Taps: a monitor sees each layer's q and k as the softmax sees them.

Only the rows of the queries that a monitor asks about are ever formed: |answer| x S numbers per head, never S x S.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lccp_sim.models.attention import Attention, Tap
from lccp_sim.models.transformer import Transformer


@contextmanager
def tapping(model: Transformer, tap: Tap) -> Iterator[None]:
    """While it is open, every forward calls `tap(layer, q_BTNH, k_BTMH, scale)` once a layer."""
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    for layer in layers:
        layer.tap = tap
    try:
        # A compiled graph would skip the taps without a word.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for layer in layers:
            layer.tap = None


def attention_rows(q_BTNH: Tensor, k_BTMH: Tensor, scale: float, queries_BA: Tensor) -> Tensor:
    """Causal attention of the queries at `queries_BA`: [B, N, A, S] fp32, rows sum to 1. One document a row."""
    B, S, M, H = k_BTMH.shape
    A = queries_BA.shape[1]
    index = queries_BA[:, :, None, None].expand(-1, -1, *q_BTNH.shape[2:])
    q_BMGAH = q_BTNH.gather(1, index).float().unflatten(2, (M, -1)).permute(0, 2, 3, 1, 4)
    k_BMSH = k_BTMH.float().transpose(1, 2)
    logits = (q_BMGAH.reshape(B, M, -1, H) @ k_BMSH.transpose(2, 3)).view(B, -1, A, S) * scale
    future = torch.arange(S, device=logits.device) > queries_BA[:, None, :, None]
    return logits.masked_fill_(future, float("-inf")).softmax(-1)
