"""A cache of directories, each built once by one writer.

The name of an entry is the digest of what made it, so an entry is never stale and never changed. It is built under a
temporary name, flushed, and renamed: a reader sees the complete entry or none, also after a kill.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from lccp_sim.files import atomic_directory

CODE_VERSION = 7  # raise it when the code gives other bytes for the same settings


def cache_root(configured: str) -> Path:
    """The directory of the cache, made if it is missing; the environment variable LCCP_CACHE wins over the config."""
    root = Path(os.environ.get("LCCP_CACHE") or configured).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    return root


def digest(*parts: Any) -> str:
    """16 hex digits that name `parts` (anything that JSON holds) and the version of this code."""
    text = json.dumps([CODE_VERSION, *parts], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def build_once(root: Path, name: str, build: Callable[[Path], None]) -> Path:
    """The entry `root/name`, after `build(directory)` filled it unless it was there; others wait for the writer."""
    entry = root / name
    if entry.is_dir():
        return entry
    with FileLock(root / f".{name}.lock"):
        if not entry.is_dir():
            with atomic_directory(entry) as directory:
                build(directory)
    return entry
