"""Induction: does the model copy a span that it has seen once, unmarked and without a question?

A span of random tokens is placed in real text and repeated later. The NLL of the second copy shows whether the model
copies. A head's prefix-matching score is its attention on the token after the previous occurrence (arXiv 2209.11895).
Its partner in the circuit, the previous-token head, is scored on the same rows. Design note: random tokens, not words,
because no language model can guess them: every right prediction is copied.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from lccp_sim.data.documents.synthetic import plain_tokens
from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError
from lccp_sim.models.language_model import Attended, LanguageModel
from lccp_sim.models.taps import tapping
from lccp_sim.monitors.haystack import Haystack
from lccp_sim.monitors.heads import head_records
from lccp_sim.monitors.monitor import Monitor, Pass
from lccp_sim.monitors.observing import Spans, map_batches, score_places
from lccp_sim.monitors.values import Moment, Tags, Value, summarise
from lccp_sim.records import Record

INDUCTION_METRICS = ("induction_frac", "previous_token_frac")


class RepeatItem(NamedTuple):
    """A text of `length` tokens that ends with a copy of a random span of its first half; places are [start, stop)."""

    id: str
    length: int
    tokens: np.ndarray
    first: tuple[int, int]
    second: tuple[int, int]


class RepeatValues(NamedTuple):
    """Per-item values, and scores [items, layers, heads, INDUCTION_METRICS]."""

    values: list[Value]
    scores: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Induction(Monitor):
    """The induction monitor: `items` texts per length, with a span of `span_tokens` random tokens."""

    lengths: tuple[Annotated[int, Gt(0)], ...]
    haystack: str
    items: Annotated[int, Gt(1)] = 16
    span_tokens: Annotated[int, Gt(1)] = 16
    kind: Literal["induction"] = "induction"
    tier: ClassVar[str] = "mechanistic"
    beside: ClassVar[bool] = True

    def prepare(self, corpus: Corpus) -> list[RepeatItem]:
        """Build the items. Raises ConfigError if a length does not hold two spans."""
        haystack, plain = Haystack(corpus, self.haystack), plain_tokens(corpus.tokenizer)
        n, items = self.span_tokens, []
        for length in self.lengths:
            if length < 2 * n + 4:
                raise ConfigError(f"monitors.induction.lengths: {length} tokens do not hold two spans of {n}")
            for i in range(self.items):
                rng = np.random.default_rng((self.seed, length, i))
                span = rng.choice(plain, n)
                filler = haystack.take(rng, length - 1 - 2 * n)
                # The first copy lies in the first half: the distance is at least half the length.
                start = 1 + int(rng.integers(0, max(1, length // 2 - n)))
                tokens = np.concatenate(([corpus.bos], filler[: start - 1], span, filler[start - 1 :], span))
                items.append(RepeatItem(f"{length}-{i}", length, tokens, (start, start + n), (length - n, length)))
        return items

    def score(self, model: LanguageModel, items: list[RepeatItem]) -> RepeatValues:
        """Measure the NLL of both copies (without their unpredictable first token), and score the heads."""
        values: list[Value] = []
        scores = []

        def look(group: list[int]) -> tuple[Spans, np.ndarray]:
            chosen = [items[i] for i in group]
            tokens, places = [c.tokens for c in chosen], [_places(c) for c in chosen]
            if not model.num_heads:
                return score_places(model, tokens, places), np.zeros((len(chosen), 0, 0, len(INDUCTION_METRICS)))
            tap = _PrefixTap([item.first for item in chosen], [item.second for item in chosen])
            with tapping(model, tap):
                return score_places(model, tokens, places), tap.scores

        n, lengths = self.span_tokens - 1, [item.length for item in items]
        for group, (spans, of_heads) in map_batches(model, lengths, self.tokens_per_forward, look):
            scores.append(of_heads)
            for i, item in enumerate(items[which] for which in group):
                numbers = {
                    "first_copy_nll_nats": spans.nll[i, :n].mean(),
                    "second_copy_nll_nats": spans.nll[i, n:].mean(),
                    "second_copy_hit_frac": spans.hit[i, n:].mean(),
                }
                tags: Tags = {"length": item.length}
                values += [Value("induction", metric, item.id, tags, float(x)) for metric, x in numbers.items()]
        return RepeatValues(values, np.concatenate(scores))

    def aggregate(self, measured: RepeatValues, moment: Moment) -> list[Record]:
        """Return records over all lengths, per length, and both scores of every head."""
        records = summarise(measured.values, moment, self.tier, lambda v: {})
        records += summarise(measured.values, moment, self.tier)
        return records + head_records(measured.scores, INDUCTION_METRICS, moment)

    def passes(self) -> list[Pass]:
        """Return each text once."""
        return [Pass(self.items, n) for n in self.lengths]

    def samples(self, measured: RepeatValues) -> list[Value]:
        """Return the per-item values."""
        return measured.values


def _places(item: RepeatItem) -> np.ndarray:
    """Return the places of both copies, without their first token."""
    return np.concatenate([np.arange(start + 1, stop) for start, stop in (item.first, item.second)])


class _PrefixTap:
    """A tap that collects `scores` [items, layers, heads, metrics] from the second copy's rows, except the last.

    induction: attention on the token after the first occurrence of the row's token (arXiv 2209.11895). previous_token:
    attention on the preceding position.
    """

    def __init__(self, first: list[tuple[int, int]], second: list[tuple[int, int]]):
        self.first, self.second = first, second
        self.layers: list[Tensor] = []

    def __call__(self, layer: int, attended: Attended) -> None:
        scores = []
        for item, ((first, _), (start, stop)) in enumerate(zip(self.first, self.second, strict=True)):
            rows_NAS = attended.rows(item, start, stop - 1)
            # Query start + i pairs with key first + i + 1 (what followed the first occurrence), or with key
            # start + i - 1 (the preceding token): both are diagonals.
            keys = (first + 1, start - 1)
            found = [rows_NAS[..., key : key + stop - 1 - start].diagonal(dim1=1, dim2=2).mean(-1) for key in keys]
            scores.append(torch.stack(found, dim=-1))
        self.layers.append(torch.stack(scores).cpu())

    @property
    def scores(self) -> np.ndarray:
        return torch.stack(self.layers, dim=1).numpy()
