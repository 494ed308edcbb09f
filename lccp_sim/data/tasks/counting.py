"""Counting words (RULER, arXiv 2404.06654) and distinguishing identical requests (MRCR, arXiv 2409.12640).

The answer depends on the full text, not on one place in it: how often a word occurs, or the number of a request. Design
note: below `SHORT` tokens there are fewer and shorter words to count and fewer rounds, so scores at 512 and at 8192
tokens come from tasks of different size.
"""

import string
from collections.abc import Iterator
from itertools import count

import numpy as np

from lccp_sim.data.tasks.needles import keys
from lccp_sim.data.tasks.question import SHORT, Draft, Half, half, made_up, pick
from lccp_sim.data.tasks.words import COUNTED_WORDS, FORMS, NOUNS, VERB_WORDS

COMMON_ASKED = ("Which {n} words come most often in the list?", "Name the top {n} of this list, by count.")
FREQUENT_ASKED = ("Which three codes come most often, dots aside?", "Leave out the dots: what are the top three codes?")
NOISE_WORD = "\n..."
REQUESTS = ("\nUser: Write a {form} about the {topic}.\nReply:", "\nGuest: I want a {form}. Subject: {topic}.\nHost:")
ROUND_ASKED = (
    "Write {prefix} and then repeat {nth} {form} about the {topic}.",
    "Begin with {prefix}, then give once more {nth} {form} of subject {topic}.",
)
NTH = (("the first", "the second", "the third"), ("number one, the", "number two, the", "number three, the"))


def common_words(rng: np.random.Generator, limit: int, held_out: Half) -> Draft:
    """The ten most frequent words of a list: 30 times each, all others 3 times; in the order of their first mention.

    If the limit exceeds our word list, made-up words follow. Below `SHORT` tokens: 6 times and once (as in RULER), and
    instead of ten words one per 64 tokens, at least two.
    """
    often, seldom, n = (6, 1, max(2, min(10, limit // 64))) if limit < SHORT else (30, 3, 10)
    words = pick(rng, COUNTED_WORDS, held_out.names, len(half(COUNTED_WORDS, held_out.names)))
    listed = [word for word in words[:n] for _ in range(often)]
    listed = [listed[i] for i in rng.permutation(len(listed))]

    def others() -> Iterator[str]:
        yield from words[n:]
        while True:
            yield from made_up(rng, string.ascii_lowercase, 6, held_out.names, 64)

    more = (tuple([f"\n{word}"] * seldom) for word in others())
    return Draft(
        [f"\n{word}" for word in listed],
        more,
        COMMON_ASKED[held_out.phrasings].format(n=n),
        tuple(dict.fromkeys(listed)),
    )


def frequent_words(rng: np.random.Generator, limit: int, held_out: Half) -> Draft:
    """Ranks 2 to 4 of made-up words, most frequent first; counts follow Zipf's law, and rank 1 is dots.

    The k-th of limit // 50 words (at least 6) occurs floor(n k^-2 / zeta(2)) times, for the largest n that fits. Words
    have 6 letters, or 3 below `SHORT` tokens.
    """
    size = 3 if limit < SHORT else 6
    words = made_up(rng, string.ascii_lowercase, size, held_out.names, max(6, limit // 50))
    units = [NOISE_WORD, *(f"\n{word}" for word in words[1:])]
    share = np.arange(1, len(units) + 1) ** -2.0 / (np.pi**2 / 6)

    def stood(n: int) -> np.ndarray:
        return np.floor(n * share).astype(int)

    least = next(n for n in count(1) if (np.diff(stood(n)[:5]) < 0).all())  # so that ranks 1 to 4 are what they are
    must = [unit for unit, times in zip(units, stood(least), strict=True) for _ in range(times)]

    def more() -> Iterator[tuple[str, ...]]:
        before = stood(least)
        for n in count(least + 1):
            if (new := (now := stood(n)) - before).any():
                yield tuple(unit for unit, times in zip(units, new, strict=True) for _ in range(times))
                before = now

    order = rng.permutation(len(must))
    return Draft([must[i] for i in order], more(), FREQUENT_ASKED[held_out.phrasings], tuple(words[1:4]))


def coreference(rng: np.random.Generator, limit: int, held_out: Half) -> Draft:
    """The reply to the i-th of several identical requests, repeated word for word after a random prefix.

    2 or 3 requests are identical (2 below 512 tokens); the other rounds differ from them in form or topic.
    """
    same = 2 if limit < 512 else int(rng.integers(2, 4))
    forms, topics = half(FORMS, held_out.names), half(NOUNS, held_out.names)
    subjects = [(form, topic) for topic in topics for form in forms]
    order = iter(rng.permutation(len(subjects)))
    things = keys(rng, held_out)

    def round_of(form: str, topic: str) -> tuple[str, str]:
        (verb,) = pick(rng, VERB_WORDS, held_out.names, 1)
        reply = f"The {next(things)} {verb} the {next(things)}."
        return f"{REQUESTS[held_out.phrasings].format(form=form, topic=topic)} {reply}", reply

    form, topic = subjects[next(order)]
    rounds = [round_of(form, topic) for _ in range(same)]
    which = int(rng.integers(same))
    (prefix,) = made_up(rng, string.ascii_uppercase, 3 if limit < SHORT else 8, held_out.names, 1)
    question = ROUND_ASKED[held_out.phrasings].format(
        prefix=prefix, nth=NTH[held_out.phrasings][which], form=form, topic=topic
    )
    more = ((round_of(*subjects[i])[0],) for i in order)
    reply = rounds[which][1]
    return Draft([text for text, _ in rounds], more, question, (reply,), (), f"{prefix} {reply}", prefix)
