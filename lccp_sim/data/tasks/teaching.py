"""Questions to learn from, and texts made of them in rows: the common part of fine-tuning, RL and the probe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import tokenizers

from lccp_sim.data.documents.document import Filler
from lccp_sim.data.tasks import TASKS, draw_lesson
from lccp_sim.data.tasks.question import Half, Lesson, Question
from lccp_sim.errors import ConfigError, refuse

SEEN = Half(names=False, phrasings=False)


def turns_of(tasks: Mapping[str, int]) -> list[str]:
    """The cycle of tasks for successive texts, each as often as its weight requires."""
    return [task for turn in range(max(tasks.values())) for task, n in tasks.items() if turn < n]


@dataclass(frozen=True)
class Teacher:
    """Draws texts of the `tasks` in proportion, in a tokenizer's tokens. `fill` supplies real text around needles."""

    tasks: Mapping[str, int]
    tokenizer: tokenizers.Tokenizer
    bos: int
    fill: Filler | None
    questions: int = 1

    @cached_property
    def turns(self) -> list[str]:
        """The task of text i: turn i modulo the number of turns."""
        return turns_of(self.tasks)

    def lesson(self, i: int, rng: np.random.Generator, limit: int) -> Lesson:
        """A text of at most `limit` tokens with up to `questions` questions. Raises as a `Task` does."""
        task = self.turns[i % len(self.turns)]
        return draw_lesson(task, rng, self.tokenizer, self.bos, limit, SEEN, self.fill, self.questions)

    def question(self, i: int, rng: np.random.Generator, limit: int, half: Half = SEEN) -> Question:
        """One question with its answer, at most `limit` tokens. Raises as a `Task` does."""
        return TASKS[self.turns[i % len(self.turns)]](rng, self.tokenizer, self.bos, limit, half, self.fill)

    def between(self, i: int, rng: np.random.Generator, short: int, long: int, key: str) -> Question:
        """A question whose limit is uniform in (short, long], or `long` if its shortest text does not fit.

        Raises ConfigError, under the config key, if it does not fit into `long` either.
        """
        try:
            return self.question(i, rng, int(rng.integers(short, long)) + 1)
        except ConfigError:
            pass
        try:
            return self.question(i, rng, long)
        except ConfigError as error:
            raise ConfigError(f"{key}={long}: {error}") from error

    @cached_property
    def stops(self) -> frozenset[int]:
        """The tokens that contain a line break. An answer ends with one."""
        size = self.tokenizer.get_vocab_size()
        return frozenset(i for i in range(size) if "\n" in self.tokenizer.decode([i]))

    def text(self, tokens: np.ndarray) -> str:
        """The text of an answer: its first line."""
        return self.tokenizer.decode(tokens.tolist()).split("\n")[0]

    def check_stops(self, key: str) -> None:
        """Raise ConfigError, under a config key, if no token ends an answer."""
        rule = "the tokenizer has no token with a line break, which ends an answer; take another tokenizer"
        refuse(not self.stops, key, dict(self.tasks), rule)

    def check_answers(self, key: str, limit: int) -> None:
        """Raise ConfigError, under a config key, if a task has no answer, or its answer cannot be encoded."""
        self.check_stops(key)
        for i, task in enumerate(self.turns):
            try:
                question = self.question(i, np.random.default_rng(i), limit)
            except ConfigError as error:
                raise ConfigError(f"{key}.{task}={self.tasks[task]!r}: {error}") from error
            missing = not question.references or not all(question.references)
            refuse(missing, f"{key}.{task}", self.tasks[task], "has no answer that could be right; leave it out")
            said = self.text(question.tokens[question.answer_start :])
            lost = [each for each in question.references if each.lower() not in said.lower()]
            rule = (
                f"the tokenizer cannot write its answer {(lost or [''])[0]!r} (it reads {said!r}); leave the task out"
            )
            refuse(lost, f"{key}.{task}", self.tasks[task], rule)


class Laid(NamedTuple):
    """Rows of texts: int64 ids [B, W] (padding 0); bool [B, W]: answer tokens, text starts, and text (not padding)."""

    ids: np.ndarray
    answer: np.ndarray
    start: np.ndarray
    text: np.ndarray


def lay(rows: Sequence[Sequence[Lesson]], width: int | None = None) -> Laid:
    """Texts one after the other in each row. `width` is at least the longest row (null: the longest row)."""
    width = width or max(sum(len(lesson.tokens) for lesson in row) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    answer, start, text = (np.zeros(ids.shape, dtype=bool) for _ in range(3))
    for b, row in enumerate(rows):
        at = 0
        for lesson in row:
            ids[b, at : at + len(lesson.tokens)] = lesson.tokens
            for first, last in lesson.answers:
                answer[b, at + first : at + last] = True
            start[b, at] = True
            at += len(lesson.tokens)
        text[b, :at] = True
        if at < width:
            start[b, at] = True  # padding is a text of its own, which nobody sees
    return Laid(ids, answer, start, text)
