"""How a model reaches the other processes that hold its weights, or tokens of its rows: `model.comm`.

Here it is this process alone; training puts others in (`train/parallel/`). A layer asks it for what takes all of a row
or the experts (`attend`, `mean`, `dispatch`). A monitor hands over the pieces of its work (`map`, `forks`) and goes on
with what came of all of them, so it does not know how many processes there are. Design note: this hangs on the model,
because who has the weights decides.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from lccp_sim.models.experts import Experts

Piece = TypeVar("Piece")
Given = TypeVar("Given")


class Comm:
    """One process, which is number `rank` of `world`, with all experts and all tokens of its rows."""

    rank: int = 0
    world: int = 1
    experts_apart: bool = False  # whether others hold some

    def attend(self, local: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """[B, T, N, H]: what `local` (`attention.attend`) gives of its inputs, to the keys of all tokens of a row."""
        return local(*inputs)

    def dispatch(
        self, run: Experts, x_RD: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EFD: Tensor, count_E: Tensor
    ) -> Tensor:
        """[R, D]: what `run`, an expert backend, gives, wherever the experts are."""
        return run(x_RD, gate_EFD, up_EFD, down_EFD, count_E)

    def mean(self, x: Tensor) -> Tensor:
        """The average over the processes that hold a sequence."""
        return x

    def map(self, work: Callable[[Piece], Given], pieces: Sequence[Piece]) -> list[Given]:
        """`work(piece)` of every piece, in order. One process does it, and all get it; it must be picklable."""
        return [work(piece) for piece in pieces]

    def forks(self, model: Any, work: Callable[[Any, Piece], Given], pieces: Sequence[Piece]) -> list[Given]:
        """`work(fork, piece)` of every piece, in order, where `fork` is the model, and what is done to it is undone."""
        return self.map(lambda piece: work(copy.deepcopy(model), piece), pieces)

    def clip(self, parameters: Iterable[Tensor], limit: float) -> None:
        """None; scales the gradients so that their norm, over all processes, is at most `limit`."""
        nn.utils.clip_grad_norm_(parameters, limit)

    def tokens(self, at_once: int, lengths: Sequence[int]) -> int:
        """The tokens of a forward, at most `at_once`, so that texts of these lengths give each process something."""
        return at_once if self.world == 1 else min(at_once, -(-sum(lengths) // self.world))
