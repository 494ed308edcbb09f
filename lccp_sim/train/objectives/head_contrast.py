"""Training of retrieval heads by contrast: the model's own answer against its answer with these heads masked.

RetMask (arXiv 2601.11020): the loss is DPO's, -log sigmoid(beta x (gain of the chosen - gain of the rejected)). A gain
is log p - log p0, with p0 the model that the run starts from. The chosen answer is that model's greedy answer, the
rejected one its answer with the retrieval heads masked; pairs of equal answers are skipped. The control is
`pick: random`: equally many random heads of the same layers. Design note: heads and pairs are chosen once, from the
starting weights. The model is judged by interventions and held-out needles, never by the trained margin.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Gt

from lccp_sim.config import Config, Count
from lccp_sim.data.batch import Batch
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tasks.question import Lesson, Question
from lccp_sim.data.tasks.teaching import Teacher
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.models.taps import gating
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors.asking import alike
from lccp_sim.monitors.intervention import Heads
from lccp_sim.monitors.observing import evaluating, map_batches, score_spans
from lccp_sim.monitors.sampled.answers import answers_of
from lccp_sim.train.objectives.head_choice import HeadChoice
from lccp_sim.train.objectives.objective import Objective, order_of, part, rows_of_step
from lccp_sim.train.objectives.packed import batch_of
from lccp_sim.train.objectives.rl import check_attention, check_lengths, check_room, learnt
from lccp_sim.train.objectives.sft import check_asked, teacher_of


@dataclass(frozen=True, kw_only=True)
class HeadContrast(Objective):
    """`questions` of `tasks`, answered with and without `heads`.

    A row is one answer, so a step learns from half as many pairs as it has rows.
    """

    tasks: dict[str, Count]
    short_tokens: Annotated[int, Gt(0)]
    long_tokens: Annotated[int, Gt(0)]
    heads: HeadChoice
    haystack: str | None = None
    questions: Annotated[int, Gt(1)] = 256
    beta: Annotated[float, Gt(0)] = 0.1
    answer_tokens: Annotated[int, Gt(0)] = 24
    tokens_per_forward: Annotated[int, Gt(0)] = 8192
    kind: Literal["head_contrast"] = "head_contrast"
    needs_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_asked(self.tasks, self.haystack)
        check_lengths(self.short_tokens, self.long_tokens)

    def check(self, config: Config) -> None:
        """Raise ConfigError if a prompt does not fit the context, or if rows do not form pairs."""
        super().check(config)
        check_room(self.long_tokens, self.answer_tokens, config)
        check_attention(self.kind, config)
        rule = "must be an even number of run.context_tokens: a pair is two rows"
        refuse(rows_of_step(config) % 2, "run.batch_tokens", config.run.batch_tokens, rule)

    def rows(self, corpus: Corpus, config: Config, model: Transformer) -> "Pairs":
        """The pairs, from the weights that the run starts from. Raises ConfigError if masking changes no answer."""
        teacher = teacher_of(self.tasks, self.haystack, corpus, self.long_tokens)
        with evaluating(model, config.run.precision == "bf16"):
            masked = self.heads.heads(corpus, model, order_of(config))
            pairs = self._pairs(teacher, order_of(config), model, masked)
        return Pairs(self, pairs, config)

    def _pairs(self, teacher: Teacher, seed: int, model: Transformer, masked: Heads) -> "list[Pair]":
        asked = []
        for i in range(self.questions):
            rng = np.random.default_rng((seed, 40, i))
            asked.append(teacher.between(i, rng, self.short_tokens, self.long_tokens, "objective.long_tokens"))
        greedy_PGA = np.zeros((self.questions, 1, self.answer_tokens))
        gate_LN = torch.ones(model.num_layers, model.num_heads)
        for place in masked:
            gate_LN[place] = 0.0
        own = answers_of(model, asked, teacher, greedy_PGA, self.tokens_per_forward)
        with gating(model, gate_LN):
            without = answers_of(model, asked, teacher, greedy_PGA, self.tokens_per_forward)
        told = [
            (question, learnt(question, a), learnt(question, b))
            for question, (a,), (b,) in zip(asked, own, without, strict=True)
            if a.tokens.tolist() != b.tokens.tolist()
        ]
        if not told:
            rule = f"masking {len(masked)} heads changes none of {self.questions} answers, so there is no contrast"
            raise ConfigError(f"objective.heads.pick={self.heads.pick!r}: {rule}; raise objective.heads.k")
        lessons = [lesson for _, a, b in told for lesson in (a, b)]
        logp = log_probabilities(model, lessons, self.tokens_per_forward)
        return [Pair(question, a, b, logp[2 * i], logp[2 * i + 1]) for i, (question, a, b) in enumerate(told)]


class Pair(NamedTuple):
    """An answer, the answer without the heads, and their log-probabilities in nats under the starting weights."""

    question: Question
    chosen: Lesson
    rejected: Lesson
    chosen_logp: float
    rejected_logp: float


def log_probabilities(model: Transformer, lessons: list[Lesson], tokens_per_forward: int) -> list[float]:
    """The log-probability of the answer of each text, in nats."""
    found = [math.nan] * len(lessons)

    def work(group: list[int]) -> list[float]:
        spans = score_spans(model, [lessons[i].tokens for i in group], [lessons[i].answers[0] for i in group])
        return (-spans.nll.sum(1)).tolist()

    for group, values in map_batches(model, [len(x.tokens) for x in lessons], tokens_per_forward, work, alike):
        for i, value in zip(group, values, strict=True):
            found[i] = value
    return found


class Pairs:
    """The pairs of one step at a time, with the coefficients of their gradient at the current weights.

    The gradient of the loss is -beta sigmoid(-margin) x (grad log p(chosen) - grad log p(rejected)).
    """

    live = True
    penalty = None

    def __init__(self, settings: HeadContrast, pairs: list[Pair], config: Config):
        self.settings, self.pairs, self.seed = settings, pairs, order_of(config)
        self.count = rows_of_step(config) // 2
        self.said: dict[str, float] = {}
        self.state, self.played = 0, [(pairs[0].chosen, 0.0)]

    def chosen(self, step: int) -> list[Pair]:
        """The pairs of a step. Each pass over all pairs has its own order."""
        n, picked = len(self.pairs), []
        for place in range(step * self.count, (step + 1) * self.count):
            order = np.random.default_rng((self.seed, 41, place // n)).permutation(n)
            picked.append(self.pairs[order[place % n]])
        return picked

    def play(self, model: Transformer, step: int) -> None:
        """Prepare the answers of a step and the factors of their loss."""
        beta, pairs = self.settings.beta, self.chosen(step)
        lessons = [lesson for pair in pairs for lesson in (pair.chosen, pair.rejected)]
        logp = np.array(log_probabilities(model, lessons, self.settings.tokens_per_forward)).reshape(-1, 2)
        before = np.array([(pair.chosen_logp, pair.rejected_logp) for pair in pairs])
        margin = beta * ((logp - before)[:, 0] - (logp - before)[:, 1])
        factor = beta / (1 + np.exp(margin))
        self.played = [
            each
            for pair, f in zip(pairs, factor.tolist(), strict=True)
            for each in ((pair.chosen, f), (pair.rejected, -f))
        ]
        self.said = {
            "contrast_loss_nats": float(np.logaddexp(0, -margin).mean()),
            "chosen_wins_frac": float((margin > 0).mean()),
            "pairs_count": float(len(self.pairs)),
        }

    def slice(self, index: int, rank: int, world: int, micro: int, num_micro: int) -> Batch:
        """The part of the prepared step for one micro-batch of a rank; each row is an answer."""
        rows = part(self.played, rank, world, micro, num_micro)
        names = [f"pair of step {index + 1}"]
        return batch_of([[lesson] for lesson, _ in rows], names, factors=[factor for _, factor in rows])

    def target_count(self, index: int) -> int:
        """The pairs of a step."""
        return self.count
