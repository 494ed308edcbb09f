"""Packing against plain references: what stands where, what is cut, and what stays empty."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench import packing as bench
from lccp_sim.data.placement import PACKINGS, Packed, best_fit, concatenate, fill_bins, packed


def naive_fit(sizes: list[int], capacity: int) -> list[int]:
    """Best fit by looking at every bin: the smallest free space that is enough, of equals the last one filled."""
    free: list[int] = []
    filled: list[int] = []
    chosen = []
    for clock, size in enumerate(sizes):
        enough = [(space, -filled[b], b) for b, space in enumerate(free) if space >= size]
        if enough:
            where = min(enough)[2]
        else:
            where = len(free)
            free.append(capacity)
            filled.append(0)
        free[where] -= size
        filled[where] = clock
        chosen.append(where)
    return chosen


def draw(seed: int) -> tuple[list[int], int]:
    """Sizes of documents, most of them shorter than a row, and the width of a row."""
    rng = np.random.default_rng(seed)
    width = int(rng.integers(4, 60))
    return np.maximum(1, rng.lognormal(np.log(width / 3), 1, rng.integers(1, 200)).astype(int)).tolist(), width


@pytest.mark.parametrize("seed", range(30))
def test_fit_is_best_fit(seed: int) -> None:
    sizes, width = draw(seed)
    sizes = [min(size, width) for size in sizes]
    assert fill_bins(sizes, width) == naive_fit(sizes, width)
    falling = sorted(sizes, reverse=True)
    assert fill_bins(falling, width) == naive_fit(falling, width)


def test_an_item_goes_where_it_fits_best() -> None:
    assert fill_bins([7, 6, 3, 4, 1], 10) == [0, 1, 0, 1, 2]
    assert fill_bins([], 10) == []


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("packing", PACKINGS)
def test_parts_tile_the_documents_and_do_not_overlap(packing: str, seed: int) -> None:
    sizes, width = draw(seed)
    parts, rows = PACKINGS[packing](sizes, width)
    assert all(part.column + part.size + 1 <= width and part.row < rows for part in parts)
    used = np.zeros((rows, width), dtype=int)
    for part in parts:
        used[part.row, part.column : part.column + 1 + part.size] += 1
    assert used.max(initial=0) <= 1
    assert (np.diff(used, axis=1) <= 0).all()  # what is empty is at the end of a row
    of_document: dict[int, list[tuple[int, int]]] = {}
    for part in parts:
        of_document.setdefault(part.document, []).append((part.at, part.size))
    lost = cut = cut_tokens = 0
    for document, size in enumerate(sizes):
        pieces = sorted(of_document.get(document, []))
        assert [at for at, _ in pieces] == np.cumsum([0, *(n for _, n in pieces)])[:-1].tolist()
        placed = sum(n for _, n in pieces)
        lost += size - placed + (placed == 0)
        if len([n for _, n in pieces if n]) > 1 or 0 < placed < size:
            cut, cut_tokens = cut + 1, cut_tokens + size + 1
    total = sum(sizes) + len(sizes)
    expected = Packed(len(sizes), total, cut, cut_tokens, lost, int((used == 0).sum()))
    assert packed(sizes, parts, rows, width) == expected


@pytest.mark.parametrize("seed", range(20))
def test_best_fit_cuts_only_what_is_longer_than_a_row_and_loses_nothing(seed: int) -> None:
    sizes, width = draw(seed)
    parts, rows = best_fit(sizes, width)
    done = packed(sizes, parts, rows, width)
    assert done.lost_tokens == 0 and done.cut_documents == sum(size + 1 > width for size in sizes)
    for document, size in enumerate(sizes):
        lengths = sorted(part.size for part in parts if part.document == document)
        assert lengths == sorted([width - 1] * (size // (width - 1)) + [size % (width - 1)] * (size % (width - 1) > 0))
    for row in range(rows):
        mine = [part.document for part in parts if part.row == row]
        assert mine == sorted(mine) and mine  # in the order they came, so that no place in a row means a length


def test_concatenation_goes_on_in_the_next_row_and_drops_the_last() -> None:
    parts, rows = concatenate([5, 2, 9], 6)
    assert [(p.row, p.column, p.size, p.document, p.at) for p in parts] == [
        (0, 0, 5, 0, 0),
        (1, 0, 2, 1, 0),
        (1, 3, 2, 2, 0),
        (2, 0, 5, 2, 2),
    ]
    assert rows == 3 and packed([5, 2, 9], parts, rows, 6) == Packed(3, 19, 1, 10, 2, 0)


def test_the_page_shows_the_tables_of_the_raw_figures() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "data.md").read_text(encoding="utf-8")
    for table in bench.tables(json.loads((root / "bench" / "results" / "packing.json").read_text())).split("\n\n"):
        assert table in page
