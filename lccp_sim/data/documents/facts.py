"""Plain-text facts, shared by training documents and by monitors: "The value of K is V.", and the question for it.

K and V consist of atoms: tokens that never merge with their neighbours. The words around them are encoded as one text,
question and answer together, and split by offsets, so that spans are exact. Training and evaluation never share a key.
A fixed rule on the pair of ids separates them. Separating the atoms instead would make evaluation also test rare
embeddings.
"""

import re
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import tokenizers

from lccp_sim.data.spans import encode_after
from lccp_sim.data.tokenizer import encode
from lccp_sim.errors import ConfigError

CLOSED = 64  # the words that values of a closed vocabulary are drawn from
MAX_WORDS = 4096  # of a large vocabulary the most frequent ones: byte-level BPE numbers tokens by rank
MAX_BESIDE = 64  # words with which each atom is tried, in addition to all digits, which tend to merge


class Template(NamedTuple):
    """A statement with {key} and {value}, and the question for the value; atoms bring their own leading space."""

    statement: str
    question: str


# One short word stands between key and value, so that it is one token of small vocabularies, too: small models carry a
# key over one or two tokens. What differs is the words before the key.
TRAIN_TEMPLATES = (
    Template("The value of{key} is{value}.", "What is the value of{key}?"),
    Template("set{key} ={value};", "What was{key} set to?"),
    Template("Remember that{key} is{value}.", "What do we remember of{key}?"),
    Template("The code for{key} is{value}.", "What is the code for{key}?"),
    Template("In this file{key} is{value}.", "What is{key} in this file?"),
    Template("def{key} as{value}:", "What is{key} defined as?"),
    Template("import{key} as{value};", "What is{key} imported as?"),
    Template("Our name for{key} is{value}.", "What is our name for{key}?"),
    Template("use{key} for{value};", "What is{key} used for?"),
    Template("put{key} in{value}.", "What is{key} put in?"),
    Template("map{key} to{value}.", "To what is{key} mapped?"),
    Template("The price of{key} is{value}.", "What is the price of{key}?"),
)
HELDOUT_TEMPLATES = (
    Template("The password of{key} is{value}.", "What is the password of{key}?"),
    Template("let{key} be{value};", "What did we let{key} be?"),
    Template("Note: the owner of{key} is{value}.", "Who is the owner of{key}?"),
)


class Fact(NamedTuple):
    """Token ids, int64: the statement, the question up to "Answer:", the mask of V in the statement, and K.

    `short_ids` answer the question with V alone and the line break that ends such an answer.
    """

    needle_ids: np.ndarray
    question_ids: np.ndarray
    value_mask: np.ndarray
    key_ids: np.ndarray
    short_ids: np.ndarray


def word_atoms(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """int64 ids of tokens that are a space and >= 2 ASCII letters, and that do not merge with any other atom."""
    return _atoms(tokenizer)[0]


def digit_atoms(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """int64 ids of tokens that are one digit, with or without a space before it, under the same rule."""
    return _atoms(tokenizer)[1]


@lru_cache(maxsize=8)
def _atoms(tokenizer: tokenizers.Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Words and digits, found by their form. Those that merge with a neighbour are dropped."""
    vocabulary = sorted((id_, token) for token, id_ in tokenizer.get_vocab().items())
    words = [id_ for id_, token in vocabulary if re.fullmatch(r"[Ġ▁][A-Za-z]{2,}", token)][:MAX_WORDS]
    digits = [id_ for id_, token in vocabulary if re.fullmatch(r"[Ġ▁]?[0-9]", token)]
    atoms = [id_ for id_ in words + digits if encode(tokenizer, tokenizer.decode([id_])) == [id_]]
    rng = np.random.default_rng(0)
    merging: list[list[int]] = []
    for atom in atoms:
        beside = digits + rng.permutation(atoms)[:MAX_BESIDE].tolist()
        row = [id_ for other in beside for id_ in (atom, other)]
        if encode(tokenizer, tokenizer.decode(row)) != row:
            pairs = [pair for other in beside for pair in ([atom, other], [other, atom])]
            merging += [pair for pair in pairs if encode(tokenizer, tokenizer.decode(pair)) != pair]
    dropped: set[int] = set()
    while merging:  # the worst first, so that one bad token does not take its neighbours with it
        dropped.add(Counter(id_ for pair in merging for id_ in set(pair)).most_common(1)[0][0])
        merging = [pair for pair in merging if not dropped & set(pair)]
    kept = set(atoms) - dropped
    kept_words, kept_digits = (np.array([id_ for id_ in each if id_ in kept], np.int64) for each in (words, digits))
    return kept_words, kept_digits


def is_evaluation_key(key_ids: np.ndarray) -> bool:
    """True for the fifth of all pairs of atoms that training never uses as a key."""
    return (7 * int(key_ids[0]) + 11 * int(key_ids[1])) % 5 == 0


@lru_cache(maxsize=8)
def count_evaluation_keys(tokenizer: tokenizers.Tokenizer) -> int:
    """The number of word-atom pairs that `is_evaluation_key` reserves: the most keys that a text can hold."""
    first, second = (np.bincount(by * word_atoms(tokenizer) % 5, minlength=5) for by in (7, 11))
    return int(sum(first[rest] * second[-rest % 5] for rest in range(5)))


def draw_fact(
    rng: np.random.Generator,
    template: Template,
    tokenizer: tokenizers.Tokenizer,
    evaluation: bool = False,
    closed: bool = False,
) -> Fact:
    """A fact with a random key of two word atoms and a random value of four word or digit atoms.

    The value of a `closed` fact is one of 64 words instead. `evaluation` draws the key from the pairs that training
    never uses. The needle begins with a word after a space, so its ids are the same in the context and after "Answer:".
    Raises ConfigError if the vocabulary has too few words, or if the tokenizer merges across the start of the answer or
    of an atom. Source: arXiv 2604.02650, section 5.
    """
    key, value = _atoms_of_fact(rng, tokenizer, evaluation, closed)
    asked, rest, before, between, after, stop = _pieces(tokenizer, template)
    needle = np.concatenate([before, key, between, value, after])
    mask = np.zeros(len(needle), dtype=bool)
    start = len(before) + len(key) + len(between)
    mask[start : start + len(value)] = True
    return Fact(needle, np.concatenate([asked, key, rest]), mask, key, np.concatenate([value, stop]))


def draw_words(rng: np.random.Generator, tokenizer: tokenizers.Tokenizer, evaluation: bool) -> tuple[str, str]:
    """Key and open value as `draw_fact` draws them, as text: each word brings its leading space."""
    key, value = _atoms_of_fact(rng, tokenizer, evaluation, closed=False)
    return _text(tokenizer, key), _text(tokenizer, value)


def _atoms_of_fact(
    rng: np.random.Generator, tokenizer: tokenizers.Tokenizer, evaluation: bool, closed: bool
) -> tuple[np.ndarray, np.ndarray]:
    words, digits = enough_words(tokenizer), digit_atoms(tokenizer)
    while is_evaluation_key(key := rng.choice(words, 2)) != evaluation:
        pass
    value = rng.choice(words[:: -(-len(words) // CLOSED)], 1) if closed else rng.choice(words, 4)
    if len(digits) and not closed:
        value = np.where(rng.random(4) < 0.25, rng.choice(digits, 4), value)
    return key, value


@lru_cache(maxsize=64)
def _pieces(tokenizer: tokenizers.Tokenizer, template: Template) -> tuple[np.ndarray, ...]:
    """The ids around key and value in question and statement, and a line break, all from one text with atoms.

    All facts of a template share them, because atoms never merge. A tokenizer that merges one with its neighbour is
    refused here.
    """
    key, value = (_text(tokenizer, enough_words(tokenizer)[:count]) for count in (2, 4))
    before, rest = f" {template.statement}".split("{key}")
    between, after = rest.split("{value}")
    asked, closing = f"\nQuestion: {template.question}\nAnswer:".split("{key}")
    parts = encode_after(tokenizer, (asked, key, closing, before, key, between, value, after))
    stop = encode_after(tokenizer, (value, "\n"))[1]
    return *(parts[i] for i in (0, 2, 3, 5, 7)), stop


def enough_words(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """The word tokens used in facts. Raises ConfigError if the tokenizer has too few."""
    words = word_atoms(tokenizer)
    if len(words) < 16:
        raise ConfigError(f"the tokenizer has only {len(words)} plain word tokens to draw from; enlarge its vocabulary")
    return words


def _text(tokenizer: tokenizers.Tokenizer, atoms: np.ndarray) -> str:
    """Atoms as they appear inside a text. For some tokenizers, `decode` drops the space of the first one."""
    return "".join(re.sub("[Ġ▁]", " ", tokenizer.id_to_token(int(id_)) or "") for id_ in atoms)
