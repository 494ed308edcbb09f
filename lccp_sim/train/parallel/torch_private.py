"""Private parts of torch that lccp-sim uses: the one place to check when torch changes.

Checked with torch 2.13. Older versions lack what the two functions import; the error says so.
"""

from typing import Any

import torch
from torch import _foreach_norm as foreach_norm
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.utils._pytree import tree_map

from lccp_sim.errors import ConfigError

__all__ = [
    "all_to_all_single_autograd",
    "compute_local_shape_and_global_offset",
    "fake_group",
    "foreach_norm",
    "placement_on_meshes",
    "tree_map",
]


def placement_on_meshes() -> tuple[Any, Any]:
    """The classes that tell FSDP which of several meshes shards a parameter. Raises ConfigError without them."""
    try:
        from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult
    except ImportError:
        raise ConfigError(f"run.ep: torch {torch.__version__} cannot shard over two meshes; 2.13 can") from None
    return FSDPMeshInfo, ShardPlacementResult


def fake_group() -> tuple[Any, Any]:
    """The store of a process group that sends nothing, and the reset of torch's cache of meshes. Raises ConfigError.

    Torch caches a mesh by its ranks, not by the current rank: without the reset the next group would seem to have this
    rank.
    """
    try:
        from torch.distributed.tensor.debug import _clear_sharding_prop_cache
        from torch.testing._internal.distributed.fake_pg import FakeStore
    except ImportError:
        raise ConfigError(f"--dry-run: torch {torch.__version__} has no fake process group; 2.13 has one") from None
    return FakeStore, _clear_sharding_prop_cache
