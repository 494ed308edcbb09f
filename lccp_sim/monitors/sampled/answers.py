"""Held-out questions answered by sampling from the model as it is: pass@1, pass@k and the parts of the reward.

Nothing is fine-tuned, so it shows the effect of earlier fine-tuning and RL. A base that never learnt the answer format
scores near 0. Design note: every window samples with the same random numbers, so that only the model differs.
"""

from dataclasses import dataclass
from math import comb
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from lccp_sim.config import Count
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tasks import Half, Question, check_haystack, check_tasks
from lccp_sim.data.tasks.rewards import REWARDS
from lccp_sim.data.tasks.teaching import Teacher
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.models.sampling import Sampled, sample
from lccp_sim.monitors.asking import alike
from lccp_sim.monitors.haystack import Haystack
from lccp_sim.monitors.monitor import Monitor, Pass
from lccp_sim.monitors.observing import map_batches
from lccp_sim.monitors.values import Moment, Tags, Value, summarise
from lccp_sim.records import Record


class Asked(NamedTuple):
    """Questions, and the teacher that reads their answers."""

    questions: list[Question]
    teacher: Teacher


@dataclass(frozen=True, kw_only=True)
class Answers(Monitor):
    """The monitor of sampled answers: `items` questions in the proportions of `tasks`, `draws` answers to each.

    Length limits of texts are uniform in (short_tokens, long_tokens]. An answer has at most `answer_tokens` tokens.
    `held_out`: names are unseen, or phrasings as well.
    """

    tasks: dict[str, Count]
    short_tokens: Annotated[int, Gt(0)]
    long_tokens: Annotated[int, Gt(0)]
    haystack: str | None = None
    held_out: Literal["names", "phrasings"] = "names"
    items: Annotated[int, Gt(1)] = 100
    draws: Annotated[int, Ge(2)] = 8
    answer_tokens: Annotated[int, Gt(0)] = 24
    kind: Literal["answers"] = "answers"
    tier: ClassVar[str] = "behavioural"

    def __post_init__(self) -> None:
        rule = f"must be less than long_tokens={self.long_tokens}"
        refuse(self.short_tokens >= self.long_tokens, "monitors.answers.short_tokens", self.short_tokens, rule)
        check_tasks(self.tasks, "monitors.answers.tasks")
        check_haystack(self.tasks, self.haystack, "monitors.answers.haystack", "name a source of the run")

    def prepare(self, corpus: Corpus) -> Asked:
        """Build the questions, the same at every window. Raises ConfigError if a text or answer cannot be written."""
        fill = None if self.haystack is None else Haystack(corpus, self.haystack).take
        teacher, asked = Teacher(self.tasks, corpus.tokenizer, corpus.bos, fill), []
        teacher.check_stops("monitors.answers.tasks")
        half = Half(names=True, phrasings=self.held_out == "phrasings")
        for i in range(self.items):
            rng = np.random.default_rng((self.seed, 1, i))
            limit = int(rng.integers(self.short_tokens, self.long_tokens)) + 1
            try:
                asked.append(teacher.question(i, rng, limit, half))
            except ConfigError as error:
                raise ConfigError(f"monitors.answers.short_tokens={self.short_tokens}: {error}") from error
        return Asked(asked, teacher)

    def score(self, model: LanguageModel, items: Asked) -> list[Value]:
        """Measure pass@1, pass@k (k: `draws`) and the mean of each other part of the reward, per question."""
        questions, teacher = items
        shape = len(questions), self.draws, self.answer_tokens
        uniform_PGA = 1 - np.random.default_rng((self.seed, 2)).random(shape)
        sampled = answers_of(model, questions, teacher, uniform_PGA, self.tokens_per_forward)
        parts = rewards_of(teacher, questions, sampled, ["answer", "place"])
        values = []
        for i, question in enumerate(questions):
            right = int((parts["answer"][i] == 1).sum())
            numbers = {
                "pass_at_1_frac": pass_at(1, self.draws, right),
                f"pass_at_{self.draws}_frac": pass_at(self.draws, self.draws, right),
                "place_frac": float(parts["place"][i].mean()),
                "entropy_nats": float(np.concatenate([each.entropy for each in sampled[i]]).mean()),
            }
            tags: Tags = {"task": question.task}
            values += [Value("answers", metric, str(i), tags, number) for metric, number in numbers.items()]
        return values

    def aggregate(self, measured: list[Value], moment: Moment) -> list[Record]:
        """Return records with the tags {} and {task}."""
        return summarise(measured, moment, self.tier, lambda v: {}) + summarise(measured, moment, self.tier)

    def passes(self) -> list[Pass]:
        """Return each prompt once, then one pass per sampled token."""
        asked = Pass(self.items, (self.short_tokens + self.long_tokens) // 2)
        return [asked, Pass(self.items * self.draws * self.answer_tokens, 1)]

    def samples(self, measured: list[Value]) -> list[Value]:
        """Return the per-question values."""
        return measured


def pass_at(k: int, n: int, right: int) -> float:
    """Estimate without bias the chance that one of k samples is right, from `right` of n (arXiv 2107.03374, eq. 1)."""
    return 1 - comb(n - right, k) / comb(n, k)


def answers_of(
    model: LanguageModel, questions: list[Question], teacher: Teacher, uniform_PGA: np.ndarray, tokens_per_forward: int
) -> list[list[Sampled]]:
    """Sample the answers to each question. The questions are distributed over the model's processes."""
    prompts = [question.tokens[: question.answer_start] for question in questions]
    found: list[list[Sampled]] = [[] for _ in questions]

    def work(group: list[int]) -> list[list[Sampled]]:
        return sample(model, [prompts[i] for i in group], teacher.stops, uniform_PGA[group])

    for group, sampled in map_batches(model, [len(prompt) for prompt in prompts], tokens_per_forward, work, alike):
        for i, each in zip(group, sampled, strict=True):
            found[i] = each
    return found


def rewards_of(
    teacher: Teacher, questions: list[Question], sampled: list[list[Sampled]], names: list[str]
) -> dict[str, np.ndarray]:
    """Compute each part of the reward of each sample, fp64 [P, G]."""
    rewards: dict[str, list[list[float]]] = {name: [] for name in names}
    for question, group in zip(questions, sampled, strict=True):
        wanted, given = teacher.text(question.tokens[question.answer_start :]), [teacher.text(s.tokens) for s in group]
        for name in names:
            rewards[name].append([REWARDS[name](question, wanted, text) for text in given])
    return {name: np.array(value) for name, value in rewards.items()}
