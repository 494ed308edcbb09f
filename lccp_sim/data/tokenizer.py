"""The tokenizer: byte-level BPE trained on the corpus, or any tokenizer.json.

The trained tokenizer makes each digit a token, keeps a leading space with its word, and has one special token, which
begins every document. Special tokens inside a text are encoded as plain text, so that no document can forge a boundary.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from lccp_sim.data.cache import build_once
from lccp_sim.errors import ConfigError, refuse

BOS = "<|document|>"
BOS_NAMES = (BOS, "<|endoftext|>", "<s>", "<|begin_of_text|>", "<bos>")
PATTERN = r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """`train` makes a byte-level BPE of `vocab_size`; `file` reads `path` (`bos_token`: if its name is unusual)."""

    kind: Literal["train", "file"] = "train"
    vocab_size: int = 4096
    path: str | None = None
    bos_token: str | None = None

    def __post_init__(self) -> None:
        refuse(self.kind not in ("train", "file"), "data.tokenizer.kind", self.kind, "must be train or file")
        small = self.kind == "train" and self.vocab_size < 300
        refuse(small, "data.tokenizer.vocab_size", self.vocab_size, "must be at least 300 (256 bytes, BOS and merges)")
        missing = self.kind == "file" and not self.path
        refuse(missing, "data.tokenizer.path", self.path, "kind file needs the path of a tokenizer.json")


def same_tokens(one: tokenizers.Tokenizer, other: tokenizers.Tokenizer) -> bool:
    """Whether two tokenizers give texts the same ids. Padding, truncation and templates, never used, may differ."""
    forms = [json.loads(each.to_str()) for each in (one, other)]
    return all(forms[0][part] == forms[1][part] for part in ("normalizer", "pre_tokenizer", "added_tokens", "model"))


def load_tokenizer(config: TokenizerConfig, texts: Iterator[str], cache: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a config; a trained one is kept as `cache/tokenizer.json`, so `texts` is read only once."""
    if config.kind == "file":
        return read_tokenizer(Path(str(config.path)).expanduser())

    def build(directory: Path) -> None:
        train_tokenizer(config.vocab_size, texts).save(str(directory / "tokenizer.json"))

    return read_tokenizer(build_once(cache.parent, cache.name, build) / "tokenizer.json")


def train_tokenizer(vocab_size: int, texts: Iterator[str]) -> tokenizers.Tokenizer:
    """A byte-level BPE with single digits; the same texts in the same order give the same merges."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json, set to encode plain text only: no truncation, padding or special tokens."""
    if not path.is_file():
        raise ConfigError(f"tokenizer {path} is not a file; name a tokenizer.json")
    try:
        return parse_tokenizer(path.read_text(encoding="utf-8-sig"))
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"tokenizer {path} cannot be read ({error}); name a tokenizer.json") from error


def parse_tokenizer(text: str) -> tokenizers.Tokenizer:
    """The tokenizer described by the text of a tokenizer.json, configured as in `read_tokenizer`."""
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def bos_id(tokenizer: tokenizers.Tokenizer, name: str | None = None) -> int:
    """The id of the token that begins a document: `name`, or the first usual name that the tokenizer has."""
    for candidate in (name,) if name else BOS_NAMES:
        if (found := tokenizer.token_to_id(candidate)) is not None:
            return found
    raise ConfigError(
        f"the tokenizer has no token {name or ' or '.join(BOS_NAMES)}; set data.tokenizer.bos_token to one that it has"
    )


def encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """The ids of a text, without special tokens."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def tokenizer_hash(tokenizer: tokenizers.Tokenizer) -> str:
    """16 hex digits that identify the complete tokenizer."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]
