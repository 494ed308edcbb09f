"""Plain-text facts, shared by training documents and by monitors: "The value of K is V.", and the question for it.

K and V are made of atoms: tokens that stay themselves wherever they are joined, so that spans are exact without ever
encoding over a boundary. Training and evaluation never share a key: a fixed rule on the pair of ids parts them, not the
atoms themselves, or evaluation would also test rare embeddings.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import tokenizers

from lccp_sim.config import ConfigError
from lccp_sim.data.tokenizer import encode

MAX_ATOMS = 4096  # of a large vocabulary the most frequent ones: byte-level BPE numbers tokens by rank


class Template(NamedTuple):
    """A statement with {key} and {value}, and the question for the value; atoms bring their own leading space."""

    statement: str
    question: str


TRAIN_TEMPLATES = (
    Template("The value of{key} is{value}.", "What is the value of{key}?"),
    Template("set{key} ={value};", "What was{key} set to?"),
    Template("Remember that{key} means{value}.", "What does{key} mean?"),
    Template("The code for{key} reads{value}.", "What does the code for{key} read?"),
    Template("In this file{key} stands for{value}.", "What does{key} stand for in this file?"),
)
HELDOUT_TEMPLATES = (
    Template("The password of{key} was changed to{value}.", "To what was the password of{key} changed?"),
    Template("let{key} :={value}", "What did we let{key} be?"),
    Template("Note: the owner of{key} wrote down{value}.", "What did the owner of{key} write down?"),
)


class Fact(NamedTuple):
    """Token ids, int64: the statement, the question up to "Answer:", which tokens of the statement are V, and K."""

    needle_ids: np.ndarray
    question_ids: np.ndarray
    value_mask: np.ndarray
    key_ids: np.ndarray


@lru_cache(maxsize=8)
def word_atoms(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """int64 ids of tokens that are a space and >= 2 ASCII letters, and that stay themselves next to each other."""
    return _atoms(tokenizer, r"[Ġ▁][A-Za-z]{2,}")


@lru_cache(maxsize=8)
def digit_atoms(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """int64 ids of tokens that are one digit, with or without a space before it, under the same rule."""
    return _atoms(tokenizer, r"[Ġ▁]?[0-9]", word_atoms(tokenizer))


def _atoms(tokenizer: tokenizers.Tokenizer, pattern: str, others: Sequence[int] | np.ndarray = ()) -> np.ndarray:
    found = sorted(id_ for token, id_ in tokenizer.get_vocab().items() if re.fullmatch(pattern, token))[:MAX_ATOMS]
    kept = [id_ for id_ in found if encode(tokenizer, tokenizer.decode([id_])) == [id_]]
    rng = np.random.default_rng(0)
    for _ in range(4):  # each atom beside four random others, on both sides
        if not kept:
            break
        beside = rng.choice(np.array([*kept, *others], dtype=np.int64), len(kept))
        pairs = [[id_, int(other)] for id_, other in zip(kept, beside, strict=True)]
        pairs += [pair[::-1] for pair in pairs]
        encoded = tokenizer.encode_batch(tokenizer.decode_batch(pairs), add_special_tokens=False)
        bad = {kept[i % len(kept)] for i, (pair, got) in enumerate(zip(pairs, encoded, strict=True)) if got.ids != pair}
        kept = [id_ for id_ in kept if id_ not in bad]
    return np.array(kept, dtype=np.int64)


def is_evaluation_key(key_ids: np.ndarray) -> bool:
    """True for the fifth of all pairs of atoms that training never uses as a key."""
    return (7 * int(key_ids[0]) + 11 * int(key_ids[1])) % 5 == 0


def draw_fact(
    rng: np.random.Generator, template: Template, tokenizer: tokenizers.Tokenizer, evaluation: bool = False
) -> Fact:
    """A fact with a random key of two word atoms and a random value of four word or digit atoms.

    `evaluation` draws its key from the pairs that training never uses. The needle begins with a space-led word, so the
    same ids stand in the context and after "Answer:". Source: arXiv 2604.02650, section 5.
    """
    words, digits = word_atoms(tokenizer), digit_atoms(tokenizer)
    if len(words) < 16:
        raise ConfigError(f"the tokenizer has only {len(words)} plain word tokens to draw from; enlarge its vocabulary")
    while is_evaluation_key(key := rng.choice(words, 2)) != evaluation:
        pass
    value = rng.choice(words, 4)
    if len(digits):
        value = np.where(rng.random(4) < 0.25, rng.choice(digits, 4), value)
    before, between, after, asked, rest = _pieces(tokenizer, template)
    needle = np.concatenate([before, key, between, value, after])
    mask = np.zeros(len(needle), dtype=bool)
    start = len(before) + len(key) + len(between)
    mask[start : start + len(value)] = True
    return Fact(needle, np.concatenate([asked, key, rest]), mask, key)


@lru_cache(maxsize=64)
def _pieces(tokenizer: tokenizers.Tokenizer, template: Template) -> tuple[np.ndarray, ...]:
    before, rest = f" {template.statement}".split("{key}")
    between, after = rest.split("{value}")
    asked, closing = f"\nQuestion: {template.question}\nAnswer:".split("{key}")
    pieces = (before, between, after, asked, closing)
    return tuple(np.array(encode(tokenizer, piece), dtype=np.int64) for piece in pieces)
