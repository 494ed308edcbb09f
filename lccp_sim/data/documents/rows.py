"""The rows of a file, one at a time: lines, JSON, parquet, data sets of `save_to_disk`, also as gz and zst."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from lccp_sim.data.documents.entry import decode, field, needing, unreadable
from lccp_sim.data.documents.folder import kind_of
from lccp_sim.errors import ConfigError

Row = tuple[str, Any]  # its name, and the value under the key or the fault that is in its place


def opened(path: Path) -> BinaryIO:
    """The bytes of a file, decompressed as they are read."""
    _, packed = kind_of(path)
    if packed == "gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if packed == "zst":
        with needing("pyarrow", str(path)):
            import pyarrow as pa  # late: few runs need it this early

        return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(str(path), "zstd")))
    return open(path, "rb")


def rows(path: Path, key: str) -> Iterator[Row]:
    """Name and value of each row under a key. The value of an unreadable row is its ConfigError.

    Raises ConfigError if the rest of the file cannot be read.
    """
    kind, packed = kind_of(path)
    if path.is_dir():
        yield from _saved(path, key)
        return
    try:
        open(path, "rb").close()  # the same message for every reader, if the file cannot be opened
    except OSError as error:
        raise unreadable(error, str(path)) from error
    try:
        if kind == "parquet":
            yield from _parquet(path, key)
        elif kind in ("jsonl", "ndjson"):
            yield from _lines(path, key)
        elif kind == "json":
            yield from _json(path, key)
        else:
            with opened(path) as file:
                yield str(path), attempt(decode, file.read(), str(path))
    except (EOFError, zlib.error, OSError) as error:
        if not packed:
            raise
        why = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: cannot be decompressed as {packed} ({why}); write it again") from error


def attempt(function: Any, *arguments: Any) -> Any:
    """The result of a function, or the ConfigError that it raises."""
    try:
        return function(*arguments)
    except ConfigError as error:
        return error


def _lines(path: Path, key: str) -> Iterator[Row]:
    with opened(path) as file:  # only a line feed ends a line: a text may hold what str.splitlines splits at
        for number, data in enumerate(file, 1):
            if data.removeprefix(b"\xef\xbb\xbf").strip():
                name = f"{path}:{number}"
                yield name, attempt(_line, data, key, name)


def _line(data: bytes, key: str, name: str) -> Any:
    line = decode(data, name)
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not JSON ({error}); a line holds one object") from None
    return field(entry, key, name)


def _json(path: Path, key: str) -> Iterator[Row]:
    """A list of objects, one object, or (as in many json files) one object per line."""
    with opened(path) as file:
        text = decode(file.read(), str(path))
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not str(error).startswith("Extra data"):
            raise ConfigError(f"{path} is not JSON ({error}); write a list of objects, or an object a line") from None
        yield from _lines(path, key)
        return
    for number, row in enumerate(whole if isinstance(whole, list) else [whole], 1):
        name = f"{path}:{number}"
        yield name, attempt(field, row, key, name)


def _parquet(path: Path, key: str) -> Iterator[Row]:
    with needing("pyarrow", str(path)):
        import pyarrow as pa  # late: few runs need it this early
        import pyarrow.parquet as pq

    number, source = 0, path
    if kind_of(path)[1]:
        with opened(path) as packed:
            source = pa.BufferReader(packed.read())
    try:
        with pq.ParquetFile(source) as file:
            top = _column(file.schema_arrow.names, key, str(path))
            for group in range(file.num_row_groups):
                for value in file.read_row_group(group, columns=[top]).column(top):
                    number += 1
                    name = f"{path}:{number}"
                    yield name, attempt(field, {top: value.as_py()}, key, name)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: cannot be read as parquet after row {number} ({why}); write it again") from error


def _saved(path: Path, key: str) -> Iterator[Row]:
    with needing("datasets", str(path)):
        import datasets  # late: it takes a second, and most runs need none of it

    number = 0
    try:
        with quiet(datasets):
            table = cast(datasets.Dataset, datasets.load_from_disk(str(path)))
        top = _column(table.column_names, key, str(path))
        for number, row in enumerate(table.select_columns([top]).with_format(None), 1):
            name = f"{path}:{number}"
            yield name, attempt(field, row, key, name)
    except ConfigError:
        raise
    except Exception as error:  # whatever a decoder raises
        why = cause(error)
        raise ConfigError(
            f"{path}: cannot be read as a saved data set after row {number} ({why}); save it again"
        ) from error


def _column(columns: list[str], key: str, name: str) -> str:
    top = key if key in columns else key.partition(".")[0]
    if top not in columns:
        what = f"has no column {key!r}, its columns are {', '.join(columns)}"
        raise ConfigError(f"{name} {what}; set text_key to the right one")
    return top


@contextmanager
def quiet(datasets: Any) -> Iterator[None]:
    """Within the context, `datasets` prints nothing. lccp-sim reports errors in its own line."""
    before, shown = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(before)
        if shown:
            datasets.enable_progress_bars()


def cause(error: BaseException) -> str:
    """One line with the cause of an error: that of the underlying error if this one is not specific."""
    while error.__cause__ and (not str(error).strip() or "error occurred while generating the dataset" in str(error)):
        error = error.__cause__
    found = f"no {error} there" if type(error) is KeyError else str(error)
    return " ".join(found.split())[:300]
