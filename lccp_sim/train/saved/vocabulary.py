"""The tokenizer of a checkpoint of `transformers`, read the same way by every verb.

`tokenizer.json` comes first: what the classes of transformers make of a folder depends on its version (5.3 drops the
spaces of some).
"""

from pathlib import Path
from typing import Any, NamedTuple

from lccp_sim.data.tokenizer import parse_tokenizer
from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign import hf
from lccp_sim.models.foreign.hf_folder import CONFIG, read_json


class Vocabulary(NamedTuple):
    """The text of a tokenizer.json, its tokenizer, and the name of the token that begins a text, if it states one."""

    text: str
    tokenizer: Any
    bos: str | None


def read_vocabulary(path: Path) -> Vocabulary:
    """The tokenizer of the checkpoint at `path`. Raises ConfigError where it has none, or one that cannot be read."""
    file = path / "tokenizer.json"
    if not path.is_dir() or not file.exists():
        text, bos = hf.load_tokenizer_json(path)
        return Vocabulary(text, parse_tokenizer(text), bos)
    try:
        text = file.read_text(encoding="utf-8-sig")
        tokenizer = parse_tokenizer(text)
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"{file}: cannot be read ({error}); fetch it anew") from error
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        bos = read_json(path / name).get("bos_token") if (path / name).exists() else None
        bos = bos.get("content") if isinstance(bos, dict) else bos
        if bos:
            return Vocabulary(text, tokenizer, bos)
    stated = read_json(path / CONFIG).get("bos_token_id") if (path / CONFIG).exists() else None
    # A config.json that states none has that of its class, which may be any word of this tokenizer.
    token = tokenizer.get_added_tokens_decoder().get(stated) if isinstance(stated, int) else None
    return Vocabulary(text, tokenizer, token.content if token is not None and token.special else None)
