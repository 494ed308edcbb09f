"""Inspection of a `transformers` folder, in one place for all loaders, before anything is loaded.

Its config.json, its safetensors and their names must agree with each other. Harmless oddities (a byte order mark, a
prefix that torch.compile left, weights in a subfolder) are corrected, and reported if the correction is a guess.
Nothing is fetched, no foreign code runs, and pickled weights are refused: a folder may only hold numbers.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign.rope_settings import check_rope

HF_CONFIG, ADAPTER = "config.json", "adapter_config.json"
_PAD = "pad_token_id"
WHOLE, HF_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")
FLOATS = {"F64", "F32", "BF16", "F16"}
# Wrapper modules that leave their name in tensor names: torch.compile, FSDP, checkpointing, Fabric.
WRAPPED = r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
PARALLEL = r"^module\."  # DataParallel and DDP wrap the entire model
MERGE = "these belong to an adapter: merge it first"
SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")


@dataclass(frozen=True)
class Folder:
    """An inspected folder: config.json, the files of its weights in order, and their tensors.

    `names`: {stored name: name without wrappers}. `mapping`: the patterns that remove the wrappers, applied in order.
    `notes`: notes for the user, one line each.
    """

    path: Path
    settings: dict[str, Any]
    files: list[Path]
    names: dict[str, str]
    mapping: dict[str, str]
    notes: list[str]

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors by their name without wrappers, one file at a time, in their stored dtype."""
        for path in self.files:
            with _opened(path) as shard:
                for key in shard.keys():  # noqa: SIM118 (no mapping)
                    yield self.names[key], shard.get_tensor(key)

    def tensor(self, stored: str) -> Tensor:
        """The tensor with this stored name."""
        for path in self.files:
            with _opened(path) as shard:
                if stored in shard.keys():  # noqa: SIM118
                    return shard.get_tensor(stored)
        raise KeyError(stored)

    @contextmanager
    def view(self) -> Iterator[Path]:
        """A folder in the form that `transformers` expects: config.json with one RoPE, links to the files, an index."""
        with TemporaryDirectory(prefix="lccp-") as name:
            place, links = Path(name), {}
            for number, file in enumerate(self.files, 1):
                links[file] = f"model-{number:05d}-of-{len(self.files):05d}.safetensors"
                (place / links[file]).symlink_to(file.resolve())
            index = {key: links[file] for file in self.files for key in _keys(file)}
            (place / HF_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8")
            settings = dict(self.settings)
            if settings.get("rope_parameters"):
                settings.pop("rope_scaling", None)  # says the same, and would override rope_theta
            (place / HF_CONFIG).write_text(json.dumps(settings), encoding="utf-8")
            yield place

    def check_twice(self, prefix: str, known: Iterable[str]) -> None:
        """Raise ConfigError if a tensor occurs with and without the model's `prefix`, and the two differ.

        Names in `known` are the model's own and mean different tensors.
        """
        seen: dict[str, str] = {}
        taken = set(known)
        for stored, name in self.names.items():
            bare = re.sub(rf"^(?:{re.escape(prefix)}\.)+", "", name) if prefix else name
            other = seen.setdefault(bare, stored)
            if other == stored or {name, self.names[other]} <= taken:
                continue
            if not torch.equal(self.tensor(other), self.tensor(stored)):
                raise ConfigError(f"{self.path}: {other} and {stored} are one tensor but differ; remove one of them")


def inspect(path: Path) -> Folder:
    """Inspect the folder at `path`. Raises ConfigError (one line) if it is not a complete causal LM in safetensors."""
    if (path / ADAPTER).exists():
        base = read_json(path / ADAPTER).get("base_model_name_or_path")
        of = f" of {base}" if base else ""
        raise ConfigError(f"{path}: holds an adapter{of}: merge it first, save the merged model, and name that one")
    config = path / HF_CONFIG
    settings = read_json(config)
    if "auto_map" in settings:
        raise ConfigError(
            f"{path}: needs its own code (auto_map in config.json), which is refused; convert it first, or remove the "
            "key if transformers knows the model_type itself"
        )
    try:
        for each in (settings, settings.get("text_config")):
            if isinstance(each, dict):
                check_rope(each, str(config))
    except ConfigError:
        raise
    except (TypeError, ValueError, AttributeError):  # a word for a number, a list for a group
        raise ConfigError(f"{config}: damaged (a RoPE value has the wrong type); fetch it again") from None
    files = _files(path)
    names = _names(files, path, quantised=bool(settings.get("quantization_config")))
    names, mapping, notes = _unwrapped(names, path)
    rows, pad = settings.get("vocab_size"), settings.get(_PAD)
    if isinstance(rows, int) and isinstance(pad, int) and pad >= rows:  # transformers would not build the embedding
        settings = settings | {_PAD: None}
        notes = [
            *notes,
            f"{path}: {_PAD} is {pad}, but the embedding has {rows} rows; nothing is padded, so it is ignored",
        ]
    return Folder(path, settings, files, names, mapping, notes)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, with or without a byte order mark. Raises ConfigError if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); put it back") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: damaged ({error}); fetch it again") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: damaged (no JSON object); fetch it again")
    return found


def lacking(where: str, names: Iterable[str], left: Iterable[str] = ()) -> ConfigError:
    """The error for tensors of the model that the weights lack. `left`: tensors of the weights that are not used."""
    names, left = sorted(names), sorted(left)
    remedy = "fetch the checkpoint again"
    if [name.removesuffix(".weight").rpartition(".")[2] for name in names] == ["lm_head"]:
        remedy = f"if the model ties its head, set tie_word_embeddings=true in config.json, else {remedy}"
    elif _adapted(left):
        remedy = f"{few(left)} there; {MERGE}"
    elif left:
        remedy = f"{few(left)} there but unused: name the tensors as transformers does, or {remedy}"
    return ConfigError(f"{where}: {few(names)} not in the weights; {remedy}")


def unknown(where: str, names: Iterable[str], model: str) -> ConfigError:
    """The error for tensors of the weights that the model lacks."""
    names = sorted(names)
    remedy = MERGE if _adapted(names) else "remove them, or name the model that they belong to"
    return ConfigError(f"{where}: {few(names)} in the weights, not in {model}; {remedy}")


def _adapted(names: Iterable[str]) -> bool:
    return any(".lora_" in name or name.startswith("base_model.model.") for name in names)


def misfit(where: str, name: str, stored: Iterable[int], wanted: Iterable[int]) -> ConfigError:
    """The error for a tensor whose shape contradicts config.json."""
    return ConfigError(
        f"{where}: {name} has shape {tuple(stored)}, but config.json implies {tuple(wanted)}; "
        "the two belong to different models"
    )


def few(names: list[str]) -> str:
    """The first three names, how many more there are, and the verb."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"


def _files(path: Path) -> list[Path]:
    """The files of the weights, in order. Raises ConfigError if any is missing."""
    index, whole = path / HF_INDEX, path / WHOLE
    if index.exists() and whole.exists():
        raise ConfigError(f"{path}: holds {WHOLE} and {HF_INDEX}, which are two sets of weights; remove one of them")
    if index.exists():
        found = read_json(index).get("weight_map")
        if not isinstance(found, dict) or not found or not all(isinstance(each, str) for each in found.values()):
            raise ConfigError(f"{index}: damaged (no weight_map of tensors to files); fetch it again")
        names = sorted(set(found.values()))
        for name in names:
            if not name or "\\" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ConfigError(f"{index}: names {name!r}, which lies outside the folder; that is refused")
        if lost := [name for name in names if not (path / name).is_file()]:
            raise ConfigError(f"{path}: {few(lost)} missing, listed in {HF_INDEX}; fetch the rest of the shards")
        return [path / name for name in names]
    if whole.exists():
        return [whole]  # other files there hold the same weights in another form
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickled = [found.name for pattern in PICKLES for found in path.glob(pattern)]
        why = f"{pickled[0]} is a pickle, which is refused; convert it to safetensors" if pickled else "no weights"
        raise ConfigError(f"{path}: holds no safetensors ({why})")
    shards = [match for file in files if (match := SHARD.search(file.name))]
    if shards and len(shards) < int(shards[0][2]):
        raise ConfigError(
            f"{path}: holds {len(shards)} of the {int(shards[0][2])} shards and no {HF_INDEX}; fetch the rest of them"
        )
    return files


def _names(files: list[Path], path: Path, quantised: bool) -> dict[str, str]:
    """{name: name} of every stored tensor. Raises ConfigError if a file is torn, or a tensor is not a float."""
    home: dict[str, Path] = {}
    for file in files:
        with _opened(file) as shard:
            for key in shard.keys():  # noqa: SIM118
                if key in home:
                    raise ConfigError(f"{path}: {key} is in {home[key].name} and in {file.name}; remove one of them")
                home[key] = file
                kind = shard.get_slice(key).get_dtype()
                if kind not in FLOATS and key.endswith((".weight", ".bias")) and not quantised:
                    raise ConfigError(f"{path}: {key} is stored as {kind}; convert the weights to bf16 or fp32")
    return {key: key for key in home}


def _unwrapped(names: dict[str, str], path: Path) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """The names without wrappers, the patterns that remove these, and a note. ConfigError if two names become equal."""
    found = {stored: re.sub(WRAPPED, "", stored) for stored in names}
    # transformers applies a pattern once per name, so a repeated wrapper needs it again in another spelling.
    deepest = max((len(re.findall(WRAPPED, stored)) for stored in names), default=0)
    mapping = {"(?:)" * number + WRAPPED: "" for number in range(deepest)}
    if found and all(re.match(PARALLEL, name) for name in found.values()):
        found = {stored: re.sub(PARALLEL, "", name) for stored, name in found.items()}
        mapping[PARALLEL] = ""
    first: dict[str, str] = {}
    for stored, name in found.items():
        if (other := first.setdefault(name, stored)) != stored:
            raise ConfigError(f"{path}: {other} and {stored} are the same tensor, {name}; remove one of them")
    changed = [stored for stored, name in found.items() if stored != name]
    if not changed:
        return found, {}, []
    what = f"{few(changed)} named as in a wrapped model (torch.compile, DDP, FSDP)"
    return found, mapping, [f"{path}: {what}; the wrappers' names are removed"]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open safetensors file. Raises ConfigError if it is damaged, not a file, or not readable."""
    try:
        path.open("rb").close()  # gives the system's message: that of safetensors does not always name the file
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); put it back") from None
    try:
        with safe_open(path, "pt") as shard:
            yield shard
    except SafetensorError as error:
        raise ConfigError(f"{path}: damaged ({error}); fetch it again") from None


def _keys(path: Path) -> list[str]:
    with _opened(path) as shard:
        return list(shard.keys())
