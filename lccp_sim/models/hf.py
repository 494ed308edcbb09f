"""Checkpoints of `transformers` on disk: a folder of config.json and safetensors, or a GGUF file.

Nothing is fetched, no foreign code is run, and pickled weights are refused: what a folder may do is to hold numbers.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lccp_sim.config import ConfigError
from lccp_sim.models.adapter import Adapter
from lccp_sim.models.weights import stream_folder

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")


def is_checkpoint(path: Path) -> bool:
    """Whether a path looks like a checkpoint of `transformers`: a GGUF file, or a folder with one or a config.json."""
    return path.suffix == ".gguf" or (path.is_dir() and ((path / "config.json").exists() or bool(_ggufs(path))))


def load_checkpoint(path: Path, dtype: torch.dtype, device: str) -> Adapter:
    """The model at `path`, in eval mode. Raises ConfigError in one line where it is not a usable causal LM."""
    return Adapter(torch.nn.Module.to(_load(path, dtype), device).eval())


def open_weights(path: Path, dtype: torch.dtype) -> tuple[dict[str, Any], Iterator[tuple[str, torch.Tensor]]]:
    """config.json and a stream of (name, tensor) of the checkpoint at `path`.

    We read a folder ourselves, a tensor at a time; a GGUF file is loaded by transformers, whole and in `dtype`.
    """
    source = source_of(path)
    if "gguf_file" not in source:
        return json.loads((path / "config.json").read_text(encoding="utf-8")), stream_folder(path)
    model = _load(path, dtype)
    settings = model.config.to_dict() | {"quantization_config": None}  # the weights are numbers again
    # The file holds 1e-5 as the nearest fp32.
    settings |= {key: float(f"{value:.6g}") for key, value in settings.items() if isinstance(value, float)}
    return settings, iter(model.state_dict().items())


def _load(path: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, logging

    source = source_of(path)
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            **source, dtype=dtype, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the library raises what it likes: ValueError, KeyError, OSError, ImportError, ...
        raise ConfigError(f"{path}: transformers cannot load it as a causal LM ({_line(error)})") from error


def load_tokenizer_json(path: Path) -> tuple[str, str | None]:
    """The text of a tokenizer.json for the checkpoint at `path`, and the name of its BOS token where it states one."""
    from transformers import AutoTokenizer

    source = source_of(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ConfigError(f"{path}: transformers cannot load its tokenizer ({_line(error)})") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"{path}: its tokenizer has no tokenizer.json form, so no offsets; put a tokenizer.json there"
        )
    return backend.to_str(), tokenizer.bos_token


def source_of(path: Path) -> dict[str, Any]:
    """The arguments that name the weights to `from_pretrained`. Raises ConfigError where none can be read."""
    if path.suffix == ".gguf" and path.is_file():
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if not path.is_dir():
        raise ConfigError(f"{path}: no such checkpoint")
    config, ggufs = path / "config.json", _ggufs(path)
    if not config.exists():
        if len(ggufs) != 1:
            raise ConfigError(f"{path}: holds {len(ggufs)} GGUF files and no config.json; name one of the files")
        return {"pretrained_model_name_or_path": str(path), "gguf_file": ggufs[0].name}
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{config}: damaged ({error})") from None
    if "auto_map" in settings:
        raise ConfigError(
            f"{path}: needs code of its own (auto_map in config.json), which is refused; convert it first, or take the "
            "key out where transformers knows the model_type itself"
        )
    if not list(path.glob("*.safetensors")):
        pickled = [found.name for pattern in PICKLES for found in path.glob(pattern)]
        why = f"{pickled[0]} is a pickle, which is refused; convert it to safetensors" if pickled else "no weights"
        raise ConfigError(f"{path}: holds no safetensors ({why})")
    return {"pretrained_model_name_or_path": str(path), "use_safetensors": True}


def _ggufs(path: Path) -> list[Path]:
    return sorted(path.glob("*.gguf"))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
