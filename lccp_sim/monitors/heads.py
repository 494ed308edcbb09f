"""Retrieval heads: how much of an answer each head copies from the needle.

Heads are scored in a forward that a monitor makes anyway. For each answer token y_p only the attention row of the query
at p-1 is formed (the row that predicts y_p): |answer| x S numbers per head, one item at a time so that they stay in the
cache. Design note: items count whether or not they are answered correctly, unlike in the score's original definition,
because such gating would bias early checkpoints.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lccp_sim.models.language_model import Attended
from lccp_sim.monitors.values import Moment, Tags, Value, mean_and_stderr
from lccp_sim.records import Record, Tag

HEAD_METRICS = ("copy_hard_frac", "copy_soft_frac", "needle_mass_frac", "sink_mass_frac", "copy_null_frac")


class CopyTap:
    """A tap that collects the copy scores of every head as `scores` [items, layers, heads, metrics].

    copy_hard: share of answer tokens whose argmax key lies in the needle and is the same token (arXiv 2404.15574,
    section 2; arXiv 2604.02650, section 6). copy_soft: attention mass on such keys. needle_mass: mass on the needle.
    sink_mass: mass on position 0. copy_null: copy_hard of the same rows with the needle's tokens permuted (one
    permutation per item, seeded by the needle): the chance score of a head that attends to the needle but not to the
    right token. `answers` and `needles` are spans [start, stop) of `tokens_BS`, the sequences of the forward. Only the
    sequences at the indices `items` are scored.
    """

    def __init__(
        self, tokens_BS: Tensor, answers: list[tuple[int, int]], needles: list[tuple[int, int]], items: list[int]
    ):
        self.items, self.answers, self.needles = items, answers, needles
        self.same_AW: dict[int, Tensor] = {}  # which needle tokens equal the answer token, by item
        self.null_AW: dict[int, Tensor] = {}
        for i in items:
            answer_A, needle_W = tokens_BS[i, slice(*answers[i])], tokens_BS[i, slice(*needles[i])]
            shuffled = np.random.default_rng(needle_W.tolist()).permutation(len(needle_W))
            self.same_AW[i] = answer_A[:, None] == needle_W
            self.null_AW[i] = answer_A[:, None] == needle_W[torch.from_numpy(shuffled)]
        self.layers: list[np.ndarray] = []

    def __call__(self, layer: int, attended: Attended) -> None:
        """Score the heads of one layer."""
        scores = [self._score(i, attended) for i in self.items]
        self.layers.append(torch.stack(scores).cpu().numpy())

    def _score(self, item: int, attended: Attended) -> Tensor:
        (first, stop), (start, end) = self.answers[item], self.needles[item]
        rows_NAS = attended.rows(item, first - 1, stop - 1)
        same_AW, null_AW = (each[item].to(rows_NAS.device) for each in (self.same_AW, self.null_AW))
        needle_NAW = rows_NAS[..., start:end]
        top_NAW = rows_NAS.argmax(-1, keepdim=True) - start == torch.arange(end - start, device=rows_NAS.device)
        hard_NA, null_NA = ((top_NAW & each).any(-1) for each in (same_AW, null_AW))
        soft_NA, mass_NA = (needle_NAW * same_AW).sum(-1), needle_NAW.sum(-1)
        return torch.stack((hard_NA, soft_NA, mass_NA, rows_NAS[..., 0], null_NA), dim=-1).mean(1)

    @property
    def scores(self) -> np.ndarray:
        """[items, layers, heads, metrics] fp32, in the order of HEAD_METRICS."""
        return np.stack(self.layers, axis=1)


def head_records(
    scores: np.ndarray, metrics: Sequence[str], moment: Moment, tags: Mapping[str, Tag] | None = None
) -> list[Record]:
    """Average scores [items, layers, heads, metrics] over items: `heads` records by {layer, head, **tags}."""
    records = []
    for layer, head in np.ndindex(scores.shape[1:3]):
        for x, metric in enumerate(metrics):
            numbers = scores[:, layer, head, x].astype(float).tolist()
            mean, stderr = mean_and_stderr(numbers)
            place: Tags = {"layer": layer, "head": head, **(tags or {})}
            records.append(Record(*moment, "mechanistic", "heads", metric, mean, len(numbers), stderr, place))
    return records


def answer_tokens_record(
    answer_tokens: int, items: int, moment: Moment, tags: Mapping[str, Tag] | None = None
) -> Record:
    """Record the number of answer tokens, over all items, behind each head's score."""
    return Record(*moment, "mechanistic", "heads", "answer_tokens_count", float(answer_tokens), items, None, tags or {})


def head_samples(items: Sequence[str], scores: np.ndarray, tags: Mapping[str, Tag] | None = None) -> list[Value]:
    """Return the hard copy score of each item and head, from `scores` [items, layers, heads, metrics]."""
    return [
        Value("heads", "copy_hard_frac", item, {"layer": layer, "head": head, **(tags or {})}, float(score))
        for item, of_item in zip(items, scores, strict=True)
        for (layer, head), score in np.ndenumerate(of_item[..., 0])
    ]
