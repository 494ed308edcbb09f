"""Reinforcement learning with verifiable rewards: REINFORCE with the mean of a group as its baseline.

Strictly on-policy: each step draws new questions, samples a group of answers to each from the current weights, rewards
them, and takes one gradient step. So there is no importance ratio, no clipping and no KL term. The advantage is r -
mean of the group, not divided by its standard deviation (Dr. GRPO, arXiv 2503.20783). The loss is summed over the
tokens of the batch and divided by their number (DAPO, arXiv 2503.14476). The temperature is 1. Not included: PPO or
GRPO with several updates per batch, a learnt reward, a value model. Design note: the group's mean includes the sample
itself, so the expected gradient is (1 - 1/group) times the policy gradient; AdamW is invariant to the factor.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from lccp_sim.config import Config, Count
from lccp_sim.data.batch import Batch
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tasks.question import Lesson, Question
from lccp_sim.data.tasks.rewards import REWARDS
from lccp_sim.data.tasks.teaching import Teacher
from lccp_sim.errors import NoSignal, nearest, refuse
from lccp_sim.models.sampling import Sampled
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors.sampled.answers import answers_of, rewards_of
from lccp_sim.train.objectives.objective import Objective, order_of, part, rows_of_step
from lccp_sim.train.objectives.packed import batch_of
from lccp_sim.train.objectives.sft import check_asked, teacher_of


@dataclass(frozen=True, kw_only=True)
class Reinforcement(Objective):
    """Questions of `tasks` whose texts, including the reference, have (short_tokens, long_tokens] tokens at most.

    A row of the batch is one sample; `group` samples answer one question, in up to `answer_tokens` tokens. `rewards`:
    the weights of the parts of the reward. The run ends with an error after `silent_steps` consecutive steps in which
    no group had two different rewards, because its gradient is zero. Steps in which all samples have the full reward
    do not count.
    """

    tasks: dict[str, Count]
    short_tokens: Annotated[int, Gt(0)]
    long_tokens: Annotated[int, Gt(0)]
    haystack: str | None = None
    group: Annotated[int, Ge(2)] = 8
    answer_tokens: Annotated[int, Gt(0)] = 24
    rewards: dict[str, float] = field(default_factory=lambda: {"answer": 1.0, "place": 0.25})
    silent_steps: Annotated[int, Gt(0)] = 20
    tokens_per_forward: Annotated[int, Gt(0)] = 8192
    kind: Literal["rl"] = "rl"
    needs_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_asked(self.tasks, self.haystack)
        check_lengths(self.short_tokens, self.long_tokens)
        for name, weight in self.rewards.items():
            key = f"objective.rewards.{name}"
            rule = f"no such reward; there are {', '.join(REWARDS)}{nearest(name, REWARDS)}"
            refuse(name not in REWARDS, key, weight, rule)
            refuse(not math.isfinite(weight), key, weight, "must be finite")
        constant = not any(self.rewards.values())
        refuse(constant, "objective.rewards", self.rewards, "is constant; give a part a weight other than 0")

    def check(self, config: Config) -> None:
        """Raise ConfigError if a prompt does not fit the context, or groups do not fill the batch."""
        super().check(config)
        check_room(self.long_tokens, self.answer_tokens, config)
        check_attention(self.kind, config)
        rows = rows_of_step(config)
        rule = f"the {rows} rows of a step (run.batch_tokens / run.context_tokens) must be a multiple of it"
        refuse(rows % self.group, "objective.group", self.group, rule)

    def rows(self, corpus: Corpus, config: Config, model: Transformer) -> "Rollouts":
        """The samples of each step."""
        return Rollouts(self, teacher_of(self.tasks, self.haystack, corpus, self.long_tokens), config)


def check_lengths(short: int, long: int) -> None:
    """Raise ConfigError if no length of questions remains."""
    refuse(short >= long, "objective.short_tokens", short, f"must be less than objective.long_tokens={long}")


def check_room(long: int, answer: int, config: Config) -> None:
    """Raise ConfigError if a prompt and an answer are longer than the context."""
    context = config.run.context_tokens
    rule = f"plus objective.answer_tokens={answer} must not exceed run.context_tokens={context}"
    refuse(long + answer > context, "objective.long_tokens", long, f"{rule}; lower it")


def check_attention(kind: str, config: Config) -> None:
    """Raise ConfigError if monitors shall measure sparse training attention, which rows of any length do not have."""
    rule = f"objective {kind} trains densely, so there is nothing to compare; leave this out"
    refuse(config.monitors.attention == "both", "monitors.attention", "both", rule)


class Played(NamedTuple):
    """A sample to learn from: prompt and tokens, its advantage, its task."""

    lesson: Lesson
    advantage: float
    task: str


class Rollouts:
    """The samples of one step at a time, made by `play`. `state`: how many steps in a row gave no signal."""

    live = True
    penalty = None

    def __init__(self, settings: Reinforcement, teacher: Teacher, config: Config):
        self.settings, self.teacher, self.seed = settings, teacher, order_of(config)
        self.groups = rows_of_step(config) // settings.group
        self.said: dict[str, float] = {}
        self.state, self.played = 0, [Played(Lesson(np.zeros(0, np.int64), ()), 0.0, "")]

    def questions(self, step: int) -> list[Question]:
        """The questions of a step, a pure function of (seed, step)."""
        s, asked = self.settings, []
        for g in range(self.groups):
            rng = np.random.default_rng((self.seed, 30, step, g))
            place = step * self.groups + g
            asked.append(self.teacher.between(place, rng, s.short_tokens, s.long_tokens, "objective.long_tokens"))
        return asked

    def play(self, model: Transformer, step: int) -> None:
        """Compute samples, rewards and advantages of a step. Raises NoSignal after too many steps without a signal."""
        s, asked = self.settings, self.questions(step)
        uniform_PGA = 1 - np.random.default_rng((self.seed, 31, step)).random((self.groups, s.group, s.answer_tokens))
        sampled = answers_of(model, asked, self.teacher, uniform_PGA, s.tokens_per_forward)
        parts = rewards_of(self.teacher, asked, sampled, list(s.rewards))
        reward_PG = sum(s.rewards[name] * value for name, value in parts.items())
        assert isinstance(reward_PG, np.ndarray)
        advantage_PG = reward_PG - reward_PG.mean(1, keepdims=True)
        silent = np.ptp(reward_PG, axis=1) == 0
        # If every sample has the full reward, nothing is left to learn, which is not a failure.
        solved = bool((reward_PG >= sum(max(0.0, weight) for weight in s.rewards.values()) - 1e-9).all())
        self.state = self.state + 1 if silent.all() and not solved else 0
        answers = [each for group in sampled for each in group]
        self.played = [
            Played(learnt(question, each), float(advantage), question.task)
            for question, group, row in zip(asked, sampled, advantage_PG, strict=True)
            for each, advantage in zip(group, row, strict=True)
        ]
        self.said = {
            "reward": float(reward_PG.mean()),
            "silent_groups_frac": float(silent.mean()),
            "entropy_nats": float(np.concatenate([each.entropy for each in answers]).mean()),
            "sampled_tokens_count": float(np.mean([len(each.tokens) for each in answers])),
            **{f"{name}_reward_frac": float(value.mean()) for name, value in parts.items()},
        }
        if self.state >= s.silent_steps:
            means = ", ".join(f"{name} {value.mean():.2f}" for name, value in parts.items())
            raise NoSignal(
                f"objective.rewards={s.rewards}: no group of the last {self.state} steps had two different rewards, so "
                f"there is nothing to learn from (means at step {step + 1}: {means}); fine-tune first, until some "
                "answers of a group are better than others, or take another reward"
            )

    def slice(self, index: int, rank: int, world: int, micro: int, num_micro: int) -> Batch:
        """The part of the prepared step for one micro-batch of a rank; each row is a sample."""
        rows = part(self.played, rank, world, micro, num_micro)
        names = sorted({each.task for each in rows})
        return batch_of([[each.lesson] for each in rows], names, factors=[each.advantage for each in rows])

    def target_count(self, index: int) -> int:
        """The number of sampled tokens in the global batch."""
        return sum(stop - start for each in self.played for start, stop in each.lesson.answers)


def learnt(question: Question, sampled: Sampled) -> Lesson:
    """The prompt of a question with a sampled answer, which is learnt."""
    prompt = question.tokens[: question.answer_start]
    return Lesson(np.concatenate((prompt, sampled.tokens)), ((len(prompt), len(prompt) + len(sampled.tokens)),))
