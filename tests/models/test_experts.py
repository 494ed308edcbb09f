"""Every expert backend is the loop, forward and backward, whichever experts are empty; and the loop is the formula."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lccp_sim.models.experts import EXPERTS, choose_backend, loop

COUNTS = {"even": [6, 6, 6, 6], "first empty": [0, 9, 7, 8], "last empty": [11, 5, 8, 0], "all in one": [0, 0, 24, 0]}


def inputs(counts: list[int], dtype: torch.dtype = torch.float32, D: int = 32, F_: int = 16) -> list[Tensor]:
    torch.manual_seed(1)
    E = len(counts)
    shapes = [(sum(counts), D), (E, F_, D), (E, F_, D), (E, F_, D)]
    leaves = [(torch.randn(shape) * shape[-1] ** -0.5 * 2).to(dtype).requires_grad_() for shape in shapes]
    return [*leaves, torch.tensor(counts)]


def outcome(run, arguments: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of x, gate, up and down under a fixed, uneven cotangent."""
    y_RD = run(*arguments)
    cotangent = torch.linspace(-1, 1, y_RD.numel(), dtype=torch.float32).view_as(y_RD).to(y_RD.dtype)
    return [y_RD, *torch.autograd.grad(y_RD, arguments[:4], cotangent)]


def plain(x_RD: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EFD: Tensor, count_E: Tensor) -> Tensor:
    """The definition, a row at a time, with plain operations only."""
    expert_R = torch.repeat_interleave(torch.arange(len(count_E)), count_E)
    gate_RF = torch.einsum("rd,rfd->rf", x_RD, gate_EFD[expert_R])
    up_RF = torch.einsum("rd,rfd->rf", x_RD, up_EFD[expert_R])
    return torch.einsum("rf,rfd->rd", F.silu(gate_RF) * up_RF, down_EFD[expert_R])


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
def test_every_backend_is_the_definition(backend: str, counts: list[int], dtype: torch.dtype, tolerance: float) -> None:
    arguments = inputs(counts, dtype)
    doubles = [a.detach().double().requires_grad_() if a.is_floating_point() else a for a in arguments]
    for ours, truth in zip(outcome(EXPERTS[backend], arguments), outcome(plain, doubles), strict=True):
        assert ours.dtype == dtype and ours.shape == truth.shape
        assert (ours.double() - truth).abs().max() <= tolerance * truth.abs().max()


def test_the_loop_has_exact_gradients() -> None:
    """Finite differences in fp64, which no formula of ours can influence."""
    x, gate, up, down, count = inputs([3, 0, 2], torch.float64, D=4, F_=3)
    assert torch.autograd.gradcheck(lambda *leaves: loop(*leaves, count), (x, gate, up, down))


def test_an_empty_expert_gets_a_zero_gradient(backend: str) -> None:
    _, _, *weights = outcome(EXPERTS[backend], inputs(COUNTS["first empty"]))
    assert all(grad[0].eq(0).all() and grad[1].ne(0).any() for grad in weights)


def test_megablocks_is_imported_late_and_its_absence_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grouped_gemm", None)
    with pytest.raises(ImportError, match="grouped_gemm"):
        EXPERTS["megablocks"](*inputs(COUNTS["even"]))


def test_auto_follows_shape_and_device() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_backend("auto", 128, 64, cpu, torch.float32) is loop
    assert choose_backend("auto", 128, 64, cuda, torch.bfloat16) is EXPERTS["grouped_mm"]
    assert choose_backend("auto", 128, 60, cuda, torch.bfloat16) is loop, "rows of 120 bytes are not 16-byte aligned"
    assert choose_backend("grouped_mm", 128, 60, cpu, torch.float32) is EXPERTS["grouped_mm"]
