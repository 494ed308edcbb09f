"""Checkpoints: written atomically, verified before they are read, never unpickled.

A checkpoint is a file, or with sharded weights a folder of each rank's part (sharded.py); every reader takes both. Next
to it is a manifest (the step, and the SHA-256 of the file or of each file of the folder). A checkpoint is loaded with
`weights_only` and only after all hashes match. A damaged one is skipped, with a message, for the last good one.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lccp_sim.errors import ConfigError
from lccp_sim.files import atomic_file, hidden, write_atomic
from lccp_sim.models.foreign import hf
from lccp_sim.train.saved.sharded import Tensors, read_parts, unsharded
from lccp_sim.train.saved.weights_file import SCHEME, bundled, tensors_hash


class VerifiedIO(TorchCheckpointIO):
    """Lightning's plugin for reading and writing: atomic, with a manifest, `weights_only`.

    With `pieces`, tensors stay on disk until a strategy reads its part of each.
    """

    def __init__(self, pieces: bool = False):
        super().__init__()
        self.pieces = pieces

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint and then its manifest to disk."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            try:
                with open(temporary, "wb") as file:
                    torch.save(checkpoint, file)
            except (OSError, RuntimeError) as error:  # torch hides the cause in a RuntimeError
                cause = error.__context__ if isinstance(error.__context__, OSError) else error
                raise unwritten(path, cause) from error
            _admit(path, _sha256(temporary), checkpoint["global_step"])

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """The content of a verified checkpoint, on the CPU."""
        content = read_checkpoint(Path(path), mapped=self.pieces)
        return content if self.pieces else unsharded(content)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the checkpoint and its manifest."""
        path = Path(path)
        if path.is_dir():  # under its own name it is complete or absent
            gone = hidden(path.with_name(f"{path.name}.gone"))
            os.replace(path, gone)
            shutil.rmtree(gone)
        path.unlink(missing_ok=True)
        manifest_of(path).unlink(missing_ok=True)


class BackgroundIO(VerifiedIO):
    """Writing from a copy in host memory while training continues; a run killed meanwhile keeps earlier checkpoints.

    It writes one checkpoint at a time: each is complete on disk before the next begins or an older one is removed. The
    error of a write is raised by the next call. Not for a folder of parts, which all ranks write together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writer = ThreadPoolExecutor(1)
        self.written: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Wait for the previous write, copy this checkpoint, and start its write."""
        self.settle()
        copied = apply_to_collection(checkpoint, Tensor, lambda x: x.detach().to("cpu", copy=True))
        self.written = self.writer.submit(super().save_checkpoint, copied, path)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """As VerifiedIO, after pending writes."""
        self.settle()
        return super().load_checkpoint(path, map_location, weights_only)

    def settle(self) -> None:
        """Wait until all is on disk. Raises the error of the write."""
        written, self.written = self.written, None
        if written is not None:
            written.result()

    def teardown(self) -> None:
        """Wait until all is on disk: the trainer's last call."""
        self.settle()


def commit(temporary: Path, path: Path, sha256: str | dict[str, str], step: int) -> None:
    """Rename what was written under a temporary name to the checkpoint `path`, and write its manifest."""
    _admit(path, sha256, step)
    os.replace(temporary, path)


def _admit(path: Path, sha256: str | dict[str, str], step: int) -> None:
    """Make room for a checkpoint and write its manifest.

    The manifest comes first: a kill in between leaves a manifest without a file, which nothing reads.
    """
    VerifiedIO().remove_checkpoint(path)
    write_atomic(manifest_of(path), json.dumps({"sha256": sha256, "step": step}))


def unwritten(path: Path, cause: BaseException) -> OSError:
    """The error for a checkpoint that could not be written."""
    return OSError(f"{path}: could not be written ({cause}); earlier checkpoints are intact")


def manifest_of(path: Path) -> Path:
    """The path of a checkpoint's manifest."""
    return path.with_suffix(".json")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of these files of a folder, by name."""
    return {name: _sha256(folder / name) for name in names}


def damage(path: Path) -> str | None:
    """The damage of a checkpoint as text, or None."""
    try:
        manifest = json.loads(manifest_of(path).read_text())
    except (OSError, ValueError):
        return f"{path}: its manifest {manifest_of(path).name} is missing or damaged"
    wanted = manifest.get("sha256")
    if not path.is_dir():
        return f"{path}: the file does not match its manifest's hash" if _sha256(path) != wanted else None
    held = hashes_of(path, sorted(each.name for each in path.iterdir()))
    wanted = wanted if isinstance(wanted, dict) else {}
    wrong = sorted(name for name in held.keys() | wanted.keys() if held.get(name) != wanted.get(name))
    if not wrong:
        return None
    what = "is missing" if wrong[0] not in held else "does not match its manifest's hash"
    return f"{path}: {wrong[0]} {what}{f', and {len(wrong) - 1} more are damaged' if wrong[1:] else ''}"


def read_checkpoint(path: Path, mapped: bool = True) -> dict[str, Any]:
    """The content of an lccp-sim checkpoint. Raises ConfigError if it is missing, damaged or not lccp-sim's.

    From a folder, `state_dict` is read a tensor at a time, on access, and optimizer states stay pieces. The tensors of
    a file are memory-mapped (`mapped`), which has the same effect, or read at once.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such checkpoint")
    problem = damage(path)
    if problem:
        raise ConfigError(f"{problem}; name another checkpoint of the run")
    try:
        if path.is_dir():
            content: Any = read_parts(path, {each.name for each in path.iterdir()})
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        why = f" ({error})" if path.is_dir() else ""
        raise ConfigError(f"{path}: not a checkpoint of lccp-sim; it was not unpickled{why}") from error
    if not isinstance(content, dict) or "lccp" not in content:
        raise ConfigError(f"{path}: not a checkpoint of lccp-sim")
    return content | {"state_dict": Tensors(content["state_dict"])} if path.is_dir() else content


def weights_hash(content: dict[str, Any]) -> str:
    """The SHA-256 of a checkpoint's weights alone: equal for runs that ended in the same model, in any directory."""
    return tensors_hash(content["state_dict"])


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run directory, oldest first; at one step a window comes before a periodic one."""
    files = [path for path in (run / "checkpoints").glob("*.ckpt") if re.fullmatch(r"(window|last)-\d{8}", path.stem)]
    return sorted(files, key=lambda path: (step_of(path), path.stem.startswith("last")))


def step_of(path: Path) -> int:
    """The optimizer step of a checkpoint, from its name."""
    return int(path.stem.split("-")[1])


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint of a run, and the damage of newer ones."""
    problems: list[str] = []
    for path in reversed(checkpoints(run)):
        problem = damage(path)
        if problem is None:
            return path, problems
        problems.append(problem)
    return None, problems


def resolve(name: str, key: str = "run.init_from") -> Path:
    """The path that a key's value or glob names: a checkpoint, a finished run (its last one), or one of Hugging Face.

    `bundled:NAME` is a file of weights that ships with the package. Raises ConfigError if the value matches nothing, or
    more than one path.
    """
    if name.startswith(SCHEME):
        return bundled(name.removeprefix(SCHEME))
    found = list(_expand(name))
    if len(found) != 1:
        what = "matches nothing" if not found else "matches several: " + ", ".join(str(path) for path in found)
        remedy = "train that run first, or name another" if not found else "name one of them"
        raise ConfigError(f"{key}={name!r}: {what}; {remedy}")
    path = found[0]
    if path.is_file() or path.suffix == ".ckpt" or hf.is_checkpoint(path):
        return path
    if not (path / "DONE").exists():
        raise ConfigError(f"{key}={name!r}: {path} is not finished; finish it, or name one of its checkpoints")
    checkpoint, problems = newest(path)
    if checkpoint is None or step_of(checkpoint) != step_of(checkpoints(path)[-1]):
        why = "; ".join(problems) or "it has none"
        raise ConfigError(f"{key}={name!r}: {path} has no intact last checkpoint ({why}); name another one")
    return checkpoint


def _expand(name: str) -> Iterator[Path]:
    """The paths that a name or glob matches; of several directories, those that hold a run."""
    path = Path(name).expanduser()
    if path.exists():
        yield path
    elif any(letter in name for letter in "*?["):
        anchor = Path(path.anchor) if path.is_absolute() else Path()
        hits = sorted(anchor.glob(str(path.relative_to(anchor))))
        yield from (
            hit for hit in hits if hit.suffix == ".ckpt" or (hit / "config.yaml").exists() or hf.is_checkpoint(hit)
        )
