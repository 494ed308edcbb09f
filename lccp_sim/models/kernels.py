"""Fused steps of the decoder with hand-written gradients: they keep only what is expensive to recompute.

Autograd would keep every intermediate of a norm, a rotation or a SwiGLU; here the backward pass recomputes them from
the inputs. The tests compare each with its plain formula.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

ROWS = 1024


def divides(weight: Tensor) -> bool:
    """Whether no element is zero, so that one may divide by it. False on a GPU, where the check would synchronise."""
    return weight.device.type == "cpu" and bool(weight.all())


class RMSNormFunction(Function):
    """x / rms(x) * weight over the last dimension; `weight` has the shape of x's last dimensions.

    It keeps 1/rms and its own output, which the next product keeps anyway, and divides the weight out again. x itself
    is kept only if a weight is zero.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        power = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        inverse = power.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y = (x * inverse.to(x.dtype)).mul_(weight)
        ctx.keeps_y = divides(weight)
        ctx.save_for_backward(y if ctx.keeps_y else x, weight, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        kept, weight, inverse = ctx.saved_tensors
        unit = kept / weight if ctx.keeps_y else kept * inverse.to(kept.dtype)
        product = grad * unit
        grad_weight = product.reshape(-1, *weight.shape).sum(0)
        mean = product.mul_(weight).mean(-1, keepdim=True)
        grad_x = torch.mul(grad, weight, out=product).sub_(unit.mul_(mean)).mul_(inverse.to(grad.dtype))
        return grad_x, grad_weight, None


def turn(x_BTNH: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """`x` rotated by its angle, or back (`direction` -1); the pairs are channels i and i + H/2."""
    half = x_BTNH.shape[-1] // 2
    out = torch.empty(x_BTNH.shape, dtype=x_BTNH.dtype, device=x_BTNH.device)
    first, second = x_BTNH[..., :half], x_BTNH[..., half:]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin, value=direction)
    return out


class RotateFunction(Function):
    """RoPE; its gradient is the inverse rotation, so it keeps only the angles. Works in the precision of the angles."""

    @staticmethod
    def forward(ctx: Any, x_BTNH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x_BTNH.to(cos.dtype), cos, sin, 1).to(x_BTNH.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return turn(grad.to(cos.dtype), cos, sin, -1).to(grad.dtype), None, None


class RotateNormFunction(Function):
    """RoPE, then RMSNorm of each head with `weight_NH`. Keeps 1/rms and its output, as RMSNormFunction does."""

    @staticmethod
    def forward(ctx: Any, x_BTNH: Tensor, cos: Tensor, sin: Tensor, weight_NH: Tensor, eps: float) -> Tensor:
        x = x_BTNH.to(cos.dtype)
        # Rotation preserves the norm, so it is known before; YaRN's factor on cos and sin scales it (1 stays 1).
        stretch = cos[:1, :1, :, :1].square() + sin[:1, :1, :, :1].square()
        stretch = torch.where((stretch - 1).abs() < 1e-5, 1.0, stretch)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().mul_(stretch)
        inverse = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        y = turn(x, cos, sin, 1).mul_(inverse).mul_(weight_NH).to(x_BTNH.dtype)
        ctx.keeps_y = divides(weight_NH)
        ctx.save_for_backward(y if ctx.keeps_y else x_BTNH, cos, sin, weight_NH, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, Tensor, None]:
        kept, cos, sin, weight_NH, inverse = ctx.saved_tensors
        dtype, grad, kept = grad.dtype, grad.to(cos.dtype), kept.to(cos.dtype)
        unit = kept / weight_NH if ctx.keeps_y else turn(kept, cos, sin, 1).mul_(inverse)
        product = grad * unit
        grad_weight = product.flatten(0, 1).sum(0)
        mean = product.mul_(weight_NH).mean(-1, keepdim=True)
        torch.mul(grad, weight_NH, out=product).sub_(unit.mul_(mean)).mul_(inverse)
        return turn(product, cos, sin, -1).to(dtype), None, None, grad_weight, None


class SwiGLUFunction(Function):
    """(silu(x gate^T) * (x up^T)) down^T with gate and up stacked [2F, D], down [D, F]. Keeps x and that product."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, gate_up: Tensor, down_DF: Tensor) -> Tensor:
        hidden = x_TD @ gate_up.T
        ctx.save_for_backward(x_TD, gate_up, down_DF, hidden)
        gate, up = hidden.chunk(2, dim=-1)
        return F.silu(gate).mul_(up) @ down_DF.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_TD, gate_up, down_DF, hidden_TF = ctx.saved_tensors
        grad_x_TD, grad_gate_up, grad_down = (
            torch.empty_like(x_TD),
            torch.zeros_like(gate_up),
            torch.zeros_like(down_DF),
        )
        # A slice of rows at a time, so that intermediates stay in the cache.
        slices = (t.split(ROWS) for t in (x_TD, hidden_TF, grad_TD, grad_x_TD))
        for x, hidden, grad, grad_x in zip(*slices, strict=True):
            gate, up = hidden.chunk(2, dim=-1)
            silu = F.silu(gate)
            grad_down.addmm_(grad.T, silu * up)
            grad = grad @ down_DF
            grad_hidden = torch.cat((torch.ops.aten.silu_backward(grad * up, gate), silu.mul_(grad)), dim=-1)
            torch.mm(grad_hidden, gate_up, out=grad_x)
            grad_gate_up.addmm_(grad_hidden.T, x)
        return grad_x_TD, grad_gate_up, grad_down


def mixture(
    x_TD: Tensor, row_R: Tensor, weight_R: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EFD: Tensor, counts: list[int]
) -> Tensor:
    """The sum of `MixtureFunction`. In bf16 each expert's rows are padded to a round number, with rows of weight zero.

    In bf16 a CPU compiles a kernel (0.5 ms, 0.6 MiB, cached) for every new number of rows, and routing rarely repeats
    one.
    """
    if x_TD.dtype != torch.float32:
        step = 1 << max(3, (len(row_R) // len(counts) // 8).bit_length() - 1)  # at most an eighth of the mean load
        count_E = torch.tensor(counts)
        full_E = (count_E + step - 1) // step * step
        shift_E = (full_E - count_E).cumsum(0) - (full_E - count_E)
        place_R = torch.arange(len(row_R)) + shift_E.repeat_interleave(count_E)
        rows = int(full_E.sum())
        row_R = row_R.new_zeros(rows).index_copy(0, place_R, row_R)
        weight_R = weight_R.new_zeros(rows).index_copy(0, place_R, weight_R)
        counts = full_E.tolist()
    return MixtureFunction.apply(x_TD, row_R, weight_R, gate_EFD, up_EFD, down_EFD, counts)


class MixtureFunction(Function):
    """Sum over a token's experts of weight * expert(x), [T, D], one expert after the other, never gathering all rows.

    `row_R` is the token of each routed row, sorted by expert, and `weight_R` its weight. Keeps x, and gate and up of
    every row. The weight's gradient is a dot product in the expert's width, so the experts' outputs are not kept.
    """

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, row_R: Tensor, weight_R: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EFD: Tensor,
        counts: list[int],
    ) -> Tensor:  # fmt: skip
        shape = (len(row_R), gate_EFD.shape[1])
        gate_RF, up_RF = x_TD.new_empty(shape), x_TD.new_empty(shape)
        y_TD = torch.zeros_like(x_TD)
        for e, rows in _slices(counts):
            x = x_TD[row_R[rows]]
            gate, up = torch.mm(x, gate_EFD[e].T, out=gate_RF[rows]), torch.mm(x, up_EFD[e].T, out=up_RF[rows])
            hidden = F.silu(gate).mul_(up).mul_(weight_R[rows, None])
            y_TD.index_add_(0, row_R[rows], hidden @ down_EFD[e])
        ctx.save_for_backward(x_TD, row_R, weight_R, gate_EFD, up_EFD, down_EFD, gate_RF, up_RF)
        ctx.counts = counts
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, row_R, weight_R, gate_EFD, up_EFD, down_EFD, gate_RF, up_RF = ctx.saved_tensors
        grad_x_TD, grad_weight_R = torch.zeros_like(x_TD), torch.empty_like(weight_R)
        grads = [torch.zeros_like(w) for w in (gate_EFD, up_EFD, down_EFD)]
        for e, rows in _slices(ctx.counts):
            index, weight = row_R[rows], weight_R[rows, None]
            x, grad_y, gate, up = x_TD[index], grad_TD[index], gate_RF[rows], up_RF[rows]
            silu = F.silu(gate)
            hidden = silu * up
            grad = grad_y @ down_EFD[e].T
            torch.sum(grad * hidden, -1, out=grad_weight_R[rows])
            torch.mm(hidden.mul_(weight).T, grad_y, out=grads[2][e])
            grad_up = silu.mul_(grad.mul_(weight))
            grad_gate = torch.ops.aten.silu_backward(grad.mul_(up), gate)
            torch.mm(grad_gate.T, x, out=grads[0][e])
            torch.mm(grad_up.T, x, out=grads[1][e])
            grad_x_TD.index_add_(0, index, (grad_gate @ gate_EFD[e]).addmm_(grad_up, up_EFD[e]))
        return grad_x_TD, None, grad_weight_R, *grads, None


def _slices(counts: list[int]) -> list[tuple[int, slice]]:
    """The experts that got rows, and the slice of rows of each."""
    ends = torch.tensor(counts).cumsum(0).tolist()
    return [(e, slice(end - n, end)) for e, (n, end) in enumerate(zip(counts, ends, strict=True)) if n]
