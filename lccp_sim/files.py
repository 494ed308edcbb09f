"""Files and folders that are complete or absent, even if a kill comes while they are written.

A file being written has a hidden name that ends in `.tmp`, in the same folder.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file, creating its folder if necessary. A reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that is flushed and renamed to `path`, or removed on an error.

    Several processes may write at once.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder that is flushed and renamed to `path` at the end. `path` must be absent or empty.

    An error removes the folder. Allows one writer at a time. Removes leftovers of a killed writer.
    """
    temporary = hidden(path)
    fresh_folder(temporary)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def hidden(path: Path) -> Path:
    """The name of a folder while it is being written."""
    return path.with_name(f".{path.name}.tmp")


def fresh_folder(path: Path) -> None:
    """Make an empty folder of that name. Remove an existing folder first."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def append_lines(path: Path, lines: Iterable[str]) -> int:
    """The byte length of `path` after `lines` were appended and flushed to disk."""
    with open(path, "ab") as file:
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
