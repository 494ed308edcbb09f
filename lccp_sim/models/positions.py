"""Rotary position embedding: frequencies by variant, and the rotation itself.

A variant is a dataclass with `frequencies(d_head)`; LCCP raises the base. The rotation pairs channel i with channel
i + H/2 (the layout of `transformers`), so that weights move in and out without a permutation.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor


@dataclass(frozen=True)
class BaseRope:
    """Plain RoPE with a base; raising the base is ABF (arXiv 2309.16039, section 4.1)."""

    base: Annotated[float, Gt(1)]
    kind: Literal["base"] = "base"

    def frequencies(self, d_head: int) -> tuple[Tensor, float]:
        """The angle per position of each pair, [H/2] fp64 in radians, and the factor on cos and sin (1)."""
        exponent = torch.arange(0, d_head, 2, dtype=torch.float64) / d_head
        return self.base**-exponent, 1.0


POSITIONS = {"base": BaseRope}


def rotation(positions_BT: Tensor, frequencies: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, each [B, T, 1, H/2] of `dtype`; the angle is formed in fp64.

    In fp32 the product loses about 1e-7 of the angle: at position 500k that is 0.03 radians, and heads see it.
    """
    angle_BTH = positions_BT[..., None].double() * frequencies.to(positions_BT.device)
    cos, sin = angle_BTH.cos() * scale, angle_BTH.sin() * scale
    return cos.to(dtype).unsqueeze(2), sin.to(dtype).unsqueeze(2)


def rotate(x_BTNH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` rotated by its position, same shape and dtype. Source: arXiv 2104.09864, equation 34."""
    first, second = x_BTNH.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
