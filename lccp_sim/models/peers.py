"""The processes that look at a model together: this one alone, unless training puts others in (`train/parallel/`).

A monitor hands over the pieces of its work, and goes on with what came of all of them. So it does not know how many
processes there are, and what it computes of the pieces is the same on each. Questionable: this hangs on the model, as
do the functions that stand in for local ones (`Attention.attend`, `MoE.dispatch`), because who has the weights decides.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

Piece = TypeVar("Piece")
Given = TypeVar("Given")


class Peers:
    """One process, which is number `rank` of `world`."""

    rank: int = 0
    world: int = 1

    def each(self, work: Callable[[Piece], Given], pieces: Sequence[Piece]) -> list[Given]:
        """`work(piece)` of every piece, in order. One process does it, and all get it; it must be picklable."""
        return [work(piece) for piece in pieces]

    def forks(self, model: Any, work: Callable[[Any, Piece], Given], pieces: Sequence[Piece]) -> list[Given]:
        """`work(fork, piece)` of every piece, in order, where `fork` is the model, and what is done to it is undone."""
        return self.each(lambda piece: work(copy.deepcopy(model), piece), pieces)

    def clip(self, parameters: Iterable[Tensor], limit: float) -> None:
        """None; scales the gradients so that their norm, over all processes, is at most `limit`."""
        nn.utils.clip_grad_norm_(parameters, limit)

    def tokens(self, at_once: int, lengths: Sequence[int]) -> int:
        """The tokens of a forward, at most `at_once`, so that texts of these lengths give each process something."""
        return at_once if self.world == 1 else min(at_once, -(-sum(lengths) // self.world))
