"""One process that stands for one of many, so that a model is cut as training would cut it, with nobody to send to.

The process group is the one of torch's own tests, which sends nothing: a weight on the meta device has a shape and no
memory, and cutting it asks no other rank.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from lccp_sim.errors import ConfigError


@contextmanager
def fake_rank(rank: int, world: int) -> Iterator[DeviceMesh]:
    """While it is open, this process is `rank` of `world`; what it yields is the mesh that Lightning would make.

    Raises ConfigError where torch has no such group.
    """
    try:
        from torch.distributed.tensor.debug import _clear_sharding_prop_cache as forget
        from torch.testing._internal.distributed.fake_pg import FakeStore
    except ImportError:
        raise ConfigError(f"--dry-run: torch {torch.__version__} has no group that only pretends; 2.13 has") from None
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield init_device_mesh("cpu", (world, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    finally:
        dist.destroy_process_group()
        forget()  # torch knows a mesh by its ranks, not by who asks: the next group would believe to be this rank


def cuts(tensor: Tensor) -> str:
    """How a tensor is cut, in words: each dimension and the number of ranks that share it; `whole` where it is not."""
    if not isinstance(tensor, DTensor):
        return "whole"
    ways = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    # FSDP names its own cut first, the experts' afterwards: dimensions in order read better.
    words = sorted(f"dim {place.dim} by {size}" for place, size in ways if hasattr(place, "dim"))
    return ", ".join(words) or "whole"
