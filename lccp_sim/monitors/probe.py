"""The behavioural tier: fork the weights, fine-tune a few steps on short questions, ask held-out long ones, forget it.

The paper's protocol in miniature (arXiv 2604.02650, section 4): mostly short fine-tuning data, long evaluation, LR
cosine to a quarter. It runs on a copy of the model, so the run that it watches is untouched to the bit.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Gt

from lccp_sim.config import OptimConfig, refuse
from lccp_sim.data.biographies import Question, draw_question
from lccp_sim.data.pools import Corpus
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.monitor import Monitor
from lccp_sim.monitors.observing import pad, score_spans
from lccp_sim.monitors.values import Moment, Value, summarise
from lccp_sim.records import Record


class ProbeItems(NamedTuple):
    """Fine-tuning questions by step, and evaluation questions with their ids."""

    train: list[list[Question]]
    evaluation: list[Question]


@dataclass(frozen=True, kw_only=True)
class Probe(Monitor):
    """`steps` AdamW updates on `rows` questions of at most `train_tokens`, then `items` held-out questions.

    The limits of these lie in (short_tokens, long_tokens]: each text has as many biographies as its limit holds.
    """

    short_tokens: Annotated[int, Gt(0)]
    long_tokens: Annotated[int, Gt(0)]
    lr: Annotated[float, Gt(0)]
    train_tokens: Annotated[int, Gt(0)] = 192
    steps: Annotated[int, Gt(0)] = 40
    rows: Annotated[int, Gt(0)] = 16
    items: Annotated[int, Gt(1)] = 48
    seeds: tuple[int, ...] = (0,)
    kind: Literal["probe"] = "probe"
    tier: ClassVar[str] = "behavioural"

    def __post_init__(self) -> None:
        rule = f"must be less than long_tokens={self.long_tokens}"
        refuse(self.short_tokens >= self.long_tokens, "monitors.probe.short_tokens", self.short_tokens, rule)
        bad = not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0
        refuse(bad, "monitors.probe.seeds", list(self.seeds), "needs at least one seed >= 0, and no seed twice")

    def prepare(self, corpus: Corpus) -> ProbeItems:
        """The same questions at every window; fine-tuning and evaluation share no person and no value.

        Raises ConfigError where a single biography and its question are longer than the limits.
        """
        rng = np.random.default_rng((self.seed, 0))
        train = [
            [draw_question(rng, corpus.tokenizer, corpus.bos, self.train_tokens, False) for _ in range(self.rows)]
            for _ in range(self.steps)
        ]
        rng = np.random.default_rng((self.seed, 1))
        lengths = rng.integers(self.short_tokens, self.long_tokens, self.items) + 1
        evaluation = [draw_question(rng, corpus.tokenizer, corpus.bos, int(n), True) for n in lengths]
        for key, limit, questions in (
            ("train_tokens", self.train_tokens, [question for batch in train for question in batch]),
            ("long_tokens", self.long_tokens, evaluation),
        ):
            longest = max(len(question.tokens) for question in questions)
            rule = f"does not hold a biography and its question; use at least {longest}"
            refuse(longest > limit, f"monitors.probe.{key}", limit, rule)
        return ProbeItems(train, evaluation)

    def score(self, model: LanguageModel, items: ProbeItems) -> list[Value]:
        """Values before fine-tuning (sft_step 0), and after it for each probe seed."""
        values = list(self._evaluate(model, items, {"sft_step": 0, "seed": self.seeds[0]}))
        for seed in self.seeds:
            tuned = self._tune(model, items, seed)
            values += self._evaluate(tuned, items, {"sft_step": self.steps, "seed": seed})
        return values

    def _tune(self, model: LanguageModel, items: ProbeItems, seed: int) -> LanguageModel:
        """A fine-tuned copy; the probe seed orders the batches."""
        fork = copy.deepcopy(model)
        fork.train()
        optimizer = torch.optim.AdamW(fork.parameters(), lr=self.lr, betas=(0.9, 0.95), weight_decay=0.0)
        schedule = OptimConfig(self.lr, "cosine", warmup_steps=max(1, self.steps // 10), final_lr_frac=0.25)
        order = np.random.default_rng((self.seed, 2, seed)).permutation(self.steps)
        device = fork.device
        with torch.enable_grad():
            for step, which in enumerate(order):
                questions = items.train[which]
                tokens, real = pad([q.tokens for q in questions])
                starts = np.array([q.answer_start for q in questions])
                learn = (real & (np.arange(tokens.shape[1]) >= starts[:, None]))[:, 1:]
                tokens_BT, learn_BT = torch.from_numpy(tokens).to(device), torch.from_numpy(learn).to(device)
                out = fork(tokens_BT[:, :-1])
                targets = tokens_BT[:, 1:][learn_BT]
                loss = F.cross_entropy(fork.logits(out.hidden_BTD[learn_BT]), targets)
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * schedule.factor(step, self.steps)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(fork.parameters(), 1.0)
                optimizer.step()
        fork.eval()
        return fork

    def _evaluate(self, model: LanguageModel, items: ProbeItems, tags: dict) -> Iterator[Value]:
        """Exact match (greedy, stop included), canonical Pass@k = 1 - (1 - p)^k, NLL of the answer's tokens."""
        questions = items.evaluation
        order = sorted(range(len(questions)), key=lambda i: len(questions[i].tokens))
        size = max(1, self.tokens_per_forward // self.long_tokens)
        for start in range(0, len(order), size):
            group = order[start : start + size]
            tokens = [questions[i].tokens for i in group]
            spans = score_spans(model, tokens, [(questions[i].answer_start, len(questions[i].tokens)) for i in group])
            for row, i in enumerate(group):
                nll, hit = spans.nll[row, spans.mask[row]], spans.hit[row, spans.mask[row]]
                p = float(np.exp(-nll.sum()))
                numbers = {
                    "exact_match_frac": float(hit.all()),
                    "canonical_pass_at_1_frac": p,
                    "canonical_pass_at_3_frac": 1 - (1 - p) ** 3,
                    "answer_nll_nats": float(nll.mean()),
                }
                for metric, number in numbers.items():
                    yield Value("probe", metric, str(i), tags | {"task": questions[i].task}, number)

    def aggregate(self, values: list[Value], moment: Moment) -> list[Record]:
        """Fine-tuned, over all tasks and seeds (no tags); then by fine-tuning step; then by task and seed, too."""
        tuned = [v for v in values if v.tags["sft_step"] == self.steps]
        by_step = summarise(values, moment, self.tier, lambda v: {"sft_step": v.tags["sft_step"]})
        return summarise(tuned, moment, self.tier, lambda v: {}) + by_step + summarise(values, moment, self.tier)

    def samples(self, values: list[Value]) -> list[Value]:
        """Per-question values."""
        return values

    def forward_tokens(self, items: ProbeItems) -> int:
        """Tokens that one window sends through the model; a fine-tuning token counts as three (forward, backward)."""
        trained = sum(len(q.tokens) for batch in items.train for q in batch)
        asked = sum(len(q.tokens) for q in items.evaluation)
        return asked + len(self.seeds) * (3 * trained + asked)
