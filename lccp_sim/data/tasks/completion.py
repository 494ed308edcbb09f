"""A biography's sentence to be completed word for word: the text on which retrieval heads are scored.

The paper scores heads on single-needle LongBio texts in completion format (arXiv 2604.02650, section 6): the answer
is the needle itself, so copying by a head is visible. Design note: one biography, at the end of the context that is far
from the needle, is truncated to reach the exact length.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tokenizers

from lccp_sim.data.spans import encode_after
from lccp_sim.data.tasks.people import biography, people_names, sentences_of
from lccp_sim.data.tasks.phrases import ATTRIBUTES
from lccp_sim.data.tasks.question import UNSEEN, half, unit_ids
from lccp_sim.errors import ConfigError

MOST_DRAWS = 20  # of a needle whose ids are the same in the context and after the question


class Completion(NamedTuple):
    """int64 tokens; [start, stop) of the needle and of its copy, the answer; the answer tokens that form the value."""

    tokens: np.ndarray
    needle: tuple[int, int]
    answer: tuple[int, int]
    value_mask: np.ndarray


def completion(
    rng: np.random.Generator,
    tokenizer: tokenizers.Tokenizer,
    bos: int,
    length: int,
    depth: float,
) -> Completion:
    """Exactly `length` tokens: BOS, biographies, the question for an attribute of one, and its sentence as the answer.

    The needle's biography begins at the share `depth` (0 to 1) of the remaining tokens. A draw whose sentence has
    different ids in the context and after the question is dropped. Raises ConfigError if no biography fits into
    `length`, or if 20 draws in a row are dropped.
    """
    people = people_names(rng, UNSEEN)
    for _ in range(MOST_DRAWS):
        who, attribute = next(people), list(ATTRIBUTES.values())[int(rng.integers(len(ATTRIBUTES)))]
        sentences, value = sentences_of(rng, length, UNSEEN, who, attribute, "standard")
        sentence = half(attribute.standard, UNSEEN.phrasings)[0].format(x=who, v=value)
        sentences.remove(sentence)
        at = int(rng.integers(1, len(sentences) + 1))  # never first: after a line break its first token may differ
        head, tail = f" {sentence}".split(f" {value}")
        asked = f"\nQuestion: {half(attribute.asked, UNSEEN.phrasings)[0].format(x=who)}\nAnswer:"
        around = "\n" + " ".join(sentences[:at]), "".join(f" {other}" for other in sentences[at:])
        before, needle, after = encode_after(tokenizer, (around[0], f" {sentence}", around[1]))
        asked_ids, *answer = encode_after(tokenizer, (asked, head, f" {value}", tail))
        if np.array_equal(needle, np.concatenate(answer)):
            break
    else:
        raise ConfigError(f"the tokenizer gives a sentence other ids after a question ({sentence!r}); use another one")
    room = length - 1 - sum(map(len, (before, needle, after, asked_ids, needle)))
    if room < 0:
        raise ConfigError(f"completion: the shortest text has {length - room} tokens; allow at least as many")
    others = (unit_ids(tokenizer, biography(rng, length, UNSEEN, x, attribute, "standard")[0]) for x in people)
    left, right = _around(others, room, depth)
    tokens = np.concatenate([np.array([bos]), left, before, needle, after, right, asked_ids, needle]).astype(np.int64)
    start, stop = 1 + len(left) + len(before), len(tokens) - len(needle)
    value_mask = np.repeat([False, True, False], [len(part) for part in answer])
    return Completion(tokens, (start, start + len(needle)), (stop, length), value_mask)


def _around(others: Iterator[np.ndarray], room: int, depth: float) -> tuple[np.ndarray, np.ndarray]:
    """The tokens before and after the needle's biography, `room` tokens in total.

    The shorter side holds complete biographies, so that the truncated end is as far away as possible.
    """
    early, near, near_left, kept = depth < 0.5, [np.zeros(0, np.int64)], round(min(depth, 1 - depth) * room), []
    for ids in others:
        if len(ids) > near_left:
            kept = [ids]
            break
        near.append(ids)
        near_left -= len(ids)
    far_room = room - sum(map(len, near))
    far = kept + [ids for ids in _until(others, far_room - sum(map(len, kept)))]
    if sum(map(len, far)) < far_room:
        raise ConfigError(f"completion: there are too few names to fill {room} tokens; use a shorter length")
    text = np.concatenate([near[0], *far])
    return (np.concatenate(near), text[:far_room]) if early else (text[len(text) - far_room :], np.concatenate(near))


def _until(others: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Biographies until `size` tokens are reached or passed."""
    while size > 0 and (ids := next(others, None)) is not None:
        size -= len(ids)
        yield ids
