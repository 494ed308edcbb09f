"""A safetensors file with all that a run needs to start from: weights, their checkpoint's facts, the tokenizer.

Checkpoints of a run also hold optimizer states, and their tokenizer is a separate file. To pass weights on, `lccp
export RUN NAME.safetensors` writes this file. Some ship with the package: `run.init_from=bundled:NAME`.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from lccp_sim.data.tokenizer import parse_tokenizer, tokenizer_hash
from lccp_sim.errors import ConfigError, nearest, refuse
from lccp_sim.files import write_atomic

PREFIX = "model."  # of weights in an lccp-sim checkpoint
SUFFIX = ".safetensors"
SCHEME = "bundled:"


def bundled(name: str) -> Path:
    """Return the path of a file of weights that ships with the package. Raises ConfigError if there is none."""
    folder = Path(str(files("lccp_sim") / "bases"))
    known = [path.stem for path in sorted(folder.glob(f"*{SUFFIX}"))]
    rule = f"must be one of {', '.join(known)}{nearest(name, known)}"
    refuse(name not in known, "run.init_from", SCHEME + name, rule)
    return folder / (name + SUFFIX)


def write_weights_file(content: dict[str, Any], tokenizer: str, path: Path, dtype: torch.dtype) -> None:
    """Write the weights of a checkpoint, rounded to `dtype`, with its facts and the text of its tokenizer.json.

    Raises ConfigError if `path` exists.
    """
    refuse(path.exists(), "OUT", str(path), "exists; name a new file, or remove it")
    weights = {k: v.to(dtype).contiguous() for k, v in content["state_dict"].items() if k.startswith(PREFIX)}
    header = {"lccp": json.dumps(content["lccp"]), "tokenizer.json": tokenizer}
    header["sha256"] = _hash(weights, header["lccp"])
    write_atomic(path, save(weights, metadata=header))


def read_weights_file(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint without optimizer states, weights in fp32, and its `tokenizer.json`.

    Raises ConfigError if the file is damaged, or was not written by `write_weights_file`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            facts = json.loads(header["lccp"])
            held = {key: file.get_tensor(key) for key in file.keys()}
        text = header["tokenizer.json"]
        fits = tokenizer_hash(parse_tokenizer(text)) == facts["tokenizer"]
    except Exception:  # those of safetensors and JSON, and plain ones of tokenizers
        raise ConfigError(
            f"{path}: not weights that `lccp export RUN NAME{SUFFIX}` wrote, or damaged; name another file"
        ) from None
    if header.get("sha256", found := _hash(held, header["lccp"])) != found:  # earlier files have none
        raise ConfigError(f"{path}: damaged, by its own hash; copy or export it again")
    if not fits:
        raise ConfigError(f"{path}: its tokenizer is not the one that the weights were trained with; export it again")
    return {
        "global_step": facts["step"],
        "lccp": facts,
        "state_dict": {key: value.float() for key, value in held.items()},
        "tokenizer.json": text,
    }


def _hash(weights: Mapping[str, torch.Tensor], facts: str) -> str:
    return hashlib.sha256(f"{tensors_hash(weights)} {facts}".encode()).hexdigest()


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of tensors by name: dtypes, shapes and bytes."""
    hashed = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]  # one at a time: this reads it from a folder
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()
