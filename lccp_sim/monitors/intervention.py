"""Do the heads that copy the needle cause the answer? Their outputs are masked, boosted or left unchanged.

A copy score says where a head attends. Masking the strongest heads, and as many other heads of the same layers, shows
whether the answer depends on them (arXiv 2404.15574, section 4.1). The first half of the texts selects the heads and
the second half measures them, so that a head that was lucky on a text is not judged by it. Design note: random heads
come from the layers of the strongest heads as long as these have others, so that depth does not differ; only then from
other layers.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Gt

from lccp_sim.config import RETRIEVES, top_k
from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.models.taps import gating
from lccp_sim.monitors.monitor import Monitor, Pass
from lccp_sim.monitors.needle import Needle
from lccp_sim.monitors.needle_items import NeedleItem
from lccp_sim.monitors.values import Moment, Tags, Value, summarise
from lccp_sim.records import ANSWER, Record, Tag

Heads = list[tuple[int, int]]  # (layer, head)


class ArmValues(NamedTuple):
    """Per-item values of every arm, and the masked heads: the strongest, and `draws` random sets."""

    values: list[Value]
    top: Heads
    others: list[Heads]


@dataclass(frozen=True, kw_only=True)
class Intervention(Monitor):
    """The intervention monitor: `items` single needles per length, half to select heads and half to measure.

    `k` heads are masked (null: 3 %, from 8 to 30), or multiplied by `boost`. `draws`: number of random sets of heads.
    """

    lengths: tuple[Annotated[int, Gt(0)], ...]
    haystack: str | tuple[str, ...]
    items: Annotated[int, Gt(1)] = 20
    depths: Annotated[int, Gt(1)] = 5
    k: Annotated[int, Gt(0)] | None = None
    draws: Annotated[int, Gt(0)] = 3
    boost: Annotated[float, Gt(1)] = 1.5
    kind: Literal["intervention"] = "intervention"
    tier: ClassVar[str] = "mechanistic"

    def __post_init__(self) -> None:
        rule = f"must be a multiple of 2 x depths={2 * self.depths}: half selects, half measures"
        refuse(self.items % (2 * self.depths), "monitors.intervention.items", self.items, rule)
        for key in ("lengths", "haystack"):
            refuse(not getattr(self, key), f"monitors.intervention.{key}", getattr(self, key), "must not be empty")

    def _needle(self, heads: bool) -> Needle:
        """Return the needle monitor that provides the texts and scores."""
        return Needle(
            lengths=self.lengths,
            haystack=self.haystack,
            items=self.items,
            depths=self.depths,
            heads=heads,
            seed=self.seed,
            tokens_per_forward=self.tokens_per_forward,
        )

    def prepare(self, corpus: Corpus) -> list[NeedleItem]:
        """Build the items: single needles without controls. Raises ConfigError if a needle does not fit."""
        try:
            items = self._needle(heads=False).prepare(corpus)
        except ConfigError as error:
            lines = [line.replace("monitors.needle.", "monitors.intervention.") for line in error.problems]
            raise ConfigError(*lines) from None
        return [item._replace(control=None) for item in items]

    def score(self, model: LanguageModel, items: list[NeedleItem]) -> ArmValues:
        """Measure hit, NLL and perplexity of each answer span in every arm, on the second half of the items.

        Empty if the model exposes no heads to mask.
        """
        if not model.num_heads:
            return ArmValues([], [], [])
        selects = [i % self.items < self.items // 2 for i in range(len(items))]
        chosen = self._needle(heads=True).score(model, [item for item, s in zip(items, selects, strict=True) if s])
        score_LN = chosen.head_scores[..., 0].mean(0)
        top = strongest_heads(score_LN, self.k or top_k(score_LN.size))
        others = [random_heads(score_LN, top, np.random.default_rng((self.seed, draw))) for draw in range(self.draws)]
        measured = [item for item, s in zip(items, selects, strict=True) if not s]
        values: list[Value] = []
        for arm, sets, factor in (
            ("none", [top], 1.0),
            ("mask_top", [top], 0.0),
            ("mask_random", others, 0.0),
            ("boost_top", [top], self.boost),
        ):
            values += self._arm(model, measured, arm, sets, factor, score_LN.shape)
        return ArmValues(values, top, others)

    def _arm(
        self, model: LanguageModel, items: list[NeedleItem], arm: str, sets: list[Heads], factor: float, shape: tuple
    ) -> list[Value]:
        """Measure each item with the heads of a set multiplied by `factor`, averaged over the sets."""
        found: dict[tuple[str, str, Tag], list[float]] = defaultdict(list)
        for heads in sets:
            gate_LN = torch.ones(shape)
            for place in heads:
                gate_LN[place] = factor
            with gating(model, gate_LN):
                values = self._needle(heads=False).score(model, items).values
            for value in values:
                found[value.item, value.metric, value.tags["span"]].append(value.value)
        tags = {item.id: item.tags | {"arm": arm} for item in items}
        return [
            Value("intervention", metric, id_, tags[id_] | {"span": span}, float(np.mean(x)))
            for (id_, metric, span), x in found.items()
        ]

    def aggregate(self, measured: ArmValues, moment: Moment) -> list[Record]:
        """Return records by {arm, span} (the answer), {arm} (the heads) and {span} (the causal effect).

        The causal effect is the cost of masking the strongest heads beyond that of masking random heads.
        """
        if not measured.values:
            return []
        records = summarise(measured.values, moment, self.tier, lambda v: {k: v.tags[k] for k in ("arm", "span")})

        def count(metric: str, arm: str, numbers: list[float]) -> Record:
            tags: Tags = {"arm": arm}
            mean = sum(numbers) / len(numbers)
            return Record(*moment, self.tier, "intervention", metric, mean, len(numbers), None, tags)

        layers = {layer for layer, _ in measured.top}
        same = [sum(layer in layers for layer, _ in heads) / max(1, len(heads)) for heads in measured.others]
        records.append(count("masked_heads_count", "mask_top", [len(measured.top)]))
        records.append(count("masked_heads_count", "mask_random", [len(heads) for heads in measured.others]))
        records.append(count("same_layers_frac", "mask_random", same))
        return records + summarise(_effects(measured.values), moment, self.tier, lambda v: {"span": v.tags["span"]})

    def passes(self) -> list[Pass]:
        """Return half of the texts once to select heads, the other half in three arms and with each random set."""
        return [Pass(self.items * (4 + self.draws) / 2, n) for n in self.lengths]

    def samples(self, measured: ArmValues) -> list[Value]:
        """Return the per-item values of every arm, and the effect on each item."""
        return measured.values + _effects(measured.values)


def strongest_heads(score_LN: np.ndarray, k: int) -> Heads:
    """Return the k heads with the highest scores; ties by layer, then head."""
    flat = np.argsort(-score_LN.ravel(), kind="stable")[:k]
    return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(flat, score_LN.shape), strict=True)]


def random_heads(score_LN: np.ndarray, top: Heads, rng: np.random.Generator) -> Heads:
    """Draw the same number of random heads outside `top`, without retrieval heads; fewer if the model has too few.

    Each layer gets as many as `top` has there. If a layer has too few, heads of other layers replace them.
    """
    barred = score_LN > RETRIEVES
    barred[tuple(np.transpose(top))] = True
    same: Heads = []
    others: Heads = []
    wanted = Counter(layer for layer, _ in top)
    for layer, head in rng.permutation(np.argwhere(~barred)).tolist():
        (same if wanted[layer] else others).append((layer, head))
        wanted[layer] -= wanted[layer] > 0
    return (same + others)[: len(top)]


def _effects(values: list[Value]) -> list[Value]:
    """Compute, per item and span, the NLL with the strongest heads masked minus that with random heads masked."""
    nll = {(v.item, v.tags["span"], v.tags["arm"]): v for v in values if v.metric == ANSWER[1]}
    effects = []
    for (item, span, arm), value in nll.items():
        if arm == "mask_top":
            tags = {name: tag for name, tag in value.tags.items() if name != "arm"}
            effect = value.value - nll[item, span, "mask_random"].value
            effects.append(Value("intervention", "causal_nll_nats", item, tags, effect))
    return effects
