"""The tokens of a text source, made once per (text, tokenizer) and memory-mapped.

Two sources that differ only in share or piece length read the same entry. So replay of pre-training at the old context
needs no second copy, and both sources hold out the same documents.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from lccp_sim.data.cache import build_once, digest
from lccp_sim.data.documents.document import Document, LeftOut, TextSource, collect, hold_out, text_hash, with_stretch
from lccp_sim.errors import ConfigError
from lccp_sim.progress import Tell, silent

BATCH_CHARS = 4_000_000
SAMPLE_CHARS, CHUNK_CHARS = 3_000_000, 16_384


@dataclass
class Text:
    """Documents of a source and their split: read at most once per process, and only if the cache has no tokens."""

    name: str
    source: TextSource
    held_out_frac: float
    tell: Tell = silent

    @cached_property
    def key(self) -> str:
        """The key of the text and its split. Raises ConfigError if one of its files cannot be read."""
        try:
            return digest(asdict(self.source), self.source.fingerprint(), self.held_out_frac)
        except (ConfigError, OSError) as error:
            raise ConfigError(f"data.sources.{self.name}: {error}") from error

    @cached_property
    def _collected(self) -> tuple[list[Document], list[LeftOut]]:
        self.tell(f"reading {self.name}", 0.0)
        return collect(self.name, self.source)

    @cached_property
    def documents(self) -> list[Document]:
        """The documents after the cap; a single one is split in two, so that its end can be held out."""
        return with_stretch(self._collected[0], self.held_out_frac)

    @property
    def left_out(self) -> list[LeftOut]:
        """The files and rows that are not documents."""
        return self._collected[1]

    @property
    def stretch(self) -> bool:
        """Whether only the end of a single document is held out."""
        return len(self.documents) > len(self._collected[0])

    @cached_property
    def held(self) -> np.ndarray:
        """bool [documents]: held out."""
        if self.source.held_out == "whole":
            return np.ones(len(self.documents), dtype=bool)
        return hold_out(self.documents, self.held_out_frac)


def tokenizer_sample(texts: list[Text], shares: list[float], tell: Tell = silent) -> Iterator[str]:
    """At most 3e6 characters of training documents: chunks of each source in hash order, sources by share."""
    held_out = {text_hash(text.documents[index].text) for text in texts for index in np.flatnonzero(text.held)}
    for text, share in zip(texts, shares, strict=True):
        chunks = [
            document.text[at : at + CHUNK_CHARS]
            for document in text.documents
            if text_hash(document.text) not in held_out
            for at in range(0, len(document.text), CHUNK_CHARS)
        ]
        left = int(SAMPLE_CHARS * share / sum(shares))
        for chunk in sorted(chunks, key=text_hash):
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                break
    tell("training the tokenizer", 0.0)


@dataclass(frozen=True)
class Tokens:
    """Token ids of all documents end to end; for each piece of a document: position, document, whether held out."""

    key: str
    content: str
    ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    document: np.ndarray
    held: np.ndarray
    names: list[str]
    hashes: list[str]
    left_out: list[LeftOut]
    stretch: bool

    @property
    def lengths(self) -> np.ndarray:
        """int64 [pieces]: tokens of each piece in training, including BOS."""
        return self.stops - self.starts + 1

    def pieces(self, held: bool, without: frozenset[str] = frozenset()) -> np.ndarray:
        """Indices of training (or held-out) pieces; `without` names texts to leave out by their hash."""
        banned = np.array([text in without for text in self.hashes], dtype=bool)
        return np.flatnonzero((self.held == held) & ~banned[self.document])

    def held_hashes(self) -> set[str]:
        """Hashes of the held-out texts."""
        return {self.hashes[index] for index in set(self.document[self.held].tolist())}


def tokenize(text: Text, limit: int | None, tokenizer: tokenizers.Tokenizer, tokenizer_key: str, root: Path) -> Tokens:
    """The tokens of a text, cached or new, in pieces of at most `limit` tokens including BOS."""
    key = digest(text.key, tokenizer_key)
    entry = build_once(root, f"tokens-{key}", _writer(text, tokenizer))
    meta: dict[str, Any] = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
    offsets, held = np.load(entry / "offsets.npy"), np.load(entry / "held.npy")
    starts, stops, document = offsets[:-1], offsets[1:], np.arange(len(held))
    if limit is not None:
        parts = -(-(stops - starts) // (limit - 1))
        document = np.repeat(document, parts)
        part = np.arange(len(document)) - np.repeat(np.cumsum(parts) - parts, parts)
        starts = starts[document] + part * (limit - 1)
        stops = np.minimum(starts + limit - 1, stops[document])
    ids = np.load(entry / "ids.npy", mmap_mode="r")
    key = digest(key, limit)
    left_out = [LeftOut(*each) for each in meta["left_out"]]
    of_documents = meta["names"], meta["hashes"], left_out, meta["stretch"]
    return Tokens(key, meta["content"], ids, starts, stops, document, held[document], *of_documents)


def _writer(text: Text, tokenizer: tokenizers.Tokenizer) -> Callable[[Path], None]:
    def build(directory: Path) -> None:
        encoded: list[np.ndarray] = []
        batch: list[Document] = []
        dtype = id_dtype(tokenizer)
        chars, done, size = sum(len(document.text) for document in text.documents), 0, 0
        for index, document in enumerate(text.documents):
            batch.append(document)
            size += len(document.text)
            if size >= BATCH_CHARS or index == len(text.documents) - 1:
                said = f"tokenizing {text.name}: {done / 1e6:,.0f} of {chars / 1e6:,.0f} million characters"
                text.tell(said, done / chars)
                encoded += [ids.astype(dtype) for ids in _ids(batch, tokenizer)]
                done, size, batch = done + size, 0, []
        hashes = [text_hash(document.text) for document in text.documents]
        meta: dict[str, Any] = {
            "content": digest([document.content for document in text.documents]),
            "names": [each.name for each in text.documents],
            "hashes": hashes,
        }
        meta |= {"left_out": text.left_out, "stretch": text.stretch}
        np.save(directory / "ids.npy", np.concatenate(encoded))
        np.save(directory / "offsets.npy", np.cumsum([0, *map(len, encoded)], dtype=np.int64))
        np.save(directory / "held.npy", text.held)
        (directory / "meta.json").write_text(json.dumps(meta), encoding="utf-8")

    return build


def _ids(documents: list[Document], tokenizer: tokenizers.Tokenizer) -> list[np.ndarray]:
    """The ids of documents. Either all of them came as ids or none."""
    if any(document.ids is not None for document in documents):
        return [document.ids for document in documents if document.ids is not None]
    got = tokenizer.encode_batch_fast([document.text for document in documents], add_special_tokens=False)
    return [np.array(each.ids) for each in got]


def vocab_size(tokenizer: tokenizers.Tokenizer) -> int:
    """One more than the largest id."""
    return max(tokenizer.get_vocab().values()) + 1


def id_dtype(tokenizer: tokenizers.Tokenizer) -> type:
    """The smallest unsigned type that holds every id: uint16 or uint32."""
    return np.uint16 if vocab_size(tokenizer) <= 2**16 else np.uint32
