"""Continuous needle in a haystack: the answer's NLL, the hit and the heads that copy it, from one forward.

The text is the paper's (arXiv 2604.02650, section 5): [before] needle [after] Question: ... Answer: needle verbatim.
Greedy decoding reproduces the answer exactly when every teacher-forced argmax is right (induction over the span), so
nothing is generated. Pieces are tokenized apart and joined, so every span is exact by construction.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Gt, Le

from lccp_sim.config import ConfigError, refuse
from lccp_sim.data.facts import HELDOUT_TEMPLATES, TRAIN_TEMPLATES, Fact, Template, draw_fact
from lccp_sim.data.pools import Corpus
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.models.taps import tapping
from lccp_sim.monitors.haystack import Haystack
from lccp_sim.monitors.heads import METRICS, CopyTap
from lccp_sim.monitors.monitor import Monitor
from lccp_sim.monitors.observing import Spans, batches, score_spans
from lccp_sim.monitors.values import Moment, Tags, Value, mean_and_stderr, summarise
from lccp_sim.records import Record

LEAST_FILLER = 2  # tokens of haystack: depths 0 and 1 then differ


class NeedleItem(NamedTuple):
    """One text: tokens, where the needle and the answer lie [start, stop), and which answer tokens are the value."""

    id: str
    tags: Tags
    tokens: np.ndarray
    needle: tuple[int, int]
    answer: tuple[int, int]
    value_mask: np.ndarray
    control: np.ndarray | None


class NeedleValues(NamedTuple):
    """Per-item values, and the copy scores [items, layers, heads, METRICS] of the single-needle items."""

    values: list[Value]
    head_items: list[str]
    head_scores: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Needle(Monitor):
    """The grid: `items` texts a length, spread evenly over `depths` depths, for each variant.

    `controls` of them are scored once more with the needle replaced by haystack. Variants: single (a template that
    training may show), heldout (a template that it never shows), distractor (`distractors` more facts of the template,
    with keys of their own).
    """

    lengths: tuple[Annotated[int, Gt(0)], ...]
    haystack: str
    items: Annotated[int, Gt(1)] = 40
    depths: Annotated[int, Gt(1)] = 5
    controls: Annotated[int, Ge(2)] = 10
    variants: dict[Literal["single", "heldout", "distractor"], Annotated[int, Gt(0)]] | None = None
    distractors: Annotated[int, Gt(0), Le(32)] = 3
    heads: bool = True
    kind: Literal["needle"] = "needle"
    tier: ClassVar[str] = "probabilistic"

    def __post_init__(self) -> None:
        rule = f"must be a multiple of depths={self.depths}"
        refuse(self.items % self.depths, "monitors.needle.items", self.items, rule)
        refuse(not self.lengths, "monitors.needle.lengths", self.lengths, "needs at least one length")

    def prepare(self, corpus: Corpus) -> list[NeedleItem]:
        """The items: the same at every window and in every arm. Raises ConfigError where a needle does not fit."""
        haystack = Haystack(corpus, self.haystack)
        counts = {"single": self.items} | dict(self.variants or {})
        items = []
        for length in self.lengths:
            for v, variant in enumerate(("single", "heldout", "distractor")):
                least = self._least_tokens(corpus, length, variant) if counts.get(variant, 0) else {}
                for i in range(counts.get(variant, 0)):
                    rng = np.random.default_rng((self.seed, length, v, i))
                    items.append(self._item(rng, corpus, haystack, length, variant, i, least))
        return items

    def _least_tokens(self, corpus: Corpus, length: int, variant: str) -> dict[Template, int]:
        """The least length that holds each template of a variant: known, for all facts of a template have one length.

        ConfigError where `length` does not hold all of them; with distractors, where it holds none.
        """
        rng, extra = np.random.default_rng(0), self.distractors if variant == "distractor" else 0
        least = {}
        for template in HELDOUT_TEMPLATES if variant == "heldout" else TRAIN_TEMPLATES:
            fact = draw_fact(rng, template, corpus.tokenizer, evaluation=True)
            least[template] = 1 + LEAST_FILLER + len(fact.question_ids) + (2 + extra) * len(fact.needle_ids)
        needed = min(least.values()) if extra else max(least.values())
        what = f"a needle, {extra} distractors, the question" if extra else "a needle, its question"
        rule = f"{length} tokens do not hold {what} and the answer; use at least {needed}"
        if length < needed:
            raise ConfigError(f"monitors.needle.lengths ({variant}): {rule}")
        return least

    def _item(
        self,
        rng: Any,
        corpus: Corpus,
        haystack: Haystack,
        length: int,
        variant: str,
        i: int,
        least: dict[Template, int],
    ) -> NeedleItem:
        depth = i % self.depths / (self.depths - 1)
        while least[template := list(least)[int(rng.integers(len(least)))]] > length:
            pass
        n_facts = 1 + (self.distractors if variant == "distractor" else 0)
        facts: dict[bytes, Fact] = {}  # by key: a second value for a key would leave the question open
        while len(facts) < n_facts:
            drawn = draw_fact(rng, template, corpus.tokenizer, evaluation=True)
            facts.setdefault(drawn.key_ids.tobytes(), drawn)
        fact, *others = facts.values()
        room = length - 1 - len(fact.question_ids) - (1 + n_facts) * len(fact.needle_ids)
        filler = haystack.take(rng, room)
        places = [round(depth * room), *(int(p) for p in rng.integers(0, room + 1, n_facts - 1))]
        inserts = sorted(zip(places, range(n_facts), [fact, *others], strict=True), key=lambda x: x[:2])
        pieces, done, needle_start = [np.array([corpus.bos])], 0, 0
        for place, which, inserted in inserts:
            pieces += [filler[done:place], inserted.needle_ids]
            done = place
            if which == 0:
                needle_start = sum(map(len, pieces)) - len(fact.needle_ids)
        pieces += [filler[done:], fact.question_ids, fact.needle_ids]
        tokens = np.concatenate(pieces)
        needle = (needle_start, needle_start + len(fact.needle_ids))
        answer = (length - len(fact.needle_ids), length)
        control = None
        if i < self.controls and variant == "single":
            control = tokens.copy()
            control[slice(*needle)] = haystack.take(rng, len(fact.needle_ids))
        tags: Tags = {"length": length, "depth": round(depth, 4), "variant": variant}
        return NeedleItem(f"{variant}-{length}-{i}", tags, tokens, needle, answer, fact.value_mask, control)

    def score(self, model: LanguageModel, items: list[NeedleItem]) -> NeedleValues:
        """Hit, NLL, control NLL and gain of each item, and the heads' scores; one forward per text and per control."""
        values: list[Value] = []
        head_items: list[str] = []
        head_scores: list[np.ndarray] = []
        for group in batches([len(item.tokens) for item in items], self.tokens_per_forward):
            chosen = [items[i] for i in group]
            tapped = [i for i, item in enumerate(chosen) if self.heads and item.tags["variant"] == "single"]
            spans, scores = _forward(model, chosen, tapped)
            head_items += [chosen[i].id for i in tapped]
            head_scores += list(scores)
            for i, item in enumerate(chosen):
                values += _values(item, spans.nll[i, spans.mask[i]], spans.hit[i, spans.mask[i]])
        values += self._controls(model, items, values)
        return NeedleValues(values, head_items, np.stack(head_scores) if head_scores else np.zeros((0, 0, 0, 0)))

    def _controls(self, model: LanguageModel, items: list[NeedleItem], values: list[Value]) -> Iterator[Value]:
        with_control = [item for item in items if item.control is not None]
        answered = {(v.item, v.tags["span"]): v.value for v in values if v.metric == "answer_nll_nats"}
        for group in batches([len(item.tokens) for item in with_control], self.tokens_per_forward):
            chosen = [with_control[i] for i in group]
            spans = score_spans(model, [c.control for c in chosen if c.control is not None], [c.answer for c in chosen])
            for i, item in enumerate(chosen):
                nll = spans.nll[i, spans.mask[i]]
                for span, mask in (("full", np.ones_like(item.value_mask)), ("value", item.value_mask)):
                    control = float(nll[mask].mean())
                    tags = item.tags | {"span": span}
                    yield Value("needle", "control_nll_nats", item.id, tags, control)
                    yield Value("needle", "gain_nats", item.id, tags, control - answered[item.id, span])

    def aggregate(self, measured: NeedleValues, moment: Moment) -> list[Record]:
        """Whole-monitor records (single needles, full span), per length and variant, per cell; then every head."""
        values = measured.values
        single = [v for v in values if v.tags["variant"] == "single" and v.tags["span"] == "full"]
        records = summarise(single, moment, self.tier, lambda v: {})
        records += summarise(values, moment, self.tier, lambda v: {k: v.tags[k] for k in ("length", "span", "variant")})
        records += summarise(single, moment, self.tier)
        for layer in range(measured.head_scores.shape[1]):
            for head in range(measured.head_scores.shape[2]):
                for x, metric in enumerate(METRICS):
                    numbers = measured.head_scores[:, layer, head, x].astype(float).tolist()
                    mean, stderr = mean_and_stderr(numbers)
                    tags: Tags = {"layer": layer, "head": head}
                    records.append(Record(*moment, "mechanistic", "heads", metric, mean, len(numbers), stderr, tags))
        return records

    def samples(self, measured: NeedleValues) -> list[Value]:
        """Per-item values, the hard copy score of each head included."""
        heads = [
            Value("heads", "copy_hard_frac", item, {"layer": layer, "head": head}, float(score))
            for item, scores in zip(measured.head_items, measured.head_scores, strict=True)
            for (layer, head), score in np.ndenumerate(scores[..., 0])
        ]
        return measured.values + heads

    def forward_tokens(self, items: list[NeedleItem]) -> int:
        """Tokens that one window sends through the model."""
        return sum(len(item.tokens) * (2 if item.control is not None else 1) for item in items)


def _forward(model: LanguageModel, items: list[NeedleItem], tapped: list[int]) -> tuple[Spans, np.ndarray]:
    """The answers' scores of all items, and the heads' of those at the indices `tapped`."""
    tokens, answers = [item.tokens for item in items], [item.answer for item in items]
    if not tapped:
        return score_spans(model, tokens, answers), np.zeros((0, 0, 0, 0))
    tap = CopyTap(torch.from_numpy(np.stack(tokens)), answers, [item.needle for item in items], tapped)
    with tapping(model, tap):
        return score_spans(model, tokens, answers), tap.scores


def _values(item: NeedleItem, nll: np.ndarray, hit: np.ndarray) -> Iterator[Value]:
    for span, mask in (("full", np.ones_like(item.value_mask)), ("value", item.value_mask)):
        tags = item.tags | {"span": span}
        yield Value("needle", "hit_frac", item.id, tags, float(hit[mask].all()))
        yield Value("needle", "answer_nll_nats", item.id, tags, float(nll[mask].mean()))
