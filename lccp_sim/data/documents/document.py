"""Documents, the common part of all text sources, and the split that holds documents out.

Entire groups are held out (a top-level package, or the document itself), because files of one package resemble each
other. The split counts bytes, not tokens: the tokenizer is trained on the training side, so it must come after the
split.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np

from lccp_sim.errors import ConfigError, refuse

Filler = Callable[[np.random.Generator, int], np.ndarray]  # (rng, n) -> n ids (int64) of real text


class Document(NamedTuple):
    """A text, a name for finding it, and its unit of holding out: a package, or the hash of the text.

    If it came as `ids` (uint32, without BOS), these are packed, and `text` is their decoded form.
    """

    text: str
    name: str
    group: str
    ids: np.ndarray | None = None

    @property
    def content(self) -> str:
        """16 hex digits that identify the packed content."""
        if self.ids is None:
            return text_hash(self.text)
        return hashlib.blake2b(self.ids.tobytes(), digest_size=8).hexdigest()


class LeftOut(NamedTuple):
    """A file or a row that is not a document: the reason, and its name."""

    reason: str
    name: str


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """The common part of all text sources: token share, caps on the text (10^6 bytes) and on the document length.

    `bucket_shares` are shares of its documents by length (`data.bucket_shares_of=source`). `max_document_tokens` splits
    documents into pieces of at most that many tokens, their BOS included (for example: the replay of pre-training at
    the old context). `max_megabytes` takes documents in hash order. A source with `held_out=whole` is never used for
    training.
    """

    share: float = 1.0
    bucket_shares: tuple[float, ...] | None = None
    max_megabytes: float | None = None
    max_document_tokens: int | None = None
    held_out: Literal["part", "whole"] = "part"

    def __post_init__(self) -> None:
        refuse(not 0 <= self.share < float("inf"), "share", self.share, "must be a number >= 0")
        bad = self.max_megabytes is not None and not self.max_megabytes > 0
        refuse(bad, "max_megabytes", self.max_megabytes, "must be above 0, or null for no cap")
        bad = self.max_document_tokens is not None and self.max_document_tokens < 8
        refuse(bad, "max_document_tokens", self.max_document_tokens, "must be at least 8, or null for no limit")
        trained = self.held_out == "whole" and self.share > 0
        refuse(trained, "share", self.share, "must be 0 if held_out=whole: no row is drawn from it")

    def within(self, cache: Path, mirror: Path | None, bos: str | None = None) -> Self:
        """The source, completed with settings that are not its own keys.

        `cache`: the folder for fetched archives. `mirror`: the folder to take them from (null: fetch with pip). `bos`:
        the name of the token that begins a document, if it is unusual.
        """
        return self

    def documents(self) -> Iterator["Document | LeftOut"]:
        """The documents, in an order that depends only on the settings and the text, and the left-out items."""
        raise NotImplementedError

    def fingerprint(self) -> list[str]:
        """A value that changes whenever the text changes. It is cheap, because every start computes it."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """Lines that a user should read before training."""
        return []


def text_hash(text: str) -> str:
    """16 hex digits that name a text by its content."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def join_files(files: Iterable[tuple[str, str, str, str]]) -> Iterator[Document]:
    """Documents of files given as (document, group, title, text): neighbours of one document, each under its title.

    Empty files and repeated texts are left out.
    """
    seen: set[str] = set()
    name, group = "", ""
    parts: list[str] = []
    for document, of_group, title, text in files:
        if not text.strip() or (key := text_hash(text)) in seen:
            continue
        seen.add(key)
        if document != name and parts:
            yield Document("\n\n".join(parts), name, group)
            parts = []
        name, group = document, of_group
        parts.append(f"# {title}\n{text.rstrip()}\n")
    if parts:
        yield Document("\n\n".join(parts), name, group)


def collect(name: str, source: TextSource) -> tuple[list[Document], list[LeftOut]]:
    """The documents of a source after its cap, and the left-out items. Raises ConfigError if no document remains."""
    documents, left_out = [], []
    try:
        for each in source.documents():
            if isinstance(each, LeftOut):
                left_out.append(each)
            elif each.text.strip():
                documents.append(each)
            else:
                left_out.append(LeftOut("empty", each.name))
    except (ConfigError, OSError) as error:
        raise ConfigError(f"data.sources.{name}: {error}") from error
    if source.max_megabytes is not None:
        left, kept = source.max_megabytes * 1e6, list[Document]()
        for document in sorted(documents, key=lambda document: text_hash(document.text)):
            size = len(document.text.encode("utf-8", "surrogatepass"))
            if size <= left:
                kept.append(document)
                left -= size
        few = documents and not kept
        refuse(few, f"data.sources.{name}.max_megabytes", source.max_megabytes, "less than every document; raise it")
        documents = kept
    if not documents:
        counts = "".join(f"; left out: {count} {reason}" for reason, count in count_reasons(left_out).items())
        raise ConfigError(f"data.sources.{name} has no document with text{counts}; check its settings")
    return documents, left_out


def count_reasons(left_out: Sequence[LeftOut]) -> dict[str, int]:
    """The number of left-out items, by reason."""
    return dict(sorted(Counter(each.reason for each in left_out).items()))


def with_stretch(documents: list[Document], fraction: float) -> list[Document]:
    """The documents. If there is only one, its last `fraction` becomes a separate document, to be held out.

    The text is split at the preceding blank line, line end or space. A text without any is not split, nor are ids.
    """
    if len(documents) != 1 or not fraction or documents[0].ids is not None:
        return documents
    [(text, name, group, _)] = documents
    whole = len(text) - int(len(text) * fraction)
    nearest = max(0, whole - int(len(text) * fraction * 0.3))  # hold_out passes over what overshoots by 40 %
    cut = next((at + len(end) for end in ("\n\n", "\n", " ") if (at := text.rfind(end, nearest, whole)) > 0), 0)
    head, tail = text[:cut], text[cut:]
    if not head.strip() or not tail.strip():
        return documents
    return [Document(head, name, group), Document(tail, f"{name} (its end)", text_hash(tail))]


def hold_out(documents: Sequence[Document], fraction: float) -> np.ndarray:
    """bool [documents]: True if held out: entire groups in hash order until `fraction` of the bytes.

    A group that would overshoot by 40 % is skipped; if all would, the smallest group is taken. A single group is never
    held out.
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
