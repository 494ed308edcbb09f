"""Tokens without a row in the embedding: harmless if no text encodes to them (a pad token), else refused."""

from collections.abc import Mapping

import tokenizers

from lccp_sim.data.tokenizer import bos_id, encode
from lccp_sim.data.tokens import vocab_size
from lccp_sim.errors import ConfigError, refuse

UNUSED = 0.1  # embeddings are padded to round numbers, by a few tenths of a percent; more is another vocabulary


def check_rows(tokenizer: tokenizers.Tokenizer, rows: int, bos: str | None, where: str) -> str | None:
    """A note if tokens lie beyond an embedding of `rows` but no text encodes to them. None if no token does.

    Raises ConfigError if a text may encode to one of them, or begins with one.
    """
    tokens = vocab_size(tokenizer)
    if tokens <= rows:
        return None
    beyond = f"{where}: its tokenizer has {tokens} tokens, its embedding {rows} rows"
    reached = text_beyond(tokenizer, rows)
    if bos_id(tokenizer, bos) >= rows:
        reached.append("that which begins a text")
    if reached:
        shown = ", ".join(reached[:3]) + (f" and {len(reached) - 3} more" if reached[3:] else "")
        raise ConfigError(f"{beyond}, and text needs those that it lacks ({shown}); put its own tokenizer there")
    names = sorted((id_, name) for name, id_ in tokenizer.get_vocab().items() if id_ >= rows)
    shown = ", ".join(name for _, name in names[:3])
    return f"{beyond}; no text becomes those that it lacks ({shown}), so they do no harm"


def check_pair(tokenizer: tokenizers.Tokenizer, rows: int, bos: str | None, where: str) -> str | None:
    """As `check_rows`, for a model with its own tokenizer: far fewer tokens than rows also mean another vocabulary."""
    tokens = vocab_size(tokenizer)
    if tokens < (1 - UNUSED) * rows:
        raise ConfigError(
            f"{where}: its tokenizer has {tokens} tokens, its embedding {rows} rows; put its own tokenizer there"
        )
    return check_rows(tokenizer, rows, bos, where)


def check_ids(largest: Mapping[str, int], rows: int) -> None:
    """Raise ConfigError if the largest id of a source has no row in an embedding of `rows`.

    No text encodes to such an id (see `check_rows`), but rows of token ids may contain one.
    """
    for name, id_ in largest.items():
        rule = f"is a token id there, and the model's embedding has {rows} rows; take it out (padding is not text)"
        refuse(id_ >= rows, f"data.sources.{name}", id_, rule)


def text_beyond(tokenizer: tokenizers.Tokenizer, rows: int) -> list[str]:
    """Names of the tokens with an id of at least `rows` to which plain text can encode, in the order of their ids.

    A special token is tested with its own name; every other token is assumed to be reachable.
    """
    special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    found = []
    for id_, name in sorted((id_, name) for name, id_ in tokenizer.get_vocab().items() if id_ >= rows):
        if id_ not in special or any(id_ in encode(tokenizer, text) for text in (name, f"a {name} b", f"a{name}b")):
            found.append(name)
    return found
