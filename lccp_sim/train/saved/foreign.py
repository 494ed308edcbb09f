"""A Hugging Face folder or GGUF file as the content of a checkpoint of ours: for `run.init_from` and `lccp import`."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lccp_sim.config import ModelConfig
from lccp_sim.data.beyond import check_same
from lccp_sim.data.tokenizer import tokenizer_hash
from lccp_sim.errors import ConfigError
from lccp_sim.models import hf
from lccp_sim.models.architectures import read_config
from lccp_sim.models.weights import read_weights
from lccp_sim.progress import Tell, silent
from lccp_sim.sums import check_sums
from lccp_sim.train.saved.vocabulary import read_vocabulary
from lccp_sim.train.saved.weights_file import PREFIX

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_foreign(
    path: Path,
    dtype: torch.dtype = torch.float32,
    accept: Callable[[ModelConfig, int], None] | None = None,
    tell: Tell = silent,
) -> dict[str, Any]:
    """The content of a checkpoint of ours, made from a Hugging Face folder or GGUF file; needs the model's memory.

    It has two keys more: `tokenizer.json`, the text of that file, and `notes`, what a person should know, a line each.
    Raises ConfigError where anything does not fit; so may `accept`, which is asked about the config and the rows of the
    embedding before any weight is read. `tell` hears how far the reading is.
    """
    tell(f"opening {path.name}", 0.0)
    check_sums(path)
    settings, stream, notes = hf.open_weights(path, dtype)
    name, model = read_config(settings, str(path / "config.json" if path.is_dir() else path))
    rows = model.vocab_size or 0
    if accept is not None:
        accept(model, rows)
    text, tokenizer, bos = read_vocabulary(path)
    if note := check_same(tokenizer, rows, bos, str(path)):
        notes = [*notes, note]
    state = read_weights(stream, name, model, dtype, str(path), tell)
    context = settings.get("max_position_embeddings") or 2048
    source: dict[str, Any] = {
        "name": path.resolve().name,
        "model_type": name,
        "context_tokens": context,
        "rope": dataclasses.asdict(model.rope),
        "ids": {key: settings.get(key) for key in IDS},
        "files": {file: object_of(path / file) for file in ("tokenizer_config.json", "generation_config.json")},
    }
    template = path / "chat_template.jinja"
    if template.exists():
        source["files"]["tokenizer_config.json"].setdefault("chat_template", text_of(template))
    facts = {
        "config": {
            "model": json.loads(json.dumps(dataclasses.asdict(model))),
            "run": {"context_tokens": context},
            "data": {"tokenizer": {"bos_token": bos}},
        },
        "vocab_size": rows,
        "tokenizer": tokenizer_hash(tokenizer),
        "tokens_before": 0,
        "tokens": 0,
        "step": 0,
        "source": source,
    }
    weights = {f"{PREFIX}{key}": value for key, value in state.items()}
    return {"global_step": 0, "lccp": facts, "state_dict": weights, "tokenizer.json": text, "notes": notes}


def text_of(path: Path) -> str:
    """The text of a file. Raises ConfigError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); put it back") from None


def object_of(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(text_of(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: damaged ({error}); put it back, or remove it") from None
    return found if isinstance(found, dict) else {}
