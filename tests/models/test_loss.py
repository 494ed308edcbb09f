"""The chunked loss is plain cross-entropy: value and both gradients, in both precisions, however the rows are cut."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lccp_sim.models import loss
from lccp_sim.models.loss import cross_entropy, token_scores

ROWS, WIDTH, VOCABULARY = 150, 16, 70


def inputs(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(rows, WIDTH).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH).mul(0.5).requires_grad_()
    return hidden, weight, torch.randint(VOCABULARY, (rows,))


@pytest.mark.parametrize("chunk", [1, 64, 75, 1024])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=["fp32", "bf16"])
def test_value_and_gradients_are_the_plain_ones(
    chunk: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK_ROWS", chunk)
    hidden, weight, target = inputs(ROWS, dtype)
    ours = cross_entropy(hidden, weight, target, 400.0)
    assert ours.dtype == torch.float32
    mine = [ours, *torch.autograd.grad(3 * ours, (hidden, weight))]
    exact_hidden = hidden.detach().double().requires_grad_()
    # Under bf16 the head sees a rounded weight; the truth is taken at that weight.
    exact_weight = weight.detach().to(dtype).double().requires_grad_()
    plain = F.cross_entropy(exact_hidden @ exact_weight.T, target, reduction="sum") / 400
    truth = [plain, *torch.autograd.grad(3 * plain, (exact_hidden, exact_weight))]
    for got, want, leaf in zip(mine, truth, (ours, hidden, weight), strict=True):
        assert got.dtype == leaf.dtype
        assert (got.double() - want).abs().max() <= tolerance * want.abs().max()


def test_no_rows_are_a_zero_loss_with_zero_gradients() -> None:
    hidden, weight, target = inputs(0, torch.float32)
    value = cross_entropy(hidden, weight, target, 8.0)
    value.backward()
    assert value == 0 and hidden.grad.shape == (0, WIDTH) and weight.grad.eq(0).all()


def test_micro_batches_add_up() -> None:
    hidden, weight, target = inputs(ROWS, torch.float32)
    whole = cross_entropy(hidden, weight, target, ROWS)
    parts = sum(cross_entropy(hidden[s], weight, target[s], ROWS) for s in (slice(0, 40), slice(40, None)))
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)


def test_a_row_that_is_certain_costs_nothing_and_large_logits_stay_finite() -> None:
    hidden, weight = torch.eye(WIDTH)[:2].mul(400).requires_grad_(), torch.eye(VOCABULARY, WIDTH)
    value = cross_entropy(hidden, weight, torch.tensor([0, 2]), 1.0)
    value.backward()
    torch.testing.assert_close(value.detach(), torch.tensor(400.0))
    assert hidden.grad[0].abs().max() < 1e-6 and hidden.grad[1].abs().max() == 1


def test_scores_of_tokens_are_their_nll_and_whether_they_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_ROWS", 64)
    hidden, weight, target = inputs(ROWS, torch.float32)
    logits = hidden @ weight.T
    target[::3] = logits[::3].argmax(-1)
    nll, hit, top = token_scores(lambda rows: rows @ weight.T, hidden, target)
    torch.testing.assert_close(nll, F.cross_entropy(logits, target, reduction="none"), rtol=1e-5, atol=1e-6)
    assert hit[::3].all() and torch.equal(top, logits.argmax(-1)) and torch.equal(hit, top == target) and not hit.all()


def test_under_autocast_the_head_is_that_of_bf16() -> None:
    hidden, weight, target = inputs(ROWS, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = cross_entropy(hidden, weight, target, 400.0)
    half = hidden.detach().bfloat16().requires_grad_()
    want = cross_entropy(half, weight, target, 400.0)
    assert torch.equal(value, want)
    mine, truth = (torch.autograd.grad(v, (h, weight)) for v, h in ((value, hidden), (want, half)))
    assert mine[0].dtype == torch.float32
    assert torch.equal(mine[0], truth[0].float()) and torch.equal(mine[1], truth[1])
