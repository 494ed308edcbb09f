"""NLL of held-out documents: by source, by position, and with a short context against the full one.

The same tokens are scored twice: once with everything before them in the window, once in windows of the old context.
The difference is what the long context is worth; the short NLL alone guards against forgetting.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Gt

from lccp_sim.config import ConfigError
from lccp_sim.data.pools import Corpus
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.models.loss import token_scores
from lccp_sim.monitors.haystack import held_out
from lccp_sim.monitors.monitor import Monitor
from lccp_sim.monitors.observing import batches
from lccp_sim.monitors.values import Moment, Tags, Value, summarise
from lccp_sim.records import Record


class DocumentItem(NamedTuple):
    """BOS and `context_tokens` consecutive tokens of a held-out document."""

    id: str
    source: str
    tokens: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Perplexity(Monitor):
    """`items` held-out stretches of `context_tokens` tokens per source; short windows are `short_tokens` long."""

    sources: tuple[str, ...]
    context_tokens: Annotated[int, Gt(1)]
    short_tokens: Annotated[int, Gt(1)]
    items: Annotated[int, Gt(1)] = 16
    kind: Literal["perplexity"] = "perplexity"
    tier: ClassVar[str] = "probabilistic"

    def prepare(self, corpus: Corpus) -> list[DocumentItem]:
        """The items: stretches at random places of the documents that are long enough, no two overlapping.

        Raises ConfigError where a source has none.
        """
        items = []
        for s, source in enumerate(self.sources):
            rng = np.random.default_rng((self.seed, s))
            documents = held_out(corpus, source)
            n = self.context_tokens
            places = [(d, start) for d, ids in enumerate(documents) for start in range(0, len(ids) - n + 1, n)]
            if len(places) < 2:
                longest = max(map(len, documents), default=0)
                raise ConfigError(
                    f"monitors.perplexity.sources: {source!r} has {len(places)} held-out stretches of {n} tokens (its "
                    f"longest document: {longest}); name another source or lower monitors.perplexity.context_tokens"
                )
            for which in rng.permutation(len(places))[: self.items]:
                d, start = places[which]
                tokens = np.concatenate(([corpus.bos], documents[d][start : start + n]))
                items.append(DocumentItem(f"{source}-{d}-{start}", source, tokens))
        return items

    def score(self, model: LanguageModel, items: list[DocumentItem]) -> list[Value]:
        """Mean NLL of each item over all positions, over each log2 bucket of positions, and in short windows."""
        values: list[Value] = []
        edges = [2**j for j in range((self.context_tokens - 1).bit_length())]
        for group in batches([len(item.tokens) - 1 for item in items], self.tokens_per_forward):
            chosen = [items[i] for i in group]
            tokens_BT = torch.from_numpy(np.stack([item.tokens for item in chosen])).to(model.device)
            full = _nll(model, tokens_BT)
            short = self._short_nll(model, tokens_BT, full)
            for item, full_T, short_T in zip(chosen, full, short, strict=True):
                tags: Tags = {"source": item.source}
                means = {"nll_nats": full_T.mean(), "short_nll_nats": short_T.mean()}
                means["long_short_gain_nats"] = short_T.mean() - full_T.mean()
                values += [Value("perplexity", metric, item.id, tags, float(mean)) for metric, mean in means.items()]
                for low in edges:
                    bucket = full_T[low : min(2 * low, self.context_tokens)]
                    values.append(
                        Value("perplexity", "nll_nats", item.id, tags | {"position": low}, float(bucket.mean()))
                    )
        return values

    def _short_nll(self, model: LanguageModel, tokens_BT: torch.Tensor, full: np.ndarray) -> np.ndarray:
        """NLL [B, T] of the same targets, each seen only from the BOS-led short window that it lies in.

        The first window is how the full one begins, so it is taken from `full`.
        """
        bos_B1, rest_BT = tokens_BT[:, :1], tokens_BT[:, 1 + self.short_tokens :]
        parts = [full[:, : self.short_tokens]]
        windows = rest_BT.split(self.short_tokens, dim=1) if rest_BT.shape[1] else ()
        whole = [window for window in windows if window.shape[1] == self.short_tokens]
        for group in (whole, windows[len(whole) :]):
            if group:
                nll = _nll(model, torch.cat([torch.cat((bos_B1, window), dim=1) for window in group]))
                parts += list(nll.reshape(len(group), len(tokens_BT), -1))
        return np.concatenate(parts, axis=1)

    def aggregate(self, values: list[Value], moment: Moment) -> list[Record]:
        """Over all sources, per source, and per source and position."""
        whole = [v for v in values if "position" not in v.tags]
        return summarise(whole, moment, self.tier, lambda v: {}) + summarise(values, moment, self.tier)

    def samples(self, values: list[Value]) -> list[Value]:
        """The whole-item values; positions are left to the records."""
        return [v for v in values if "position" not in v.tags]

    def forward_tokens(self, items: list[DocumentItem]) -> int:
        """Tokens that one window sends through the model."""
        return len(items) * (2 * self.context_tokens - min(self.short_tokens, self.context_tokens))


def _nll(model: LanguageModel, tokens_BT: torch.Tensor) -> np.ndarray:
    """NLL of tokens 1, 2, ... of each row, [B, T - 1] fp64 nats."""
    hidden_BTD = model(tokens_BT[:, :-1]).hidden_BTD
    nll_R, _, _ = token_scores(model.logits, hidden_BTD.flatten(0, 1), tokens_BT[:, 1:].flatten())
    return nll_R.view(len(tokens_BT), -1).double().cpu().numpy()
