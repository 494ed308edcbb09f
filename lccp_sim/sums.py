"""Hashes of the files of a folder, so that damage is detected before a number is read.

`sums.json` has the size and the SHA-256 of each file; for a growing file, of the bytes written so far. An entry is
removed before its file changes and written once the change is on disk. So a killed process leaves a file without an
entry, never a wrong entry. A folder without `sums.json` is not checked.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from lccp_sim.errors import ConfigError
from lccp_sim.files import write_atomic

SUMS = "sums.json"
GROWING = ".jsonl"  # ends the name of a file that may be longer than its entry says
Sums = dict[str, tuple[int, str]]


def read_sums(folder: Path) -> Sums:
    """The entries by file name, relative to the folder. Raises ConfigError if the table is damaged."""
    path = folder / SUMS
    try:
        return {str(name): (int(size), str(sha)) for name, (size, sha) in json.loads(path.read_bytes()).items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(f"{path}: damaged (no table of hashes); put it back, or remove it to do without") from None


def change_sums(folder: Path, gone: Iterable[str] = (), known: Mapping[str, int | None] | None = None) -> None:
    """Drop the entries `gone`, and write those of `known`: name -> number of bytes to hash (None: all)."""
    before = read_sums(folder)
    after = {name: entry for name, entry in before.items() if name not in {*gone}}
    for name, size in (known or {}).items():
        after[name] = _sum(folder / name, size)
    if after != before:
        write_atomic(folder / SUMS, json.dumps(dict(sorted(after.items())), indent=0) + "\n")


def check_sums(folder: Path, *names: str) -> None:
    """Raise ConfigError if a file (among `names`, if given) differs from its entry."""
    for name, entry in read_sums(folder).items():
        if names and name not in names:
            continue
        path = folder / name
        if path.is_file() and _sum(path, entry[0] if name.endswith(GROWING) else None) == entry:
            continue
        if read_sums(folder).get(name) != entry:  # it was rewritten in between
            continue
        what = "is damaged or was edited" if path.is_file() else "is missing"
        raise ConfigError(f"{path}: {what}, by its hash in {SUMS}; put it back, or remove {SUMS} to take what is there")


def _sum(path: Path, size: int | None) -> tuple[int, str]:
    """Bytes and SHA-256 of a file, or of its first `size` bytes."""
    hashed, left = hashlib.sha256(), path.stat().st_size if size is None else size
    total = 0
    with open(path, "rb") as file:
        while left > total and (block := file.read(min(2**20, left - total))):
            hashed.update(block)
            total += len(block)
    return total, hashed.hexdigest()
