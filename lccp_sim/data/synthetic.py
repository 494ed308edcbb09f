"""Seeded documents that are dense in retrieval and copying, in plain text.

A document is filler (real text of another source) into which events are inserted: facts and their questions, or spans
and their repeats. Each piece is a run of ids encoded on its own, so every document has exactly its length. `learn`
marks what no reader could predict, for runs that want to skip it in the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import tokenizers

from lccp_sim.config import refuse
from lccp_sim.data.facts import TRAIN_TEMPLATES, draw_fact

Filler = Callable[[np.random.Generator, int], np.ndarray]  # (rng, n) -> n consecutive ids of real text
Piece = tuple[np.ndarray, np.ndarray]  # ids and learn, of one length
Event = tuple[float, Piece]  # where in the filler (0 ... 1), and what
TASKS = ("facts", "copies", "repeats")
MIN_DOCUMENT = 32


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """`documents` documents of `document_tokens` (null: a whole row) of one task, filled from the source `text_from`.

    facts: a fact per `tokens_per_fact` tokens, each asked later. copies: unmarked spans, repeated, over `copy_frac` of
    the document. repeats: one period of random tokens (needs no filler). `skip_unpredictable` leaves first mentions of
    random tokens out of the loss.
    """

    kind: str = "synthetic"
    share: float = 1.0
    task: Literal["facts", "copies", "repeats"]
    text_from: str | None = None
    documents: int = 1000
    document_tokens: int | None = None
    skip_unpredictable: bool = False
    tokens_per_fact: int = 80
    copy_frac: float = 0.8

    def __post_init__(self) -> None:
        refuse(not 0 <= self.share < float("inf"), "share", self.share, "must be a number >= 0")
        refuse(self.task not in TASKS, "task", self.task, f"must be one of {', '.join(TASKS)}")
        unfilled = self.task != "repeats" and not self.text_from
        refuse(unfilled, "text_from", self.text_from, f"task {self.task} needs the name of a text source to fill from")
        refuse(self.documents < 1, "documents", self.documents, "must be at least 1")
        bad = self.document_tokens is not None and self.document_tokens < MIN_DOCUMENT
        refuse(
            bad, "document_tokens", self.document_tokens, f"must be at least {MIN_DOCUMENT}, or null for a whole row"
        )
        refuse(
            self.tokens_per_fact < 48, "tokens_per_fact", self.tokens_per_fact, "must be at least 48, to hold a fact"
        )
        refuse(not 0 < self.copy_frac < 1, "copy_frac", self.copy_frac, "must lie between 0 and 1")


def compose(
    task: Synthetic,
    tokenizer: tokenizers.Tokenizer,
    fill: Filler | None,
    length: int,
    rng: np.random.Generator,
    evaluation: bool = False,
) -> Piece:
    """Ids (int64) and learn (bool) of one document of exactly `length` tokens, without its BOS.

    `evaluation` draws keys that training never uses. Same rng state, same document.
    """
    if task.task == "repeats":
        period = _random_tokens(rng, tokenizer, int(rng.integers(4, 21)))
        ids = np.tile(period, -(-length // len(period)))[:length]
        return ids, (np.arange(length) >= len(period)) | (not task.skip_unpredictable)
    assert fill is not None
    if task.task == "facts":
        events = _facts(task.tokens_per_fact, tokenizer, length, rng, evaluation)
    else:
        events = _copies(task.copy_frac, tokenizer, fill, length, rng)
    room = length - sum(len(ids) for _, (ids, _) in events)
    filler = fill(rng, room)
    pieces: list[Piece] = []
    last = 0
    for at, piece in sorted(events, key=lambda event: event[0]):
        stop = int(at * room)
        pieces += [(filler[last:stop], np.ones(stop - last, bool)), piece]
        last = stop
    pieces.append((filler[last:], np.ones(room - last, bool)))
    learn = np.concatenate([learn for _, learn in pieces])
    return np.concatenate([ids for ids, _ in pieces]), learn | (not task.skip_unpredictable)


def _facts(
    tokens_per_fact: int, tokenizer: tokenizers.Tokenizer, length: int, rng: np.random.Generator, evaluation: bool
) -> list[Event]:
    """Statements, and later their questions: "Question: ... Answer: <statement>" (arXiv 2604.02650, section 5)."""
    events: list[Event] = []
    keys: set[bytes] = set()
    left = length
    for _ in range(max(1, length // tokens_per_fact)):
        fact = draw_fact(rng, TRAIN_TEMPLATES[rng.integers(len(TRAIN_TEMPLATES))], tokenizer, evaluation)
        if fact.key_ids.tobytes() in keys:
            continue  # two values for one key: no reader could answer
        keys.add(fact.key_ids.tobytes())
        answer = np.concatenate([fact.question_ids, fact.needle_ids])
        left -= len(fact.needle_ids) + len(answer)
        if left < 0:
            break
        stated, asked = sorted(rng.random(2))  # any two places: half of the distances exceed 0.29 of the document
        learn = ~fact.value_mask
        learn[_find(fact.needle_ids, fact.key_ids)] = False
        events += [(stated, (fact.needle_ids, learn)), (asked, (answer, np.ones(len(answer), bool)))]
    return events


def _find(ids: np.ndarray, part: np.ndarray) -> slice:
    """Where `part` first stands in `ids`."""
    at = next(i for i in range(len(ids)) if np.array_equal(ids[i : i + len(part)], part))
    return slice(at, at + len(part))


def _copies(
    copy_frac: float, tokenizer: tokenizers.Tokenizer, fill: Filler, length: int, rng: np.random.Generator
) -> list[Event]:
    """Spans of 6-32 tokens, 60 % random tokens and 40 % real text, each standing 2-3 times at random places."""
    events: list[Event] = []
    left = int(copy_frac * length)
    while True:
        size, times = int(rng.integers(6, 33)), int(rng.integers(2, 4))
        size = min(size, length // 4)  # two copies fit into any document
        if size * times > left:
            return events
        left -= size * times
        random = rng.random() < 0.6
        ids = _random_tokens(rng, tokenizer, size) if random else fill(rng, size)
        for copy, at in enumerate(sorted(rng.random(times))):
            events.append((at, (ids, np.full(size, copy > 0 or not random))))


@lru_cache(maxsize=8)
def plain_tokens(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """int64 ids of all tokens that are plain printable text: what random spans are drawn from.

    At a small vocabulary words alone carry so little information that copying a span hardly pays. Joined, the tokens
    are text that need not encode to them again.
    """
    texts = tokenizer.decode_batch([[id_] for id_ in range(tokenizer.get_vocab_size())], skip_special_tokens=True)
    plain = [text.strip() != "" and text.isprintable() and "\ufffd" not in text for text in texts]
    return np.flatnonzero(plain).astype(np.int64)


def _random_tokens(rng: np.random.Generator, tokenizer: tokenizers.Tokenizer, size: int) -> np.ndarray:
    return rng.choice(plain_tokens(tokenizer), size)
