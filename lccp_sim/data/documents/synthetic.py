"""Seeded plain-text documents with many occasions for retrieval and copying.

A document is filler (real text of another source) into which events are inserted: facts and their questions, or spans
and their repeats. Each piece is encoded separately, so every document has exactly the requested length. `learn` is
false for tokens that no reader could predict, for runs that leave them out of the loss.

Facts of many templates can be copied by template alone. With `templates: 1`, all facts of a document have the same
form, and only the key distinguishes them.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
import tokenizers

from lccp_sim.config import Count
from lccp_sim.data.documents.document import Filler
from lccp_sim.data.documents.facts import TRAIN_TEMPLATES, Fact, Template, draw_fact
from lccp_sim.data.tasks import TASKS as QUESTIONS
from lccp_sim.data.tasks import Half, check_tasks
from lccp_sim.errors import refuse

TaughtIds = tuple[np.ndarray, np.ndarray]  # ids and learn, of one length
Event = tuple[float, TaughtIds]  # where in the filler (0 ... 1), and what
SYNTHETIC_TASKS = ("facts", "copies", "repeats", "records", "questions")
FILLED = ("facts", "copies")  # the tasks that need real text
MIN_DOCUMENT = 32
NEAREST = 8  # tokens: the least of log-uniform distances


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """`documents` documents of `document_tokens` (null: a full row) of one task, filled from the source `text_from`.

    facts: a fact per `tokens_per_fact` tokens, as far as there is room, asked `questions_per_fact` times on average
    (0.6: six facts of ten, once). A document draws its facts from `templates` templates (null: from all).
    `distances` from fact to question are uniform or log-uniform over the document. A question is answered by the
    statement (the form of arXiv 2604.02650, section 5), by its value alone, or, with `both`, by either. Of the
    documents, `closed_frac` draw their values from a list of 64 words; the values of the others are random.
    copies: unmarked spans, repeated, over `copy_frac` of the document. repeats: one period of random tokens.
    records: a few records of random tokens, drawn again and again, each a key of two tokens, a separator that all of
    them share, and a value: as in a log or a table, only the key tells what comes next.
    questions: questions of the probe's tasks, one after another, each of at most `question_tokens` tokens with its
    context and answer; `questions` gives the tasks' weights. Names, values and phrasings are of the training half.
    `skip_unpredictable` leaves first mentions of random tokens out of the loss, and of questions all but the answers.
    """

    kind: str = "synthetic"
    share: float = 1.0
    task: Literal["facts", "copies", "repeats", "records", "questions"]
    text_from: str | None = None
    documents: int = 1000
    document_tokens: int | None = None
    skip_unpredictable: bool = False
    tokens_per_fact: int = 80
    templates: int | None = None
    questions_per_fact: float = 1.0
    distances: Literal["uniform", "log_uniform"] = "uniform"
    answers: Literal["statement", "value", "both"] = "statement"
    closed_frac: float = 0.0
    copy_frac: float = 0.8
    questions: dict[str, Count] = field(default_factory=dict)
    question_tokens: int = 128

    def __post_init__(self) -> None:
        refuse(not 0 <= self.share < float("inf"), "share", self.share, "must be a number >= 0")
        refuse(self.task not in SYNTHETIC_TASKS, "task", self.task, f"must be one of {', '.join(SYNTHETIC_TASKS)}")
        unfilled = self.task in FILLED and not self.text_from
        refuse(unfilled, "text_from", self.text_from, f"task {self.task} needs the name of a text source to fill from")
        refuse(self.documents < 1, "documents", self.documents, "must be at least 1")
        bad = self.document_tokens is not None and self.document_tokens < MIN_DOCUMENT
        refuse(bad, "document_tokens", self.document_tokens, f"must be at least {MIN_DOCUMENT}, or null for a full row")
        refuse(self.tokens_per_fact < 16, "tokens_per_fact", self.tokens_per_fact, "must be at least 16: a statement")
        bad = self.templates is not None and not 0 < self.templates <= len(TRAIN_TEMPLATES)
        refuse(bad, "templates", self.templates, f"must lie between 1 and {len(TRAIN_TEMPLATES)}, or null for all")
        refuse(not 0 < self.questions_per_fact <= 8, "questions_per_fact", self.questions_per_fact, "must be in (0, 8]")
        refuse(not 0 <= self.closed_frac <= 1, "closed_frac", self.closed_frac, "must lie between 0 and 1")
        refuse(not 0 < self.copy_frac < 1, "copy_frac", self.copy_frac, "must lie between 0 and 1")
        asks = self.task == "questions"
        refuse(self.questions and not asks, "questions", self.questions, "is for task questions; remove it")
        if asks:
            check_tasks(self.questions, "questions")


def draw_document(
    task: Synthetic,
    tokenizer: tokenizers.Tokenizer,
    fill: Filler | None,
    length: int,
    rng: np.random.Generator,
    evaluation: bool = False,
) -> TaughtIds:
    """Ids (int64) and learn (bool) of one document of exactly `length` tokens, without its BOS.

    `evaluation` draws keys that training never uses. The same rng state gives the same document.
    """
    if task.task == "repeats":
        period = _random_tokens(rng, tokenizer, int(rng.integers(4, 21)))
        ids = np.tile(period, -(-length // len(period)))[:length]
        return ids, (np.arange(length) >= len(period)) | (not task.skip_unpredictable)
    if task.task == "records":
        ids, learn = _records(tokenizer, length, rng)
        return ids, learn | (not task.skip_unpredictable)
    if task.task == "questions":
        ids, learn = _questions(task, tokenizer, fill, length, rng, evaluation)
        return ids, learn | (not task.skip_unpredictable)
    assert fill is not None
    if task.task == "facts":
        events = _facts(task, tokenizer, length, rng, evaluation)
    else:
        events = _copies(task.copy_frac, tokenizer, fill, length, rng)
    room = length - sum(len(ids) for _, (ids, _) in events)
    filler = fill(rng, room)
    pieces: list[TaughtIds] = []
    last = 0
    for at, piece in sorted(events, key=lambda event: event[0]):
        stop = int(at * room)
        pieces += [(filler[last:stop], np.ones(stop - last, bool)), piece]
        last = stop
    pieces.append((filler[last:], np.ones(room - last, bool)))
    learn = np.concatenate([learn for _, learn in pieces])
    return np.concatenate([ids for ids, _ in pieces]), learn | (not task.skip_unpredictable)


def _records(tokenizer: tokenizers.Tokenizer, length: int, rng: np.random.Generator) -> TaughtIds:
    """2-12 records, repeated in random order. Learned: separators, and the value after a key seen before."""
    separator = _random_tokens(rng, tokenizer, int(rng.integers(1, 4)))
    size = int(rng.integers(1, 5))
    known = [
        (_random_tokens(rng, tokenizer, 2), _random_tokens(rng, tokenizer, size)) for _ in range(rng.integers(2, 13))
    ]
    width = 2 + len(separator) + size
    order = rng.integers(len(known), size=-(-length // width))
    ids = np.concatenate([np.concatenate([known[i][0], separator, known[i][1]]) for i in order])
    again = [number in order[:at] for at, number in enumerate(order)]
    learn = np.repeat(again, width)
    learn[0::width] = False  # which record comes next
    for offset in range(2, 2 + len(separator)):
        learn[offset::width] = True
    learn[: 2 + len(separator)] = False  # of the first record, nothing is known
    return ids[:length], learn[:length]


def _facts(
    task: Synthetic, tokenizer: tokenizers.Tokenizer, length: int, rng: np.random.Generator, evaluation: bool
) -> list[Event]:
    """Statements and later their questions, up to `length`. The first fact is always asked about."""
    events: list[Event] = []
    keys: set[bytes] = set()
    left = length
    templates: tuple[Template, ...] = TRAIN_TEMPLATES
    if task.templates is not None:
        templates = tuple(templates[i] for i in rng.choice(len(templates), task.templates, replace=False))
    closed = bool(task.closed_frac) and rng.random() < task.closed_frac
    for number in range(max(1, length // task.tokens_per_fact)):
        fact = draw_fact(rng, templates[rng.integers(len(templates))], tokenizer, evaluation, closed)
        if fact.key_ids.tobytes() in keys:
            continue  # two values for one key: no reader could answer
        keys.add(fact.key_ids.tobytes())
        times, part = divmod(task.questions_per_fact, 1)
        asked = max(int(times) + int(part > 0 and rng.random() < part), int(number == 0))
        answers = [_asked(task, fact, rng) for _ in range(asked)]
        left -= len(fact.needle_ids) + sum(map(len, answers))
        if left < 0:
            break
        stated, *places = _places(task.distances, asked, length, rng)
        learn = ~fact.value_mask
        learn[_find(fact.needle_ids, fact.key_ids)] = False
        events.append((stated, (fact.needle_ids, learn)))
        events += [(at, (ids, np.ones(len(ids), bool))) for at, ids in zip(places, answers, strict=True)]
    return events


def _places(distances: str, asked: int, length: int, rng: np.random.Generator) -> list[float]:
    """The positions of a fact and of its questions, as shares of the document."""
    if distances == "uniform":
        return sorted(rng.random(1 + asked).tolist())
    questions = rng.random(asked) ** 0.5  # late ones leave room for long distances
    first = float(min(questions, default=rng.random()))
    least = NEAREST / length
    distance = float(np.exp(rng.uniform(np.log(least), np.log(max(first, 2 * least)))))
    return [max(0.0, first - distance), *questions.tolist()]


def _asked(task: Synthetic, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """The question and its answer: the statement (arXiv 2604.02650, section 5), or the value and a line break."""
    by_value = task.answers == "value" or (task.answers == "both" and rng.random() < 0.5)
    return np.concatenate([fact.question_ids, fact.short_ids if by_value else fact.needle_ids])


def _questions(
    task: Synthetic,
    tokenizer: tokenizers.Tokenizer,
    fill: Filler | None,
    length: int,
    rng: np.random.Generator,
    evaluation: bool,
) -> TaughtIds:
    """Questions with their contexts until `length` is full; the last one is truncated. Only answers are learned."""
    turns = [name for name, weight in task.questions.items() for _ in range(weight)]
    ids, learn, size = [], [], 0
    while size < length:
        draw = QUESTIONS[turns[rng.integers(len(turns))]]
        drawn = draw(rng, tokenizer, 0, task.question_tokens, Half(evaluation, False), fill)
        ids.append(drawn.tokens[1:])  # without its BOS
        learn.append(np.arange(1, len(drawn.tokens)) >= drawn.answer_start)
        size += len(ids[-1])
    return np.concatenate(ids)[:length], np.concatenate(learn)[:length]


def _find(ids: np.ndarray, part: np.ndarray) -> slice:
    """The first place of `part` in `ids`."""
    at = next(i for i in range(len(ids)) if np.array_equal(ids[i : i + len(part)], part))
    return slice(at, at + len(part))


def _copies(
    copy_frac: float, tokenizer: tokenizers.Tokenizer, fill: Filler, length: int, rng: np.random.Generator
) -> list[Event]:
    """Spans of 6-32 tokens, 60 % random tokens and 40 % real text, each 2-3 times at random places."""
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
    """int64 ids of all tokens that are plain printable text. Random spans are drawn from them.

    With a small vocabulary, words alone carry so little information that copying a span hardly pays. The joined text
    need not encode to the same tokens.
    """
    texts = tokenizer.decode_batch([[id_] for id_ in range(tokenizer.get_vocab_size())], skip_special_tokens=True)
    plain = [text.strip() != "" and text.isprintable() and "\ufffd" not in text for text in texts]
    return np.flatnonzero(plain).astype(np.int64)


def _random_tokens(rng: np.random.Generator, tokenizer: tokenizers.Tokenizer, size: int) -> np.ndarray:
    return rng.choice(plain_tokens(tokenizer), size)
