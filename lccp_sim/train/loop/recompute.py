"""Activation checkpointing from outside the model: some blocks keep their input alone, and run again in the backward.

A block runs again with the same input, weights and selection bias, and what it returns then is dropped: counts of rows
and router losses are those of the first run. Without gradients nothing is kept anyway, so monitors never meet it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from lccp_sim.models.transformer import Transformer


def recompute(model: Transformer, every: int | None) -> None:
    """None; of every `every` blocks the first keeps its input alone from now on (None: all keep everything).

    The last block is then often one that keeps all: running it again saves nothing at the peak, which is its own
    backward pass.
    """
    for block in model.layers[::every] if every else ():
        if "forward" not in vars(block):  # Lightning may ask twice
            block.forward = partial(_twice, block.forward)  # type: ignore[method-assign]


def _twice(forward: Callable[..., Any], *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn in a block
