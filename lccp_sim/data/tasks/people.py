"""Biographies and questions about the people in them (LongBio, arXiv 2506.02921), with our own phrasings.

A text introduces one person per line. A question asks for an attribute of one or several of them, or of a mentor.
Design note: below `SHORT` tokens a biography states three of its six attributes, including the asked one, and below 256
tokens two, so that even a short text holds several people.
"""

from collections.abc import Iterator

import numpy as np

from lccp_sim.data.tasks.names import FIRST, LAST
from lccp_sim.data.tasks.phrases import ATTRIBUTES, HEADINGS, MENTOR_ASKED, MENTORS, MULTI_ASKED, Attribute
from lccp_sim.data.tasks.question import SHORT, Draft, Half, half, pick


def standard(rng: np.random.Generator, limit: int, held_out: Half) -> Draft:
    """One attribute of one person; each attribute has one phrasing."""
    return _ask_one(rng, limit, held_out, "standard")


def paraphrase(rng: np.random.Generator, limit: int, held_out: Half) -> Draft:
    """One attribute of one person; each sentence draws one of three phrasings."""
    return _ask_one(rng, limit, held_out, "paraphrase")


def pronoun(rng: np.random.Generator, limit: int, held_out: Half) -> Draft:
    """One attribute of one person, who is named only in a heading and then speaks in the first person."""
    return _ask_one(rng, limit, held_out, "pronoun")


def multi(rng: np.random.Generator, limit: int, held_out: Half) -> Draft:
    """One attribute of two or three people (two below `SHORT` tokens), in the order of the question.

    It replaces question answering over several paragraphs, which RULER (arXiv 2404.06654) takes from data sets that we
    do not ship.
    """
    people, attribute = people_names(rng, held_out), _attribute(rng)
    asked = [next(people) for _ in range(2 if limit < SHORT else int(rng.integers(2, 4)))]
    made = [biography(rng, limit, held_out, who, attribute, "standard") for who in asked]
    others = ((biography(rng, limit, held_out, who, attribute, "standard")[0],) for who in people)
    question = MULTI_ASKED[held_out.phrasings].format(a=attribute.name, x=", ".join(asked))
    must, found = [made[i][0] for i in rng.permutation(len(made))], tuple(value for _, value in made)
    return Draft(must, others, question, found, tuple(asked))


def two_hop(rng: np.random.Generator, limit: int, held_out: Half) -> Draft:
    """The city of the mentor of X. The cities of X, the mentor and all other people are stated, too."""
    people, city = people_names(rng, held_out), ATTRIBUTES["city"]

    def group(who: str) -> tuple[tuple[str, ...], str, str] | None:
        if (mentor := next(people, None)) is None:
            return None
        own, asked = pick(rng, city.values, held_out.names, 2)
        units = [MENTORS[held_out.phrasings].format(x=who, y=mentor)]
        units += [half(city.standard, held_out.phrasings)[0].format(x=x, v=v) for x, v in ((who, own), (mentor, asked))]
        return tuple(f"\n{units[i]}" for i in rng.permutation(3)), asked, mentor

    who = next(people)
    first = group(who)
    assert first is not None
    more = (made[0] for other in people if (made := group(other)))
    return Draft(first[0], more, MENTOR_ASKED[held_out.phrasings].format(x=who), (first[1],), (who, first[2]))


def people_names(rng: np.random.Generator, held_out: Half) -> Iterator[str]:
    """All names of one half, in random order."""
    first, last = half(FIRST, held_out.names), half(LAST, held_out.names)
    for which in rng.permutation(len(first) * len(last)):
        yield f"{first[which // len(last)]} {last[which % len(last)]}"


def biography(
    rng: np.random.Generator, limit: int, held_out: Half, who: str, asked: Attribute, style: str
) -> tuple[str, str]:
    """A biography of one line, its break first, and the value of the asked attribute."""
    sentences, value = sentences_of(rng, limit, held_out, who, asked, style)
    heading = HEADINGS[held_out.phrasings].format(x=who) + " " if style == "pronoun" else ""
    return f"\n{heading}{' '.join(sentences)}", value


def sentences_of(
    rng: np.random.Generator, limit: int, held_out: Half, who: str, asked: Attribute, style: str
) -> tuple[list[str], str]:
    """The sentences about one person, in random order, and the value of the asked attribute."""
    stated = [attribute for attribute in ATTRIBUTES.values() if attribute is not asked]
    others = 1 if limit < 256 else 2 if limit < SHORT else len(stated)
    stated = [asked, *(stated[i] for i in rng.permutation(len(stated))[:others])]
    sentences, value = [], ""
    for attribute in (stated[i] for i in rng.permutation(len(stated))):
        (drawn,) = pick(rng, attribute.values, held_out.names, 1)
        (phrasing,) = pick(rng, getattr(attribute, style), held_out.phrasings, 1)
        sentences.append(phrasing.format(x=who, v=drawn))
        value = drawn if attribute is asked else value
    return sentences, value


def _ask_one(rng: np.random.Generator, limit: int, held_out: Half, style: str) -> Draft:
    people, attribute = people_names(rng, held_out), _attribute(rng)
    who = next(people)
    text, value = biography(rng, limit, held_out, who, attribute, style)
    others = ((biography(rng, limit, held_out, other, attribute, style)[0],) for other in people)
    return Draft([text], others, half(attribute.asked, held_out.phrasings)[0].format(x=who), (value,), (who,))


def _attribute(rng: np.random.Generator) -> Attribute:
    return list(ATTRIBUTES.values())[int(rng.integers(len(ATTRIBUTES)))]
