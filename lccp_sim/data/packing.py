"""Pools: rows of T + 1 tokens, packed from documents of one source and one length bucket, on disk.

`placement.py` decides the positions. Best-fit packing fills the empty end of a row with BOS tokens in their own
segment. They are never learned: no document sees them, and neither targets nor expert loads count them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from lccp_sim.data.cache import build_once, digest
from lccp_sim.data.documents.synthetic import MIN_DOCUMENT, Synthetic, draw_document
from lccp_sim.data.placement import PACKINGS, Packed, packed
from lccp_sim.data.tokens import Tokens, id_dtype
from lccp_sim.progress import Tell, silent

START, SKIP, PAD = 1, 2, 4  # bits of a flag: a piece starts here; not learned as a target; holds no text
HELD_OUT_DOCUMENTS = 100  # of a synthetic source, at most: as many as the perplexity monitor asks for
HELD_OUT_TOKENS = 2**22  # and no more tokens than these, if one document has fewer: rows of 262,144 would take an hour


@dataclass(frozen=True)
class Pool:
    """Rows of one source and bucket: `rows_ids` [N, T + 1] uint16 or uint32, `flags` [N, T + 1] uint8, both mapped."""

    source: str
    bucket: str
    rows_ids: np.ndarray
    flags: np.ndarray
    first_piece: np.ndarray
    piece_name: np.ndarray
    documents: list[str]
    packed: Packed

    def __len__(self) -> int:
        return len(self.rows_ids)

    def names(self, row: int) -> list[str]:
        """Names of the documents in a row, in order."""
        pieces = self.piece_name[self.first_piece[row] : self.first_piece[row + 1]]
        return [self.documents[piece] for piece in pieces]


@dataclass(frozen=True)
class RowLayout:
    """Settings shared by all pools of a corpus: tokenizer, row width, packing, seed, cache, progress callback."""

    tokenizer: tokenizers.Tokenizer
    tokenizer_key: str
    bos: int
    context_tokens: int
    packing: str
    seed: int
    root: Path
    tell: Tell = silent

    @property
    def key(self) -> tuple[str, int, int, int]:
        return self.tokenizer_key, self.bos, self.context_tokens, self.seed


def pack(name: str, bucket: str, tokens: Tokens, chosen: np.ndarray, layout: RowLayout) -> Pool:
    """The pool of the `chosen` pieces of a source, shuffled by the seed. It may have no rows."""

    def build(directory: Path) -> None:
        layout.tell(f"packing {name}, {bucket}: {len(chosen):,} pieces", 0.0)
        width = layout.context_tokens + 1
        order = np.random.default_rng(layout.seed).permutation(chosen)
        sizes = (tokens.stops - tokens.starts)[order].tolist()
        parts, rows = PACKINGS[layout.packing](sizes, width)
        ids = np.full((rows, width), layout.bos, dtype=tokens.ids.dtype)
        flags = np.full((rows, width), SKIP | PAD, dtype=np.uint8)
        end = np.zeros(rows, dtype=np.int64)
        for row, column, size, document, at in parts:
            start, end[row] = int(tokens.starts[order[document]]) + at, column + 1 + size
            ids[row, column + 1 : end[row]] = tokens.ids[start : start + size]
            flags[row, column : end[row]] = 0
            flags[row, column] = START
        padded = np.flatnonzero(end < width)
        flags[padded, end[padded]] |= START
        names = [int(tokens.document[order[part.document]]) for part in parts]
        counts = packed(sizes, parts, rows, width)
        _save(directory, ids, flags, [part.row for part in parts], names, tokens.names, counts)

    key = digest(tokens.key, chosen.tobytes().hex(), layout.key, layout.packing)
    return _open(name, bucket, build_once(layout.root, f"pool-{key}", build))


def _open(source: str, bucket: str, entry: Path) -> Pool:
    ids, flags, first, piece = (
        np.load(entry / f"{part}.npy", mmap_mode="r") for part in ("ids", "flags", "first_piece", "piece_name")
    )
    names, counts = (json.loads((entry / f"{part}.json").read_text(encoding="utf-8")) for part in ("names", "packed"))
    return Pool(source, bucket, ids, flags, first, piece, names, Packed(**counts))


def _save(
    directory: Path,
    ids: np.ndarray,
    flags: np.ndarray,
    row_of_piece: list[int],
    piece_name: list[int],
    names: list[str],
    counts: Packed,
) -> None:
    np.save(directory / "ids.npy", ids)
    np.save(directory / "flags.npy", flags)
    np.save(directory / "first_piece.npy", np.searchsorted(row_of_piece, np.arange(len(ids) + 1)).astype(np.int64))
    np.save(directory / "piece_name.npy", np.array(piece_name, dtype=np.int64))
    (directory / "names.json").write_text(json.dumps(names), encoding="utf-8")
    (directory / "packed.json").write_text(json.dumps(counts._asdict()), encoding="utf-8")


def filler(tokens: Tokens, chosen: np.ndarray) -> Callable[[np.random.Generator, int], np.ndarray] | None:
    """A function (rng, n) -> n ids of real text from the chosen pieces; None if there is no text."""
    ends = np.cumsum(tokens.stops[chosen] - tokens.starts[chosen])
    if not len(ends) or not ends[-1]:
        return None

    def fill(rng: np.random.Generator, count: int) -> np.ndarray:
        parts = [np.empty(0, dtype=np.int64)]
        while count > 0:
            at = int(rng.integers(ends[-1]))
            index = int(np.searchsorted(ends, at, side="right"))
            stop = int(tokens.stops[chosen[index]])
            start = stop - (int(ends[index]) - at)
            parts.append(tokens.ids[start : min(stop, start + count)].astype(np.int64))
            count -= len(parts[-1])
        return np.concatenate(parts)

    return fill


def synthesize(
    name: str, bucket: str, source: Synthetic, text: Tokens | None, without: frozenset[str], layout: RowLayout
) -> tuple[Pool, list[np.ndarray]]:
    """The pool of a synthetic source, and its held-out documents of `context_tokens` ids without BOS.

    A row holds complete documents only: one if `document_tokens` is null, else as many as fit. The last one fills it
    up. Held-out documents use filler from the held-out text, keys that training never uses, and a separate seed.
    """
    width = layout.context_tokens + 1
    lengths = document_lengths(source, width)
    rows = -(-source.documents // len(lengths))
    most = min(HELD_OUT_DOCUMENTS, max(1, HELD_OUT_TOKENS // width))

    def build(directory: Path) -> None:
        fill = filler(text, text.pieces(False, without)) if text else None
        held_fill = filler(text, text.pieces(True)) if text else None
        ids: np.ndarray = np.full((rows, width), layout.bos, dtype=id_dtype(layout.tokenizer))
        flags = np.zeros((rows, width), dtype=np.uint8)
        for row in range(rows):
            layout.tell(f"composing {name}: {row:,} of {rows:,} rows", row / rows)
            column, rng = 0, np.random.default_rng((layout.seed, 0, row))
            for length in lengths:
                got, learn = draw_document(source, layout.tokenizer, fill, length - 1, rng)
                ids[row, column + 1 : column + length] = got
                flags[row, column + 1 : column + length] = np.where(learn, 0, SKIP)
                flags[row, column] = START
                column += length
        count = min(most, source.documents) if held_fill or not text else 0
        held = []
        for index in range(count):
            layout.tell(f"composing {name}: {index:,} of {count:,} held-out documents", index / count)
            rng = np.random.default_rng((layout.seed, 1, index))
            held.append(draw_document(source, layout.tokenizer, held_fill, width - 1, rng, evaluation=True)[0])
        pieces = np.repeat(np.arange(rows), len(lengths)).tolist()
        names = [f"{source.task}:{index}" for index in range(len(pieces))]
        counts = Packed(len(pieces), ids.size, 0, 0, 0, 0)
        _save(directory, ids, flags, pieces, list(range(len(pieces))), names, counts)
        np.save(directory / "held.npy", np.array(held, dtype=np.int64).reshape(-1, width - 1))

    fields = {key: value for key, value in vars(source).items() if key not in ("share", "text_from")}
    origin = [text.key, sorted(without)] if text else None
    entry = build_once(layout.root, f"pool-{digest(fields, origin, layout.key, most)}", build)
    return _open(name, bucket, entry), list(np.load(entry / "held.npy"))


def document_lengths(source: Synthetic, width: int) -> list[int]:
    """Lengths of the synthetic documents that fill a row of `width` tokens; a short remainder joins the last one."""
    size = min(source.document_tokens or width, width)
    whole, rest = divmod(width, size)
    if rest >= MIN_DOCUMENT:
        return [size] * whole + [rest]
    return [size] * (whole - 1) + [size + rest]
