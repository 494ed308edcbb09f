"""The interface of a monitor: a frozen dataclass of settings with a few pure functions.

`prepare` builds the items once; they are the same at every window and in every arm. `score` measures a model. The other
methods turn the result into records and samples. A monitor holds no state between windows. What the first window must
fix for later windows (`reference`) is kept by the caller, who passes it back with the items.
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
    """A number of sequences of one length that are sent through the model.

    `weight`: the cost of each in forward passes (3 for training). `head`: whether every token meets the LM head.
    """

    sequences: float
    tokens: int
    weight: float = 1.0
    head: bool = False

    @property
    def sent(self) -> float:
        """Tokens, each multiplied by its cost in forward passes."""
        return self.sequences * self.tokens * self.weight


@dataclass(frozen=True, kw_only=True)
class Monitor(ABC):
    """The settings shared by all monitors.

    `every`: measure at every n-th window and at the last. `seed`: of the items. `tokens_per_forward`: batch size.
    """

    every: Annotated[int, Gt(0)] = 1
    seed: Count = 0
    tokens_per_forward: Annotated[int, Gt(0)] = 8192
    tier: ClassVar[str]
    beside: ClassVar[bool] = False  # whether `monitors.attention` both also measures it with the training attention

    @abstractmethod
    def prepare(self, corpus: Corpus) -> Any:
        """Build the items. Raises ConfigError if the corpus cannot provide them."""

    @abstractmethod
    def score(self, model: LanguageModel, items: Any) -> Any:
        """Measure the model on the items. Called inside `evaluating`: no gradients, eval mode, forked RNG."""

    @abstractmethod
    def aggregate(self, measured: Any, moment: Moment) -> list[Record]:
        """Return the records of one window."""

    @abstractmethod
    def passes(self) -> list[Pass]:
        """Return the texts that one window sends through the model, from the settings alone, with nominal lengths."""

    def samples(self, measured: Any) -> Sequence[Value]:
        """Return the per-item values to keep, if any."""
        return ()

    def notes(self, items: Any) -> Sequence[str]:
        """Return notes for the user about these items, one line each."""
        return ()

    @property
    def reference_from(self) -> tuple[str, str] | None:
        """The setting that names the model whose `reference` applies to all windows, and its value; None if none.

        The value is FIRST_WINDOW or the path of a checkpoint.
        """
        return None

    def reference(self, model: LanguageModel, items: Any) -> dict[str, np.ndarray]:
        """Compute the reference that this model fixes for all windows. Called once per run, inside `evaluating`."""
        raise NotImplementedError

    def reference_passes(self) -> list[Pass]:
        """Return the texts that `reference` sends through the model."""
        return []

    def refer(self, items: Any, kept: Mapping[str, np.ndarray]) -> Any | None:
        """Add a stored reference to the items; None if it was made for different items or settings."""
        raise NotImplementedError
