"""Measuring with all ranks of a run: each measures its share of the texts, and all ranks get all results.

With unsharded weights (DDP) the ranks work independently. With sharded weights (FSDP2) each forward gathers them from
all ranks, so all ranks must run the same number of forwards. `in_step` ensures this: a rank that is done continues
with forwards of one token. Design note: a monitor never splits a text over ranks, even if training does (`run.cp`).
Without gradients only one layer's activations are held, and heads are scored on full rows, with no softmax to merge.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from lccp_sim.errors import Halfway
from lccp_sim.models.comm import Comm, Given, Piece
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.train.parallel.collectives import local_part
from lccp_sim.train.parallel.ranks import Ranks
from lccp_sim.train.parallel.sharding import clip


@contextmanager
def together(model: LanguageModel, ranks: Ranks) -> Iterator[None]:
    """Within the context, monitors share their work over the ranks. All ranks must enter it."""
    if ranks.world == 1:
        yield
        return
    training = model.comm
    model.set_comm(ShardedComm(ranks, model) if isinstance(model, FSDPModule) else WindowComm(ranks))
    try:
        yield
    finally:
        model.set_comm(training)
        if isinstance(model, FSDPModule):
            model.reshard()  # the last forward left embeddings and head gathered


class WindowComm(Comm):
    """Ranks that each hold all weights and measure full rows."""

    def __init__(self, ranks: Ranks):
        self.ranks, self.rank, self.world = ranks, ranks.rank, ranks.world

    def __deepcopy__(self, memo: Any) -> Comm:
        """A copy of the model belongs to this rank alone."""
        return Comm()

    def map(self, work: Callable[[Piece], Given], pieces: Sequence[Piece]) -> list[Given]:
        """Rank i mod `world` computes piece i. An error on any rank is raised on every rank."""
        shares = self.ranks.gather(lambda: self._mine(work, pieces[self.rank :: self.world]))
        return [shares[i % self.world][i // self.world] for i in range(len(pieces))]

    def _mine(self, work: Callable[[Piece], Given], pieces: Sequence[Piece]) -> list[Given]:
        return [work(piece) for piece in pieces]


class ShardedComm(WindowComm):
    """Ranks that share the weights of `model`. Experts are placed as in training; rows are not split."""

    def __init__(self, ranks: Ranks, model: LanguageModel):
        super().__init__(ranks)
        self.model, self.training, self.experts_apart = model, model.comm, model.comm.experts_apart

    def dispatch(self, *experts_and_rows: Any) -> Tensor:
        """As in training."""
        return self.training.dispatch(*experts_and_rows)

    def _mine(self, work: Callable[[Piece], Given], pieces: Sequence[Piece]) -> list[Given]:
        with in_step(self.model, self.ranks):
            return super()._mine(work, pieces)

    def forks(self, model: Any, work: Callable[[Any, Piece], Given], pieces: Sequence[Piece]) -> list[Given]:
        """Compute one piece after the other with all ranks together: no rank may have room for a full copy."""
        given = []
        for piece in pieces:
            with restored(model):
                given.append(work(model, piece))
        return given

    def clip(self, parameters: Iterable[Tensor], limit: float) -> None:
        """Clip over all ranks and meshes."""
        clip(parameters, limit)


@contextmanager
def in_step(model: LanguageModel, ranks: Ranks) -> Iterator[None]:
    """Within the context, ranks may run different numbers of forwards. A leaving rank waits, even after an error.

    An error within a forward interrupts the forward of the other ranks, so it ends this rank at once: Halfway.
    """
    within = False

    def begin(*_: Any) -> None:
        nonlocal within
        ranks.agree(1)
        within = True

    def end(*_: Any) -> None:
        nonlocal within
        within = False

    # Before the hook that gathers the weights: ranks agree whether any still works before the next forward.
    hooks = [model.register_forward_pre_hook(begin, prepend=True), model.register_forward_hook(end)]
    try:
        yield
    except Exception as error:
        if within:
            raise Halfway(f"{type(error).__name__} in a forward that all ranks share: {error}") from error
        raise
    finally:
        for hook in hooks:
            hook.remove()
        if not within:
            token_BT = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
            while ranks.agree(0):
                model(tokens_BT=token_BT)  # by keyword, so that `counting` ignores it


@contextmanager
def restored(model: Any) -> Iterator[None]:
    """Within the context, the weights of a sharded model may change; afterwards they are restored bit by bit."""
    model.reshard()
    local = [local_part(parameter).detach() for parameter in model.parameters()]
    before = [part.clone() for part in local]
    model.zero_grad()
    try:
        yield
    finally:
        model.reshard()
        with torch.no_grad():
            for part, old in zip(local, before, strict=True):
                part.copy_(old)
        model.zero_grad()
