"""The fused steps against finite differences in fp64, and against the plain formulas of their docstrings."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from lccp_sim.models import kernels
from lccp_sim.models.positions import BaseRope, rotate, rotation

B, T, N, H, D, WIDTH, E = 2, 3, 3, 4, 4, 3, 3


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def angles(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    return rotation(torch.tensor([[0, 5, 9], [2, 1, 7]]), BaseRope(50.0).frequencies(H)[0], scale, torch.float64)


@pytest.mark.parametrize("zero", [False, True])
def test_rms_norm(zero: bool) -> None:
    x, weight = leaf(B, T, N, H), leaf(N, H)
    if zero:
        weight = weight.detach().index_fill(1, torch.tensor([2]), 0).requires_grad_()
    assert gradcheck(lambda x, w: kernels.RMSNormFunction.apply(x, w, 1e-5), (x, weight))
    plain = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(kernels.RMSNormFunction.apply(x, weight, 1e-5), plain)


@pytest.mark.parametrize("scale", [1.0, 1.3])
@pytest.mark.parametrize("zero", [False, True])
def test_rotation_and_the_norm_after_it(zero: bool, scale: float) -> None:
    x, weight, (cos, sin) = leaf(B, T, N, H), leaf(N, H), angles(scale)
    if zero:
        weight = weight.detach().index_fill(1, torch.tensor([2]), 0).requires_grad_()
    torch.testing.assert_close(kernels.RotateFunction.apply(x, cos, sin), rotate(x, cos, sin), rtol=0, atol=1e-14)
    assert gradcheck(lambda x: kernels.RotateFunction.apply(x, cos, sin), (x,))
    turned = rotate(x, cos, sin)
    plain = turned / (turned.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(kernels.RotateNormFunction.apply(x, cos, sin, weight, 1e-5), plain)
    assert gradcheck(lambda x, w: kernels.RotateNormFunction.apply(x, cos, sin, w, 1e-5), (x, weight))


def test_angles_keep_their_precision_in_bf16() -> None:
    """Half a million positions on, an angle in bf16 would be noise: only the result is rounded."""
    x = torch.randn(1, 1, 1, 64).bfloat16()
    cos, sin = rotation(torch.tensor([[500_000]]), *BaseRope(1e4).frequencies(64), torch.float32)
    got = kernels.RotateFunction.apply(x, cos, sin)
    assert torch.equal(got, rotate(x.float(), cos, sin).bfloat16())


def test_swiglu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ROWS", 2)
    x, gate_up, down = leaf(T, D), leaf(2 * WIDTH, D), leaf(D, WIDTH)
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    torch.testing.assert_close(kernels.SwiGLUFunction.apply(x, gate_up, down), (F.silu(gate) * up) @ down.T)
    assert gradcheck(kernels.SwiGLUFunction.apply, (x, gate_up, down))


@pytest.mark.parametrize("counts", [[2, 3, 1], [0, 6, 0], [3, 0, 3]], ids=str)
def test_mixture(counts: list[int]) -> None:
    x, weight, gate, up, down = leaf(T, D), leaf(6), leaf(E, WIDTH, D), leaf(E, WIDTH, D), leaf(E, WIDTH, D)
    row_R = torch.tensor([0, 1, 2, 1, 0, 2])
    expert_R = torch.repeat_interleave(torch.arange(E), torch.tensor(counts))
    got = kernels.MixtureFunction.apply(x, row_R, weight, gate, up, down, counts)
    hidden = F.silu(torch.einsum("rd,rfd->rf", x[row_R], gate[expert_R])) * torch.einsum(
        "rd,rfd->rf", x[row_R], up[expert_R]
    )
    rows = torch.einsum("rf,rfd->rd", hidden, down[expert_R]) * weight[:, None]
    torch.testing.assert_close(got, torch.zeros_like(x).index_add(0, row_R, rows))
    assert gradcheck(
        lambda *leaves: kernels.MixtureFunction.apply(leaves[0], row_R, *leaves[1:], counts),
        (x, weight, gate, up, down),
    )


@pytest.mark.parametrize("counts", [[23, 0, 41], [64, 0, 0], [8, 40, 16]], ids=str)
def test_rows_that_fill_up_in_bf16_change_nothing(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = kernels.MixtureFunction.apply
    monkeypatch.setattr(kernels.MixtureFunction, "apply", lambda *args: seen.append(args[-1]) or real(*args))
    shapes = (T, D), (64,), (E, WIDTH, D), (E, WIDTH, D), (E, WIDTH, D)
    leaves = tuple(torch.randn(shape).bfloat16().requires_grad_() for shape in shapes)
    row_R = torch.randint(T, (64,))
    filled, plain = (run(leaves[0], row_R, *leaves[1:], counts) for run in (kernels.mixture, real))
    assert all(n % 8 == 0 for n in seen[0]) and sum(seen[0]) >= 64
    grads = [torch.autograd.grad(y.square().sum(), leaves) for y in (filled, plain)]
    for got, want in zip((filled, *grads[0]), (plain, *grads[1]), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2 * want.abs().max().item())
