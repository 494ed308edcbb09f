"""Continuous needle in a haystack: the answer's NLL, the hit and the heads that copy it, from one forward pass.

The text follows the paper (arXiv 2604.02650, section 5) and is built in `needle_items`. Design note: nothing is
generated, because greedy decoding reproduces the answer exactly when every teacher-forced argmax is right (by induction
over the span).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Gt, Le

from lccp_sim.data.pools import Corpus
from lccp_sim.errors import refuse
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.models.taps import tapping
from lccp_sim.monitors.haystack import Haystack
from lccp_sim.monitors.heads import HEAD_METRICS, CopyTap, answer_tokens_record, head_records, head_samples
from lccp_sim.monitors.monitor import Monitor, Pass
from lccp_sim.monitors.needle_items import VARIANTS, NeedleItem, Texts, Variant
from lccp_sim.monitors.observing import Spans, map_batches, score_spans
from lccp_sim.monitors.recovery import alone_values, recovery_records
from lccp_sim.monitors.values import Moment, Value, summarise
from lccp_sim.records import ANSWER, HEADLINE, SENTENCE, Record

NEEDLE_TOKENS = 50  # approximate tokens of a needle with its question and answer, without a haystack


class NeedleValues(NamedTuple):
    """Per-item values; for single needles also copy scores [items, layers, heads, metrics] and total answer tokens."""

    values: list[Value]
    head_items: list[str]
    head_scores: np.ndarray
    answer_tokens: int


@dataclass(frozen=True, kw_only=True)
class Needle(Monitor):
    """The needle monitor: per length `items` texts, spread evenly over `depths` depths.

    `haystack`: one source, or several that alternate. `controls`: texts per length that are also scored with the needle
    replaced by haystack, and without any haystack. `variants`: texts per length for each other variant (see
    `needle_items.Texts`); lengths up to `interference_tokens` have no interference text.
    """

    lengths: tuple[Annotated[int, Gt(0)], ...]
    haystack: str | tuple[str, ...]
    items: Annotated[int, Gt(1)] = 40
    depths: Annotated[int, Gt(1)] = 5
    controls: Annotated[int, Ge(2)] = 10
    variants: dict[Variant, Annotated[int, Gt(0)]] | None = None
    distractors: Annotated[int, Gt(0), Le(32)] = 3
    interference_tokens: Annotated[int, Gt(0)] = 256
    heads: bool = True
    kind: Literal["needle"] = "needle"
    tier: ClassVar[str] = "probabilistic"
    beside: ClassVar[bool] = True

    def __post_init__(self) -> None:
        rule = f"must be a multiple of depths={self.depths}"
        refuse(self.items % self.depths, "monitors.needle.items", self.items, rule)
        refuse(not self.lengths, "monitors.needle.lengths", self.lengths, "needs at least one length")
        refuse(not self.haystack, "monitors.needle.haystack", self.haystack, "needs at least one source")
        unheld = "interference" in (self.variants or {}) and max(self.lengths) <= self.interference_tokens
        rule = f"the longest text has {max(self.lengths)} tokens; lower it or drop the variant interference"
        refuse(unheld, "monitors.needle.interference_tokens", self.interference_tokens, rule)

    def prepare(self, corpus: Corpus) -> list[NeedleItem]:
        """Build the items, the same at every window and in every arm. Raises ConfigError if a needle does not fit."""
        names = (self.haystack,) if isinstance(self.haystack, str) else self.haystack
        haystacks = [Haystack(corpus, name) for name in names]
        texts = Texts(corpus, haystacks, self.depths, self.distractors, self.interference_tokens)
        counts: dict[Variant, int] = {"single": self.items, **(self.variants or {})}
        items = []
        for length in self.lengths:
            for v, variant in enumerate(VARIANTS):
                templates = texts.templates(variant, length) if variant in counts else {}
                for i in range(counts[variant] if templates else 0):
                    rng = np.random.default_rng((self.seed, length, v, i))
                    item = texts.item(rng, templates, variant, length, i)
                    if variant == "single" and i < self.controls:
                        item = item._replace(control=texts.control(rng, item, i))
                    items.append(item)
        return items

    def score(self, model: LanguageModel, items: list[NeedleItem]) -> NeedleValues:
        """Measure hit, NLL and gains of each item, and score the heads: one forward per text, two more per control."""
        values: list[Value] = []
        head_items: list[str] = []
        head_scores: list[np.ndarray] = []
        answer_tokens = 0

        def single(group: list[int]) -> list[int]:
            return [i for i, which in enumerate(group) if self.heads and items[which].tags["variant"] == "single"]

        def look(group: list[int]) -> tuple[Spans, np.ndarray]:
            return score_answers(model, [items[i] for i in group], single(group))

        lengths = [len(item.tokens) for item in items]
        for group, (spans, scores) in map_batches(model, lengths, self.tokens_per_forward, look):
            tapped = single(group)
            head_items += [items[group[i]].id for i in tapped]
            head_scores += list(scores)
            answer_tokens += int(spans.mask[tapped].sum())
            for i, which in enumerate(group):
                values += _values(items[which], spans.nll[i, spans.mask[i]], spans.hit[i, spans.mask[i]])
        values += self._controls(model, items, values)
        values += alone_values(model, items, values, self.tokens_per_forward)
        scores = np.stack(head_scores) if head_scores else np.zeros((0, 0, 0, len(HEAD_METRICS)))
        return NeedleValues(values, head_items, scores, answer_tokens)

    def _controls(self, model: LanguageModel, items: list[NeedleItem], values: list[Value]) -> Iterator[Value]:
        with_control = [item for item in items if item.control is not None]
        answered = {(v.item, v.tags["span"]): v.value for v in values if v.metric == "answer_nll_nats"}

        def look(group: list[int]) -> Spans:
            chosen = [with_control[i] for i in group]
            return score_spans(model, [c.control for c in chosen if c.control is not None], [c.answer for c in chosen])

        lengths = [len(item.tokens) for item in with_control]
        for group, spans in map_batches(model, lengths, self.tokens_per_forward, look):
            for i, item in enumerate(with_control[which] for which in group):
                nll = spans.nll[i, spans.mask[i]]
                for span, mask in spans_of(item):
                    control = float(nll[mask].mean())
                    tags = item.tags | {"span": span}
                    yield Value("needle", "control_nll_nats", item.id, tags, control)
                    yield Value("needle", "gain_nats", item.id, tags, control - answered[item.id, span])

    def aggregate(self, measured: NeedleValues, moment: Moment) -> list[Record]:
        """Return records by {span} and {depth, span} (single needles), {length, span, variant}, per cell and head."""
        values = measured.values
        single = [v for v in values if v.tags["variant"] == "single"]
        records = summarise(single, moment, self.tier, lambda v: {"span": v.tags["span"]})
        records += summarise(values, moment, self.tier, lambda v: {k: v.tags[k] for k in ("length", "span", "variant")})
        records += summarise(single, moment, self.tier)
        answers = (v for v in single if v.metric in ANSWER)
        records += summarise(answers, moment, self.tier, lambda v: {k: v.tags[k] for k in ("depth", "span")})
        records += recovery_records(values, moment, self.tier)
        if measured.head_scores.size:
            records += head_records(measured.head_scores, HEAD_METRICS, moment)
            records.append(answer_tokens_record(measured.answer_tokens, len(measured.head_items), moment))
        return records

    def passes(self) -> list[Pass]:
        """Return the texts of each length, the controls a second time, and the controls' needles without haystack."""
        short, controls = self.interference_tokens, min(self.controls, self.items)
        grid = []
        for n in self.lengths:
            others = [count for v, count in (self.variants or {}).items() if v != "interference" or n > short]
            grid.append(Pass(self.items + controls + sum(others), n))
        return [*grid, Pass(controls * len(self.lengths), NEEDLE_TOKENS)]

    def samples(self, measured: NeedleValues) -> list[Value]:
        """Return the per-item values, including the hard copy score of each head."""
        return measured.values + head_samples(measured.head_items, measured.head_scores)


def score_answers(model: LanguageModel, items: list[NeedleItem], tapped: list[int]) -> tuple[Spans, np.ndarray]:
    """Score the answers to items of one length, and the heads [tapped, layers, heads, metrics] on items at `tapped`.

    Layers and heads are 0 if the model exposes no heads.
    """
    tokens, answers = [item.tokens for item in items], [item.answer for item in items]
    if not tapped or not model.num_heads:
        return score_spans(model, tokens, answers), np.zeros((len(tapped), 0, 0, len(HEAD_METRICS)))
    tap = CopyTap(torch.from_numpy(np.stack(tokens)), answers, [item.needle for item in items], tapped)
    with tapping(model, tap):
        return score_spans(model, tokens, answers), tap.scores


def spans_of(item: NeedleItem) -> tuple[tuple[str, np.ndarray], ...]:
    """Return the spans of an answer: names, and masks [answer] over its tokens."""
    return (HEADLINE, item.value_mask), (SENTENCE, np.ones_like(item.value_mask))


def _values(item: NeedleItem, nll: np.ndarray, hit: np.ndarray) -> Iterator[Value]:
    for span, mask in spans_of(item):
        tags = item.tags | {"span": span}
        mean = float(nll[mask].mean())
        for metric, value in zip(ANSWER, (float(hit[mask].all()), mean, float(np.exp(mean))), strict=True):
            yield Value("needle", metric, item.id, tags, value)
