"""Checkpoints: written atomically, verified before they are read, never unpickled.

Each file has a manifest beside it (its SHA-256, step and tokens). A file is loaded with `weights_only` and only after
its hash matches; a torn one is passed over for the last good one, and that is said.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lccp_sim.config import ConfigError
from lccp_sim.records import write_atomic


class VerifiedIO(TorchCheckpointIO):
    """Lightning's plug for reading and writing: atomic, with a manifest, `weights_only`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """None, once the checkpoint and then its manifest are on disk."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        manifest = {"sha256": _sha256(temporary), "step": checkpoint["global_step"]}
        # A manifest without its file is passed over, a file without its manifest too: either order of loss is safe.
        manifest_of(path).unlink(missing_ok=True)
        os.replace(temporary, path)
        write_atomic(manifest_of(path), json.dumps(manifest) + "\n")

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """The content of a verified checkpoint, on the CPU."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """None, once the file and its manifest are gone."""
        manifest_of(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


def manifest_of(path: Path) -> Path:
    """The manifest's path of a checkpoint."""
    return path.with_suffix(".json")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, in words, or None."""
    try:
        manifest = json.loads(manifest_of(path).read_text())
    except (OSError, ValueError):
        return f"{path}: its manifest {manifest_of(path).name} is missing or damaged"
    if _sha256(path) != manifest.get("sha256"):
        return f"{path}: the file does not match its manifest's hash"
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours. Raises ConfigError where it is missing, damaged or not ours."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint")
    problem = damage(path)
    if problem:
        raise ConfigError(f"{problem}; name another checkpoint of the run")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if "lccp" not in content:
        raise ConfigError(f"{path}: not a checkpoint of lccp-sim")
    return content


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint files of a run directory, oldest first; at one step a window comes before a periodic one."""
    files = [path for path in (run / "checkpoints").glob("*-*.ckpt") if not path.name.startswith(".")]
    return sorted(files, key=lambda path: (int(path.stem.split("-")[1]), path.stem.startswith("last")))


def windows(run: Path) -> list[Path]:
    """The checkpoints that a run kept at its windows, oldest first."""
    return [path for path in checkpoints(run) if path.stem.startswith("window")]


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that is whole, and what is wrong with the newer ones."""
    problems: list[str] = []
    for path in reversed(checkpoints(run)):
        problem = damage(path)
        if problem is None:
            return path, problems
        problems.append(problem)
    return None, problems


def resolve(name: str) -> Path:
    """The checkpoint file that `init_from` names: a checkpoint, or a run directory (its newest); globs may be used.

    Raises ConfigError where nothing, or more than one thing, is meant.
    """
    found = list(_expand(name))
    if len(found) != 1:
        what = "nothing there" if not found else "more than one: " + ", ".join(str(path) for path in found)
        remedy = "train the base run first" if not found else "name one of them"
        raise ConfigError(f"run.init_from={name!r}: {what}; {remedy}")
    path = found[0]
    if path.is_file():
        return path
    checkpoint, problems = newest(path)
    if checkpoint is None:
        raise ConfigError(f"run.init_from={name!r}: no usable checkpoint in {path}" + "".join(f"; {p}" for p in problems))
    if not (path / "DONE").exists():
        raise ConfigError(f"run.init_from={name!r}: {path} is not finished; finish it, or name one of its checkpoints")
    return checkpoint


def _expand(name: str) -> Iterator[Path]:
    path = Path(name).expanduser()
    if path.exists():
        yield path
    elif any(letter in name for letter in "*?["):
        anchor = Path(path.anchor) if path.is_absolute() else Path()
        yield from sorted(anchor.glob(str(path.relative_to(anchor))))
