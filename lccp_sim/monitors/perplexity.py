"""NLL and perplexity of held-out documents: by source, by position, with a short context, and on key tokens only.

The same tokens are scored twice: with everything before them in the stretch, and in windows of the old context. The
difference is the gain of the long context; the short-context NLL detects forgetting. Design note: `ppl` averages
perplexities over stretches, as arXiv 2604.02650 does, so that hard stretches weigh most; the NLL is recorded as well.

LongPPL (arXiv 2410.23771) measures how well a model predicts the tokens that only a long context makes likely. A key
token is predicted well from the full text, and much better than from the last tokens alone. One model selects the key
tokens once, so that all windows average the same tokens; a new selection at each window would depend on the model under
test. Design note: each short context begins with BOS. The authors' code puts BOS before the full text only, but a model
trained with BOS first predicts worse without it, and every such token would count as a key token.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Gt

from lccp_sim.config import Size
from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.haystack import held_out
from lccp_sim.monitors.monitor import FIRST_WINDOW, Monitor, Pass
from lccp_sim.monitors.observing import map_batches, row_nll
from lccp_sim.monitors.values import Moment, Tags, Value, summarise
from lccp_sim.records import Record


class DocumentItem(NamedTuple):
    """BOS and `context_tokens` consecutive tokens of a held-out document.

    `keys`: the places of the key tokens, once found; place 0 is the first token after BOS.
    """

    id: str
    source: str
    tokens: np.ndarray
    keys: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class LongPPL:
    """The definition of key tokens, with the defaults of arXiv 2410.23771 (alpha and beta in nats).

    `keys_from`: the model that selects them, `first_window` (the run's own model at its first window) or the path of a
    checkpoint with the same tokenizer.
    """

    trunc_tokens: Size = 4096
    sliding_tokens: Size = 1024
    alpha: Annotated[float, Gt(0)] = 2.0
    beta: float = -2.0
    keys_from: str = FIRST_WINDOW

    def about(self, tokens: list[np.ndarray]) -> np.ndarray:
        """Hash this definition and these texts, uint8 [32]: keys are valid for no others."""
        hashed = hashlib.sha256(repr(self).encode())
        for row in tokens:
            hashed.update(row.astype("<i8").tobytes())
        return np.frombuffer(hashed.digest(), dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class Perplexity(Monitor):
    """The perplexity monitor: `items` held-out stretches of `context_tokens` tokens per source.

    The paper uses 100 stretches of each of three corpora (arXiv 2604.02650 sec. 7.1). Short windows have `short_tokens`
    tokens. `longppl` null: no key tokens.
    """

    sources: tuple[str, ...]
    context_tokens: Annotated[int, Gt(1)]
    short_tokens: Annotated[int, Gt(1)]
    items: Annotated[int, Gt(1)] = 100
    longppl: LongPPL | None = None
    kind: Literal["perplexity"] = "perplexity"
    tier: ClassVar[str] = "probabilistic"
    beside: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.longppl is not None:
            head = self.longppl.trunc_tokens + self.longppl.sliding_tokens
            key = "monitors.perplexity.longppl.trunc_tokens"
            rule = (
                f"with sliding_tokens, no key token is sought in the first {head} tokens, and context_tokens is only "
                f"{self.context_tokens}"
            )
            refuse(head >= self.context_tokens, key, self.longppl.trunc_tokens, f"{rule}; lower one of them")

    def prepare(self, corpus: Corpus) -> list[DocumentItem]:
        """Draw the items: stretches at random places of the documents that are long enough, without overlap.

        A source with fewer than `items` stretches contributes all it has (see `notes`). Raises ConfigError if it has
        fewer than two.
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
        """Measure each item: NLL over all positions, by log2 bucket of positions, in short windows, on key tokens."""
        edges = [2**j for j in range((self.context_tokens - 1).bit_length())]

        def look(group: list[int]) -> list[Value]:
            values: list[Value] = []
            chosen = [items[i] for i in group]
            tokens_BT = torch.from_numpy(np.stack([item.tokens for item in chosen])).to(model.device)
            full = row_nll(model, tokens_BT)
            short = self._short_nll(model, tokens_BT, full)
            for item, full_T, short_T in zip(chosen, full, short, strict=True):
                tags: Tags = {"source": item.source}
                means = {"nll_nats": full_T.mean(), "ppl": np.exp(full_T.mean()), "short_nll_nats": short_T.mean()}
                means["long_short_gain_nats"] = short_T.mean() - full_T.mean()
                if item.keys is not None:
                    means["key_tokens_count"] = len(item.keys)
                    if len(item.keys):
                        means["longppl_nats"] = full_T[item.keys].mean()
                        means["longppl"] = np.exp(means["longppl_nats"])
                values += [Value("perplexity", metric, item.id, tags, float(mean)) for metric, mean in means.items()]
                for low in edges:
                    cell, bucket = tags | {"position": low}, slice(low, min(2 * low, self.context_tokens))
                    long, gain = full_T[bucket].mean(), short_T[bucket].mean() - full_T[bucket].mean()
                    values.append(Value("perplexity", "nll_nats", item.id, cell, float(long)))
                    values.append(Value("perplexity", "long_short_gain_nats", item.id, cell, float(gain)))
            return values

        lengths = [len(item.tokens) - 1 for item in items]
        return [value for _, of in map_batches(model, lengths, self.tokens_per_forward, look) for value in of]

    def notes(self, items: list[DocumentItem]) -> list[str]:
        """Return a note for each source that has fewer stretches than requested."""
        found = Counter(item.source for item in items)
        return [
            f"monitors.perplexity: {source!r} has only {count} held-out stretches of {self.context_tokens} tokens "
            f"({self.items} requested); its means are over {count}"
            for source, count in found.items()
            if count < self.items
        ]

    @property
    def reference_from(self) -> tuple[str, str] | None:
        """The setting that names the model which selects the key tokens, and its value."""
        return None if self.longppl is None else ("longppl.keys_from", self.longppl.keys_from)

    def reference(self, model: LanguageModel, items: list[DocumentItem]) -> dict[str, np.ndarray]:
        """Select the key tokens: `keys` int64 [keys, 2] (item, place), and `about`, the hash of items and settings."""
        assert self.longppl is not None
        settings = self.longppl

        def look(group: list[int]) -> np.ndarray:
            tokens_BT = torch.from_numpy(np.stack([items[i].tokens for i in group])).to(model.device)
            row, place = np.nonzero(find_keys(model, tokens_BT, settings))
            return np.stack((np.array(group)[row], place), axis=1)

        lengths = [len(item.tokens) - 1 for item in items]
        found = np.concatenate([keys for _, keys in map_batches(model, lengths, self.tokens_per_forward, look)])
        return {"keys": found, "about": settings.about([item.tokens for item in items])}

    def reference_passes(self) -> list[Pass]:
        """Return each stretch, and the short contexts that slide along it."""
        if self.longppl is None:
            return []
        n, trunc, slide = len(self.sources) * self.items, self.longppl.trunc_tokens, self.longppl.sliding_tokens
        windows = math.ceil((self.context_tokens - trunc) / slide) - 1
        return [Pass(n, self.context_tokens, head=True), Pass(n * windows, trunc + slide, head=True)]

    def refer(self, items: list[DocumentItem], kept: Mapping[str, np.ndarray]) -> list[DocumentItem] | None:
        """Add the key tokens to the items; None if they were selected for different items or settings."""
        assert self.longppl is not None
        if not np.array_equal(kept["about"], self.longppl.about([item.tokens for item in items])):
            return None
        row, place = kept["keys"].T
        return [item._replace(keys=place[row == i]) for i, item in enumerate(items)]

    def _short_nll(self, model: LanguageModel, tokens_BT: torch.Tensor, full: np.ndarray) -> np.ndarray:
        """Compute the NLL [B, T] of the same targets, each predicted from its own short window, which begins with BOS.

        The first window equals the start of the full text, so it is taken from `full`.
        """
        bos_B1, rest_BT = tokens_BT[:, :1], tokens_BT[:, 1 + self.short_tokens :]
        parts = [full[:, : self.short_tokens]]
        windows = rest_BT.split(self.short_tokens, dim=1) if rest_BT.shape[1] else ()
        whole = [window for window in windows if window.shape[1] == self.short_tokens]
        for group in (whole, windows[len(whole) :]):
            if group:
                nll = row_nll(model, torch.cat([torch.cat((bos_B1, window), dim=1) for window in group]))
                parts += list(nll.reshape(len(group), len(tokens_BT), -1))
        return np.concatenate(parts, axis=1)

    def aggregate(self, values: list[Value], moment: Moment) -> list[Record]:
        """Return records over all sources, per source, and per source and position."""
        whole = [v for v in values if "position" not in v.tags]
        return summarise(whole, moment, self.tier, lambda v: {}) + summarise(values, moment, self.tier)

    def passes(self) -> list[Pass]:
        """Return each stretch, and its part after the first short window."""
        n = len(self.sources) * self.items
        short = n * (self.context_tokens - self.short_tokens) / self.short_tokens
        return [Pass(n, self.context_tokens, head=True), Pass(short, self.short_tokens, head=True)]

    def samples(self, values: list[Value]) -> list[Value]:
        """Return the values of full items; values by position are in the records only."""
        return [v for v in values if "position" not in v.tags]


def find_keys(model: LanguageModel, tokens_BT: torch.Tensor, settings: LongPPL) -> np.ndarray:
    """Find the key tokens of texts, bool [B, T - 1]: column t is token t + 1, so the first token after BOS is column 0.

    Key: log p(token | all before) > beta, and more than alpha above log p(token | short context). Short contexts slide:
    a context of BOS and `trunc_tokens` tokens serves the first of `sliding_tokens` targets and grows along them. The
    first trunc_tokens + sliding_tokens tokens are never key, because their short context is the full text. Rows are
    texts of one length that begin with BOS; all go through one forward. Source: arXiv 2410.23771 sec. 3 and its code.
    """
    K, W = settings.trunc_tokens, settings.sliding_tokens
    bos_B1, text_BT = tokens_BT[:, :1], tokens_BT[:, 1:]
    full_BT = row_nll(model, tokens_BT)
    short_BT = full_BT.copy()
    for start in range(W, text_BT.shape[1] - K, W):
        window_BT = torch.cat((bos_B1, text_BT[:, start : start + K + W]), dim=1)
        short_BT[:, start + K : start + K + W] = row_nll(model, window_BT)[:, K:]
    return (short_BT - full_BT > settings.alpha) & (full_BT < -settings.beta)
