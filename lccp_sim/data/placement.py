"""Two ways to fill rows of a fixed width with documents or parts of documents.

`concatenate` joins documents end to end and splits at row ends; nothing is padded. `best_fit` splits only documents
longer than a row and pads the rest of a row. In both, each part starts with its own BOS, so every row starts like the
documents that monitors read.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


class Placed(NamedTuple):
    """`size` tokens of a document from its token `at` on; their BOS is at `column` of `row`."""

    row: int
    column: int
    size: int
    document: int
    at: int


class Packed(NamedTuple):
    """The effect of packing on a pool. Token counts include a BOS per document. A split document has several parts.

    `lost_tokens` belong to an incomplete last row; `padding_tokens` are positions without text.
    """

    documents: int
    tokens: int
    cut_documents: int
    cut_tokens: int
    lost_tokens: int
    padding_tokens: int


def concatenate(sizes: Sequence[int], width: int) -> tuple[list[Placed], int]:
    """The parts of documents of `sizes` tokens, in order, and the number of rows. An incomplete last row is dropped."""
    parts: list[Placed] = []
    row = column = 0
    for document, stop in enumerate(sizes):
        at = 0
        while at < stop:
            size = min(stop - at, width - column - 1)
            parts.append(Placed(row, column, size, document, at))
            at, column = at + size, column + size + 1
            if column == width:
                row, column = row + 1, 0
    return [part for part in parts if part.row < row], row


def best_fit(sizes: Sequence[int], width: int) -> tuple[list[Placed], int]:
    """The parts of documents of `sizes` tokens, placed by best-fit-decreasing packing, and the number of rows.

    A document longer than a row is split into parts that fill one, and a remainder. In a row, documents keep their
    order. Source: arXiv 2404.10830.
    """
    full = width - 1  # the BOS takes a place
    cut = [(document, at, min(full, size - at)) for document, size in enumerate(sizes) for at in range(0, size, full)]
    cut.sort(key=lambda part: -part[2])
    rows = fill_bins((size + 1 for _, _, size in cut), width)
    parts: list[Placed] = []
    used: dict[int, int] = defaultdict(int)
    for row, document, at, size in sorted((row, *part) for row, part in zip(rows, cut, strict=True)):
        parts.append(Placed(row, used[row], size, document, at))
        used[row] += size + 1
    return parts, len(used)


def fill_bins(sizes: Iterable[int], capacity: int) -> list[int]:
    """The bin of each item: the fullest that it fits into (of equal ones, the last one filled), or a new one.

    The distinct free sizes are kept sorted. There are at most `capacity` of them, however many bins there are.
    """
    bins: list[int] = []
    free: list[int] = []
    having: dict[int, list[int]] = defaultdict(list)
    count = 0
    for size in sizes:
        at = bisect_left(free, size)
        if at == len(free):
            space, chosen, count = capacity, count, count + 1
        else:
            space = free[at]
            chosen = having[space].pop()
            if not having[space]:
                del free[at]
        if space > size:
            if not having[space - size]:
                insort(free, space - size)
            having[space - size].append(chosen)
        bins.append(chosen)
    return bins


def packed(sizes: Sequence[int], parts: Sequence[Placed], rows: int, width: int) -> Packed:
    """The effect of a placement on the documents: counts of documents and tokens."""
    placed, pieces = [0] * len(sizes), [0] * len(sizes)
    for part in parts:
        placed[part.document] += part.size
        pieces[part.document] += part.size > 0
    cut = [i for i, size in enumerate(sizes) if pieces[i] > 1 or 0 < placed[i] < size]
    lost = sum(size - placed[i] + (pieces[i] == 0) for i, size in enumerate(sizes))
    return Packed(
        documents=len(sizes),
        tokens=sum(sizes) + len(sizes),
        cut_documents=len(cut),
        cut_tokens=sum(sizes[i] + 1 for i in cut),
        lost_tokens=lost,
        padding_tokens=rows * width - sum(part.size + 1 for part in parts),
    )


PACKINGS: dict[str, Callable[[Sequence[int], int], tuple[list[Placed], int]]] = {
    "concatenate": concatenate,
    "best_fit": best_fit,
}
