"""What every monitor is: a frozen dataclass of its settings, and a few pure functions.

`prepare` builds the items once (the same at every window and in every arm), `score` looks at a model, the rest turns
what it saw into records and samples. A monitor holds no state between windows: what the first window has to fix for the
later ones (`reference`) is kept by the caller, who hands it back with the items.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Gt

from lccp_sim.config import Count
from lccp_sim.data.pools import Corpus
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.values import Moment, Value
from lccp_sim.records import Record

FIRST_WINDOW = "first_window"


class Pass(NamedTuple):
    """How many sequences of a length, how many forwards each is worth (training 3), and whether all meet the head."""

    sequences: float
    tokens: int
    weight: float = 1.0
    head: bool = False

    @property
    def sent(self) -> float:
        """Tokens, each as often as it is worth a forward."""
        return self.sequences * self.tokens * self.weight


@dataclass(frozen=True, kw_only=True)
class Monitor(ABC):
    """Settings that all share: run at every n-th window (and the last), the seed of the items, the forward's size."""

    every: Annotated[int, Gt(0)] = 1
    seed: Count = 0
    tokens_per_forward: Annotated[int, Gt(0)] = 8192
    tier: ClassVar[str]
    beside: ClassVar[bool] = False  # whether `monitors.attention` both measures it with the attention of training, too

    @abstractmethod
    def prepare(self, corpus: Corpus) -> Any:
        """The items. Raises ConfigError where the corpus cannot give them."""

    @abstractmethod
    def score(self, model: LanguageModel, items: Any) -> Any:
        """What the model does on the items. Called inside `evaluating`: no gradients, eval mode, forked RNG."""

    @abstractmethod
    def aggregate(self, measured: Any, moment: Moment) -> list[Record]:
        """The records of one window."""

    @abstractmethod
    def passes(self) -> list[Pass]:
        """What one window sends through the model, told from the settings alone: a text has the length they name."""

    def samples(self, measured: Any) -> Sequence[Value]:
        """Per-item values worth keeping, where there are any."""
        return ()

    def notes(self, items: Any) -> Sequence[str]:
        """What a person should know about these items, a line each."""
        return ()

    @property
    def reference_from(self) -> tuple[str, str] | None:
        """The setting that says whose `reference` holds for all windows, and its value; None where there is none.

        The value is FIRST_WINDOW or names a checkpoint.
        """
        return None

    def reference(self, model: LanguageModel, items: Any) -> dict[str, np.ndarray]:
        """What this model fixes for all windows. Called once a run, inside `evaluating`."""
        raise NotImplementedError

    def reference_passes(self) -> list[Pass]:
        """What `reference` sends through the model."""
        return []

    def refer(self, items: Any, kept: Mapping[str, np.ndarray]) -> Any | None:
        """The items with what a reference fixed; None where it was fixed for other items or by other settings."""
        raise NotImplementedError
