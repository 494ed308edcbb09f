"""Batch i as a pure function of (seed, i), and its part for one rank and micro-batch.

There is no loader state: resume is exact, and the data are the same at any world size. Attention segments travel as
offsets over the flattened rows, the form that variable-length attention reads; a mask is never built.
"""

from dataclasses import dataclass

import numpy as np

from lccp_sim.data.mixture import rows_of
from lccp_sim.data.packing import PAD, SKIP, START
from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError


@dataclass
class Batch:
    """Rows of a batch. int64 [B, T]: tokens, their targets one ahead, positions; bool [B, T]: targets to learn.

    `bounds`, int64 [segments + 1], are offsets of attention segments over the flattened B * T tokens, from 0 to B * T;
    a segment never crosses a row. `names` are the documents, for messages. `text_BT`, bool [B, T], is false at padding;
    None if the corpus has no padding. `factor_BT`, fp32 [B, T], multiplies each target's loss (None: 1).
    """

    tokens_BT: np.ndarray
    targets_BT: np.ndarray
    learn_BT: np.ndarray
    positions_BT: np.ndarray
    bounds: np.ndarray
    names: list[str]
    text_BT: np.ndarray | None = None
    factor_BT: np.ndarray | None = None


class Feed:
    """Batches of `rows` rows. `document_mask` off: one segment per row; `reset_positions` off: 0 ... T - 1."""

    live = False  # the rows do not depend on the weights
    penalty = None

    def __init__(
        self, corpus: Corpus, context_tokens: int, rows: int, seed: int, document_mask: bool, reset_positions: bool
    ) -> None:
        if rows < 1:
            raise ConfigError(f"a batch of {rows} rows: run.batch_tokens must be at least run.context_tokens")
        self.corpus, self.context_tokens, self.rows, self.seed = corpus, context_tokens, rows, seed
        self.document_mask, self.reset_positions = document_mask, reset_positions
        self._sizes = [len(pool) for pool in corpus.pools]
        self._padded = any(pool.packed.padding_tokens for pool in corpus.pools)

    def batch(self, index: int) -> Batch:
        """The global batch: rows [index * R, (index + 1) * R)."""
        return self._rows(index * self.rows, (index + 1) * self.rows)

    def slice(self, index: int, rank: int, world: int, micro: int, num_micro: int) -> Batch:
        """The part of batch `index` for one micro-batch of a rank; joined by (rank, micro), the parts are the batch."""
        size, rest = divmod(self.rows, world * num_micro)
        if rest:
            raise ConfigError(f"{self.rows} rows a batch do not divide by {world} ranks x {num_micro} micro-batches")
        first = index * self.rows + (rank * num_micro + micro) * size
        return self._rows(first, first + size)

    def target_count(self, index: int) -> int:
        """Learned targets of the global batch, the divisor of its loss. Padding does not count."""
        pools, items = self._where(index * self.rows, (index + 1) * self.rows)
        return sum(
            int(self._learn(self.corpus.pools[pool].flags[item]).sum()) for pool, item in zip(pools, items, strict=True)
        )

    def _where(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        return rows_of(first, last, self.corpus.mixture, self._sizes, self.seed)

    def _learn(self, flags: np.ndarray) -> np.ndarray:
        """A target is learned unless it is marked or starts another document that this one cannot see."""
        return (flags[..., 1:] & (SKIP | START if self.document_mask else SKIP)) == 0

    def _rows(self, first: int, last: int) -> Batch:
        pools, items = self._where(first, last)
        chosen = [(self.corpus.pools[pool], int(item)) for pool, item in zip(pools, items, strict=True)]
        ids = np.stack([pool.rows_ids[item] for pool, item in chosen]).astype(np.int64)
        flags = np.stack([pool.flags[item] for pool, item in chosen])
        rows, width = len(ids), self.context_tokens
        starts = (flags[:, :-1] & START) != 0
        starts[:, 0] = True
        along = np.broadcast_to(np.arange(width), (rows, width))
        since = np.maximum.accumulate(np.where(starts, along, 0), axis=1)
        if self.document_mask:
            bounds = np.append(np.flatnonzero(starts), rows * width)
        else:
            bounds = np.arange(0, rows * width + 1, width)
        return Batch(
            tokens_BT=ids[:, :-1].copy(),
            targets_BT=ids[:, 1:].copy(),
            learn_BT=self._learn(flags),
            positions_BT=along - since if self.reset_positions else along.copy(),
            bounds=bounds,
            names=[name for pool, item in chosen for name in pool.names(item)],
            text_BT=(flags[:, :-1] & PAD) == 0 if self._padded else None,
        )
