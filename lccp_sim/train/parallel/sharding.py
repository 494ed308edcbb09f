"""Weights sharded over the ranks (FSDP2): DTensors on one mesh or, with expert parallelism, on two.

Models do not depend on it: they reach other ranks through their `comm` (`collectives.py`).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from lccp_sim.models.transformer import Transformer
from lccp_sim.train.parallel.collectives import NeighbourComm
from lccp_sim.train.parallel.torch_private import (
    compute_local_shape_and_global_offset,
    foreach_norm,
    placement_on_meshes,
    tree_map,
)
from lccp_sim.train.saved.sharded import ShardPiece

AXES = ("rows", "columns")  # of a mesh with consecutive ranks in a row
# Weights are gathered, and their gradients computed, in bf16. Gradients are summed in fp32; hidden states are not cast.
BF16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
EXPERT_WEIGHTS = ("gate_EFD", "up_EFD", "down_EFD")


def shard(model: Transformer, mesh: DeviceMesh | None, ep: int = 1, cp: int = 1, bf16: bool = False) -> None:
    """Shard the weights over the data-parallel mesh of Lightning, a block at a time (None: leave them unsharded).

    With `ep`, the mesh has rows of `ep` consecutive ranks: experts are sharded by number along a row, and by width
    across rows. With `cp`, that many neighbours attend to each other's tokens, and average the statistics that router
    losses take over a sequence. `bf16`: every forward runs under autocast, so weights that only enter matrix products
    are gathered in bf16.
    """
    if mesh is None or isinstance(model, FSDPModule):
        return
    ranks = mesh["data_parallel"]

    def mesh_of(neighbours: int) -> DeviceMesh:
        return init_device_mesh(ranks.device_type, (ranks.size() // neighbours, neighbours), mesh_dim_names=AXES)

    experts, rows = (mesh_of(neighbours) if neighbours > 1 else None for neighbours in (ep, cp))
    place = _by_width(ranks.size()) if experts is None else _place_experts(model, experts)
    model.set_comm(NeighbourComm(*(None if mesh is None else mesh["columns"].get_group() for mesh in (rows, experts))))
    for block in model.layers:
        if bf16:  # weights that multiply the residual stream stay fp32
            exact = [block.attention_norm, block.moe_norm, *([block.moe.router] if block.moe is not None else [])]
            fully_shard(exact, mesh=ranks)
        cut = fully_shard(
            block, mesh=ranks, shard_placement_fn=place, mp_policy=BF16 if bf16 else MixedPrecisionPolicy()
        )
        if ep > 1:
            # The exchange sums an expert's gradients over its row of ranks, FSDP over the rows; the mean is over both.
            cut.set_gradient_divide_factor(ranks.size())
            # gloo cannot scale while it sums; with one row there is no sum, and torch would scale twice.
            cut.set_force_sum_reduction_for_comms(ranks.size() > ep)
    fully_shard(model, mesh=ranks)


def _by_width(ranks: int) -> Callable[[nn.Parameter], Any]:
    """Shard experts by width if sharding by number would be uneven or leave ranks empty (64 experts on 512 ranks)."""

    def place(parameter: nn.Parameter) -> Shard | None:
        experts = parameter.ndim == 3
        return Shard(1) if experts and parameter.shape[0] % ranks and not parameter.shape[1] % ranks else None

    return place


def _place_experts(model: Transformer, mesh: DeviceMesh) -> Callable[[nn.Parameter], Any]:
    """Shard the experts over the second axis of `mesh`; return the choice of mesh and dimension for FSDP."""
    mesh_info, placement = placement_on_meshes()
    rows, columns = (mesh[axis] for axis in AXES)
    for block in model.layers:
        if block.moe is not None:
            for name in EXPERT_WEIGHTS:
                weight = distribute_tensor(getattr(block.moe, name).data, columns, [Shard(0)], src_data_rank=None)
                setattr(block.moe, name, nn.Parameter(weight))
    across = placement(Shard(1), mesh_info(rows, shard_mesh_dim=0))
    return lambda parameter: across if isinstance(parameter, DTensor) else None


@torch.no_grad()
def fill(model: Transformer, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Give a model on the meta device memory for this rank's share, and copy its part of each of `weights`.

    The weights are full tensors and come one at a time, so a rank never holds more than its share and one tensor.
    Weights that are missing stay undefined. A model on another device is unchanged.
    """
    if next(model.parameters()).device.type != "meta":
        return
    meshes = [p.device_mesh for p in model.parameters() if isinstance(p, DTensor)]
    cuda = bool(meshes) and meshes[0].device_type == "cuda"
    model.to_empty(device=torch.device("cuda", torch.cuda.current_device()) if cuda else "cpu")
    own = model.state_dict()
    for name, weight in weights:
        own[name].copy_(cut_as(weight, own[name]))
        del weight  # before making the next one


def clip(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Clip all gradients to the norm `limit`, over all ranks and meshes; return the norm before."""
    by_mesh: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        by_mesh.setdefault(parameter.device_mesh if isinstance(parameter, DTensor) else None, []).append(parameter)
    # Squares are summed in fp64: in fp32 the norm is off by some 1e-5, which differs between layouts.
    squares = []
    for each in by_mesh.values():
        norms = foreach_norm([p.grad for p in each if p.grad is not None], 2, torch.float64)
        square = torch.stack(norms).square().sum()
        squares.append(square.full_tensor() if isinstance(square, DTensor) else square)
    norm = torch.stack(squares).sum().sqrt().float()
    for each in by_mesh.values():
        nn.utils.clip_grads_with_norm_(each, limit, norm)
    return norm


def whole_tensors(state: Any) -> Any:
    """The same tree with full tensors, on the CPU. Every rank must call it."""
    return tree_map(lambda value: value.full_tensor().cpu() if isinstance(value, DTensor) else value, state)


def cut_as(value: Any, like: Any) -> Any:
    """A full tensor sharded as `like`; any other value unchanged. Only this rank's part of a piece is read."""
    alike = isinstance(like, DTensor) and isinstance(value, Tensor | ShardPiece) and value.shape == like.shape
    if not alike:
        return value.whole() if isinstance(value, ShardPiece) else value
    if isinstance(value, ShardPiece):
        sizes, offsets = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
        local = value.read(offsets, sizes).to(like.device)
        kind = {"shape": like.shape, "stride": like.stride()}
        return DTensor.from_local(local, like.device_mesh, like.placements, run_check=False, **kind)
    cut = distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return cut.clone()  # else it may be a view that keeps the full tensor alive
