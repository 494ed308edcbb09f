"""Documents from local files and from data sets of the Hugging Face hub.

A file of rows is read in pieces, a line or a row group at a time. Unreadable rows are never skipped silently: they are
refused with the file and the row, or counted, because a corpus that lost its second half would still train.
"""

import copy
import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from lccp_sim.data.documents.document import Document, LeftOut, TextSource
from lccp_sim.data.documents.entry import OnBadRow, check_policy, document, field, needing, unreadable
from lccp_sim.data.documents.folder import FILE_KINDS, is_saved, reason, walk
from lccp_sim.data.documents.pretokenized import Pretokenized
from lccp_sim.data.documents.rows import Row, attempt, cause, quiet, rows
from lccp_sim.errors import ConfigError, refuse


def stat(path: Path) -> str:
    """Path, size and modification time of a file, which change when its text does."""
    status = path.stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def strings_of(key: str, value: Any) -> tuple[str, ...]:
    """The strings of a list. Raises ConfigError if it is not a list of strings."""
    bad = isinstance(value, str) or not all(isinstance(name, str) for name in value)
    refuse(bad, key, value, "must be a list of strings")
    return tuple(value)


@dataclass(frozen=True, kw_only=True)
class RowSource(TextSource):
    """The common part of row sources. `text_key` names the text of a row; dots reach into nested fields.

    A row without text is refused, or counted with `on_bad_row` skip. With `tokenized_with`, the path of a
    tokenizer.json, rows hold lists of its token ids instead (`pretokenized.py`); it must be the run's.
    """

    text_key: str = "text"
    on_bad_row: OnBadRow = "refuse"
    tokenized_with: str | None = None
    _bos: ClassVar[str | None] = None  # the run's, so no field; `within` sets it

    def __post_init__(self) -> None:
        super().__post_init__()
        check_policy(self.on_bad_row)
        bad = self.tokenized_with is not None and not Path(self.tokenized_with).expanduser().is_file()
        refuse(bad, "tokenized_with", self.tokenized_with, "is no file; name the tokenizer.json that the ids come from")

    def within(self, cache: Path, mirror: Path | None, bos: str | None = None) -> Self:
        found = copy.copy(self)
        object.__setattr__(found, "_bos", bos)
        return found

    def fingerprint(self) -> list[str]:
        if self.tokenized_with is None:
            return []
        return [stat(Path(self.tokenized_with).expanduser()), f"bos {self._bos}"]

    def read(self, rows: Iterable[Row]) -> Iterator[Document | LeftOut]:
        """The documents of rows, and the left-out items. Raises ConfigError at a bad row unless it is to be skipped."""
        ids = None if self.tokenized_with is None else Pretokenized.of(self.tokenized_with, self._bos)
        for name, value in rows:
            try:
                if isinstance(value, ConfigError):
                    raise value
                found = (
                    [document(value, self.text_key, name)] if ids is None else ids.documents(value, self.text_key, name)
                )
            except ConfigError:
                if self.on_bad_row == "refuse":
                    raise
                found = [LeftOut("bad row", name)]
            yield from found


@dataclass(frozen=True, kw_only=True)
class TextFiles(RowSource):
    """Local files, folders, globs or saved data sets: one document per txt or md file, or per json or parquet row."""

    kind: str = "text_files"
    paths: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "paths", strings_of("paths", self.paths))
        bad = not self.paths or not all(path.strip() for path in self.paths)
        rule = f"is empty; name at least one file, folder or glob ({', '.join(FILE_KINDS)})"
        refuse(bad, "paths", list(self.paths), rule)
        self._found()

    def _found(self) -> list[Path | LeftOut]:
        """Files and saved data sets, each once, and the left-out items."""
        try:
            return self._find()
        except OSError as error:
            raise ConfigError(f"paths={list(self.paths)}: {unreadable(error, 'a file')}") from error

    def _find(self) -> list[Path | LeftOut]:
        found: dict[Path | LeftOut, None] = {}
        for name in self.paths:
            path = Path(name).expanduser()
            hits = [path] if path.exists() else [Path(hit) for hit in sorted(glob.glob(str(path), recursive=True))]
            refuse(not hits, "paths", name, "does not exist; correct it or take it out")
            inner: list[Path | LeftOut] = []
            for hit in hits:
                if hit.is_dir():
                    inner += walk(hit)
                elif why := reason(hit, top=True):  # a file of a kind that is read is read where it is named itself
                    inner.append(hit if hit == path and why != "kind not read" else LeftOut(why, str(hit)))
                else:
                    inner.append(hit)
            usable = [each for each in inner if isinstance(each, Path)]
            kinds = f"{', '.join(FILE_KINDS[:-1])} or {FILE_KINDS[-1]}"
            rule = f"holds no {kinds} file; convert the text, or name another path"
            refuse(not usable, "paths", name, rule)
            found.update(dict.fromkeys(inner))
        read = {str(each) for each in found if isinstance(each, Path)}
        return [each for each in found if isinstance(each, Path) or each.name not in read]

    def fingerprint(self) -> list[str]:
        found = self._found()
        paths = [inner for each in found if isinstance(each, Path) for inner in _files(each)]
        own = super().fingerprint()
        return [*own, *map(stat, paths), *(f"{each.reason} {each.name}" for each in found if isinstance(each, LeftOut))]

    def documents(self) -> Iterator[Document | LeftOut]:
        for path in self._found():
            found = iter([path] if isinstance(path, LeftOut) else self.read(rows(path, self.text_key)))
            yield next(found, LeftOut("empty", str(path)))  # a file without a row
            yield from found


def _files(path: Path) -> list[Path]:
    """A file, or those of a saved data set."""
    return [each for each in sorted(path.rglob("*")) if each.is_file()] if is_saved(path) else [path]


@dataclass(frozen=True, kw_only=True)
class Hub(RowSource):
    """Any data set that `datasets.load_dataset` opens without running its code; pin `revision` for a true cache.

    `streaming` reads row by row over the network and keeps only the tokens.
    """

    kind: str = "hub"
    name: str
    subset: str | None = None
    split: str = "train"
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
        files = [path for path in [local, *sorted(local.rglob("*"))] if path.is_file()]
        return super().fingerprint() + [stat(path) for path in files]

    def documents(self) -> Iterator[Document | LeftOut]:
        return self.read(self._rows())

    def _rows(self) -> Iterator[Row]:
        with needing("datasets", f"data set {self.name!r}"):
            import datasets  # late: it takes a second, and most runs need none of it

        where = f"data set {self.name!r} (subset {self.subset}, split {self.split})"
        number = None
        try:
            with quiet(datasets):
                table = datasets.load_dataset(
                    self.name, self.subset, split=self.split, revision=self.revision, streaming=self.streaming
                )
                for number, row in enumerate(table):
                    if number == self.max_documents:
                        return
                    name = f"{self.name}, row {number}"
                    yield name, attempt(field, row, self.text_key, name)
        except Exception as error:  # whatever a reader, a decoder or the network raises
            what = "cannot be opened" if number is None else f"failed after row {number}"
            raise ConfigError(f"{where} {what}: {cause(error)}") from error
