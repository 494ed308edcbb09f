"""One process in the role of one rank of many, to shard a model as training would, without communication.

The process group is that of torch's own tests, which sends nothing: a weight on the meta device has a shape but no
memory, and sharding it needs no other rank.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from lccp_sim.train.parallel.torch_private import fake_group


@contextmanager
def fake_rank(rank: int, world: int) -> Iterator[DeviceMesh]:
    """Within the context, this process is `rank` of `world`. Yields the mesh that Lightning would make.

    Raises ConfigError if torch has no such group.
    """
    store, forget = fake_group()
    dist.init_process_group("fake", store=store(), rank=rank, world_size=world)
    try:
        yield init_device_mesh("cpu", (world, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    finally:
        dist.destroy_process_group()
        forget()


def cuts(tensor: Tensor) -> str:
    """The sharding of a tensor as text: each sharded dimension with the number of ranks, or `whole`."""
    if not isinstance(tensor, DTensor):
        return "whole"
    ways = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    # FSDP lists its own dimension before the experts'; dimensions in order are easier to read.
    words = sorted(f"dim {place.dim} by {size}" for place, size in ways if hasattr(place, "dim"))
    return ", ".join(words) or "whole"
