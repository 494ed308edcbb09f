"""What every monitor is: a frozen dataclass of its settings, and five pure functions.

`prepare` builds the items once (the same at every window and in every arm), `score` looks at a model, the rest turns
what it saw into records, samples and a cost. A monitor holds no state between windows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Gt

from lccp_sim.config import Count
from lccp_sim.data.pools import Corpus
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.values import Moment, Value
from lccp_sim.records import Record


@dataclass(frozen=True, kw_only=True)
class Monitor(ABC):
    """Settings that all share: run at every n-th window (and the last), the seed of the items, the forward's size."""

    every: Annotated[int, Gt(0)] = 1
    seed: Count = 0
    tokens_per_forward: Annotated[int, Gt(0)] = 8192
    tier: ClassVar[str]

    @abstractmethod
    def prepare(self, corpus: Corpus) -> Any:
        """The items. Raises ConfigError where the corpus cannot give them."""

    @abstractmethod
    def score(self, model: LanguageModel, items: Any) -> Any:
        """What the model does on the items. Called inside `observing`: no gradients, eval mode, forked random state."""

    @abstractmethod
    def aggregate(self, measured: Any, moment: Moment) -> list[Record]:
        """The records of one window."""

    def samples(self, measured: Any) -> Sequence[Value]:
        """Per-item values worth keeping, where there are any."""
        return ()
