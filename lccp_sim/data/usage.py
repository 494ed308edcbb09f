"""What a run will draw from each pool, computed in advance: rows, epochs, shares, split documents, padding.

The rows are counted, not estimated: the mixture determines the exact number of each pool's rows among the first n.
"""

from dataclasses import dataclass

from lccp_sim.data.placement import Packed
from lccp_sim.data.pools import Corpus

EPOCHS = 4.0  # passes over a pool above which a run is told so


@dataclass(frozen=True)
class Usage:
    """The use of a pool by a run: `rows` drawn, `size` available, shares at start and end."""

    source: str
    bucket: str
    packed: Packed
    size: int
    rows: int
    share_start: float
    share_end: float
    positions: int

    @property
    def epochs(self) -> float:
        """Passes over the pool; 0.5 means that half of it is seen once."""
        return self.rows / self.size

    @property
    def cut_documents_frac(self) -> float:
        """The share of its documents that are split into several parts."""
        return self.packed.cut_documents / max(self.packed.documents, 1)

    @property
    def cut_tokens_frac(self) -> float:
        """The share of its tokens in documents that are split into several parts."""
        return self.packed.cut_tokens / max(self.packed.tokens, 1)

    @property
    def padding_frac(self) -> float:
        """The share of the positions in its rows without text."""
        return self.packed.padding_tokens / self.positions


def usage(corpus: Corpus, rows: int) -> list[Usage]:
    """The use of each pool by the first `rows` rows of a run, in the order of the pools."""
    start, end, drawn = (corpus.mixture.at(0), corpus.mixture.at(rows), corpus.mixture.drawn(rows))
    return [
        Usage(
            pool.source, pool.bucket, pool.packed, len(pool), int(drawn[j]), float(start[j]), float(end[j]),
            pool.rows_ids.size,
        )
        for j, pool in enumerate(corpus.pools)
    ]  # fmt: skip


def repetition(used: list[Usage]) -> list[str]:
    """A line for each pool that the run repeats more than EPOCHS times."""
    return [
        f"{each.source}, {each.bucket} documents: {each.epochs:.1f} epochs over the run, and repeated text teaches "
        f"less and less from about {EPOCHS:.0f} on; add documents, or lower its share or run.tokens"
        for each in used
        if each.epochs > EPOCHS
    ]
