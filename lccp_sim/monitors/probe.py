"""The behavioural probe: fine-tune a fork of the weights on short questions, ask held-out long questions, discard it.

The paper's protocol in miniature (arXiv 2604.02650, section 4): mostly short fine-tuning data, long evaluation, and a
cosine LR down to a quarter. It works on forks of the model (`Comm.forks`), so the run stays bitwise unchanged. Design
note: a few dozen steps replace an epoch, so a low score may mean that the answer format has not been learnt yet; the
gain shows this. Every probe seed asks the same questions, and a question is first averaged over the seeds. So `n`
counts questions, the standard error is over questions only, and the spread over seeds has its own record.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le

from lccp_sim.config import Count, OptimConfig
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tasks import Half, Lesson, Question, check_haystack, check_tasks
from lccp_sim.data.tasks.teaching import Teacher, lay
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.models.optimizer import adamw
from lccp_sim.monitors.asking import alike, ask
from lccp_sim.monitors.haystack import Haystack
from lccp_sim.monitors.monitor import Monitor, Pass
from lccp_sim.monitors.values import Moment, Value, mean_and_stderr, summarise
from lccp_sim.records import Record

Drawn = TypeVar("Drawn")
# metric -> the metric of its gain by fine-tuning, and the sign of that gain (+1: more is better)
GAIN_METRICS = {"exact_match_frac": ("exact_match_gain_frac", 1), "answer_nll_nats": ("answer_nll_gain_nats", -1)}
SPREADS = {"exact_match_frac": "exact_match_seed_std_frac", "answer_nll_nats": "answer_nll_seed_std_nats"}


class ProbeItems(NamedTuple):
    """Fine-tuning texts by step, evaluation questions (an item's id is its index), and the decoder of token ids."""

    train: list[list[Lesson]]
    evaluation: list[Question]
    decode: Callable[[list[int]], str]


class Answered(NamedTuple):
    """Values with the tags {seed, sft_step, task} (sft_step 0: before fine-tuning), and question lengths in tokens."""

    values: list[Value]
    lengths: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Probe(Monitor):
    """The probe: `steps` AdamW updates on `rows` texts each, then `items` held-out questions.

    Tasks have the proportions of `tasks`. Length limits of evaluation texts are uniform in (short_tokens, long_tokens].
    Those of fine-tuning texts are `train_tokens`, except for a share `long_train_frac`, which is drawn as in
    evaluation. A fine-tuning text asks up to `questions` questions about its context, as many as fit. The first
    `decoded` questions of a task are also decoded. `pass_at`: the number of answers sampled per evaluation question, at
    least one of them must be right (null: no sampling).
    Fine-tuning never sees the names and values of the evaluation. With held_out=phrasings it never sees the phrasings
    either, which only a model that knows language can answer. `haystack`: the source of real text in which some tasks
    hide their needle.
    """

    short_tokens: Annotated[int, Gt(0)]
    long_tokens: Annotated[int, Gt(0)]
    lr: Annotated[float, Gt(0)]
    tasks: dict[str, Count]
    held_out: Literal["names", "phrasings"] = "phrasings"
    haystack: str | None = None
    train_tokens: Annotated[int, Gt(0)] = 192
    long_train_frac: Annotated[float, Ge(0), Le(1)] = 0.0
    questions: Annotated[int, Gt(0)] = 4
    steps: Annotated[int, Gt(0)] = 40
    rows: Annotated[int, Gt(0)] = 16
    items: Annotated[int, Gt(1)] = 200
    decoded: Count = 2
    pass_at: Annotated[int, Gt(0)] | None = 3
    seeds: tuple[int, ...] = (0, 1, 2)
    kind: Literal["probe"] = "probe"
    tier: ClassVar[str] = "behavioural"

    def __post_init__(self) -> None:
        rule = f"must be less than long_tokens={self.long_tokens}"
        refuse(self.short_tokens >= self.long_tokens, "monitors.probe.short_tokens", self.short_tokens, rule)
        bad = not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0
        refuse(bad, "monitors.probe.seeds", list(self.seeds), "needs at least one seed >= 0, and no seed twice")
        check_tasks(self.tasks, "monitors.probe.tasks")
        check_haystack(self.tasks, self.haystack, "monitors.probe.haystack", "name a source of the run")

    def prepare(self, corpus: Corpus) -> ProbeItems:
        """Build the questions, the same at every window; fine-tuning and evaluation differ as `held_out` says.

        Raises ConfigError if a task's text exceeds a limit, or if the haystack has no text of the required length.
        """
        fill = None if self.haystack is None else Haystack(corpus, self.haystack).take
        teacher = Teacher(self.tasks, corpus.tokenizer, corpus.bos, fill, self.questions)

        def named(key: str, draw: Callable[[], Drawn]) -> Drawn:
            try:
                return draw()
            except ConfigError as error:
                raise ConfigError(f"monitors.probe.{key}={getattr(self, key)}: {error}") from error

        rng = np.random.default_rng((self.seed, 0))
        n = self.steps * self.rows
        long = rng.random(n) < self.long_train_frac
        limits = np.where(long, self._limits(rng, n), self.train_tokens)
        keys = np.where(long, "short_tokens", "train_tokens")
        lessons = [named(str(keys[i]), partial(teacher.lesson, i, rng, int(limits[i]))) for i in range(n)]
        train = [lessons[i : i + self.rows] for i in range(0, n, self.rows)]
        rng = np.random.default_rng((self.seed, 1))
        unseen = Half(names=True, phrasings=self.held_out == "phrasings")
        evaluation = [
            named("short_tokens", partial(teacher.question, i, rng, int(limit), unseen))
            for i, limit in enumerate(self._limits(rng, self.items))
        ]
        return ProbeItems(train, evaluation, corpus.tokenizer.decode)

    def score(self, model: LanguageModel, items: ProbeItems) -> Answered:
        """Measure before fine-tuning (sft_step 0, recorded under the first seed), and after it for each probe seed."""

        def work(fork: LanguageModel, seed: int) -> list[Value]:
            return self._evaluate(self._tune(fork, items, seed), items, self.steps, seed)

        values = self._evaluate(model, items, 0, self.seeds[0])
        values += [value for of in model.comm.forks(model, work, self.seeds) for value in of]
        return Answered(values, {str(i): len(q.tokens) for i, q in enumerate(items.evaluation)})

    def _limits(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.integers(self.short_tokens, self.long_tokens, n) + 1

    def _tune(self, fork: LanguageModel, items: ProbeItems, seed: int) -> LanguageModel:
        """Fine-tune the model in place, by all its processes together; the probe seed orders the batches."""
        comm = fork.comm
        fork.train()
        optimizer = adamw([{"params": list(fork.parameters())}], lr=self.lr, betas=(0.9, 0.95), weight_decay=0.0)
        schedule = OptimConfig(self.lr, "cosine", warmup_steps=max(1, self.steps // 10), final_lr_frac=0.25)
        order = np.random.default_rng((self.seed, 2, seed)).permutation(self.steps)
        with torch.enable_grad():
            for step, which in enumerate(order):
                lessons = items.train[which]
                answered = sum(stop - start for lesson in lessons for start, stop in lesson.answers)
                lengths = [len(lesson.tokens) for lesson in lessons]
                groups = list(alike(lengths, comm.tokens(self.tokens_per_forward, lengths)))
                optimizer.zero_grad()
                for turn in range(0, len(groups), comm.world):
                    # A process without a group must take part in collectives; its loss is multiplied by 0.
                    learns = turn + comm.rank < len(groups)
                    group = groups[turn + comm.rank] if learns else groups[-1][:1]
                    loss = _answer_loss(fork, [lessons[i] for i in group]) / answered
                    # Gradients are averaged over processes but must be summed.
                    (loss * (comm.world if learns else 0)).backward()
                comm.clip(fork.parameters(), 1.0)
                for parameters in optimizer.param_groups:
                    parameters["lr"] = self.lr * schedule.factor(step, self.steps)
                optimizer.step()
        fork.eval()
        return fork

    def _evaluate(self, model: LanguageModel, items: ProbeItems, sft_step: int, seed: int) -> list[Value]:
        """Return the scores of `ask` for every evaluation question, as values."""
        questions = items.evaluation
        of_task: dict[str, list[int]] = {}
        for i, question in enumerate(questions):
            of_task.setdefault(question.task, []).append(i)
        to_decode = {i for own in of_task.values() for i in own[: self.decoded]}
        scores = ask(model, questions, to_decode, items.decode, self.tokens_per_forward)
        if self.pass_at is not None:
            # A sample equals the answer with the answer's probability, so one uniform draw decides.
            draws = np.random.default_rng((self.seed, 3, seed, sft_step)).random((len(scores), self.pass_at))
            for numbers, drawn in zip(scores, draws, strict=True):
                right = drawn < numbers["canonical_pass_at_1_frac"]
                numbers[f"pass_at_{self.pass_at}_frac"] = float(right.any())
        return [
            Value("probe", metric, str(i), {"sft_step": sft_step, "seed": seed, "task": questions[i].task}, number)
            for i, numbers in enumerate(scores)
            for metric, number in numbers.items()
        ]

    def aggregate(self, answered: Answered, moment: Moment) -> list[Record]:
        """Return the records of `probe_records`."""
        return probe_records(answered, moment, self.tier)

    def passes(self) -> list[Pass]:
        """Return the questions before and after each fine-tuning (decoded ones twice), and the fine-tuning texts."""
        long, seeds = (self.short_tokens + self.long_tokens) // 2, len(self.seeds)
        asked = self.items + self.decoded * sum(1 for weight in self.tasks.values() if weight)
        rows, frac = self.steps * self.rows, self.long_train_frac
        tuned = [Pass(seeds * rows * (1 - frac), self.train_tokens, 3), Pass(seeds * rows * frac, long, 3)]
        return [Pass((1 + seeds) * asked, long), *tuned]

    def notes(self, items: ProbeItems) -> list[str]:
        """Return a note if every fine-tuning text is shorter than the longest question."""
        taught = max(len(lesson.tokens) for batch in items.train for lesson in batch)
        asked = max(len(question.tokens) for question in items.evaluation)
        remedy = "monitors.probe.long_train_frac adds long texts"
        what = f"the probe is fine-tuned on texts of at most {taught} tokens and asked about texts of up to {asked}"
        return [f"{what}: it learns the tasks there, not the length ({remedy})"] if taught < asked else []

    def samples(self, answered: Answered) -> list[Value]:
        """Return the per-question values."""
        return answered.values


def _answer_loss(model: LanguageModel, lessons: list[Lesson]) -> torch.Tensor:
    """Compute the summed cross-entropy of the answers' tokens, in nats."""
    laid = lay([[lesson] for lesson in lessons])
    learn_BT = laid.answer[:, 1:]
    # Indices into the flattened rows, not a mask: a mask would force a GPU to synchronise.
    places, targets = np.flatnonzero(learn_BT), laid.ids[:, 1:][learn_BT]
    tokens_BT, learn_R, targets_R = (torch.from_numpy(x).to(model.device) for x in (laid.ids, places, targets))
    hidden_BTD = model(tokens_BT[:, :-1]).hidden_BTD
    return F.cross_entropy(model.logits(hidden_BTD.flatten(0, 1)[learn_R]), targets_R, reduction="sum")


def probe_records(answered: Answered, moment: Moment, tier: str) -> list[Record]:
    """Return the records of one window, each metric with the following tags.

    Averaged over seeds: {} (fine-tuned), {sft_step}, {sft_step, task}, {length, sft_step}, {length, sft_step, task}
    (`length`: a question's tokens, rounded up to a power of two). Per seed: {seed, sft_step}, {seed, sft_step, task}.
    Gains and spreads of the fine-tuned models: {}. The spread (standard deviation, ddof 1, n the number of seeds) needs
    two seeds.
    """
    values, steps = answered.values, max(value.tags["sft_step"] for value in answered.values)
    averaged = _over_seeds(values)

    def picked(*names: str) -> list[Record]:
        rows = values if "seed" in names else averaged
        return summarise(rows, moment, tier, lambda value: {name: value.tags[name] for name in names})

    def binned(*names: str) -> list[Record]:
        length = {item: 1 << (tokens - 1).bit_length() for item, tokens in answered.lengths.items()}
        kept = ("sft_step", *names)
        return summarise(
            averaged, moment, tier, lambda v: {"length": length[v.item]} | {name: v.tags[name] for name in kept}
        )

    records = summarise(averaged, moment, tier, lambda value: {} if value.tags["sft_step"] == steps else None)
    records += picked("sft_step") + picked("sft_step", "task") + binned() + binned("task")
    records += picked("seed", "sft_step") + picked("seed", "sft_step", "task")
    for metric, (gain, sign) in GAIN_METRICS.items():
        before, after = (
            {value.item: value.value for value in averaged if value.metric == metric and value.tags["sft_step"] == step}
            for step in (0, steps)
        )
        gains = [sign * (after[item] - before[item]) for item in after]
        mean, stderr = mean_and_stderr(gains)
        records.append(Record(*moment, tier, "probe", gain, mean, len(gains), stderr))
    for metric, spread in SPREADS.items():
        means = [
            record.value
            for record in records
            if record.metric == metric and set(record.tags) == {"seed", "sft_step"} and record.tags["sft_step"] == steps
        ]
        if len(means) > 1:
            records.append(Record(*moment, tier, "probe", spread, float(np.std(means, ddof=1)), len(means)))
    return records


def _over_seeds(values: list[Value]) -> list[Value]:
    """Average over seeds: one value per question, metric and fine-tuning step."""
    groups: dict[tuple, list[Value]] = defaultdict(list)
    for value in values:
        groups[value.metric, value.item, value.tags["sft_step"]].append(value)
    return [
        group[0]._replace(
            tags={name: tag for name, tag in group[0].tags.items() if name != "seed"},
            value=mean_and_stderr([value.value for value in group])[0],
        )
        for group in groups.values()
    ]
