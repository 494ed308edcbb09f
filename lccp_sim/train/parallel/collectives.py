"""What stands in for a model's local functions where other ranks hold a row's tokens, or the experts."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from lccp_sim.models.attention import attend_pieces
from lccp_sim.models.experts import Experts
from lccp_sim.train.parallel.layout import starts
from lccp_sim.train.parallel.torch_private import all_to_all_single_autograd


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor that may be cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered_weights(group: Any, x: Tensor) -> Tensor:
    """[ranks, *x.shape]: `x` of every rank of `group`. Its backward pass is the reduce-scatter that gloo lacks."""
    return all_to_all_single_autograd(torch.stack([x] * dist.get_world_size(group)), None, None, group)


def attend_across(
    group: Any, q_BSNH: Tensor, k_BSMH: Tensor, v_BSMH: Tensor, scale: float, bounds: Tensor, window: int | None
) -> Tensor:
    """[B, S, N, H]: `attend` of this rank's two pieces of each row, to the keys of all ranks of `group`."""
    pieces = [part.chunk(2, dim=1) for part in gathered_weights(group, torch.cat((k_BSMH, v_BSMH), dim=-1))]
    kv_BTMH = torch.cat([early for early, _ in pieces] + [late for _, late in reversed(pieces)], dim=1)
    first = starts(kv_BTMH.shape[1], dist.get_rank(group), len(pieces))
    k_BTMH, v_BTMH = kv_BTMH.chunk(2, dim=-1)
    return attend_pieces(q_BSNH, k_BTMH, v_BTMH, scale, bounds, window, first)


def exchange(
    group: Any, run: Experts, x_RD: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EFD: Tensor, count_E: Tensor
) -> Tensor:
    """[R, D]: what `run` gives, each row computed by the rank of `group` that holds its expert.

    `x_RD` is sorted by expert, the weights are DTensors cut by expert. Two all-to-alls there and back (Source: arXiv
    2006.16668, section 3.2, without a capacity: no row is dropped), and a small one before them for the counts.
    """
    sent_PE = count_E.view(dist.get_world_size(group), -1)
    got_PE = torch.empty_like(sent_PE)
    dist.all_to_all_single(got_PE, sent_PE, group=group)
    here, there = got_PE.sum(1).tolist(), sent_PE.sum(1).tolist()
    x_SD = all_to_all_single_autograd(x_RD, here, there, group)
    # From each rank the rows come sorted by expert; a backend wants them sorted over all ranks.
    expert_S = torch.arange(got_PE.shape[1], device=x_RD.device).repeat(len(got_PE)).repeat_interleave(got_PE.flatten())
    order_S = expert_S.argsort(stable=True)
    gate, up, down = map(local_part, (gate_EFD, up_EFD, down_EFD))
    y_SD = run(x_SD[order_S], gate, up, down, got_PE.sum(0))
    return all_to_all_single_autograd(y_SD[order_S.argsort()], there, here, group)
