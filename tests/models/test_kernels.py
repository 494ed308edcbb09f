"""Every gradient by hand against finite differences in fp64, and every value against the plain composition."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lccp_sim.models import kernels
from lccp_sim.models.positions import BaseRope, rotate, rotation

B, T, N, H, D, WIDTH = 2, 5, 3, 4, 6, 4


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def angles() -> tuple[Tensor, Tensor]:
    return rotation(torch.arange(T).expand(B, T), *BaseRope(100.0).frequencies(H), torch.float64)


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def check(function, plain, leaves: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(function(*leaves), plain(*leaves))
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("shape", [(H,), (N, H)], ids=["one weight", "a weight a head"])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    leaves = draw(B, T, N, H), draw(*shape)
    check(lambda *x: kernels.RMSNorm.apply(*x, 1e-3), lambda *x: plain_norm(*x, 1e-3), leaves)


def test_rotation() -> None:
    cos, sin = angles()
    check(lambda x: kernels.Rotate.apply(x, cos, sin), lambda x: rotate(x, cos, sin), (draw(B, T, N, H),))


def test_rotation_then_norm() -> None:
    cos, sin = angles()
    check(
        lambda x, weight: kernels.RotateNorm.apply(x, cos, sin, weight, 1e-3),
        lambda x, weight: plain_norm(rotate(x, cos, sin), weight, 1e-3),
        (draw(B, T, N, H), draw(N, H)),
    )


def test_swiglu() -> None:
    def plain(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        gate, up = (x @ gate_up.T).chunk(2, dim=-1)
        return (F.silu(gate) * up) @ down.T

    check(kernels.SwiGLU.apply, plain, (draw(T, D), draw(2 * WIDTH, D), draw(D, WIDTH)))


@pytest.mark.parametrize("counts", [[4, 3, 3], [0, 10, 0], [5, 0, 5]], ids=str)
def test_mixture(counts: list[int]) -> None:
    """Two experts a token; some experts get no rows."""
    row_R = torch.randperm(10) // 2
    expert_R = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))

    def plain(x: Tensor, weight_R: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        rows = x[row_R]
        gates, ups = (torch.einsum("rd,rfd->rf", rows, w[expert_R]) for w in (gate, up))
        y_RD = torch.einsum("rf,rfd->rd", F.silu(gates) * ups, down[expert_R]) * weight_R[:, None]
        return torch.zeros_like(x).index_add(0, row_R, y_RD)

    weights = tuple(draw(3, WIDTH, D) for _ in range(3))
    check(
        lambda x, weight, *w: kernels.Mixture.apply(x, row_R, weight, *w, counts),
        plain,
        (draw(T, D), draw(10), *weights),
    )
