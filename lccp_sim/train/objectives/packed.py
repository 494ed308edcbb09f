"""Rows of texts as a Batch, and real text from the training rows to hide needles in."""

from collections.abc import Sequence

import numpy as np

from lccp_sim.data.batch import Batch
from lccp_sim.data.documents.document import Filler
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tasks.question import Lesson
from lccp_sim.data.tasks.teaching import lay
from lccp_sim.errors import ConfigError, nearest


def batch_of(
    rows: Sequence[Sequence[Lesson]],
    names: list[str],
    width: int | None = None,
    factors: Sequence[float] | None = None,
) -> Batch:
    """Rows of texts; only their answers are learnt. `width`: target positions of a row (None: as many as needed).

    `factors`: the factor of each row's loss (None: 1).
    """
    laid = lay(rows, None if width is None else width + 1)
    start = laid.start[:, :-1].copy()
    start[:, 0] = True
    along = np.broadcast_to(np.arange(start.shape[1]), start.shape)
    since = np.maximum.accumulate(np.where(start, along, 0), axis=1)
    learn = laid.answer[:, 1:]
    factor = None if factors is None else np.repeat(np.asarray(factors, np.float32)[:, None], learn.shape[1], axis=1)
    return Batch(
        tokens_BT=laid.ids[:, :-1].copy(),
        targets_BT=laid.ids[:, 1:].copy(),
        learn_BT=learn.copy(),
        positions_BT=along - since,
        bounds=np.append(np.flatnonzero(start), start.size),
        names=names,
        # A row's last token predicts nothing. As text, it would count in the router's losses except in the longest row.
        text_BT=laid.text[:, 1:].copy(),
        factor_BT=factor,
    )


def training_text(corpus: Corpus, source: str, key: str) -> Filler:
    """Draw stretches of a source's training rows, without tokens that begin documents. Raises ConfigError."""
    pools = [pool for pool in corpus.pools if pool.source == source and len(pool)]
    if not pools:
        known = sorted({pool.source for pool in corpus.pools})
        rule = f"is not a trained source of this run; there are {', '.join(known)}{nearest(source, known)}"
        raise ConfigError(f"{key}={source!r}: {rule}")
    sizes = np.array([len(pool) for pool in pools])

    def fill(rng: np.random.Generator, length: int) -> np.ndarray:
        found, have = [np.zeros(0, np.int64)], 0
        while have < length:
            pool = pools[int(rng.choice(len(pools), p=sizes / sizes.sum()))]
            ids = np.asarray(pool.rows_ids[int(rng.integers(len(pool)))], dtype=np.int64)
            ids = ids[ids != corpus.bos]
            first = int(rng.integers(max(1, len(ids) - (length - have) + 1)))
            found.append(ids[first : first + length - have])
            have += len(found[-1])
        return np.concatenate(found)

    return fill
