"""Expert backends: SwiGLU experts on rows that are already sorted by expert.

Every backend is a function `(x_RD, gate_EFD, up_EFD, down_EFD, count_E) -> y_RD` and must agree with `loop`, the
reference. Weights are three parameters [E, F, D]. Each backend gets its layout by a view, so none copies them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Experts = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def loop(x_RD: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EFD: Tensor, count_E: Tensor) -> Tensor:
    """[R, D], one expert after the other. Uses `unbind`: the backward of `w[i]` would write E full-size gradients."""
    rows = x_RD.split(count_E.tolist())
    weights = zip(rows, gate_EFD.unbind(0), up_EFD.unbind(0), down_EFD.unbind(0), strict=True)
    return torch.cat([(F.silu(x @ gate.T) * (x @ up.T)) @ down for x, gate, up, down in weights])


def grouped_mm(x_RD: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EFD: Tensor, count_E: Tensor) -> Tensor:
    """[R, D] by torch's grouped matrix product; row strides must be multiples of 16 bytes.

    Padding rows, which are beyond the counts, go to the last expert: rows outside the product would be undefined.
    """
    ends_E = count_E.cumsum(0).to(torch.int32)
    ends_E[-1:].fill_(len(x_RD))
    gate = F.grouped_mm(x_RD, gate_EFD.transpose(1, 2), offs=ends_E)
    up = F.grouped_mm(x_RD, up_EFD.transpose(1, 2), offs=ends_E)
    return F.grouped_mm(F.silu(gate) * up, down_EFD, offs=ends_E)


def megablocks(
    x_RD: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EFD: Tensor, count_E: Tensor, ops: Any = None
) -> Tensor:
    """[R, D] by MegaBlocks' grouped GEMM (arXiv 2211.15841), CUDA and bf16 only; tests replace `ops`.

    Only `gmm` of MegaBlocks' ops is called. Its sort, histogram, gather and scatter are not needed: every backend gets
    rows that are sorted by expert, so routing has one definition and one gradient for all of them.
    The sizes must be on the CPU: one host sync per layer. Raises ImportError if grouped_gemm is not installed.
    """
    if ops is None:
        from grouped_gemm import ops  # type: ignore[import-not-found, no-redef]
    sizes = count_E.to("cpu", torch.int64)
    gate = ops.gmm(x_RD, gate_EFD, sizes, trans_b=True)
    up = ops.gmm(x_RD, up_EFD, sizes, trans_b=True)
    return ops.gmm(F.silu(gate) * up, down_EFD, sizes)


EXPERTS: dict[str, Experts] = {"loop": loop, "grouped_mm": grouped_mm, "megablocks": megablocks}


def choose_backend(name: str, d_model: int, d_expert: int, device: torch.device, dtype: torch.dtype) -> Experts:
    """The backend called `name`; `auto` is `grouped_mm` if the strides allow it, else the loop."""
    if name != "auto":
        return EXPERTS[name]
    aligned = d_model * dtype.itemsize % 16 == 0 and d_expert * dtype.itemsize % 16 == 0
    return grouped_mm if aligned and (device.type == "cuda" or d_model >= 512) else loop
