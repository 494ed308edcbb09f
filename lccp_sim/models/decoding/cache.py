"""A cache of keys and values, which attention reaches through its `comm`.

A prompt passes through the model like any row, and its keys and values are kept. Then each forward takes one token per
row, which sees them. Rows may differ in length: each writes at its own position, over the padding of its prompt.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from lccp_sim.models.comm import Comm
from lccp_sim.models.transformer import Transformer


class LayerCache(Comm):
    """One layer's keys and values, [B, S + room, M, H]. `length_B` (int64): the number of tokens of each prompt."""

    def __init__(self, length_B: Tensor, room: int):
        self.length_B, self.room, self.written = length_B, room, 0
        self.k_BSMH = self.v_BSMH = torch.empty(0)

    def attend(
        self,
        local: Callable[..., Tensor],
        q_BTNH: Tensor,
        k_BTMH: Tensor,
        v_BTMH: Tensor,
        scale: float,
        bounds: Tensor,
        window: int | None = None,
    ) -> Tensor:
        """[B, T, N, H]: the prompts' attention at the first call, then that of one more token per row (T = 1)."""
        if not self.k_BSMH.numel():
            self.k_BSMH, self.v_BSMH = (F.pad(x, (0, 0, 0, 0, 0, self.room)) for x in (k_BTMH, v_BTMH))
            return local(q_BTNH, k_BTMH, v_BTMH, scale, bounds, window)
        row_B, place_B = torch.arange(len(q_BTNH), device=q_BTNH.device), self.length_B + self.written
        self.k_BSMH[row_B, place_B], self.v_BSMH[row_B, place_B] = k_BTMH[:, 0], v_BTMH[:, 0]
        self.written += 1
        key_S = torch.arange(self.k_BSMH.shape[1], device=q_BTNH.device)
        seen_BS = key_S <= place_B[:, None]
        if window is not None:
            seen_BS &= key_S > place_B[:, None] - window
        q, k, v = (x.transpose(1, 2) for x in (q_BTNH, self.k_BSMH, self.v_BSMH))
        gqa = q.shape[1] != k.shape[1]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_BS[:, None, None], scale=scale, enable_gqa=gqa)
        return y.transpose(1, 2)

    def repeat(self, times: int) -> None:
        """Repeat each prompt as `times` consecutive rows."""
        self.length_B = self.length_B.repeat_interleave(times)
        self.k_BSMH, self.v_BSMH = (x.repeat_interleave(times, dim=0) for x in (self.k_BSMH, self.v_BSMH))


@contextmanager
def caching(model: Transformer, length_B: Tensor, room: int) -> Iterator[list[LayerCache]]:
    """Within the context, cache keys and values: of prompts of these lengths, then of up to `room` tokens."""
    attentions = [block.attention for block in model.layers]
    before, caches = [each.comm for each in attentions], [LayerCache(length_B, room) for _ in attentions]
    for attention, cache in zip(attentions, caches, strict=True):
        attention.comm = cache
    try:
        yield caches
    finally:
        for attention, comm in zip(attentions, before, strict=True):
            attention.comm = comm
