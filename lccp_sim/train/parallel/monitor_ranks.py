"""The ranks of a run look at its model together: each at its share of the texts, and all get what each saw.

With whole weights (DDP) the ranks look independently. Where weights are cut (FSDP2), each forward gathers them from all
ranks, so all must make the same number of forwards, and `in_step` sees to it: who is done goes along with one token.
Questionable: no text is cut in a look, not even where rows of training are (`run.cp`). Without gradients the
activations of one layer alone are held, and heads are scored on whole rows, with no softmax to be merged.
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
    """While it is open, what looks at the model is shared out over the ranks. All of them must open it."""
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
            model.reshard()  # what the last forward left gathered: embeddings and head


class WindowComm(Comm):
    """Ranks each of which holds all weights, and measures whole rows."""

    def __init__(self, ranks: Ranks):
        self.ranks, self.rank, self.world = ranks, ranks.rank, ranks.world

    def __deepcopy__(self, memo: Any) -> Comm:
        """A copy of the model is known to this rank alone."""
        return Comm()

    def map(self, work: Callable[[Piece], Given], pieces: Sequence[Piece]) -> list[Given]:
        """Piece i is the work of rank i mod `world`. Raises on every rank what the work raised on any."""
        shares = self.ranks.gather(lambda: self._mine(work, pieces[self.rank :: self.world]))
        return [shares[i % self.world][i // self.world] for i in range(len(pieces))]

    def _mine(self, work: Callable[[Piece], Given], pieces: Sequence[Piece]) -> list[Given]:
        return [work(piece) for piece in pieces]


class ShardedComm(WindowComm):
    """Ranks over which the weights of `model` are sharded. Experts are where training has them; rows are unsharded."""

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
        """One piece after the other, by all ranks together: a whole copy may fit none of them."""
        given = []
        for piece in pieces:
            with restored(model):
                given.append(work(model, piece))
        return given

    def clip(self, parameters: Iterable[Tensor], limit: float) -> None:
        """None; clips over all ranks and meshes."""
        clip(parameters, limit)


@contextmanager
def in_step(model: LanguageModel, ranks: Ranks) -> Iterator[None]:
    """While it is open, ranks may make different numbers of forwards: who leaves, if by an error, waits for the others.

    An error within a forward leaves the others in the middle of theirs, so it ends this rank at once: Halfway.
    """
    within = False

    def begin(*_: Any) -> None:
        nonlocal within
        ranks.agree(1)
        within = True

    def end(*_: Any) -> None:
        nonlocal within
        within = False

    # Before the hook that gathers the weights: who is done asks before it goes along.
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
                model(tokens_BT=token_BT)  # by name: `counting` leaves it out


@contextmanager
def restored(model: Any) -> Iterator[None]:
    """While it is open, the weights of a model that is cut may change; then they are as before, to the bit."""
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
