"""A document, what all text sources share, and the split that holds documents out.

Whole groups are held out (a top-level package, or the document itself), because files of one package resemble each
other. The split goes by bytes, not tokens: the tokenizer is trained on the training side and so must come after it.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lccp_sim.config import ConfigError, refuse

Filler = Callable[[np.random.Generator, int], np.ndarray]  # (rng, n) -> n ids (int64) of real text


class Document(NamedTuple):
    """Text, a name that a person can find it by, and the unit of holding out: a package, or the hash of the text."""

    text: str
    name: str
    group: str


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """What every text source has: its token share, a cap on its text (10^6 bytes) and on the length of a document.

    `bucket_shares` are shares of its documents by length (`data.bucket_shares_of=source`). `max_document_tokens` cuts
    documents into pieces of at most that many tokens, their BOS included (for example: the replay of pre-training at
    the old context). `max_megabytes` takes documents in hash order.
    """

    share: float = 1.0
    bucket_shares: tuple[float, ...] | None = None
    max_megabytes: float | None = None
    max_document_tokens: int | None = None

    def __post_init__(self) -> None:
        refuse(not 0 <= self.share < float("inf"), "share", self.share, "must be a number >= 0")
        bad = self.max_megabytes is not None and not self.max_megabytes > 0
        refuse(bad, "max_megabytes", self.max_megabytes, "must be above 0, or null for no cap")
        bad = self.max_document_tokens is not None and self.max_document_tokens < 8
        refuse(bad, "max_document_tokens", self.max_document_tokens, "must be at least 8, or null for no cut")

    def documents(self) -> Iterator[Document]:
        """The documents, in an order that depends on nothing but the settings and the text."""
        raise NotImplementedError

    def fingerprint(self) -> list[str]:
        """What must change when the text changes; cheap, because it is asked at every start."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """Lines that a user should read before training."""
        return []


def text_hash(text: str) -> str:
    """16 hex digits that name a text by its content."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def collect(name: str, source: TextSource) -> list[Document]:
    """The documents of a source after its cap. Raises ConfigError where none is left, or one cannot be read."""
    try:
        documents = [document for document in source.documents() if document.text.strip()]
    except (ConfigError, OSError) as error:
        raise ConfigError(f"data.sources.{name}: {error}") from error
    if source.max_megabytes is not None:
        left, kept = source.max_megabytes * 1e6, []
        for document in sorted(documents, key=lambda document: text_hash(document.text)):
            size = len(document.text.encode("utf-8", "surrogatepass"))
            if size <= left:
                kept.append(document)
                left -= size
        few = documents and not kept
        refuse(few, f"data.sources.{name}.max_megabytes", source.max_megabytes, "less than every document; raise it")
        documents = kept
    if not documents:
        raise ConfigError(f"data.sources.{name} has no document with text; check its settings")
    return documents


def hold_out(documents: Sequence[Document], fraction: float) -> np.ndarray:
    """bool [documents]: True where held out: whole groups in hash order until `fraction` of the bytes.

    A group that would overshoot by 40 % is passed over; where all do, the smallest group is taken. One group alone is
    never held out.
    """
    sizes: dict[str, int] = {}
    for document in documents:
        sizes[document.group] = sizes.get(document.group, 0) + len(document.text)
    total, held, chosen = sum(sizes.values()), 0, set()
    if fraction > 0 and len(sizes) > 1:
        for group in sorted(sizes, key=text_hash):
            if held < fraction * total and held + sizes[group] <= 1.4 * fraction * total:
                chosen.add(group)
                held += sizes[group]
        if not chosen:
            chosen.add(min(sizes, key=lambda group: (sizes[group], text_hash(group))))
    return np.array([document.group in chosen for document in documents], dtype=bool)
