"""Retrieval heads: how much of an answer each head copies out of the needle.

Scored from the forward that the needle monitor makes anyway: for each answer token y_p only the attention row of the
query at p-1 is formed (the row that predicts y_p), |answer| x S numbers a head. No success gating: it would bias early
checkpoints.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lccp_sim.models.taps import attention_rows
from lccp_sim.monitors.observing import query_rows

METRICS = ("copy_hard_frac", "copy_soft_frac", "needle_mass_frac", "sink_mass_frac")
ROWS_LIMIT = 1 << 24


class CopyTask(NamedTuple):
    """Where to look in a batch of sequences: answer spans [start, stop), and needle spans of equal sequences."""

    tokens_BS: Tensor
    answers: list[tuple[int, int]]
    needles: list[tuple[int, int]]


class CopyTap:
    """A tap that collects the four copy scores of every head: `scores` is [items, layers, heads, metrics] in the end.

    copy_hard: share of answer tokens whose argmax key lies in the needle and holds the very token (arXiv 2404.15574,
    section 2; arXiv 2604.02650, section 6). copy_soft: attention mass on such keys. needle_mass: mass on the needle.
    sink_mass: mass on position 0.
    """

    def __init__(self, task: CopyTask):
        self.queries_BA, self.mask_BA = query_rows(task.answers)
        tokens_BS = task.tokens_BS
        place_S = torch.arange(tokens_BS.shape[1])
        bounds = torch.tensor(task.needles)
        self.needle_BS = (place_S >= bounds[:, :1]) & (place_S < bounds[:, 1:])
        wanted_BA = tokens_BS.gather(1, self.queries_BA + 1)
        self.copy_BAS = (tokens_BS[:, None, :] == wanted_BA[:, :, None]) & self.needle_BS[:, None, :]
        self.layers: list[np.ndarray] = []

    def __call__(self, layer: int, q_BTNH: Tensor, k_BTMH: Tensor, scale: float) -> None:
        """Scores of one layer, item by item in groups that bound the memory."""
        A, (B, S, N, _) = self.queries_BA.shape[1], q_BTNH.shape
        size = max(1, ROWS_LIMIT // (A * N * S))
        parts = [self._score(slice(i, i + size), q_BTNH, k_BTMH, scale) for i in range(0, B, size)]
        self.layers.append(torch.cat(parts).cpu().numpy())

    def _score(self, items: slice, q_BTNH: Tensor, k_BTMH: Tensor, scale: float) -> Tensor:
        S, device = q_BTNH.shape[1], q_BTNH.device
        rows_BNAS = attention_rows(q_BTNH[items], k_BTMH[items], scale, self.queries_BA[items].to(device))
        copy_BAS = self.copy_BAS[items, :, :S].to(device)
        needle_BS = self.needle_BS[items, :S].to(device)
        top_BNA = rows_BNAS.argmax(-1)
        hard = copy_BAS[:, None].expand_as(rows_BNAS).gather(-1, top_BNA[..., None]).squeeze(-1).float()
        soft = torch.einsum("bnas,bas->bna", rows_BNAS, copy_BAS.float())
        mass = torch.einsum("bnas,bs->bna", rows_BNAS, needle_BS.float())
        scores_BNAX = torch.stack((hard, soft, mass, rows_BNAS[..., 0]), dim=-1)
        real_BA = self.mask_BA[items].to(device).float()
        total = torch.einsum("bnax,ba->bnx", scores_BNAX, real_BA)
        return total / real_BA.sum(1)[:, None, None]

    @property
    def scores(self) -> np.ndarray:
        """[items, layers, heads, metrics] fp32, in the order of METRICS."""
        return np.stack(self.layers, axis=1)
