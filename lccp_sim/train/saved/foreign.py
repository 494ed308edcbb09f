"""A Hugging Face folder or GGUF file as the content of an lccp-sim checkpoint, for `run.init_from` and `lccp import`.

Every verb reads its tokenizer the same way. `tokenizer.json` has priority, because the tokenizer that the classes of
transformers build from a folder depends on its version (5.3 drops the spaces of some).
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lccp_sim.config import ModelConfig
from lccp_sim.data.beyond import check_pair
from lccp_sim.data.tokenizer import parse_tokenizer, tokenizer_hash
from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign import hf
from lccp_sim.models.foreign.architectures import read_settings
from lccp_sim.models.foreign.hf_folder import HF_CONFIG, read_json
from lccp_sim.models.foreign.weights import read_weights
from lccp_sim.progress import Tell, silent
from lccp_sim.sums import check_sums
from lccp_sim.train.saved.weights_file import PREFIX

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_foreign(
    path: Path,
    dtype: torch.dtype = torch.float32,
    accept: Callable[[ModelConfig, int], None] | None = None,
    tell: Tell = silent,
) -> dict[str, Any]:
    """The content of an lccp-sim checkpoint, made from a Hugging Face folder or GGUF file; needs the model's memory.

    It has two more keys: `tokenizer.json`, the text of that file, and `notes`, notes for the user, one line each.
    Raises ConfigError if anything does not fit. `accept` may raise it, too: it gets the config and the number of rows
    of the embedding before any weight is read. `tell` gets the progress.
    """
    tell(f"opening {path.name}", 0.0)
    check_sums(path)
    settings, stream, notes = hf.open_weights(path, dtype)
    name, model = read_settings(settings, str(path / "config.json" if path.is_dir() else path))
    rows = model.vocab_size or 0
    if accept is not None:
        accept(model, rows)
    text, tokenizer, bos = read_vocabulary(path)
    if note := check_pair(tokenizer, rows, bos, str(path)):
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


class Vocabulary(NamedTuple):
    """The text of a tokenizer.json, its tokenizer, and the name of its BOS token, if it states one."""

    text: str
    tokenizer: Any
    bos: str | None


def read_vocabulary(path: Path) -> Vocabulary:
    """The tokenizer of the checkpoint at `path`. Raises ConfigError if it is missing or unreadable."""
    file = path / "tokenizer.json"
    if not path.is_dir() or not file.exists():
        text, bos = hf.load_tokenizer_json(path)
        return Vocabulary(text, parse_tokenizer(text), bos)
    try:
        text = file.read_text(encoding="utf-8-sig")
        tokenizer = parse_tokenizer(text)
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"{file}: cannot be read ({error}); fetch it again") from error
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        bos = read_json(path / name).get("bos_token") if (path / name).exists() else None
        bos = bos.get("content") if isinstance(bos, dict) else bos
        if bos:
            return Vocabulary(text, tokenizer, bos)
    stated = read_json(path / HF_CONFIG).get("bos_token_id") if (path / HF_CONFIG).exists() else None
    # Without a stated BOS, the config has the id of its class, which may be any token of this tokenizer.
    token = tokenizer.get_added_tokens_decoder().get(stated) if isinstance(stated, int) else None
    return Vocabulary(text, tokenizer, token.content if token is not None and token.special else None)


def text_of(path: Path) -> str:
    """The text of a file. Raises ConfigError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); put it back") from None


def object_of(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(text_of(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: damaged ({error}); put it back, or remove it") from None
    return found if isinstance(found, dict) else {}
