"""Checkpoints of `transformers` on disk: a folder of config.json and safetensors, or a GGUF file.

Nothing is fetched, no foreign code is run, and pickled weights are refused: what a folder may do is to hold numbers.
"""

import json
from pathlib import Path
from typing import Any

import torch

from lccp_sim.config import ConfigError
from lccp_sim.models.adapter import Adapter

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")


def is_checkpoint(path: Path) -> bool:
    """Whether a path looks like a checkpoint of `transformers`: a GGUF file, or a folder with one or a config.json."""
    return path.suffix == ".gguf" or (path.is_dir() and ((path / "config.json").exists() or bool(_ggufs(path))))


def load_checkpoint(path: Path, dtype: torch.dtype, device: str) -> Adapter:
    """The model at `path`, in eval mode. Raises ConfigError in one line where it is not a usable causal LM."""
    from transformers import AutoModelForCausalLM, logging

    source = _source(path)
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=dtype, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the library raises what it likes: ValueError, KeyError, OSError, ImportError, ...
        raise ConfigError(f"{path}: transformers cannot load it as a causal LM ({_line(error)})") from error
    return Adapter(torch.nn.Module.to(model, device).eval())


def load_tokenizer_json(path: Path) -> tuple[str, str | None]:
    """The text of a tokenizer.json for the checkpoint at `path`, and the name of its BOS token where it states one."""
    from transformers import AutoTokenizer

    source = _source(path)
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


def _source(path: Path) -> dict[str, Any]:
    """The arguments that name the weights to `from_pretrained`."""
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
            f"{path}: needs code of its own (auto_map in config.json), which is refused; convert it first"
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
