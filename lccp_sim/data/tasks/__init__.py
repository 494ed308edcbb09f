"""Synthetic questions after long-context benchmarks, for fine-tuning and held-out evaluation: names and generators.

Each task is a plain function that drafts a text; one builder turns drafts into tokens up to a limit. Design note: all
texts are our own, in English and generated, so scores are not comparable with those of the original benchmarks.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import numpy as np
import tokenizers

from lccp_sim.data.documents.document import Filler
from lccp_sim.data.tasks import counting, keyed, needles, people
from lccp_sim.data.tasks.completion import Completion, completion
from lccp_sim.data.tasks.question import Draft, Half, Lesson, Question, build, lesson, score_text
from lccp_sim.errors import nearest, refuse

__all__ = [
    "KEYED",
    "REAL_TEXT",
    "TASKS",
    "Completion",
    "Half",
    "Lesson",
    "Question",
    "Task",
    "check_haystack",
    "check_tasks",
    "completion",
]
__all__ += ["draw_lesson", "score_text"]
Drafter = Callable[[np.random.Generator, int, Half], Draft]


class Task(Protocol):
    """Draws a question of at most `limit` tokens with its answer. The same state of `rng` gives the same question.

    The context holds as many units as fit. `held_out` selects the halves of names and phrasings. Raises ConfigError if
    the shortest text exceeds the limit.
    """

    def __call__(
        self,
        rng: np.random.Generator,
        tokenizer: tokenizers.Tokenizer,
        bos: int,
        limit: int,
        held_out: Half,
        fill: Filler | None = None,
    ) -> Question: ...


DRAFTS: dict[str, Drafter] = {
    "longbio_standard": people.standard,
    "longbio_paraphrase": people.paraphrase,
    "longbio_pronoun": people.pronoun,
    "longbio_multi": people.multi,
    "two_hop": people.two_hop,
    "niah_single_1": needles.single_number,
    "niah_single_3": needles.single_code,
    "niah_multikey_2": needles.number_multikey,
    "niah_multivalue": needles.multivalue,
    "niah_multiquery": needles.multiquery,
    **{f"variable_tracking_{hops}": partial(needles.variables, hops=hops) for hops in (1, 2, 3, 4)},
    "common_words": counting.common_words,
    "frequent_words": counting.frequent_words,
    "coreference": counting.coreference,
}
# These draw their words from the tokenizer.
KEYED: dict[str, Callable[[tokenizers.Tokenizer, np.random.Generator, int, Half], Draft]] = {
    "facts_single": partial(keyed.facts_among, facts=1),
    "facts_distractor": partial(keyed.facts_among, facts=3),
    "facts_multikey": keyed.facts_multikey,
}
REAL_TEXT = frozenset({"niah_single_3", "facts_single", "facts_distractor"})  # the tasks that need `fill`


def drafter(task: str, tokenizer: tokenizers.Tokenizer) -> Drafter:
    """The function that drafts the questions of a task."""
    return partial(KEYED[task], tokenizer) if task in KEYED else DRAFTS[task]


def _draw(
    task: str,
    rng: np.random.Generator,
    tokenizer: tokenizers.Tokenizer,
    bos: int,
    limit: int,
    held_out: Half,
    fill: Filler | None = None,
) -> Question:
    return build(task, drafter(task, tokenizer)(rng, limit, held_out), rng, tokenizer, bos, limit, fill)


def draw_lesson(
    task: str,
    rng: np.random.Generator,
    tokenizer: tokenizers.Tokenizer,
    bos: int,
    limit: int,
    held_out: Half,
    fill: Filler | None,
    questions: int,
) -> Lesson:
    """A text of at most `limit` tokens with up to `questions` questions of a task about it, as many as fit.

    Tasks about the full text (common_words, frequent_words, coreference) have one question. Raises as a `Task` does.
    """
    draft = drafter(task, tokenizer)
    drafts = [draft(rng, limit, held_out)]
    while drafts[0].about and len(drafts) < questions:
        drafts.append(draft(rng, limit, held_out))
    return lesson(task, drafts, rng, tokenizer, bos, limit, fill)


TASKS: dict[str, Task] = {task: partial(_draw, task) for task in (*DRAFTS, *KEYED)}


def check_haystack(weights: Mapping[str, int], haystack: str | None, key: str, remedy: str) -> None:
    """Raise ConfigError if a task hides its needle in real text, but `key` names no source."""
    real = sorted(task for task in REAL_TEXT if weights.get(task))
    rule = f"task {', '.join(real)} hides its needle in real text; {remedy}"
    refuse(real and haystack is None, key, haystack, rule)


def check_tasks(weights: Mapping[str, int], key: str) -> None:
    """Raise ConfigError if the weights under a config key name no task, or none is above 0."""
    for task, weight in weights.items():
        known = f"there is no such task; there are {', '.join(TASKS)}{nearest(task, TASKS)}"
        refuse(task not in TASKS, f"{key}.{task}", weight, known)
    refuse(not any(weights.values()), key, weights, "needs a task with a weight above 0")
