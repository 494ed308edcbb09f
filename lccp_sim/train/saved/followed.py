"""A folder in which another job saves checkpoints: the checkpoints, their steps, and whether each is complete.

Nothing is ever written there. A checkpoint is a subfolder with a number in its name, in the format of `transformers`
(config.json, safetensors with or without an index) or of torch.distributed.checkpoint, which FSDP, torchtitan and
OLMo-core write. The latter holds only tensors, so its config.json comes from another folder.
"""

import json
import math
import pickle
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from safetensors.torch import save_file

from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign import hf
from lccp_sim.models.foreign.hf_folder import HF_CONFIG, WHOLE
from lccp_sim.train.saved.sharded import INDEX, ShardPiece, pieces_of

NUMBER = re.compile(r"\d+")
STEP_NAME = re.compile(r"(?:checkpoint|ckpt|step|iter|iteration)[-_]?(\d+)")
WEIGHT_FILES = (HF_CONFIG, INDEX, "trainer_state.json", "*.safetensors", "*.distcp", f"*/{INDEX}", "*/*.distcp")
STATE = "trainer_state.json"
NOT_MODEL = ("optim", "lr_scheduler", "scheduler", "train_state", "dataloader", "rng")  # next to a model
Signature = tuple[tuple[str, int, int], ...]
_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True)
class Saved:
    """A checkpoint, complete or not. `model`: a folder with the config.json of checkpoints that have none."""

    path: Path
    model: Path | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def step(self) -> int:
        """The number in the folder's name that follows a word such as step, else the last number."""
        return int([*NUMBER.findall(self.name), *STEP_NAME.findall(self.name)][-1])

    @property
    def parts(self) -> Path | None:
        """The folder of torch.distributed.checkpoint: this one, or one inside it; None for another format."""
        if (self.path / HF_CONFIG).exists():
            return None
        if (self.path / INDEX).exists() or any(self.path.glob("*.distcp")):
            return self.path
        inside = {file.parent for pattern in (INDEX, "*.distcp") for file in self.path.glob(f"*/{pattern}")}
        # The optimizer's states may have a folder of their own.
        return min(inside, key=lambda path: ("model" not in path.name, path.name), default=None)

    def check(self) -> None:
        """Raise ConfigError if the checkpoint can never be read: it holds only tensors, and `model` is not set."""
        if self.parts is not None:
            self._config()

    def signature(self) -> Signature:
        """Names, sizes and times of all files, which are equal as long as nothing is written."""
        found = []
        for file in sorted(self.path.rglob("*")):
            try:
                stat = file.stat()
            except FileNotFoundError:  # a rotation deletes it meanwhile
                continue
            found.append((str(file.relative_to(self.path)), stat.st_size, stat.st_mtime_ns))
        return tuple(found)

    def quiet_seconds(self) -> float:
        """How long ago the newest file was written, by its own time; infinite if there is no file."""
        newest = max((changed for _, _, changed in self.signature()), default=-math.inf)
        return max(0.0, time.time() - newest / 1e9)

    def lacks(self) -> str | None:
        """Why the checkpoint is incomplete or unreadable, in one line; None if nothing is missing."""
        try:
            if (parts := self.parts) is not None:
                self._config()
                _named_as_a_model(_pieces(parts), parts)
            else:
                hf.notes_of(self.path)
        except (ConfigError, OSError) as error:
            return str(error)
        if self.name.startswith("checkpoint-") and self._trained() and not (self.path / STATE).exists():
            return f"{self.path}: has no {STATE} yet, which its trainer writes last"
        return None

    def _trained(self) -> bool:
        """Whether the Trainer of transformers, which writes its state last, is in the middle of saving."""
        return any((self.path / name).exists() for name in ("optimizer.pt", "scheduler.pt", "training_args.bin"))

    def tokens(self, per_step: int | None) -> int:
        """Training tokens at this checkpoint. Raises ConfigError if neither the user nor the trainer states them."""
        if per_step is not None:
            return self.step * per_step
        seen = self._state().get("num_input_tokens_seen", 0)
        if seen < 0 or (not seen and self.step):
            raise ConfigError(
                f"{self.path}: the tokens of step {self.step} are unknown: {STATE} has no count above 0 under "
                "num_input_tokens_seen; give --tokens-per-step (over all ranks and accumulated batches), or train with "
                "include_num_input_tokens_seen='all'"
            )
        return seen

    @property
    def is_last(self) -> bool:
        """Whether the Trainer's state says that the training ends with this checkpoint."""
        state = self._state()
        return 0 < state.get("max_steps", 0) <= state.get("global_step", 0)

    def _state(self) -> dict[str, int]:
        """The integers of the state that the Trainer of transformers saved; empty without one."""
        try:
            found = json.loads((self.path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        pairs = found.items() if isinstance(found, dict) else ()
        return {key: int(value) for key, value in pairs if isinstance(value, int | float) and value == value // 1}

    def loaded(self, load: Callable[[Path], _Loaded]) -> _Loaded:
        """The result of `load` for this checkpoint as a `transformers` folder, converted if it has another format.

        Raises ConfigError if it cannot be read.
        """
        parts = self.parts
        if parts is None:
            return load(self.path)
        with TemporaryDirectory(prefix="lccp-") as made:
            folder = Path(made)
            shutil.copyfile(self._config(), folder / HF_CONFIG)
            named = _named_as_a_model(_pieces(parts), parts)
            save_file({name: piece.whole() for name, piece in named.items()}, folder / WHOLE, {"format": "pt"})
            try:
                return load(folder)
            except ConfigError as error:
                raise ConfigError(*(line.replace(made, str(parts)) for line in error.problems)) from None

    def _config(self) -> Path:
        path = None if self.model is None else self.model / HF_CONFIG
        if path is None or not path.is_file():
            raise ConfigError(
                f"{self.path}: holds tensors without a {HF_CONFIG} (torch.distributed.checkpoint); name a folder with "
                "the model's config.json and tokenizer.json: --model FOLDER"
            )
        return path


def saved_in(folder: Path, model: Path | None = None) -> list[Saved]:
    """The checkpoints in a folder, in step order; of one step, the shorter name first.

    Raises ConfigError if it is not a folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name the one in which checkpoints are saved")
    found = [
        Saved(path, model)
        for path in folder.iterdir()
        if path.is_dir() and path.name[0] != "." and NUMBER.search(path.name) and not path.name.endswith(".tmp")
    ]
    return sorted(
        (each for each in found if _holds_files(each.path)), key=lambda each: (each.step, len(each.name), each.name)
    )


def _holds_files(path: Path) -> bool:
    return any(next(path.glob(pattern), None) is not None for pattern in WEIGHT_FILES)


def _pieces(folder: Path) -> dict[str, ShardPiece]:
    try:
        return pieces_of(folder)
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{folder}: {error}; it cannot be read") from None
    except (EOFError, OSError) as error:
        raise ConfigError(f"{folder}: is incomplete ({error})") from None


def _named_as_a_model(pieces: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The model's tensors, without the prefix `model.` and the optimizer's states."""
    found = {name: piece for name, piece in pieces.items() if not name.startswith(NOT_MODEL)}
    while found and {name.partition(".")[0] for name in found} <= {"app", "module", "state_dict"}:
        found = {name.partition(".")[2]: piece for name, piece in found.items()}
    # A base model whose own name is `model` is next to its head, or has one more name before its layers.
    inner = {name.partition(".")[2].partition(".")[0] for name in found}
    if found and all(name.startswith("model.") for name in found) and inner & {"model", "lm_head", "transformer"}:
        found = {name.removeprefix("model."): piece for name, piece in found.items()}
    if not found:
        raise ConfigError(f"{folder}: holds no tensors of a model")
    return found
