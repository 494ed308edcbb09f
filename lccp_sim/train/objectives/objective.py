"""Objectives: which rows a step reads, and how much each target counts.

Every objective is one weighted cross-entropy over packed rows, divided by one number of the global batch. So the loop
knows a single loss, and micro-batches, ranks, resume and windows work for all. If the gradient of an objective has
coefficients that depend on the weights (the advantages of RL, the sigmoid of a contrast), they are computed first,
without gradients, and then held fixed: the gradient is the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

from torch import Tensor

from lccp_sim.config import Config
from lccp_sim.data.batch import Batch
from lccp_sim.data.pools import Corpus
from lccp_sim.errors import refuse
from lccp_sim.models.transformer import Transformer

Penalty = Callable[[Transformer, Mapping[str, Any]], AbstractContextManager[Callable[[], Tensor]]]


class Rows(Protocol):
    """The rows of each step. `live`: they depend on the weights, see `Live`.

    `penalty`: a context around the forward of a micro-batch; it yields a function that returns an addition to the loss
    (None: no addition).
    """

    live: bool
    penalty: Penalty | None

    def slice(self, index: int, rank: int, world: int, micro: int, num_micro: int) -> Batch:
        """The part of step `index` for a micro-batch of a rank. Joined by (rank, micro) they are the global batch."""
        ...

    def target_count(self, index: int) -> float:
        """The divisor of the global batch's loss."""
        ...


class Live(Rows, Protocol):
    """Rows that are made from the current weights at each step.

    `said`: numbers about the last step, for the training records. `state`: what a checkpoint keeps about past steps.
    """

    said: dict[str, float]
    state: int

    def play(self, model: Transformer, step: int) -> None:
        """Make the rows of `step`. Called inside `evaluating`, by all ranks together."""
        ...


class Objective(ABC):
    """Settings of an objective.

    `needs_weights`: the model makes its rows. `reads_pools`: its rows are those of the mixture of the sources.
    """

    kind: str
    needs_weights: ClassVar[bool] = False
    reads_pools: ClassVar[bool] = False

    def check(self, config: Config) -> None:
        """Raise ConfigError if a run of this config cannot use the objective."""
        r = config.run
        rule = f"objective {self.kind} needs unsharded weights; use one device, or processes without run.shard"
        refuse(self.needs_weights and (r.shard or r.cp > 1), "run.shard", r.shard, rule)

    @abstractmethod
    def rows(self, corpus: Corpus, config: Config, model: Any) -> Any:
        """The rows of a run. `model` holds its starting weights. Raises ConfigError."""

    def notes(self, config: Config, base_context_tokens: int | None) -> list[str]:
        """Notes for the user, one line each. `base_context_tokens`: the row length of the run that it starts from."""
        return []


def order_of(config: Config) -> int:
    """The seed of a run's data order."""
    return config.seed if config.data.order_seed is None else config.data.order_seed


def rows_of_step(config: Config) -> int:
    """Rows of the global batch."""
    return config.run.batch_tokens // config.run.context_tokens


def part(rows: list[Any], rank: int, world: int, micro: int, num_micro: int) -> list[Any]:
    """The rows of one micro-batch of a rank."""
    size, rest = divmod(len(rows), world * num_micro)
    refuse(rest, "run.batch_tokens", f"{len(rows)} rows", f"do not divide by {world} ranks x {num_micro} micro-batches")
    first = (rank * num_micro + micro) * size
    return rows[first : first + size]
