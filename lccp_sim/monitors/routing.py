"""Expert load on held-out text: how tokens are distributed, and which experts are dead.

Load is measured on held-out documents, not on training batches. So step 0 has a value, and no state is kept between
windows.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Gt

from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors.haystack import Haystack
from lccp_sim.monitors.monitor import Monitor, Pass
from lccp_sim.monitors.observing import map_batches
from lccp_sim.monitors.values import Moment, Tags
from lccp_sim.records import Record


@dataclass(frozen=True, kw_only=True)
class Routing(Monitor):
    """`items` held-out stretches of `context_tokens` tokens of one source."""

    source: str
    context_tokens: Annotated[int, Gt(0)]
    items: Annotated[int, Gt(0)] = 4
    kind: Literal["routing"] = "routing"
    tier: ClassVar[str] = "training"

    def prepare(self, corpus: Corpus) -> np.ndarray:
        """Draw the tokens [items, context]."""
        haystack = Haystack(corpus, self.source)
        rng = np.random.default_rng(self.seed)
        return np.stack([haystack.take(rng, self.context_tokens) for _ in range(self.items)])

    def score(self, model: LanguageModel, items: np.ndarray) -> np.ndarray:
        """Count rows per layer and expert, [L, E]."""
        if not isinstance(model, Transformer):
            raise ConfigError("monitors.routing: works with lccp-sim's own models only; set monitors.routing=null")
        if model.config.num_dense_layers == model.num_layers:
            raise ConfigError("monitors.routing: a dense model has no experts to count; set monitors.routing=null")

        def look(group: list[int]) -> np.ndarray:
            return model(torch.from_numpy(items[group]).to(model.device)).count_LE.cpu().numpy()

        lengths = [self.context_tokens] * len(items)
        return np.sum([count for _, count in map_batches(model, lengths, self.tokens_per_forward, look)], axis=0)

    def passes(self) -> list[Pass]:
        """Return each stretch once."""
        return [Pass(self.items, self.context_tokens)]

    def aggregate(self, count_LE: np.ndarray, moment: Moment) -> list[Record]:
        """Return per layer the largest share, the entropy of the shares (nats) and the number of dead experts.

        Over the layers: maximum, mean and sum of these. Dense layers have no record. `n` counts routed rows
        (tokens x top-k) of a layer, which are not independent items, so there is no standard error.
        """
        n = int(count_LE[-1].sum())
        layers = {}
        records = []
        for layer, count_E in enumerate(count_LE):
            if not count_E.any():
                continue
            share_E = (count_E / count_E.sum()).tolist()
            entropy = -sum(s * math.log(s) for s in share_E if s > 0)
            layers[layer] = (max(share_E), entropy, float((count_E == 0).sum()))
            for expert, share in enumerate(share_E):
                tags: Tags = {"layer": layer, "expert": expert}
                records.append(Record(*moment, self.tier, "routing", "load_frac", share, n, None, tags))
        names = ("load_max_frac", "load_entropy_nats", "dead_experts_count")
        largest, entropies, dead = zip(*layers.values(), strict=True)
        whole = (max(largest), sum(entropies) / len(layers), sum(dead))
        records += [Record(*moment, self.tier, "routing", m, v, n) for m, v in zip(names, whole, strict=True)]
        for layer, row in layers.items():
            records += [
                Record(*moment, self.tier, "routing", m, v, n, None, {"layer": layer})
                for m, v in zip(names, row, strict=True)
            ]
        return records
