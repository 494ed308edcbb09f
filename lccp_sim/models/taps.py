"""Context managers that tap every layer's q and k, scale the outputs of heads, or attend as in training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lccp_sim.errors import ConfigError
from lccp_sim.models.language_model import Attended, LanguageModel, Tap


@contextmanager
def tapping(model: LanguageModel, tap: Tap) -> Iterator[None]:
    """Within the context, every forward calls `tap(layer, attended)` once per layer.

    Raises ConfigError at the end if a layer's attention bypassed the tap: the other layers' scores would seem complete.
    """
    seen: set[int] = set()

    def count(layer: int, attended: Attended) -> None:
        seen.add(layer)
        tap(layer, attended)

    model.set_tap(count)
    try:
        # A compiled graph would silently skip the taps.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.set_tap(None)
    missed = sorted(set(range(model.num_layers)) - seen)
    if missed:
        raise ConfigError(
            f"attention of layer {', '.join(map(str, missed[:8]))}{' ...' if len(missed) > 8 else ''} of "
            f"{model.num_layers} bypassed the tap, so its heads cannot be scored (linear attention, a kernel of its "
            "own?); switch the head monitors off (monitors.needle.heads=false, monitors.heads=null, ...)"
        )


@contextmanager
def gating(model: LanguageModel, gate_LN: Tensor) -> Iterator[None]:
    """Within the context, multiply the output of head n in layer l by `gate_LN[l, n]`: 0 masks it, 2 doubles it."""
    model.set_gate(gate_LN.to(model.device))
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.set_gate(None)


@contextmanager
def attending_as_trained(model: LanguageModel) -> Iterator[None]:
    """Within the context, forwards attend as in training, sparsely if that is sparse."""
    model.set_sparse(True)
    try:
        yield
    finally:
        model.set_sparse(False)
