"""Retrieval heads: how much of an answer each head copies out of the needle.

Scored from the forward that the needle monitor makes anyway: for each answer token y_p only the attention row of the
query at p-1 is formed (the row that predicts y_p), |answer| x S numbers a head, one item at a time so that they stay in
the cache. No success gating: it would bias early checkpoints.
"""

import numpy as np
import torch
from torch import Tensor

from lccp_sim.models.language_model import Attended

METRICS = ("copy_hard_frac", "copy_soft_frac", "needle_mass_frac", "sink_mass_frac")


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
        self.items, self.answers, self.needles = items, answers, needles
        self.same_AW = {  # which needle tokens are the answer token, by item
            i: tokens_BS[i, slice(*answers[i]), None] == tokens_BS[i, None, slice(*needles[i])] for i in items
        }
        self.layers: list[np.ndarray] = []

    def __call__(self, layer: int, attended: Attended) -> None:
        """Scores of one layer."""
        scores = [self._score(i, attended) for i in self.items]
        self.layers.append(torch.stack(scores).cpu().numpy())

    def _score(self, item: int, attended: Attended) -> Tensor:
        (first, stop), (start, end) = self.answers[item], self.needles[item]
        rows_NAS = attended.rows(item, first - 1, stop - 1)
        same_AW = self.same_AW[item].to(rows_NAS.device)
        needle_NAW = rows_NAS[..., start:end]
        top_NA1 = rows_NAS.argmax(-1, keepdim=True) - start
        hard_NA = ((top_NA1 == torch.arange(end - start, device=top_NA1.device)) & same_AW).any(-1)
        soft_NA, mass_NA = (needle_NAW * same_AW).sum(-1), needle_NAW.sum(-1)
        return torch.stack((hard_NA, soft_NA, mass_NA, rows_NAS[..., 0]), dim=-1).mean(1)

    @property
    def scores(self) -> np.ndarray:
        """[items, layers, heads, metrics] fp32, in the order of METRICS."""
        return np.stack(self.layers, axis=1)
