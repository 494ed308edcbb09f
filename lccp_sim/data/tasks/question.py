"""Conversion of a draft in plain text to the tokens of a question, and the scores of a decoded answer.

A draft specifies what its text must state, in which order, and what may be added in between: units of text that begin
with a line break and are encoded separately, up to the limit. For training, several drafts make one text with several
questions. Design note: below `SHORT` tokens the tasks are smaller (fewer or shorter values, a smaller count), so that
they fit into short texts. Each task documents its sizes.
"""

import difflib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import tokenizers

from lccp_sim.data.documents.document import Filler
from lccp_sim.data.spans import encode_after
from lccp_sim.errors import ConfigError

SHORT = 4096  # tokens: below this, texts have tasks of a smaller size
Entry = TypeVar("Entry")


class Half(NamedTuple):
    """The half of every list that a question uses: True for the half that fine-tuning never sees.

    `names` selects names, values and words, `phrasings` the sentences around them. For a model that has not learned
    language, another phrasing is another task.
    """

    names: bool
    phrasings: bool


UNSEEN = Half(names=True, phrasings=True)


class Question(NamedTuple):
    """int64 tokens (BOS, context, question, answer with its line break), and the required content of the answer.

    `references`: the strings that recall looks up; `prefix`: the required beginning of the answer, or "".
    """

    tokens: np.ndarray
    answer_start: int
    task: str
    references: tuple[str, ...]
    prefix: str


class Lesson(NamedTuple):
    """A text to learn from: int64 tokens, and [start, stop) of each answer in it, closing line break included."""

    tokens: np.ndarray
    answers: tuple[tuple[int, int], ...]


class Draft(NamedTuple):
    """A question in plain text. The context contains `must`, in order, with groups of `more` in between.

    A group of `more` is added in full or not at all; None: the rest of the context is real text. An empty `answer`
    means the references, joined by commas. `about`: the names that the question is about, which no other draft of the
    same text may mention. It is empty if the question is about the full text, which then has no other question.
    """

    must: Sequence[str]
    more: Iterator[tuple[str, ...]] | None
    asked: str
    references: tuple[str, ...]
    about: tuple[str, ...] = ()
    answer: str = ""
    prefix: str = ""


def build(
    task: str,
    draft: Draft,
    rng: np.random.Generator,
    tokenizer: tokenizers.Tokenizer,
    bos: int,
    limit: int,
    fill: Filler | None,
) -> Question:
    """The question of a draft, of at most `limit` tokens with its answer, with as much of `more` as fits.

    Raises ConfigError if `must` alone is too long, if real text is needed but `fill` is None, or if the tokenizer
    merges question and answer.
    """
    tokens, ((start, _),) = lesson(task, [draft], rng, tokenizer, bos, limit, fill)
    return Question(tokens, start, task, draft.references, draft.prefix)


def lesson(
    task: str,
    drafts: Sequence[Draft],
    rng: np.random.Generator,
    tokenizer: tokenizers.Tokenizer,
    bos: int,
    limit: int,
    fill: Filler | None,
) -> Lesson:
    """One context, then the questions of the drafts with their answers, at most `limit` tokens.

    The first draft is always included, and its `more` fills the remaining tokens. Each other draft is included if it
    fits, and if neither it nor an earlier draft mentions the subject of the other. Raises as `build` does.
    """
    first, *others = drafts
    asked = [_asked(tokenizer, first)]
    musts = [[unit_ids(tokenizer, unit) for unit in first.must]]
    kept, room = [first], limit - 1 - sum(map(len, (*asked[0], *musts[0])))
    if room < 0:
        raise ConfigError(f"task {task}: its shortest text has {limit - room} tokens; allow at least as many")
    for draft in others:
        own, ids = _asked(tokenizer, draft), [unit_ids(tokenizer, unit) for unit in draft.must]
        size = sum(map(len, (*own, *ids)))
        if size <= room and all(_apart(draft, each) for each in kept):
            asked, musts, kept, room = [*asked, own], [*musts, ids], [*kept, draft], room - size
    must = _merged(rng, musts)
    if first.more is None:
        if fill is None:
            raise ConfigError(f"task {task}: its text is real text, and no source of it is given; name one")
        context = _among(rng, must, fill(rng, room))
    else:
        more: list[np.ndarray] = []
        taken = [name for draft in kept[1:] for name in draft.about]
        for group in first.more:
            if any(name in unit for name in taken for unit in group):
                continue
            ids = [unit_ids(tokenizer, unit) for unit in group]
            room -= sum(map(len, ids))
            if room < 0:
                break
            more += ids
        context = _between(rng, must, more)
    pieces, answers = [np.array([bos], np.int64), *context], []
    done = sum(map(len, pieces))
    for question, answer in asked:
        start = done + len(question)
        done = start + len(answer)
        pieces += [question, answer]
        answers.append((start, done))
    return Lesson(np.concatenate(pieces), tuple(answers))


def _asked(tokenizer: tokenizers.Tokenizer, draft: Draft) -> list[np.ndarray]:
    """The ids of a draft's question and of its answer."""
    answer = draft.answer or ", ".join(draft.references)
    return encode_after(tokenizer, (f"\nQuestion: {draft.asked}\nAnswer:", f" {answer}\n"))


def _apart(one: Draft, other: Draft) -> bool:
    """Whether two drafts may share a text: neither mentions what the other asks about."""
    if not one.about or not other.about:
        return False
    return not any(
        name in unit for a, b in ((one, other), (other, one)) for name in a.about for unit in (*b.must, b.asked)
    )


def _merged(rng: np.random.Generator, lists: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Interleave all lists at random, keeping the order within each list."""
    if len(lists) == 1:
        return lists[0]
    turns = [iter(each) for each in lists]
    owners = rng.permutation(np.repeat(np.arange(len(lists)), [len(each) for each in lists]))
    return [next(turns[owner]) for owner in owners]


@lru_cache(maxsize=16384)
def unit_ids(tokenizer: tokenizers.Tokenizer, unit: str) -> np.ndarray:
    """The ids of one unit of text, cached because the same noise recurs. Read-only."""
    ids = encode_after(tokenizer, (unit,))[0]
    ids.flags.writeable = False
    return ids


def _between(rng: np.random.Generator, must: list[np.ndarray], more: list[np.ndarray]) -> list[np.ndarray]:
    """All units: `must`, in order, at random places among the shuffled units of `more`."""
    shuffled = iter([more[i] for i in rng.permutation(len(more))])
    ordered, places = iter(must), set(rng.permutation(len(must) + len(more))[: len(must)].tolist())
    return [next(ordered if place in places else shuffled) for place in range(len(must) + len(more))]


def _among(rng: np.random.Generator, must: list[np.ndarray], text: np.ndarray) -> list[np.ndarray]:
    """`must`, in its order, at random places of a running text."""
    cuts = np.sort(rng.integers(0, len(text) + 1, len(must)))
    stretches = np.split(text, cuts)
    return [part for pair in zip(stretches, [*must, text[:0]], strict=True) for part in pair]


def score_text(question: Question, text: str) -> dict[str, float]:
    """`recall_frac`, the share of the references that a decoded answer contains; for coreference also its similarity.

    recall_frac ignores case (string_match_all of RULER, arXiv 2404.06654). `similarity_frac` is 0 if the required
    prefix is missing, else difflib's ratio (2 x matching / all characters) between the text after the prefix and the
    requested reply (MRCR, arXiv 2409.12640).
    """
    found = [reference.lower() in text.lower() for reference in question.references]
    scores = {"recall_frac": sum(found) / len(found)}
    if question.prefix:
        given = text.strip()
        rest = given.removeprefix(question.prefix).strip()
        ratio = difflib.SequenceMatcher(None, rest, question.references[0], autojunk=False).ratio()
        scores["similarity_frac"] = ratio if given.startswith(question.prefix) else 0.0
    return scores


def half(pool: Sequence[Entry], held_out: bool) -> Sequence[Entry]:
    """The entries of a list for fine-tuning (even places) or for the evaluation (odd places)."""
    return pool[int(held_out) :: 2]


def pick(rng: np.random.Generator, pool: Sequence[Entry], held_out: bool, n: int) -> list[Entry]:
    """`n` different entries of one half of a list, in random order."""
    own = half(pool, held_out)
    return [own[i] for i in rng.choice(len(own), n, replace=False)]


def made_up(rng: np.random.Generator, alphabet: str, size: int, held_out: bool, n: int) -> list[str]:
    """`n` different random strings; those of the evaluation have an odd sum of code points, the others an even one."""
    made: dict[str, None] = {}
    while len(made) < n:
        text = "".join(alphabet[i] for i in rng.integers(len(alphabet), size=size))
        if sum(map(ord, text)) % 2 == held_out:
            made[text] = None
    return list(made)
