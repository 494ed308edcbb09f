"""How a model reaches the other processes that hold its weights, or tokens of its rows: `model.comm`.

The class here is a single process; training installs others (`train/parallel/`). A layer calls it for work that needs
all tokens of a row or all experts (`attend`, `mean`, `dispatch`). A monitor hands over the pieces of its work (`map`,
`forks`) and gets all results, so it does not know how many processes there are. Design note: `comm` belongs to the
model, because the placement of its weights decides how processes share work.
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
    experts_apart: bool = False  # whether other processes hold some experts

    def attend(self, local: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """[B, T, N, H]: the result of `local` (`attention.attend`), with the keys of all tokens of a row."""
        return local(*inputs)

    def dispatch(
        self, run: Experts, x_RD: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EFD: Tensor, count_E: Tensor
    ) -> Tensor:
        """[R, D]: the result of `run`, an expert backend, wherever the experts are."""
        return run(x_RD, gate_EFD, up_EFD, down_EFD, count_E)

    def mean(self, x: Tensor) -> Tensor:
        """The average over the processes that hold a sequence."""
        return x

    def map(self, work: Callable[[Piece], Given], pieces: Sequence[Piece]) -> list[Given]:
        """`work(piece)` of every piece, in order. One process computes a result, all get it; it must be picklable."""
        return [work(piece) for piece in pieces]

    def forks(self, model: Any, work: Callable[[Any, Piece], Given], pieces: Sequence[Piece]) -> list[Given]:
        """`work(fork, piece)` of every piece, in order. `fork` is the model; changes to it are undone afterwards."""
        return self.map(lambda piece: work(copy.deepcopy(model), piece), pieces)

    def clip(self, parameters: Iterable[Tensor], limit: float) -> None:
        """Scale the gradients so that their norm over all processes is at most `limit`."""
        nn.utils.clip_grad_norm_(parameters, limit)

    def tokens(self, at_once: int, lengths: Sequence[int]) -> int:
        """The tokens of a forward, at most `at_once`, such that texts of these lengths give every process some work."""
        return at_once if self.world == 1 else min(at_once, -(-sum(lengths) // self.world))
