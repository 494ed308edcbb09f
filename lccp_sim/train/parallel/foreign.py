"""Models and process groups of another trainer: which weights can be measured there, and which rank does it.

Rank 0 measures, and the others wait in a group without timeout. Weights that are sharded over the ranks (FSDP, ZeRO-3,
tensor parallel) are refused: gathering them inside another loop would need that trainer's memory and hooks.
`lccp watch` measures the checkpoints that it saves.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lccp_sim.errors import ConfigError
from lccp_sim.train.parallel.ranks import ALONE, PATIENT, Ranks

WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def ranks_here() -> Ranks:
    """The ranks of the current process group, with a second group without timeout. All ranks must call it."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=PATIENT))


def unwrapped(model: Any) -> nn.Module:
    """The model inside DDP, DataParallel and torch.compile. Raises ConfigError if its weights are sharded."""
    while isinstance(model, WRAPPERS) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, WRAPPERS) else model._orig_mod
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the model is a {type(model).__name__}, not a torch module; hand over the language model")
    flat = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if flat or any(_is_sharded(parameter) for parameter in model.parameters()):
        raise ConfigError(
            "the model's weights are sharded (FSDP, ZeRO-3 or tensor parallel), which the monitors do not gather in "
            "another trainer's loop; save checkpoints and run `lccp watch FOLDER` during the training"
        )
    return model


def _is_sharded(parameter: torch.Tensor) -> bool:
    """Whether a parameter is a DTensor, or partitioned by ZeRO-3."""
    return hasattr(parameter, "device_mesh") or hasattr(parameter, "ds_id")
