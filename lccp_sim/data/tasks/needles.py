"""Needles in a haystack and chains of variables (RULER, arXiv 2404.06654), with our own words.

A needle assigns a value to a key of two words; the haystack is noise of plain sentences, real text, or other needles.
Design note: below `SHORT` tokens numbers have 4 digits instead of 7, identifiers 8 characters instead of 32 in five
groups, variables 3 letters instead of 5. Below 512 tokens, questions ask for two keys or values instead of four.
"""

import string
from collections.abc import Iterator

import numpy as np

from lccp_sim.data.tasks.question import SHORT, Draft, Half, half, made_up
from lccp_sim.data.tasks.words import ADJECTIVES, NOUNS

NOISE = (
    "The sun is up and the road is dry.",
    "Rain fell on the hill all night.",
    "A train leaves, and another comes.",
    "Somebody closes the shutters.",
    "We walk on and say little.",
    "The bread smells good today.",
    "Then the day is over again.",
    "Snow covers the steps of the house.",
    "Birds sit on the wire.",
    "The baker opens his door.",
    "It is a quiet street.",
    "Two boats pass the bridge.",
)
NEEDLES = ("The secret {kind} of {key} is {value}.", "Remember that {key} was given the {kind} {value}.")
ASKED = ("What is the secret {kind} of {key}?", "Which {kind} was given to {key}?")
ASKED_ALL = ("What are all secret {kind}s of {key}?", "Which {kind}s were given to {key}, one after the other?")
ASKED_EACH = ("What is the secret {kind} of each of these: {key}?", "Which {kind} was given to every one of {key}?")
CHAIN = (("VAR {x} = {v}", "VAR {x} = VAR {y}"), ("LET {x} := {v}", "LET {x} := LET {y}"))
CHAIN_ASKED = ("Which variables have the value {v}?", "What are the names of all that holds {v}?")


def single_number(rng: np.random.Generator, limit: int, held_out: Half) -> Draft:
    """`niah_single_1`: one number in noise."""
    return _single(rng, limit, held_out, "number", plain_sentences(rng, held_out))


def single_code(rng: np.random.Generator, limit: int, held_out: Half) -> Draft:
    """`niah_single_3`: one identifier in real text."""
    return _single(rng, limit, held_out, "code", None)


def number_multikey(rng: np.random.Generator, limit: int, held_out: Half) -> Draft:
    """`niah_multikey_2`: one number among the numbers of other keys."""
    all_keys = keys(rng, held_out)
    first = next(all_keys)

    def others() -> Iterator[tuple[str, ...]]:
        for key in all_keys:
            yield (_needle(held_out, "number", key, distinct_values(rng, limit, held_out, "number", 1)[0]),)

    (value,) = distinct_values(rng, limit, held_out, "number", 1)
    question = ASKED[held_out.phrasings].format(kind="number", key=first)
    return Draft([_needle(held_out, "number", first, value)], others(), question, (value,), (first,))


def multivalue(rng: np.random.Generator, limit: int, held_out: Half) -> Draft:
    """`niah_multivalue`: all numbers of one key, in the order of the text."""
    key, numbers = next(keys(rng, held_out)), distinct_values(rng, limit, held_out, "number", _several(limit))
    must = [_needle(held_out, "number", key, number) for number in numbers]
    question = ASKED_ALL[held_out.phrasings].format(kind="number", key=key)
    return Draft(must, plain_sentences(rng, held_out), question, tuple(numbers), (key,))


def multiquery(rng: np.random.Generator, limit: int, held_out: Half) -> Draft:
    """`niah_multiquery`: the number of each of several keys, in the order of the question."""
    all_keys, numbers = keys(rng, held_out), distinct_values(rng, limit, held_out, "number", _several(limit))
    asked = [next(all_keys) for _ in numbers]
    must = [_needle(held_out, "number", asked[i], numbers[i]) for i in rng.permutation(len(asked))]
    question = ASKED_EACH[held_out.phrasings].format(kind="number", key=", ".join(asked))
    return Draft(must, plain_sentences(rng, held_out), question, tuple(numbers), tuple(asked))


def variables(rng: np.random.Generator, limit: int, held_out: Half, hops: int) -> Draft:
    """`variable_tracking_<hops>`: all variables, in the order of the text, that one value reaches in `hops` steps."""
    names = made_up(rng, string.ascii_uppercase, 3 if limit < SHORT else 5, held_out.names, hops + 1)
    (value,) = made_up(rng, string.digits, 4 if limit < SHORT else 5, held_out.names, 1)
    first, then = CHAIN[held_out.phrasings]
    must = [first.format(x=names[0], v=value)]
    must += [then.format(x=x, y=y) for y, x in zip(names, names[1:], strict=False)]
    question = CHAIN_ASKED[held_out.phrasings].format(v=value)
    about = (value, *names)
    return Draft([f"\n{line}" for line in must], plain_sentences(rng, held_out), question, tuple(names), about)


def plain_sentences(rng: np.random.Generator, held_out: Half) -> Iterator[tuple[str, ...]]:
    """An endless stream of plain sentences."""
    sentences = half(NOISE, held_out.phrasings)
    while True:
        for which in rng.integers(len(sentences), size=64):
            yield (f"\n{sentences[which]}",)


def keys(rng: np.random.Generator, held_out: Half) -> Iterator[str]:
    """All keys of an adjective and a noun of one half, in random order."""
    adjectives, nouns = half(ADJECTIVES, held_out.names), half(NOUNS, held_out.names)
    for which in rng.permutation(len(adjectives) * len(nouns)):
        yield f"{adjectives[which // len(nouns)]} {nouns[which % len(nouns)]}"


def distinct_values(rng: np.random.Generator, limit: int, held_out: Half, kind: str, n: int) -> list[str]:
    """`n` different numbers or codes."""
    if kind == "number":
        return made_up(rng, string.digits, 4 if limit < SHORT else 7, held_out.names, n)
    codes = made_up(rng, "0123456789abcdef", 8 if limit < SHORT else 32, held_out.names, n)
    if limit < SHORT:
        return codes
    return ["-".join((code[:8], code[8:12], code[12:16], code[16:20], code[20:])) for code in codes]


def _single(
    rng: np.random.Generator, limit: int, held_out: Half, kind: str, more: Iterator[tuple[str, ...]] | None
) -> Draft:
    key, (value,) = next(keys(rng, held_out)), distinct_values(rng, limit, held_out, kind, 1)
    question = ASKED[held_out.phrasings].format(kind=kind, key=key)
    return Draft([_needle(held_out, kind, key, value)], more, question, (value,), (key,))


def _needle(held_out: Half, kind: str, key: str, value: str) -> str:
    return "\n" + NEEDLES[held_out.phrasings].format(kind=kind, key=key, value=value)


def _several(limit: int) -> int:
    return 2 if limit < 512 else 4
