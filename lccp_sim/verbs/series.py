"""What `lccp measure` looks at: a series of checkpoints in the order of their tokens, whatever they are.

A run directory, one checkpoint of ours, a checkpoint of `transformers` (folder or GGUF file), or a YAML file that lists
some with their tokens. Each is loaded only when its turn comes, and all of a series are of one architecture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from lccp_sim.config import Config, ConfigError
from lccp_sim.configure.load import load_config, windows_of
from lccp_sim.models import hf
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.values import Moment
from lccp_sim.train.saved.checkpoint import checkpoints, read_checkpoint, step_of
from lccp_sim.train.saved.init import load_transformer
from lccp_sim.train.saved.vocabulary import read_vocabulary


class Loaded(NamedTuple):
    """A model, and the windows as they were planned when it was saved: a run that was extended had others before.

    `notes`: what a person should know about the checkpoint, a line each.
    """

    model: LanguageModel
    windows: list[int] | None = None
    notes: Sequence[str] = ()


class Point(NamedTuple):
    """A checkpoint: where it is, when it was (optimizer step, training tokens), and how to load it."""

    path: Path
    moment: Moment
    load: Callable[[], Loaded]


@dataclass(frozen=True)
class Series:
    """Points in order of their tokens. `windows` are the steps of those at which heads are compared.

    `tokenizer` is the path of a tokenizer.json or its text, `bos` the name of its BOS token where a checkpoint says so.
    `foreign`: of transformers, none of ours.
    """

    points: list[Point]
    windows: list[int]
    tokenizer: Path | str
    bos: str | None = None
    foreign: bool = False


def device_of(config: Config) -> str:
    """The device that monitors run on after the fact: a GPU where there is one, unless the config says cpu."""
    return "cuda" if config.run.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def of_run(run: Path, config: Config) -> Series:
    """All checkpoints that a run kept; of several at one step the window. ConfigError where there is none."""
    paths = {step_of(path): path for path in reversed(checkpoints(run))}  # a window comes before a periodic one
    if not paths:
        raise ConfigError(f"{run}: no checkpoints in {run / 'checkpoints'}")
    steps = sorted(paths)
    tokens = config.run.batch_tokens
    points = [Point(paths[step], Moment(step, step * tokens), _ours(paths[step], config)) for step in steps]
    return Series(points, windows_of(config), run / "tokenizer.json")


def of_checkpoint(path: Path, config: Config) -> Series:
    """One checkpoint of a run."""
    facts = read_checkpoint(path)["lccp"]
    point = Point(path, Moment(facts["step"], facts["tokens"]), _ours(path, config))
    return Series([point], [facts["step"]], path.parent.parent / "tokenizer.json")


def of_transformers(path: Path, config: Config) -> Series:
    """One checkpoint of `transformers`, at step 0."""
    return _series_of([(path, Moment(0, 0))], config)


def of_list(path: Path, config: Config) -> Series:
    """The series that a YAML file lists: `checkpoints: [{path, tokens, step}]`, paths relative to the file.

    `step` is the place in the list where it is left out. Raises ConfigError where the file is none, or out of order.
    """
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:200]})") from None
    entries = plain.get("checkpoints") if isinstance(plain, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: has no list `checkpoints` of {{path: ..., tokens: ...}}")
    places: list[tuple[Path, Moment]] = []
    for index, entry in enumerate(entries):
        where = f"{path}: checkpoints[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise ConfigError(f"{where} has no path; write {{path: FOLDER, tokens: COUNT}}")
        unknown = sorted(set(entry) - {"path", "tokens", "step"})
        if unknown:
            raise ConfigError(f"{where}: no such key: {', '.join(unknown)}; there are path, tokens, step")
        moment = Moment(
            _count(entry.get("step", index), f"{where}.step"), _count(entry.get("tokens"), f"{where}.tokens")
        )
        if places and not (moment.tokens > places[-1][1].tokens and moment.step > places[-1][1].step):
            before = places[-1][1]
            raise ConfigError(
                f"{where}: out of order: step {moment.step} with {moment.tokens} tokens comes after step {before.step} "
                f"with {before.tokens}; sort the list by tokens, each more than the one before"
            )
        places.append((path.parent / Path(entry["path"]).expanduser(), moment))
    return _series_of(places, config)


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{where}={value!r}: must be an integer >= 0")
    return value


def _series_of(places: list[tuple[Path, Moment]], config: Config) -> Series:
    """Checkpoints that are all of `transformers` or all ours, read with the first one's tokenizer."""
    missing = [str(path) for path, _ in places if not path.exists()]
    if missing:
        raise ConfigError(f"{missing[0]}: no such checkpoint")
    steps = [moment.step for _, moment in places]
    first = places[0][0]
    if first.suffix == ".ckpt":
        loads = [_ours(path, config) for path, _ in places]
        tokenizer, bos = first.parent.parent / "tokenizer.json", None
        return Series(_same(places, loads), steps, tokenizer, bos)
    for path, _ in places:
        hf.notes_of(path)  # what can be refused is refused before anything is prepared
    text, _, bos = read_vocabulary(first)
    dtype = torch.bfloat16 if config.run.precision == "bf16" else torch.float32
    loads = [_theirs(path, dtype, device_of(config)) for path, _ in places]
    return Series(_same(places, loads), steps, text, bos, foreign=True)


def _same(places: list[tuple[Path, Moment]], loads: list[Callable[[], Loaded]]) -> list[Point]:
    """Points whose models must have the layers, heads and vocabulary of the first one that was loaded."""
    known: dict[str, Any] = {}

    def checked(path: Path, load: Callable[[], Loaded]) -> Callable[[], Loaded]:
        def loaded() -> Loaded:
            found = load()
            shape = {name: getattr(found.model, name) for name in ("num_layers", "num_heads", "vocab_size")}
            if known.setdefault("shape", shape) != shape:
                raise ConfigError(f"{path}: has another architecture ({shape}) than the first ({known['shape']})")
            return Loaded(found.model, notes=found.notes)

        return loaded

    return [Point(path, moment, checked(path, load)) for (path, moment), load in zip(places, loads, strict=True)]


def _theirs(path: Path, dtype: torch.dtype, device: str) -> Callable[[], Loaded]:
    return lambda: Loaded(hf.load_checkpoint(path, dtype, device), notes=hf.notes_of(path))


def _ours(path: Path, config: Config) -> Callable[[], Loaded]:
    def load() -> Loaded:
        content = read_checkpoint(path)
        model = load_transformer(path, content).to(device_of(config)).eval()
        return Loaded(model, windows_of(load_config(content["lccp"]["config"])))

    return load
