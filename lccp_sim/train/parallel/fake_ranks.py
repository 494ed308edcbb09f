"""One process that stands for one of many, so that a model is cut as training would cut it, with nobody to send to.

The process group is the one of torch's own tests, which sends nothing: a weight on the meta device has a shape and no
memory, and cutting it asks no other rank.
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
    """While it is open, this process is `rank` of `world`; what it yields is the mesh that Lightning would make.

    Raises ConfigError where torch has no such group.
    """
    store, forget = fake_group()
    dist.init_process_group("fake", store=store(), rank=rank, world_size=world)
    try:
        yield init_device_mesh("cpu", (world, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    finally:
        dist.destroy_process_group()
        forget()


def cuts(tensor: Tensor) -> str:
    """How a tensor is cut, in words: each dimension and the number of ranks that share it; `whole` where it is not."""
    if not isinstance(tensor, DTensor):
        return "whole"
    ways = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    # FSDP names its own cut first, the experts' afterwards: dimensions in order read better.
    words = sorted(f"dim {place.dim} by {size}" for place, size in ways if hasattr(place, "dim"))
    return ", ".join(words) or "whole"
