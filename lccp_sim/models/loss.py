"""The language-model head and its loss, in chunks: [B, T, V] never exists.

The training loss forms each chunk's gradient in the forward pass, while its logits exist, so the backward pass neither
stores logits nor recomputes them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 256


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, divisor: float, factor_R: Tensor | None
    ) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden_RD.device)
        # Autocast covers `@`, but neither `out=` nor `addmm_`: without a cast the gradients would be computed in fp32.
        kind, hidden_dtype = hidden_RD.device.type, hidden_RD.dtype
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_dtype
        hidden_RD, weight = hidden_RD.to(dtype), weight_VD.to(dtype)
        grad_hidden_RD, grad_weight_VD = torch.empty_like(hidden_RD), torch.zeros_like(weight_VD, dtype=torch.float32)
        for start in range(0, len(hidden_RD), CHUNK_ROWS):
            chunk = slice(start, start + CHUNK_ROWS)
            hidden, target = hidden_RD[chunk], targets_R[chunk, None]
            logits = (hidden @ weight.T).float()
            # One softmax gives both gradient and normaliser: its largest value is 1 / sum(exp(logits - max)).
            grad = logits.softmax(-1)
            log_sum = logits.amax(-1, keepdim=True) - grad.amax(-1, keepdim=True).log()
            nll, factor = log_sum - logits.gather(1, target), None if factor_R is None else factor_R[chunk, None]
            loss += (nll if factor is None else nll * factor).sum()
            grad.scatter_add_(1, target, torch.full_like(log_sum, -1.0))
            grad = grad.mul_(1.0 / divisor if factor is None else factor / divisor).to(weight.dtype)
            torch.mm(grad, weight, out=grad_hidden_RD[chunk])
            if grad.dtype == torch.float32:
                grad_weight_VD.addmm_(grad.T, hidden)
            else:
                grad_weight_VD += grad.T @ hidden
        ctx.save_for_backward(grad_hidden_RD.to(hidden_dtype), grad_weight_VD.to(weight_VD.dtype))
        return loss / divisor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_RD, weight_VD = ctx.saved_tensors
        return hidden_RD * grad.to(hidden_RD.dtype), weight_VD * grad.to(weight_VD.dtype), None, None, None


def cross_entropy(
    hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, divisor: float, factor_R: Tensor | None = None
) -> Tensor:
    """Sum of the rows' cross-entropy divided by `divisor`, an fp32 scalar in nats; fp32 logits, CHUNK_ROWS at a time.

    `divisor` is the target count of the *global* batch, so micro-batches and ranks add up. `factor_R` (fp32; None:
    all 1) multiplies each row's cross-entropy; it may be negative.
    """
    return _ChunkedCrossEntropy.apply(hidden_RD, weight_VD, targets_R, divisor, factor_R)


@torch.no_grad()
def token_scores(
    logits: Callable[[Tensor], Tensor], hidden_RD: Tensor, targets_R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """NLL of each target (fp32, nats), whether it is the argmax (bool), and the argmax (int64), all [R].

    `logits` is the head: rows [r, D] -> [r, V] fp32, called for CHUNK_ROWS at a time.
    """
    nlls, tops = [hidden_RD.new_empty(0, dtype=torch.float32)], [targets_R[:0]]
    for hidden, target in zip(hidden_RD.split(CHUNK_ROWS), targets_R.split(CHUNK_ROWS), strict=True):
        logits_RV = logits(hidden)
        nlls.append(logits_RV.logsumexp(-1) - logits_RV.gather(1, target[:, None]).squeeze(1))
        tops.append(logits_RV.argmax(-1))
    top_R = torch.cat(tops)
    return torch.cat(nlls), top_R == targets_R, top_R
