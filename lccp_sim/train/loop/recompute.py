"""Activation checkpointing from outside the model: some blocks keep only their input and rerun in the backward pass.

A block reruns with the same input, weights and selection bias. The rerun's row counts and router losses are dropped;
those of the first run count. Without gradients nothing is kept anyway, so monitors are not affected.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from lccp_sim.models.transformer import Transformer


def recompute(model: Transformer, every: int | None) -> None:
    """Make the first of every `every` blocks keep only its input (None: all blocks keep everything).

    The last block then often keeps everything: rerunning it saves nothing at the peak, which is its own backward pass.
    """
    for block in model.layers[::every] if every else ():
        if "forward" not in vars(block):  # Lightning may call this twice
            block.forward = partial(_twice, block.forward)  # type: ignore[method-assign]


def _twice(forward: Callable[..., Any], *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)  # a block draws nothing random
