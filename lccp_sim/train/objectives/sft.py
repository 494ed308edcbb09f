"""Supervised fine-tuning: questions with their answers, packed into rows; the loss covers the answers alone.

The paper fine-tunes each checkpoint on mostly short data (arXiv 2604.02650, section 4: 440K samples of some 570 tokens
for a window of 32K to 64K), with a learning rate that falls as a cosine from 2e-5 to 5e-6. The probe is a short form of
this: the same texts and loss, without packing. Design note: texts are generated without end, so no text repeats and
there are no epochs.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Gt

from lccp_sim.config import Config, Count, Fraction
from lccp_sim.data.batch import Batch
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tasks import check_haystack, check_tasks
from lccp_sim.data.tasks.question import Lesson
from lccp_sim.data.tasks.teaching import Teacher
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.train.objectives.objective import Objective, order_of, part, rows_of_step
from lccp_sim.train.objectives.packed import batch_of, training_text

LEAST_ROOM = 0.5  # share of a text's limit: less room than this at the end of a row is padded


def check_asked(tasks: dict[str, int], haystack: str | None) -> None:
    """Raise ConfigError if `objective.tasks` names no task, or a task that needs real text without a source of it."""
    check_tasks(tasks, "objective.tasks")
    check_haystack(tasks, haystack, "objective.haystack", "name a source that is trained on")


def teacher_of(tasks: dict[str, int], haystack: str | None, corpus: Corpus, limit: int, questions: int = 1) -> Teacher:
    """The checked generator of an objective's texts. Raises ConfigError."""
    fill = None if haystack is None else training_text(corpus, haystack, "objective.haystack")
    teacher = Teacher(tasks, corpus.tokenizer, corpus.bos, fill, questions)
    teacher.check_answers("objective.tasks", limit)
    return teacher


@dataclass(frozen=True, kw_only=True)
class Finetuning(Objective):
    """Texts of `tasks`, of at most `text_tokens` tokens, or for a share `long_frac` up to the run's context.

    Each asks up to `questions` questions about its context. `haystack`: the source of real text around needles.
    """

    tasks: dict[str, Count]
    haystack: str | None = None
    text_tokens: Annotated[int, Gt(0)] = 384
    long_frac: Fraction = 0.1
    questions: Annotated[int, Gt(0)] = 4
    kind: Literal["sft"] = "sft"

    def __post_init__(self) -> None:
        check_asked(self.tasks, self.haystack)

    def check(self, config: Config) -> None:
        """Raise ConfigError if a text is longer than a row."""
        super().check(config)
        context = config.run.context_tokens
        rule = f"longer than a row of run.context_tokens={context}; lower it"
        refuse(self.text_tokens > context, "objective.text_tokens", self.text_tokens, rule)

    def rows(self, corpus: Corpus, config: Config, model: Any) -> "Lessons":
        """Rows of texts."""
        return Lessons(self, teacher_of(self.tasks, self.haystack, corpus, self.text_tokens, self.questions), config)

    def notes(self, config: Config, base_context_tokens: int | None) -> list[str]:
        """A warning if the texts are shorter than the context window of the run before."""
        longest = config.run.context_tokens if self.long_frac else self.text_tokens
        window = max(config.run.context_tokens, base_context_tokens or 0)
        remedy = "raise objective.long_frac or run.context_tokens, and check the needle at full length"
        line = f"no fine-tuning text is longer than {longest} tokens, but the window is {window}: fine-tuning on"
        return [f"{line} short texts alone can destroy the model's ability beyond them ({remedy})"] * (longest < window)


class Lessons:
    """Rows of texts, one after the other until the row is full; row r is a pure function of (seed, r)."""

    live = False
    penalty: Any = None

    def __init__(self, settings: Finetuning, teacher: Teacher, config: Config):
        self.settings, self.teacher = settings, teacher
        self.width, self.rows, self.seed = config.run.context_tokens, rows_of_step(config), order_of(config)
        self.step = lru_cache(maxsize=2)(self._step)

    def _step(self, index: int) -> list[list[Lesson]]:
        return [self.row(r) for r in range(index * self.rows, (index + 1) * self.rows)]

    def row(self, r: int) -> list[Lesson]:
        """The texts of a row of `width` + 1 tokens."""
        s, rng, room = self.settings, np.random.default_rng((self.seed, 20, r)), self.width + 1
        lessons: list[Lesson] = []
        while True:
            long = rng.random() < s.long_frac and s.text_tokens < self.width
            limit = int(rng.integers(s.text_tokens, self.width)) + 1 if long else s.text_tokens
            if lessons and room < LEAST_ROOM * limit:
                return lessons
            turn = r * 101 + len(lessons)
            try:
                lesson = self.teacher.lesson(turn, rng, min(limit, room))
            except ConfigError:
                if lessons:
                    return lessons  # the rest of the row is too short for a text of this task
                lesson = self.teacher.lesson(turn, rng, room)
            lessons.append(lesson)
            room -= len(lesson.tokens)

    def slice(self, index: int, rank: int, world: int, micro: int, num_micro: int) -> Batch:
        """The part of step `index` for one micro-batch of a rank."""
        rows = part(self.step(index), rank, world, micro, num_micro)
        return batch_of(rows, [f"sft text of step {index + 1}"], self.width)

    def target_count(self, index: int) -> int:
        """The number of answer tokens in the global batch."""
        return sum(stop - start for row in self.step(index) for lesson in row for start, stop in lesson.answers)
