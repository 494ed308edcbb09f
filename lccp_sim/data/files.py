"""Documents from local files and from data sets of the Hugging Face hub.

A file of rows is read in pieces, a line or a row group at a time. What cannot be read is never passed over: the
message has the file and the row, because a corpus that silently lost its second half would still train.
"""

import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lccp_sim.config import ConfigError, refuse
from lccp_sim.data.document import Document, TextSource, text_hash

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")


def stat(path: Path) -> str:
    """Path, size and time of change of a file: what changes when its text does."""
    status = path.stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def names(key: str, value: Any) -> tuple[str, ...]:
    """The strings of a list. Raises ConfigError where it is none."""
    bad = isinstance(value, str) or not all(isinstance(name, str) for name in value)
    refuse(bad, key, value, "must be a list of strings")
    return tuple(value)


@dataclass(frozen=True, kw_only=True)
class TextFiles(TextSource):
    """Local files, directories or globs: txt and md are a document each, jsonl and parquet one a row (`text_key`)."""

    kind: str = "text_files"
    paths: tuple[str, ...]
    text_key: str = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "paths", names("paths", self.paths))
        bad = not self.paths or not all(path.strip() for path in self.paths)
        rule = "is empty; name at least one file, directory or glob (txt, md, jsonl, parquet)"
        refuse(bad, "paths", list(self.paths), rule)
        self._files()

    def _files(self) -> list[Path]:
        files: dict[Path, None] = {}
        for name in self.paths:
            path = Path(name).expanduser()
            found = [path] if path.exists() else [Path(hit) for hit in sorted(glob.glob(str(path), recursive=True))]
            refuse(not found, "paths", name, "does not exist; correct it or take it out")
            usable = [
                inner
                for hit in found
                for inner in ([hit] if hit.is_file() else sorted(hit.rglob("*")))
                if inner.is_file() and inner.suffix.lower() in SUFFIXES
            ]
            rule = "holds no txt, md, jsonl or parquet file; convert the text, or name another path"
            refuse(not usable, "paths", name, rule)
            files.update(dict.fromkeys(usable))
        return list(files)

    def fingerprint(self) -> list[str]:
        return [stat(path) for path in self._files()]

    def documents(self) -> Iterator[Document]:
        for path in self._files():
            if path.suffix.lower() == ".jsonl":
                yield from self._lines(path)
            elif path.suffix.lower() == ".parquet":
                yield from self._rows(path)
            else:
                text = _decode(path.read_bytes(), str(path))
                yield Document(text, str(path), text_hash(text))

    def _lines(self, path: Path) -> Iterator[Document]:
        with open(path, "rb") as file:  # only a line feed ends a line: a text may hold what str.splitlines splits at
            for number, data in enumerate(file, 1):
                if not data.strip():
                    continue
                name = f"{path}:{number}"
                line = _decode(data, name)
                try:
                    entry = json.loads(line)
                except ValueError as error:
                    raise ConfigError(f"{name} is not JSON ({error}); a jsonl file holds one object a line") from None
                yield self._document(entry.get(self.text_key) if isinstance(entry, dict) else None, name)

    def _rows(self, path: Path) -> Iterator[Document]:
        import pyarrow as pa  # late: few runs need it this early
        import pyarrow.parquet as pq

        number = 0
        try:
            with pq.ParquetFile(path) as file:
                columns = file.schema_arrow.names
                if self.text_key not in columns:
                    what = f"has no column {self.text_key!r}, its columns are {', '.join(columns)}"
                    raise ConfigError(f"{path} {what}; set text_key to the right one")
                for group in range(file.num_row_groups):
                    for value in file.read_row_group(group, columns=[self.text_key]).column(0):
                        number += 1
                        yield self._document(value.as_py(), f"{path}:{number}")
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            why = " ".join(str(error).split())[:200]
            raise ConfigError(f"{path}: cannot be read as parquet after row {number} ({why}); write it anew") from error

    def _document(self, text: object, name: str) -> Document:
        if not isinstance(text, str):
            raise ConfigError(f"{name} has no string under the key {self.text_key!r}; set text_key to the right one")
        return Document(text, name, text_hash(text))


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is 0x{data[error.start]:02x}"
        raise ConfigError(f"{name} is not UTF-8: {what}; convert it (iconv -t UTF-8)") from None


@dataclass(frozen=True, kw_only=True)
class Hub(TextSource):
    """Any data set that `datasets.load_dataset` opens without running its code; pin `revision` for a true cache.

    `streaming` reads row by row over the network and keeps no copy but the tokens.
    """

    kind: str = "hub"
    name: str
    subset: str | None = None
    split: str = "train"
    text_key: str = "text"
    revision: str | None = None
    streaming: bool = False
    max_documents: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        bad = self.max_documents is not None and self.max_documents < 1
        refuse(bad, "max_documents", self.max_documents, "must be at least 1, or null for all")
        endless = self.streaming and self.max_documents is None
        refuse(endless, "max_documents", None, "streaming needs it: a stream is read until that many documents")

    def fingerprint(self) -> list[str]:
        local = Path(self.name).expanduser()
        return [stat(path) for path in [local, *sorted(local.rglob("*"))] if path.is_file()] if local.exists() else []

    def documents(self) -> Iterator[Document]:
        import datasets  # late: it takes a second, and most runs need none of it

        where = f"data set {self.name!r} (subset {self.subset}, split {self.split})"
        number = None
        try:
            rows = datasets.load_dataset(
                self.name, self.subset, split=self.split, revision=self.revision, streaming=self.streaming
            )
            for number, row in enumerate(rows):
                if number == self.max_documents:
                    return
                text = row.get(self.text_key)
                if not isinstance(text, str):
                    what = f"row {number} has no text under {self.text_key!r}; its keys are {', '.join(row)}"
                    raise ConfigError(f"{where}: {what}")
                yield Document(text, f"{self.name}:{number}", text_hash(text))
        except ConfigError:
            raise
        except Exception as error:  # whatever a reader, a decoder or the network raises
            what = "cannot be opened" if number is None else f"failed after row {number}"
            raise ConfigError(f"{where} {what}: {' '.join(str(error).split())[:300]}") from error
