"""Retrieval heads: how much of an answer each head copies out of the needle.

Scored from the forward that the needle monitor makes anyway: for each answer token y_p only the attention row of the
query at p-1 is formed (the row that predicts y_p), |answer| x S numbers a head. No success gating: it would bias early
checkpoints.
"""

import numpy as np
import torch
from torch import Tensor

from lccp_sim.models.taps import attention_rows
from lccp_sim.monitors.observing import pad, query_rows

METRICS = ("copy_hard_frac", "copy_soft_frac", "needle_mass_frac", "sink_mass_frac")
ROWS_LIMIT = 1 << 24  # numbers in the attention rows that are formed at a time


class CopyTap:
    """A tap that collects the four copy scores of every head: `scores` is [items, layers, heads, metrics] in the end.

    copy_hard: share of answer tokens whose argmax key lies in the needle and holds the very token (arXiv 2404.15574,
    section 2; arXiv 2604.02650, section 6). copy_soft: attention mass on such keys. needle_mass: mass on the needle.
    sink_mass: mass on position 0. `answers` and `needles` are spans [start, stop) of `tokens_BS`, the sequences of the
    forward; only those at the indices `items` are scored.
    """

    def __init__(
        self, tokens_BS: Tensor, answers: list[tuple[int, int]], needles: list[tuple[int, int]], items: list[int]
    ):
        self.items = torch.tensor(items)
        self.queries_BA, self.mask_BA = query_rows([answers[i] for i in items])
        needle, mask = pad([np.arange(*needles[i]) for i in items])
        self.needle_BW, self.needle_mask_BW = torch.from_numpy(needle), torch.from_numpy(mask)
        tokens_BS = tokens_BS[self.items]
        wanted_BA1 = tokens_BS.gather(1, self.queries_BA + 1)[:, :, None]
        held_B1W = tokens_BS.gather(1, self.needle_BW)[:, None, :]
        self.copy_BAW = (held_B1W == wanted_BA1) & self.needle_mask_BW[:, None, :]
        self.layers: list[np.ndarray] = []

    def __call__(self, layer: int, q_BTNH: Tensor, k_BTMH: Tensor, scale: float) -> None:
        """Scores of one layer, item by item in groups that bound the memory."""
        A, (_, S, N, _) = self.queries_BA.shape[1], q_BTNH.shape
        size = max(1, ROWS_LIMIT // (A * N * S))
        parts = [self._score(slice(i, i + size), q_BTNH, k_BTMH, scale) for i in range(0, len(self.items), size)]
        self.layers.append(torch.cat(parts).cpu().numpy())

    def _score(self, part: slice, q_BTNH: Tensor, k_BTMH: Tensor, scale: float) -> Tensor:
        device = q_BTNH.device
        items, queries_BA, copy_BAW = self.items[part], self.queries_BA[part].to(device), self.copy_BAW[part].to(device)
        rows_BNAS = attention_rows(q_BTNH[items], k_BTMH[items], scale, queries_BA)
        B, N, A, _ = rows_BNAS.shape
        columns_B11W = self.needle_BW[part, None, None].to(device)
        inside_BNAW = rows_BNAS.gather(-1, columns_B11W.expand(B, N, A, -1))
        top_BNA1 = rows_BNAS.argmax(-1, keepdim=True)
        hard_BNA = ((top_BNA1 == columns_B11W) & copy_BAW[:, None]).any(-1).float()
        soft_BNA = (inside_BNAW * copy_BAW[:, None]).sum(-1)
        mass_BNA = (inside_BNAW * self.needle_mask_BW[part, None, None].to(device)).sum(-1)
        scores_BNAX = torch.stack((hard_BNA, soft_BNA, mass_BNA, rows_BNAS[..., 0]), dim=-1)
        real_BA = self.mask_BA[part].to(device).float()
        return torch.einsum("bnax,ba->bnx", scores_BNAX, real_BA) / real_BA.sum(1)[:, None, None]

    @property
    def scores(self) -> np.ndarray:
        """[items, layers, heads, metrics] fp32, in the order of METRICS."""
        return np.stack(self.layers, axis=1)
