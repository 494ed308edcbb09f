"""Checkpoints of `transformers` on disk: a folder of config.json and safetensors, or a GGUF file.

`hf_folder` inspects a folder; here `transformers` reads it. A weight that is missing, misfits or is left over is an
error, because `transformers` would draw such weights at random and report it only in its log.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign.adapter import Adapter
from lccp_sim.models.foreign.hf_folder import ADAPTER, HF_CONFIG, Folder, inspect, lacking, misfit, unknown
from lccp_sim.models.foreign.rope_settings import nested
from lccp_sim.sums import check_sums

OLDEST = "5.1"  # of transformers: before, attention functions could not be looked up (`get_interface`)
TYPE_WORDS = {"bool": "true or false", "int": "an integer", "float": "a number", "str": "text", "NoneType": "null"}
TYPE_WORDS |= {"list": "a list", "dict": "an object"}
ALPHA_SINCE = "5.20"  # before, Hunyuan's constant alpha was read as dynamic scaling beyond the context


def is_checkpoint(path: Path) -> bool:
    """Whether a path seems to be a checkpoint of `transformers`: a GGUF file, or a folder with one or a config.json.

    A folder with an adapter counts as a checkpoint; reading it is refused.
    """
    holds = path.is_dir() and ((path / HF_CONFIG).exists() or (path / ADAPTER).exists() or bool(_ggufs(path)))
    return path.suffix == ".gguf" or holds


def load_checkpoint(path: Path, dtype: torch.dtype, device: str) -> Adapter:
    """The model at `path`, in eval mode. Raises ConfigError (one line) if it is not a usable causal LM."""
    check_sums(path)
    return Adapter(torch.nn.Module.to(_load(path, dtype), device).eval())


def notes_of(path: Path) -> list[str]:
    """Notes for the user about the checkpoint at `path`, one line each."""
    return [] if gguf_of(path) else inspect(path).notes


def open_weights(
    path: Path, dtype: torch.dtype
) -> tuple[dict[str, Any], Iterator[tuple[str, torch.Tensor]], list[str]]:
    """config.json, a stream of (name, tensor) of the checkpoint at `path`, and notes for the user.

    A folder is read here, a tensor at a time. A GGUF file is loaded by transformers, entire and in `dtype`.
    """
    if gguf_of(path) is None:
        folder = inspect(path)
        return folder.settings, folder.stream(), folder.notes
    model = _load(path, dtype)
    settings = model.config.to_dict() | {"quantization_config": None}  # the weights are dequantised
    # The file holds 1e-5 as the nearest fp32.
    settings |= {key: float(f"{value:.6g}") for key, value in settings.items() if isinstance(value, float)}
    return settings, iter(model.state_dict().items()), []


def load_tokenizer_json(path: Path) -> tuple[str, str | None]:
    """The text of the tokenizer.json that `transformers` makes for `path`, and the name of its BOS token, if any."""
    file = gguf_of(path)
    source: dict[str, Any] = {"gguf_file": file.name} if file else {}
    library = _library(gguf=bool(file))
    with _quiet():
        try:
            tokenizer = library.AutoTokenizer.from_pretrained(
                str(file.parent if file else path), **source, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            why = f"transformers cannot load its tokenizer ({_line(error)})"
            raise ConfigError(f"{path}: {why}; put its tokenizer.json there") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"{path}: its tokenizer has no tokenizer.json form, so no offsets; put a tokenizer.json there"
        )
    return backend.to_str(), tokenizer.bos_token


def gguf_of(path: Path) -> Path | None:
    """The GGUF file that `path` means, or None for a folder of another kind. Raises ConfigError if it is neither."""
    if path.suffix == ".gguf" and path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(f"{path}: no such checkpoint")
    if (path / HF_CONFIG).exists() or (path / ADAPTER).exists():
        return None
    ggufs = _ggufs(path)
    if not ggufs:
        raise ConfigError(f"{path}: holds no config.json and no GGUF file; name the folder that holds one")
    if len(ggufs) != 1:
        raise ConfigError(f"{path}: holds {len(ggufs)} GGUF files and no config.json; name one of the files")
    return ggufs[0]


def _load(path: Path, dtype: torch.dtype) -> Any:
    """The causal LM at `path`, on the CPU. Raises ConfigError if a weight is missing, left over, or does not fit."""
    how: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    how |= {"local_files_only": True, "trust_remote_code": False}
    if file := gguf_of(path):
        model, info = _from_pretrained(path, file.parent, how | {"gguf_file": file.name})
        _check_whole(path, model, info)
        return model
    folder = inspect(path)
    with folder.view() as place:
        _check_type(path, place, folder.settings)
        how |= {"use_safetensors": True, "key_mapping": folder.mapping or None}
        model, info = _from_pretrained(path, place, how)
    _check_whole(path, model, info)
    _check_facts(folder, model)
    model.config.name_or_path = str(path)
    return model


def _from_pretrained(path: Path, place: Path, how: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The result of `AutoModelForCausalLM.from_pretrained`, without console output."""
    library = _library(gguf="gguf_file" in how)
    with _quiet():
        try:
            return library.AutoModelForCausalLM.from_pretrained(str(place), **how)
        except Exception as error:  # the library raises many types: ValueError, KeyError, OSError, ImportError, ...
            line = _line(error).replace(str(place), str(path))
            raise ConfigError(f"{path}: transformers cannot load it as a causal LM ({line})") from error


def _check_type(path: Path, place: Path, settings: dict[str, Any]) -> None:
    """Raise ConfigError if `transformers` has no causal LM for the model_type."""
    library = _library()
    kind = settings.get("model_type")
    if kind is None:
        raise ConfigError(
            f"{path / HF_CONFIG}: has no model_type, so transformers cannot load it; put the complete file there"
        )
    if not isinstance(kind, str) or kind not in library.CONFIG_MAPPING:
        raise ConfigError(
            f"{path}: transformers cannot load model_type={kind!r}, which version {library.__version__} does not know; "
            "a newer version may"
        )
    with _quiet():
        try:
            config = library.AutoConfig.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise ConfigError(f"{path / HF_CONFIG}: transformers cannot load it ({_line(error)})") from error
    if type(config) not in library.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(f"{path}: model_type={kind!r} has no causal LM in transformers; name one that has")


def _check_whole(path: Path, model: Any, info: dict[str, Any]) -> None:
    """Raise ConfigError if a tensor was not found, does not fit, or was not used."""
    where, kind = str(path), model.config.model_type
    # The likeliest cause comes first: if names differ, tensors are both missing and left over.
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise misfit(where, name, stored, wanted)
    if missing := info["missing_keys"]:
        raise lacking(where, missing, info["unexpected_keys"])
    if info["unexpected_keys"]:
        raise unknown(where, info["unexpected_keys"], kind)
    if info.get("error_msgs"):
        raise ConfigError(f"{where}: transformers cannot load its weights ({' '.join(info['error_msgs'])[:200]})")


def _check_facts(folder: Folder, model: Any) -> None:
    """Raise ConfigError if the loaded model does not compute what config.json states."""
    where = str(folder.path)
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in rope and (types := nested(rope)):
        raise ConfigError(
            f"{folder.path / HF_CONFIG}: rope_parameters has a group per layer type ({', '.join(types)}), but "
            f"{config.model_type} has one RoPE for all layers; keep that one only"
        )
    if rope.get("alpha") and older(ALPHA_SINCE):
        raise ConfigError(
            f"{where}: transformers before {ALPHA_SINCE} misreads rope_parameters.alpha beyond the context; "
            f"install transformers>={ALPHA_SINCE}"
        )
    ends = model.get_output_embeddings(), model.get_input_embeddings()
    head, embedding = (getattr(each, "weight", None) for each in ends)
    if getattr(model.config, "tie_word_embeddings", False) and head is not None and embedding is not None:
        if head is not embedding and not torch.equal(head, embedding):
            raise ConfigError(
                f"{where}: tie_word_embeddings is true in config.json or by default, but the stored head is not the "
                "stored embedding; set it to false, or remove the head"
            )
    folder.check_twice(model.base_model_prefix, model.state_dict().keys())


def _library(gguf: bool = False) -> Any:
    """The module `transformers`. Raises ConfigError if it, or its GGUF reader, is missing or too old."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(f"transformers cannot be imported ({error}); pip install 'lccp-sim[hf]'") from error
    if older(OLDEST):
        has = transformers.__version__
        raise ConfigError(f"transformers {has} is too old; pip install 'transformers>={OLDEST}'")
    if lacks := [name for name in ("gguf", "accelerate") if gguf and find_spec(name) is None]:
        raise ConfigError(f"GGUF files need {' and '.join(lacks)}; pip install 'lccp-sim[hf]'")
    return transformers


def older(version: str) -> bool:
    """Whether the installed `transformers` is older than a major and minor version."""
    from transformers import __version__

    return [int(part) for part in __version__.split(".")[:2]] < [int(part) for part in version.split(".")]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence `transformers`, including its progress bars for GGUF files. Our own messages say what matters."""
    from transformers import logging

    before = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.set_verbosity(before)


def _ggufs(path: Path) -> list[Path]:
    return sorted(path.glob("*.gguf"))


def _line(error: Exception) -> str:
    """The text of an error in one line, without class names. Python's own texts about types are replaced."""
    if type(error) in (TypeError, AttributeError):
        return "a key is missing, or a value has the wrong type"
    text = " ".join(str(error.args[0] if type(error) is KeyError and error.args else error).split())
    if type(error) is KeyError and " " not in text:  # a missing key, or an unknown name
        return f"it finds no {text!r}"
    text = re.sub(r"<class '[\w.]*?(\w+)'>", r"\1", text)
    text = re.sub(r"(?:Class validation error for validator|Validation error for field) '\w+': ", "", text)
    text = re.sub(r"\b(expected|got) (\w+)", lambda found: f"{found[1]} {TYPE_WORDS.get(found[2], found[2])}", text)
    text = re.sub(r"\b\w+(?:Error|Exception): ", "", text).replace("NoneType", "null")
    text = re.sub(r"['`]?\b[A-Z]\w*(ForCausalLM|ForConditionalGeneration|Model|Config)\b['`]?", "it", text)
    return text[:200] or "it gives no reason"
