"""What a folder of `transformers` holds: looked at in one place, before anything of it is loaded, whoever loads it.

Its config.json, its safetensors and their names must agree with each other. What is odd and harmless (a byte order
mark, a prefix that torch.compile left, weights in a subfolder) is set right, and said where it is a guess. Nothing is
fetched, no foreign code is run, and pickled weights are refused: what a folder may do is to hold numbers.
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

CONFIG, ADAPTER = "config.json", "adapter_config.json"
PAD = "pad_token_id"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")
FLOATS = {"F64", "F32", "BF16", "F16"}
# Modules that wrap others and leave their name in those of the tensors: torch.compile, FSDP, checkpointing, Fabric.
WRAPPED = r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
PARALLEL = r"^module\."  # DataParallel and DDP wrap the whole model
MERGE = "these are of an adapter: merge it first"
SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")


@dataclass(frozen=True)
class Folder:
    """A folder that was looked at: config.json, the files of its weights in order, and their tensors.

    `names`: of every stored tensor, by its stored name, its name without wrappers. `mapping`: the patterns that take
    them off, one after the other. `notes`: what a person should know, a line each.
    """

    path: Path
    settings: dict[str, Any]
    files: list[Path]
    names: dict[str, str]
    mapping: dict[str, str]
    notes: list[str]

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors by their name without wrappers, of one file at a time, in the dtype in which they are stored."""
        for path in self.files:
            with _opened(path) as shard:
                for key in shard.keys():  # noqa: SIM118 (no mapping)
                    yield self.names[key], shard.get_tensor(key)

    def tensor(self, stored: str) -> Tensor:
        """The tensor that is stored under a name."""
        for path in self.files:
            with _opened(path) as shard:
                if stored in shard.keys():  # noqa: SIM118
                    return shard.get_tensor(stored)
        raise KeyError(stored)

    @contextmanager
    def view(self) -> Iterator[Path]:
        """The same in the form that `transformers` expects: config.json with one RoPE, links to the files, an index."""
        with TemporaryDirectory(prefix="lccp-") as name:
            place, links = Path(name), {}
            for number, file in enumerate(self.files, 1):
                links[file] = f"model-{number:05d}-of-{len(self.files):05d}.safetensors"
                (place / links[file]).symlink_to(file.resolve())
            index = {key: links[file] for file in self.files for key in _keys(file)}
            (place / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8")
            settings = dict(self.settings)
            if settings.get("rope_parameters"):
                settings.pop("rope_scaling", None)  # says the same, and would take the place of rope_theta
            (place / CONFIG).write_text(json.dumps(settings), encoding="utf-8")
            yield place

    def check_twice(self, prefix: str, known: Iterable[str]) -> None:
        """None, or ConfigError where a tensor is there with and without the model's `prefix`, and the two differ.

        Names that are `known` to the model as they are mean two tensors.
        """
        seen: dict[str, str] = {}
        taken = set(known)
        for stored, name in self.names.items():
            bare = re.sub(rf"^(?:{re.escape(prefix)}\.)+", "", name) if prefix else name
            other = seen.setdefault(bare, stored)
            if other == stored or {name, self.names[other]} <= taken:
                continue
            if not torch.equal(self.tensor(other), self.tensor(stored)):
                raise ConfigError(f"{self.path}: {other} and {stored} mean one tensor and differ; remove one of them")


def inspect(path: Path) -> Folder:
    """What the folder at `path` holds. Raises ConfigError in one line where it is no whole causal LM in safetensors."""
    if (path / ADAPTER).exists():
        base = read_json(path / ADAPTER).get("base_model_name_or_path")
        of = f" of {base}" if base else ""
        raise ConfigError(f"{path}: holds an adapter{of}: merge it first, save the merged model, and name that")
    config = path / CONFIG
    settings = read_json(config)
    if "auto_map" in settings:
        raise ConfigError(
            f"{path}: needs code of its own (auto_map in config.json), which is refused; convert it first, or take the "
            "key out where transformers knows the model_type itself"
        )
    try:
        for each in (settings, settings.get("text_config")):
            if isinstance(each, dict):
                check_rope(each, str(config))
    except ConfigError:
        raise
    except (TypeError, ValueError, AttributeError):  # a word for a number, a list for a group
        raise ConfigError(f"{config}: damaged (a value of RoPE is of the wrong kind); fetch it anew") from None
    files = _files(path)
    names = _names(files, path, quantised=bool(settings.get("quantization_config")))
    names, mapping, notes = _unwrapped(names, path)
    rows, pad = settings.get("vocab_size"), settings.get(PAD)
    if isinstance(rows, int) and isinstance(pad, int) and pad >= rows:  # transformers would not build the embedding
        settings = settings | {PAD: None}
        notes = [
            *notes,
            f"{path}: {PAD} is {pad}, and the embedding has {rows} rows; nothing is padded, so it is left out",
        ]
    return Folder(path, settings, files, names, mapping, notes)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, with or without a byte order mark. Raises ConfigError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); put it back") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: damaged ({error}); fetch it anew") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: damaged (no JSON object); fetch it anew")
    return found


def lacking(where: str, names: Iterable[str], left: Iterable[str] = ()) -> ConfigError:
    """The error for tensors that the model has, and the weights have not; `left` are those that they have beside it."""
    names, left = sorted(names), sorted(left)
    remedy = "fetch the checkpoint anew"
    if [name.removesuffix(".weight").rpartition(".")[2] for name in names] == ["lm_head"]:
        remedy = f"where the model ties its head, put tie_word_embeddings=true into config.json, else {remedy}"
    elif _adapted(left):
        remedy = f"{few(left)} there; {MERGE}"
    elif left:
        remedy = f"{few(left)} there, and not used: name the tensors as transformers does, or {remedy}"
    return ConfigError(f"{where}: {few(names)} not in the weights; {remedy}")


def unknown(where: str, names: Iterable[str], model: str) -> ConfigError:
    """The error for tensors that the weights have, and the model has not."""
    names = sorted(names)
    remedy = MERGE if _adapted(names) else "remove them, or name the model they are of"
    return ConfigError(f"{where}: {few(names)} in the weights, not in {model}; {remedy}")


def _adapted(names: Iterable[str]) -> bool:
    return any(".lora_" in name or name.startswith("base_model.model.") for name in names)


def misfit(where: str, name: str, stored: Iterable[int], wanted: Iterable[int]) -> ConfigError:
    """The error for a tensor whose shape is not that of config.json."""
    return ConfigError(
        f"{where}: {name} has shape {tuple(stored)}, and by config.json it is {tuple(wanted)}; "
        "the two are not of one model"
    )


def few(names: list[str]) -> str:
    """The first three of some names, how many more there are, and the verb."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"


def _files(path: Path) -> list[Path]:
    """The files of the weights, in order, all of them there."""
    index, whole = path / INDEX, path / WHOLE
    if index.exists() and whole.exists():
        raise ConfigError(f"{path}: holds {WHOLE} and {INDEX}, which name two sets of weights; remove one of them")
    if index.exists():
        found = read_json(index).get("weight_map")
        if not isinstance(found, dict) or not found or not all(isinstance(each, str) for each in found.values()):
            raise ConfigError(f"{index}: damaged (no weight_map of tensors to files); fetch it anew")
        names = sorted(set(found.values()))
        for name in names:
            if not name or "\\" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ConfigError(f"{index}: names {name!r}, which lies outside the folder; that is refused")
        if lost := [name for name in names if not (path / name).is_file()]:
            raise ConfigError(f"{path}: {few(lost)} missing, listed in {INDEX}; fetch the rest of the shards")
        return [path / name for name in names]
    if whole.exists():
        return [whole]  # others beside it hold the same weights in another way
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickled = [found.name for pattern in PICKLES for found in path.glob(pattern)]
        why = f"{pickled[0]} is a pickle, which is refused; convert it to safetensors" if pickled else "no weights"
        raise ConfigError(f"{path}: holds no safetensors ({why})")
    shards = [match for file in files if (match := SHARD.search(file.name))]
    if shards and len(shards) < int(shards[0][2]):
        raise ConfigError(
            f"{path}: holds {len(shards)} of the {int(shards[0][2])} shards and no {INDEX}; fetch the rest of them"
        )
    return files


def _names(files: list[Path], path: Path, quantised: bool) -> dict[str, str]:
    """Every stored tensor's name, to itself. Raises ConfigError where a file is torn, or a tensor is no float."""
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
    """The names without wrappers, the patterns that take them off, and a note. ConfigError where two become one."""
    found = {stored: re.sub(WRAPPED, "", stored) for stored in names}
    # transformers takes a pattern off once a name: the same one in other letters goes on.
    deepest = max((len(re.findall(WRAPPED, stored)) for stored in names), default=0)
    mapping = {"(?:)" * number + WRAPPED: "" for number in range(deepest)}
    if found and all(re.match(PARALLEL, name) for name in found.values()):
        found = {stored: re.sub(PARALLEL, "", name) for stored, name in found.items()}
        mapping[PARALLEL] = ""
    first: dict[str, str] = {}
    for stored, name in found.items():
        if (other := first.setdefault(name, stored)) != stored:
            raise ConfigError(f"{path}: {other} and {stored} mean one tensor, {name}; remove one of them")
    changed = [stored for stored, name in found.items() if stored != name]
    if not changed:
        return found, {}, []
    what = f"{few(changed)} named as a wrapped model (torch.compile, DDP, FSDP) saves them"
    return found, mapping, [f"{path}: {what}; the wrappers' names are taken off"]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open safetensors file. Raises ConfigError where it is damaged, no file, or may not be read."""
    try:
        path.open("rb").close()  # the system's own words: those of safetensors do not always say which file
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); put it back") from None
    try:
        with safe_open(path, "pt") as shard:
            yield shard
    except SafetensorError as error:
        raise ConfigError(f"{path}: damaged ({error}); fetch it anew") from None


def _keys(path: Path) -> list[str]:
    with _opened(path) as shard:
        return list(shard.keys())
