"""Next-token prediction on the mixture of the sources, optionally with more weight on targets with a long context.

EXACT (arXiv 2605.10544) gives targets with a long effective context, inside their own document, an extra loss weight,
in logarithmic buckets and spread by inverse frequency. Design note: its constants are not followed; the weight is a
setting. Bucket sizes are counted on the run's own first batches, so a step stays a function of (seed, step).
"""

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Gt

from lccp_sim.config import Config, NonNegative
from lccp_sim.data.batch import Batch, Feed
from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.models.transformer import Transformer
from lccp_sim.train.objectives.objective import Objective, order_of, rows_of_step

COUNTED_BATCHES = 32  # batches whose targets give the buckets' frequencies


@dataclass(frozen=True, kw_only=True)
class LanguageModelling(Objective):
    """The next token. `far_weight`: extra loss, relative to the plain loss, of targets after `far_tokens` tokens.

    0: none. A target counts 1 + e. The buckets [far_tokens 2^b, far_tokens 2^(b + 1)) of context that occur have equal
    sums of e, in total `far_weight` times the number of targets. The loss is divided by 1 + far_weight.
    """

    far_weight: NonNegative = 0.0
    far_tokens: Annotated[int, Gt(0)] | None = None
    kind: Literal["lm"] = "lm"
    reads_pools: ClassVar[bool] = True

    def __post_init__(self) -> None:
        rule = "goes with objective.far_weight above 0, which needs it"
        refuse((self.far_tokens is not None) != (self.far_weight > 0), "objective.far_tokens", self.far_tokens, rule)

    def check(self, config: Config) -> None:
        """Raise ConfigError if no target of a row is far, or positions do not show where a document begins."""
        if self.far_tokens is None:
            return
        rule = f"no target of a row of run.context_tokens={config.run.context_tokens} has that much context; lower it"
        refuse(self.far_tokens >= config.run.context_tokens, "objective.far_tokens", self.far_tokens, rule)
        told = config.data.document_mask and config.data.reset_positions
        rule = "is measured inside documents; set data.document_mask and data.reset_positions to true"
        refuse(not told, "objective.far_weight", self.far_weight, rule)

    def rows(self, corpus: Corpus, config: Config, model: Transformer | None) -> "Feed | FarFeed":
        """The batches of the mixture."""
        feed = feed_of(corpus, config)
        return feed if self.far_tokens is None else FarFeed(feed, self.far_tokens, self.far_weight)


def feed_of(corpus: Corpus, config: Config) -> Feed:
    """The batches of a run on the mixture of its sources."""
    d = config.data
    rows = rows_of_step(config)
    return Feed(corpus, config.run.context_tokens, rows, order_of(config), d.document_mask, d.reset_positions)


class FarFeed:
    """The rows of a Feed, with more loss on targets that have a long context in their document."""

    live = False
    penalty = None

    def __init__(self, feed: Feed, far_tokens: int, weight: float):
        self.feed, self.far_tokens, self.weight = feed, far_tokens, weight
        counts: Counter[int] = Counter()
        for index in range(COUNTED_BATCHES):
            batch = feed.batch(index)
            counts.update(self._bucket(batch)[batch.learn_BT].tolist())
        total, far = counts.total(), {bucket: count for bucket, count in counts.items() if bucket >= 0}
        if not far:
            raise ConfigError(f"objective.far_tokens={far_tokens}: no document of the mixture is that long; lower it")
        extra = {bucket: weight * total / (len(far) * count) for bucket, count in far.items()}
        # A bucket that is absent from the counted batches is rare: it gets the weight of the rarest counted bucket.
        self.extra = np.array([0.0, *(extra.get(b, max(extra.values())) for b in range(max(far) + 1))])

    def _bucket(self, batch: Batch) -> np.ndarray:
        """The bucket of each target, int64 [B, T]; -1: not far."""
        context_BT = batch.positions_BT + 1
        return np.where(context_BT < self.far_tokens, -1, np.log2(context_BT / self.far_tokens).astype(np.int64))

    def slice(self, index: int, rank: int, world: int, micro: int, num_micro: int) -> Batch:
        """The part of batch `index`, as in Feed, with the factors."""
        batch = self.feed.slice(index, rank, world, micro, num_micro)
        bucket_BT = np.minimum(self._bucket(batch), len(self.extra) - 2)
        batch.factor_BT = ((1 + self.extra[bucket_BT + 1]) / (1 + self.weight)).astype(np.float32)
        return batch

    def target_count(self, index: int) -> int:
        """Learned targets of the global batch."""
        return self.feed.target_count(index)
