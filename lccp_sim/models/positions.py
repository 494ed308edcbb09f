"""Rotary position embedding: frequencies by variant, and the rotation itself.

A variant is a dataclass with `frequencies(d_head)`; LCCP raises the base or stretches the low frequencies. The rotation
pairs channel i with channel i + H/2 (the layout of `transformers`), so that weights move in and out without a
permutation. Frequencies are fp64, where those of `transformers` are fp32: the tests compare the formulas in fp64.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from lccp_sim.config import Size
from lccp_sim.errors import refuse

Base = Annotated[float, Gt(1)]
Factor = Annotated[float, Ge(1)]


def powers(base: float, d_head: int) -> Tensor:
    """base^(-2i/d) of each pair i, [H/2] fp64, on the CPU whatever the default device is."""
    return base ** -(torch.arange(0, d_head, 2, dtype=torch.float64, device="cpu") / d_head)


def stretched(base: float, factor: float, d_head: int) -> Tensor:
    """Frequencies with the slowest pair `factor` times slower and the fastest unchanged, [H/2] fp64."""
    refuse(d_head < 4, "model.d_head", d_head, "must be at least 4 for rope.kind ntk or alpha")
    return powers(base * factor ** (d_head / (d_head - 2)), d_head)


@dataclass(frozen=True)
class BaseRope:
    """Plain RoPE with a base; raising the base is ABF (arXiv 2309.16039, section 4.1)."""

    base: Base
    kind: Literal["base"] = "base"

    def frequencies(self, d_head: int) -> tuple[Tensor, float]:
        """The angle per position of each pair, [H/2] fp64 in radians, and the factor on cos and sin (1)."""
        return powers(self.base, d_head), 1.0


@dataclass(frozen=True)
class NtkRope:
    """NTK-aware scaling for `factor` times the context, static. Source: arXiv 2309.00071, section 3.1."""

    base: Base
    factor: Factor
    kind: Literal["ntk"] = "ntk"

    def frequencies(self, d_head: int) -> tuple[Tensor, float]:
        """[H/2] fp64 in radians: powers of base * factor^(d/(d-2)); and 1."""
        return stretched(self.base, self.factor, d_head), 1.0


@dataclass(frozen=True)
class AlphaRope:
    """Hunyuan's constant `alpha`: the formula of NTK, but alpha is not a ratio of contexts (1000 for 256k from 8k)."""

    base: Base
    alpha: Factor
    kind: Literal["alpha"] = "alpha"

    def frequencies(self, d_head: int) -> tuple[Tensor, float]:
        """[H/2] fp64 in radians: powers of base * alpha^(d/(d-2)); and 1."""
        return stretched(self.base, self.alpha, d_head), 1.0


@dataclass(frozen=True)
class LinearRope:
    """Position interpolation: positions divided by `factor`. Source: arXiv 2306.15595."""

    base: Base
    factor: Factor
    kind: Literal["linear"] = "linear"

    def frequencies(self, d_head: int) -> tuple[Tensor, float]:
        """[H/2] fp64 in radians; and 1."""
        return powers(self.base, d_head) / self.factor, 1.0


@dataclass(frozen=True)
class YarnRope:
    """YaRN: within the original context, pairs of over `beta_fast` turns stay and those below `beta_slow` slow down.

    `attention_factor` (null: 0.1 ln factor + 1, or the ratio that `mscale` and `mscale_all_dim` give) multiplies cos
    and sin. `truncate` rounds the ends of the ramp to integer pairs, as the authors' code does; gpt-oss does not.
    """

    base: Base
    factor: Factor
    original_context_tokens: Size
    beta_fast: Annotated[float, Gt(0)] = 32.0
    beta_slow: Annotated[float, Gt(0)] = 1.0
    attention_factor: Annotated[float, Gt(0)] | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    kind: Literal["yarn"] = "yarn"

    def __post_init__(self) -> None:
        rule = f"must be above beta_slow={self.beta_slow:g}"
        refuse(self.beta_fast <= self.beta_slow, "model.rope.beta_fast", self.beta_fast, rule)

    def frequencies(self, d_head: int) -> tuple[Tensor, float]:
        """[H/2] fp64 in radians, and the attention factor. Source: arXiv 2309.00071, sections 3.2 and 3.4."""

        def pair(turns: float) -> float:
            """The (fractional) pair that turns this often within the original context."""
            return d_head * math.log(self.original_context_tokens / (turns * 2 * math.pi)) / (2 * math.log(self.base))

        low, high = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, d_head - 1)
        high += 0.001 if low == high else 0
        ramp = ((torch.arange(d_head // 2, dtype=torch.float64, device="cpu") - low) / (high - low)).clamp(0, 1)
        plain = powers(self.base, d_head)
        return plain / self.factor * ramp + plain * (1 - ramp), self._scale()

    def _scale(self) -> float:
        def scale(mscale: float) -> float:
            return 0.1 * mscale * math.log(self.factor) + 1.0

        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return scale(self.mscale) / scale(self.mscale_all_dim)
        return scale(1.0)


@dataclass(frozen=True)
class Llama3Rope:
    """Llama-3.1: long wavelengths are slowed by `factor`, short ones stay, intermediate ones are interpolated.

    Source: Meta's reference code, published with the weights.
    """

    base: Base
    factor: Factor
    low_freq_factor: Annotated[float, Gt(0)]
    high_freq_factor: Annotated[float, Gt(0)]
    original_context_tokens: Size
    kind: Literal["llama3"] = "llama3"

    def __post_init__(self) -> None:
        rule = f"must be above low_freq_factor={self.low_freq_factor:g}"
        bad = self.high_freq_factor <= self.low_freq_factor
        refuse(bad, "model.rope.high_freq_factor", self.high_freq_factor, rule)

    def frequencies(self, d_head: int) -> tuple[Tensor, float]:
        """[H/2] fp64 in radians; and 1."""
        plain = powers(self.base, d_head)
        turns = self.original_context_tokens * plain / (2 * math.pi)
        kept = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return plain / self.factor * (1 - kept) + plain * kept, 1.0


@dataclass(frozen=True)
class ProportionalRope:
    """RoPE on the fastest `partial_rotary_factor` of the pairs; the others do not turn and see content alone.

    A wide head of a large model already has such pairs: a third of Hunyuan-A13B's 64 pairs turn less than once in 32k
    tokens. A head of 16 channels has none to spare. Source: arXiv 2410.06205 (p-RoPE).
    """

    base: Base
    partial_rotary_factor: Annotated[float, Gt(0), Le(1)]
    kind: Literal["proportional"] = "proportional"

    def frequencies(self, d_head: int) -> tuple[Tensor, float]:
        """[H/2] fp64 in radians, 0 for the pairs that do not turn; and 1."""
        plain = powers(self.base, d_head)
        plain[int(self.partial_rotary_factor * d_head // 2) :] = 0
        return plain, 1.0


Rope = BaseRope | NtkRope | AlphaRope | LinearRope | YarnRope | Llama3Rope | ProportionalRope
POSITIONS: dict[str, type[Rope]] = {
    "base": BaseRope, "ntk": NtkRope, "alpha": AlphaRope, "linear": LinearRope, "yarn": YarnRope, "llama3": Llama3Rope,
    "proportional": ProportionalRope,
}  # fmt: skip


def rotation(positions_BT: Tensor, frequencies: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, each [B, T, 1, H/2] of `dtype`; the angle is formed in fp64.

    In fp32 the product loses about 1e-7 of the angle: 0.03 radians at position 500k, which heads notice.
    """
    angle_BTH = positions_BT[..., None].double() * frequencies.to(positions_BT.device, non_blocking=True)
    cos, sin = angle_BTH.cos() * scale, angle_BTH.sin() * scale
    return cos.to(dtype).unsqueeze(2), sin.to(dtype).unsqueeze(2)


def rotate(x_BTNH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` rotated by its position, same shape and dtype. Source: arXiv 2104.09864, equation 34."""
    first, second = x_BTNH.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
