"""Whatever a model asks of other processes, it asks its `comm`."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from lccp_sim.models.comm import Comm
from lccp_sim.models.transformer import Transformer
from lccp_sim.train.parallel.monitor_ranks import WindowComm
from lccp_sim.train.parallel.ranks import Ranks


class Told(Comm):
    """Alone, and counts what it is asked; `experts_apart` keeps the fused kernel away."""

    experts_apart = True

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def attend(self, *a: Any, **k: Any) -> Any:
        self.asked["attend"] += 1
        return super().attend(*a, **k)

    def dispatch(self, *a: Any, **k: Any) -> Any:
        self.asked["dispatch"] += 1
        return super().dispatch(*a, **k)

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        self.asked["mean"] += 1
        return super().mean(x)


def test_every_layer_asks_the_comm_of_its_model(model: Callable[..., Transformer]) -> None:
    ours = model(num_dense_layers=1, d_dense=48)
    tokens_BT = torch.arange(24).view(2, 12)
    alone, comm = ours(tokens_BT), Told()
    ours.set_comm(comm)
    asked = ours(tokens_BT)
    assert comm.asked == {"attend": 3, "dispatch": 2, "mean": 4}
    torch.testing.assert_close(asked.hidden_BTD, alone.hidden_BTD)
    assert asked.balance_loss == alone.balance_loss


def test_a_copy_of_a_model_that_ranks_share_is_this_ranks_alone(model: Callable[..., Transformer]) -> None:
    ours = model()
    ours.set_comm(WindowComm(Ranks(1, 2, waiting=None)))
    fork = copy.deepcopy(ours)
    assert (ours.comm.rank, ours.comm.world) == (1, 2) and type(fork.comm) is Comm
    assert {id(block.attention.comm) for block in fork.layers} == {id(fork.comm)}
    assert fork.comm.map(lambda piece: 2 * piece, [1, 2, 3]) == [2, 4, 6]
