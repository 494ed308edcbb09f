"""Rows of token ids instead of text.

Ids have a meaning only with their own tokenizer, so their source names it, and it must equal the run's. They are packed
unchanged. Documents are held out by their decoded text, as for text sources. BOS begins a document, as in every row of
a run: it is not added twice, and a later BOS splits a row.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from lccp_sim.data.documents.document import Document, LeftOut, text_hash
from lccp_sim.data.documents.entry import ROW_REMEDY, VALUE_KINDS
from lccp_sim.data.tokenizer import bos_id, read_tokenizer
from lccp_sim.data.tokens import vocab_size
from lccp_sim.errors import ConfigError


@dataclass(frozen=True)
class Pretokenized:
    """The tokenizer of the ids, the largest id + 1, and the id that begins a document."""

    path: Path
    tokenizer: tokenizers.Tokenizer
    size: int
    bos: int

    @staticmethod
    def of(path: str, bos: str | None) -> "Pretokenized":
        """Read it from a tokenizer.json; `bos` as in `bos_id`. Raises ConfigError."""
        tokenizer = read_tokenizer(Path(path).expanduser())
        return Pretokenized(Path(path), tokenizer, vocab_size(tokenizer), bos_id(tokenizer, bos))

    def documents(self, value: Any, key: str, name: str) -> list[Document | LeftOut]:
        """The documents of a row's ids, or the reason for leaving it out; null counts as empty. Raises ConfigError."""
        if value is None:
            return [LeftOut("null", name)]
        if not isinstance(value, list):
            what = f"holds {VALUE_KINDS.get(type(value), 'no list')} under the key {key!r}, not a list of token ids"
            raise ConfigError(f"{name} {what}{ROW_REMEDY}, or text_key to the right key")
        if set(map(type, value)) - {int} or (value and not 0 <= min(value) <= max(value) < self.size):
            at, what = next((at, what) for at, each in enumerate(value, 1) if (what := self._fault(each)))
            raise ConfigError(f"{name}: token {at} is {what}{ROW_REMEDY}")
        ids = np.array(value, dtype=np.uint32)
        starts = np.flatnonzero(ids == self.bos)
        parts = [part[part != self.bos] for part in np.split(ids, starts)]
        parts = [part for part in parts if len(part)]
        names = [name] if len(parts) == 1 else [f"{name}, part {i}" for i in range(1, len(parts) + 1)]
        texts = self.tokenizer.decode_batch([part.tolist() for part in parts], skip_special_tokens=True)
        found = zip(texts, names, parts, strict=True)
        return [Document(text, part_name, text_hash(text), part) for text, part_name, part in found] or [
            LeftOut("empty", name)
        ]

    def _fault(self, value: Any) -> str:
        """A description of a value that is not a token id, or ""."""
        if type(value) is float:
            return f"{value}, and ids are integers"
        if type(value) is not int:
            return "null" if value is None else VALUE_KINDS.get(type(value), "no number")
        if value < 0:
            return f"{value}, and no id is below 0"
        return f"{value}, and {self.path} has the ids 0 to {self.size - 1}" if value >= self.size else ""
