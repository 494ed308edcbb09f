"""Retrieval heads on biographies, the texts on which the paper scores them.

Single-needle LongBio texts in completion form (arXiv 2604.02650, section 6; 2506.02921). The answer is the needle, a
sentence about one person, so heads are scored as on plain needles (`heads.CopyTap`). Design note: no training text uses
these names, but a training source may use the same form of sentence.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Gt

from lccp_sim.data.pools import Corpus
from lccp_sim.data.tasks.completion import completion
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.heads import HEAD_METRICS, answer_tokens_record, head_records, head_samples
from lccp_sim.monitors.monitor import Monitor, Pass
from lccp_sim.monitors.needle import score_answers
from lccp_sim.monitors.needle_items import NeedleItem
from lccp_sim.monitors.observing import Spans, map_batches
from lccp_sim.monitors.values import Moment, Tags, Value, summarise
from lccp_sim.records import Record

SAMPLES: Tags = {"samples": "longbio"}


class LongBioValues(NamedTuple):
    """Per-item values, copy scores [items, layers, heads, metrics] in the order of `items`, and total answer tokens."""

    values: list[Value]
    items: list[str]
    scores: np.ndarray
    answer_tokens: int


@dataclass(frozen=True, kw_only=True)
class LongBioHeads(Monitor):
    """The LongBio monitor: `items` texts per length, spread evenly over `depths` depths from 0 to 1."""

    lengths: tuple[Annotated[int, Gt(0)], ...]
    items: Annotated[int, Gt(1)] = 10
    depths: Annotated[int, Gt(1)] = 5
    kind: Literal["heads"] = "heads"
    tier: ClassVar[str] = "mechanistic"

    def __post_init__(self) -> None:
        rule = f"must be a multiple of depths={self.depths}"
        refuse(self.items % self.depths, "monitors.heads.items", self.items, rule)
        refuse(not self.lengths, "monitors.heads.lengths", self.lengths, "needs at least one length")

    def prepare(self, corpus: Corpus) -> list[NeedleItem]:
        """Build the items. Raises ConfigError if a text does not fit a length."""
        items = []
        for length in self.lengths:
            for i in range(self.items):
                rng, depth = np.random.default_rng((self.seed, length, i)), i % self.depths / (self.depths - 1)
                try:
                    text = completion(rng, corpus.tokenizer, corpus.bos, length, depth)
                except ConfigError as error:
                    raise ConfigError(f"monitors.heads.lengths={length}: {error}") from None
                tags: Tags = {"length": length, "depth": round(depth, 4), **SAMPLES}
                name = f"longbio-{length}-{i}"
                items.append(NeedleItem(name, tags, text.tokens, text.needle, text.answer, text.value_mask, None))
        return items

    def score(self, model: LanguageModel, items: list[NeedleItem]) -> LongBioValues:
        """Measure hit and NLL of each answer, and the heads' scores, in one forward per text."""
        values: list[Value] = []
        names: list[str] = []
        scores, answer_tokens = [], 0

        def look(group: list[int]) -> tuple[Spans, np.ndarray]:
            return score_answers(model, [items[i] for i in group], list(range(len(group))))

        lengths = [len(item.tokens) for item in items]
        for group, (spans, of_heads) in map_batches(model, lengths, self.tokens_per_forward, look):
            scores.append(of_heads)
            answer_tokens += int(spans.mask.sum())
            chosen = [items[i] for i in group]
            for item, nll, hit, mask in zip(chosen, spans.nll, spans.hit, spans.mask, strict=True):
                names.append(item.id)
                values.append(Value("heads", "hit_frac", item.id, item.tags, float(hit[mask].all())))
                values.append(Value("heads", "answer_nll_nats", item.id, item.tags, float(nll[mask].mean())))
        return LongBioValues(values, names, np.concatenate(scores), answer_tokens)

    def aggregate(self, measured: LongBioValues, moment: Moment) -> list[Record]:
        """Return records of the answers over all texts and of every head, all with the tag samples=longbio."""
        records = summarise(measured.values, moment, self.tier, lambda v: SAMPLES)
        records += head_records(measured.scores, HEAD_METRICS, moment, SAMPLES)
        if not measured.scores.size:
            return records
        return [*records, answer_tokens_record(measured.answer_tokens, len(measured.items), moment, SAMPLES)]

    def passes(self) -> list[Pass]:
        """Return each text once."""
        return [Pass(self.items, n) for n in self.lengths]

    def samples(self, measured: LongBioValues) -> list[Value]:
        """Return the per-item values, including the hard copy score of each head."""
        return measured.values + head_samples(measured.items, measured.scores, SAMPLES)
