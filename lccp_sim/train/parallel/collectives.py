"""The collectives of layers in training, among ranks that share a row's tokens or the experts."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from lccp_sim.models.attention import attend_pieces
from lccp_sim.models.comm import Comm
from lccp_sim.models.experts import Experts
from lccp_sim.train.parallel.layout import starts
from lccp_sim.train.parallel.torch_private import all_to_all_single_autograd


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered_weights(group: Any, x: Tensor) -> Tensor:
    """[ranks, *x.shape]: `x` of every rank of `group`. Its backward pass is the reduce-scatter that gloo lacks."""
    return all_to_all_single_autograd(torch.stack([x] * dist.get_world_size(group)), None, None, group)


class NeighbourComm(Comm):
    """A rank that shares rows of the batch or experts: `rows` and `experts` are process groups, None if not shared."""

    def __init__(self, rows: Any = None, experts: Any = None):
        self.rows, self.experts, self.experts_apart = rows, experts, experts is not None

    def attend(self, local: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """[B, S, N, H]: attention of this rank's two pieces of each row to the keys of all ranks that share the row."""
        if self.rows is None:
            return local(*inputs)
        q_BSNH, k_BSMH, v_BSMH, scale, bounds, window = inputs
        pieces = [part.chunk(2, dim=1) for part in gathered_weights(self.rows, torch.cat((k_BSMH, v_BSMH), dim=-1))]
        kv_BTMH = torch.cat([early for early, _ in pieces] + [late for _, late in reversed(pieces)], dim=1)
        first = starts(kv_BTMH.shape[1], dist.get_rank(self.rows), len(pieces))
        k_BTMH, v_BTMH = kv_BTMH.chunk(2, dim=-1)
        return attend_pieces(q_BSNH, k_BTMH, v_BTMH, scale, bounds, window, first)

    def dispatch(
        self, run: Experts, x_RD: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EFD: Tensor, count_E: Tensor
    ) -> Tensor:
        """[R, D]: the result of `run`, each row computed by the rank that holds its expert.

        `x_RD` is sorted by expert, and the weights are DTensors sharded by expert. One all-to-all sends the rows, one
        returns the results (arXiv 2006.16668, section 3.2, without a capacity: no row is dropped), and a small one
        before them exchanges the counts.
        """
        if self.experts is None:
            return run(x_RD, gate_EFD, up_EFD, down_EFD, count_E)
        sent_PE = count_E.view(dist.get_world_size(self.experts), -1)
        got_PE = torch.empty_like(sent_PE)
        dist.all_to_all_single(got_PE, sent_PE, group=self.experts)
        here, there = got_PE.sum(1).tolist(), sent_PE.sum(1).tolist()
        x_SD = all_to_all_single_autograd(x_RD, here, there, self.experts)
        # The rows from each rank are sorted by expert; a backend needs them sorted over all ranks.
        expert_E = torch.arange(got_PE.shape[1], device=x_RD.device)
        order_S = expert_E.repeat(len(got_PE)).repeat_interleave(got_PE.flatten()).argsort(stable=True)
        gate, up, down = map(local_part, (gate_EFD, up_EFD, down_EFD))
        y_SD = run(x_SD[order_S], gate, up, down, got_PE.sum(0))
        return all_to_all_single_autograd(y_SD[order_S.argsort()], there, here, self.experts)

    def mean(self, x: Tensor) -> Tensor:
        """The average over the ranks that share a row, in fp32."""
        return x if self.rows is None else gathered_weights(self.rows, x.float()).mean(0)
