"""A cache of directories, each built once by one writer.

The name of an entry is the digest of its inputs, so an entry is never stale and never changes. It is built under a
temporary name, flushed, and renamed: a reader sees the complete entry or none, even after a kill. Its hashes are
checked whenever it is opened, and a damaged entry is rebuilt.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from lccp_sim.errors import ConfigError
from lccp_sim.files import atomic_directory
from lccp_sim.sums import SUMS, change_sums, check_sums

CODE_VERSION = 7  # raise it when the code gives other bytes for the same settings


def cache_root(configured: str) -> Path:
    """The cache directory, created if it is missing. The environment variable LCCP_CACHE overrides the config."""
    root = Path(os.environ.get("LCCP_CACHE") or configured).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    return root


def digest(*parts: Any) -> str:
    """16 hex digits that name `parts` (anything that JSON holds) and the version of this code."""
    text = json.dumps([CODE_VERSION, *parts], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def build_once(root: Path, name: str, build: Callable[[Path], None]) -> Path:
    """Return the entry `root/name`. If it is missing, `build(directory)` fills it, and other processes wait."""
    entry = root / name
    if _is_whole(entry):
        return entry
    with FileLock(root / f".{name}.lock"):
        if not _is_whole(entry):
            if entry.is_dir():
                print(f"{entry}: damaged, by its hashes in {SUMS}; it is built again", file=sys.stderr, flush=True)
                shutil.rmtree(entry)
            with atomic_directory(entry) as directory:
                build(directory)
                files = (path for path in directory.rglob("*") if path.is_file())
                change_sums(directory, known={path.relative_to(directory).as_posix(): None for path in files})
    return entry


def _is_whole(entry: Path) -> bool:
    """Whether the entry exists and is undamaged."""
    try:
        check_sums(entry)
    except ConfigError:
        return False
    return entry.is_dir()
