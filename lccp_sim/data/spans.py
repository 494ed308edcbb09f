"""The positions of a text's parts among its tokens.

A text of several parts is joined and encoded once, as a model would read it, and the ids are split at the parts'
borders by their offsets. Design note: a tokenizer that merges across a border is refused. A workaround would score id
sequences that no encoder produces.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import tokenizers

from lccp_sim.errors import ConfigError

PARTING_LETTER = "a"  # a letter: no common rule for white space or punctuation joins it with a line break


def encode_parts(tokenizer: tokenizers.Tokenizer, parts: Sequence[str]) -> list[np.ndarray]:
    """One int64 array of ids for each part; joined, they are the ids of the joined text, without special tokens.

    A token belongs to the part in which it ends. Raises ConfigError if a token has characters of two parts.
    """
    text = "".join(parts)
    encoding = _exact(tokenizer).encode(text, add_special_tokens=False)
    ids, offsets = np.array(encoding.ids, np.int64), np.array(encoding.offsets, np.int64).reshape(-1, 2)
    stops = np.cumsum([len(part) for part in parts])
    ends_in = np.searchsorted(stops, offsets[:, 1], side="left")
    starts_in = np.minimum(np.searchsorted(stops, offsets[:, 0], side="right"), ends_in)
    starts_in = np.where(offsets[:, 0] < offsets[:, 1], starts_in, ends_in)
    if len(across := np.flatnonzero(starts_in < ends_in)):
        part, token = parts[ends_in[across[0]]], text[slice(*offsets[across[0]])]
        raise ConfigError(
            f"the tokenizer merges across the start of {part[:20]!r}...: token {token!r} holds text of both sides; "
            "use a tokenizer that splits at white space"
        )
    return [ids[ends_in == i] for i in range(len(parts))]


def encode_after(tokenizer: tokenizers.Tokenizer, parts: Sequence[str]) -> list[np.ndarray]:
    """`encode_parts` for parts that continue a text: a tokenizer that starts every text with a space adds none here."""
    return encode_parts(tokenizer, (PARTING_LETTER, *parts))[1:]


@lru_cache(maxsize=8)
def _exact(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer with exact offsets: byte-level post-processors exclude white space from their offsets."""
    if tokenizer.post_processor is None:
        return tokenizer
    exact = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    exact.post_processor = None
    exact.encode_special_tokens = tokenizer.encode_special_tokens
    return exact
