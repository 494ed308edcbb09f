"""The kinds of attention in `model.attention`, and the keys of ModelConfig that each sets.

Design note: `full` and `window` are stored as keys that are older than `model.attention`. So a model has one form,
however it is spelled, and its runs keep the names of their directories.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lccp_sim.config import Size
from lccp_sim.configure.parse import parse_kind
from lccp_sim.errors import refuse
from lccp_sim.models.lighthouse import LighthouseAttention


@dataclass(frozen=True)
class FullAttention:
    """Every query sees all tokens of its document up to its own."""

    kind: Literal["full"] = "full"

    def keys(self) -> dict[str, Any]:
        """No key: it is the default."""
        return {}


@dataclass(frozen=True)
class WindowAttention:
    """A query sees `tokens` tokens, its own included, except in every `full_every`-th layer (null: in none)."""

    tokens: Size
    full_every: Size | None = None
    kind: Literal["window"] = "window"

    def keys(self) -> dict[str, Any]:
        """The keys of ModelConfig."""
        return {"window_tokens": self.tokens, "full_attention_every": self.full_every}


AttentionKind = FullAttention | WindowAttention | LighthouseAttention
ATTENTION: dict[str, type[AttentionKind]] = {
    "full": FullAttention,
    "window": WindowAttention,
    "lighthouse": LighthouseAttention,
}


def with_attention(model: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a model, with `attention` replaced by the keys that it sets. ConfigError, also if both occur."""
    rest = {key: value for key, value in model.items() if key != "attention"}
    if model.get("attention") is None:
        return rest
    kind = parse_kind(ATTENTION, model["attention"], "model.attention")
    given = [key for key in ("window_tokens", "full_attention_every") if rest.get(key) is not None]
    refuse(given, "model.attention.kind", kind.kind, f"repeats model.{' and model.'.join(given)}; remove one of them")
    return rest | kind.keys()
