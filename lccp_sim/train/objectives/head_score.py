"""A control for training heads: fine-tuning in which the copy score of some heads is trained directly.

The loss adds to that on the answers -log of each chosen head's attention, from the query that predicts an answer's
token to that token in the context. This raises the score by construction. Bi-Induct (arXiv 2509.22947) found scores
that rise without ability: so this arm shows what a score alone is worth, and is judged by ablation.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from lccp_sim.config import Config
from lccp_sim.data.batch import Batch
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tasks.question import Lesson
from lccp_sim.data.tasks.teaching import Teacher
from lccp_sim.errors import refuse
from lccp_sim.models.language_model import Attended
from lccp_sim.models.taps import tapping
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors.intervention import Heads
from lccp_sim.monitors.observing import evaluating
from lccp_sim.train.objectives.head_choice import HeadChoice
from lccp_sim.train.objectives.objective import order_of, part
from lccp_sim.train.objectives.packed import batch_of
from lccp_sim.train.objectives.sft import Finetuning, Lessons, teacher_of

ADDED_ATTENTION = 1e-9  # added to an attention before its logarithm


@dataclass(frozen=True, kw_only=True)
class HeadScore(Finetuning):
    """Fine-tuning, and `score_weight` times the mean -log attention of the chosen `heads` on what they should copy."""

    heads: HeadChoice
    score_weight: Annotated[float, Gt(0)] = 0.1
    kind: Literal["head_score"] = "head_score"  # type: ignore[assignment]
    needs_weights: ClassVar[bool] = True

    def check(self, config: Config) -> None:
        """Raise ConfigError if the queries and keys of training cannot be tapped."""
        super().check(config)
        every, rule = config.run.recompute_every, "would count each attention of objective head_score twice; use null"
        refuse(every is not None, "run.recompute_every", every, rule)

    def rows(self, corpus: Corpus, config: Config, model: Transformer) -> "Copies":
        """Rows of texts, with the heads chosen from the starting weights."""
        with evaluating(model, config.run.precision == "bf16"):
            heads = self.heads.heads(corpus, model, order_of(config))
        teacher = teacher_of(self.tasks, self.haystack, corpus, self.text_tokens, self.questions)
        return Copies(self, teacher, config, heads)


@dataclass
class CopyBatch(Batch):
    """A Batch with `source_BT`, int64 [B, T]: the index in its row of the token that a target copies, or -1."""

    source_BT: np.ndarray | None = None


class Copies(Lessons):
    """Rows of fine-tuning texts with the source of each copied target."""

    def __init__(self, settings: HeadScore, teacher: Teacher, config: Config, heads: Heads):
        super().__init__(settings, teacher, config)
        self.heads, self.weight = heads, settings.score_weight

    def slice(self, index: int, rank: int, world: int, micro: int, num_micro: int) -> CopyBatch:
        """The part of step `index` for one micro-batch of a rank."""
        rows = part(self.step(index), rank, world, micro, num_micro)
        batch = batch_of(rows, [f"sft text of step {index + 1}"], self.width)
        source = np.full(batch.tokens_BT.shape, -1, dtype=np.int64)
        for b, row in enumerate(rows):
            at = 0
            for lesson in row:
                for target, place in copied(lesson):
                    source[b, at + target - 1] = at + place
                at += len(lesson.tokens)
        return CopyBatch(**vars(batch), source_BT=source)

    @contextmanager
    def penalty(self, model: Transformer, batch: Mapping[str, Any]) -> Iterator[Callable[[], Tensor]]:
        """Within the context, tap forwards; the yielded function returns the micro-batch's part of the penalty."""
        of_layer: dict[int, list[int]] = {}
        for layer, head in self.heads:
            of_layer.setdefault(layer, []).append(head)
        source_BT, terms = batch["source_BT"].cpu(), []

        def look(layer: int, attended: Attended) -> None:
            if layer not in of_layer:
                return
            for b, source_T in enumerate(source_BT):
                for start, stop in runs_of((source_T >= 0).numpy()):
                    row_NAS = attended.rows(b, start, stop)[of_layer[layer]]
                    key_A = source_T[start:stop].to(row_NAS.device)
                    mass_NA = row_NAS.gather(2, key_A.expand(len(row_NAS), -1)[..., None])[..., 0]
                    terms.append(-(mass_NA + ADDED_ATTENTION).log().sum())

        with tapping(model, look):
            yield lambda: self.weight * sum(terms, start=torch.zeros(())) / (len(self.heads) * batch["target_count"])


def copied(lesson: Lesson) -> Iterator[tuple[int, int]]:
    """For each answer that occurs verbatim in the text before it: each token's index, and its index there."""
    for start, stop in lesson.answers:
        wanted = lesson.tokens[start : stop - 1]  # without the stop
        before = np.lib.stride_tricks.sliding_window_view(lesson.tokens[:start], len(wanted))
        found = np.flatnonzero((before == wanted).all(1))
        if len(found):
            yield from ((start + i, int(found[0]) + i) for i in range(len(wanted)))


def runs_of(true_T: np.ndarray) -> list[tuple[int, int]]:
    """[start, stop) of each stretch of true elements."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], true_T, [False])).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
