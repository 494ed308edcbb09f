"""The interface between monitors and models: hidden states, a head, a tap on attention, a gate on head outputs.

Our Transformer and the adapter of Hugging Face models both implement it, so every monitor is written once. The head is
separate from the forward pass because a monitor needs few tokens' logits, and [B, T, V] must never exist.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lccp_sim.models.comm import Comm


class Attended(NamedTuple):
    """The inputs of one layer's softmax: q after RoPE and norms, k likewise, and everything that shapes the rows.

    logits = softcap(q k^T * scale). Query i sees key j if j <= i, i - j < window (if any), j >= start_BT[i] (int64, the
    first token of the query's document in a packed row; None: the row's first) and `mask` allows it ([B or 1, 1 or N,
    T, S], bool, or a bias that is added to the logits). `sinks_N` is an additional logit per head that takes mass but
    has no value (gpt-oss).
    """

    q_BTNH: Tensor
    k_BSMH: Tensor
    scale: float
    window: int | None = None
    sinks_N: Tensor | None = None
    softcap: float | None = None
    mask: Tensor | None = None
    start_BT: Tensor | None = None

    def rows(self, item: int, start: int, stop: int) -> Tensor:
        """Attention of the queries [start, stop) of one item, [N, stop - start, S] fp32; rows sum to 1, less the sink.

        With A = stop - start this is A x S numbers per head; the [S, S] matrix never exists.
        """
        q_TNH, k_SMH = self.q_BTNH[item], self.k_BSMH[item]
        A, (S, M, H) = stop - start, k_SMH.shape
        q_MQH = (q_TNH[start:stop].float() * self.scale).view(A, M, -1, H).permute(1, 2, 0, 3).reshape(M, -1, H)
        with torch.autocast(q_MQH.device.type, enabled=False):
            logits_NAS = (q_MQH @ k_SMH.float().permute(1, 2, 0)).view(-1, A, S)
        if self.softcap is not None:
            logits_NAS = (logits_NAS / self.softcap).tanh_() * self.softcap
        # Only keys from `start` on can lie in the future of one of these queries, so only they are masked.
        future = torch.ones(A, S - start, dtype=torch.bool, device=logits_NAS.device).triu_(1)
        logits_NAS[..., start:].masked_fill_(future, float("-inf"))
        if self.window is not None and stop > self.window:
            age_AS = torch.arange(start, stop, device=logits_NAS.device)[:, None] - torch.arange(S, device=q_TNH.device)
            logits_NAS.masked_fill_(age_AS >= self.window, float("-inf"))
        if self.start_BT is not None:
            before = torch.arange(S, device=q_TNH.device) < self.start_BT[item, start:stop, None]
            logits_NAS.masked_fill_(before, float("-inf"))
        if self.mask is not None:
            seen = self.mask[item if len(self.mask) > 1 else 0, :, start:stop, :S]
            if seen.dtype == torch.bool:
                logits_NAS.masked_fill_(~seen, float("-inf"))
            else:
                logits_NAS += seen
        if self.sinks_N is None:
            return logits_NAS.softmax(-1)
        sinks_NA1 = self.sinks_N.float().view(-1, 1, 1).expand(-1, A, 1)
        return torch.cat((logits_NAS, sinks_NA1), dim=-1).softmax(-1)[..., :S]


Tap = Callable[[int, Attended], None]


def picked(x_BTX: Tensor, place_BA: Tensor) -> Tensor:
    """[B, A, ...]: the places `place_BA` of each row."""
    return x_BTX[torch.arange(len(x_BTX), device=x_BTX.device)[:, None], place_BA]


class LanguageModel(nn.Module, ABC):
    """A causal decoder of `num_layers` layers with `num_heads` query heads each, over `vocab_size` tokens.

    `num_heads` is 0 if its heads cannot be scored (layers other than attention); monitors then leave out head scores.
    """

    num_layers: int
    num_heads: int
    vocab_size: int
    comm: Comm = Comm()

    @abstractmethod
    def forward(self, tokens_BT: Tensor) -> Any:
        """An object with `hidden_BTD`, the inputs of the head, for causal rows that may be padded at the end."""

    def hidden_at(self, tokens_BT: Tensor, place_BA: Tensor) -> Tensor:
        """The hidden states of the places `place_BA` (int64) of each row, [B, A, D].

        A model may leave out of its last layer what only other places need; this one computes and picks.
        """
        return picked(self(tokens_BT).hidden_BTD, place_BA)

    @abstractmethod
    def logits(self, hidden_RD: Tensor) -> Tensor:
        """The logits of some hidden states, [R, V] fp32."""

    @abstractmethod
    def set_tap(self, tap: Tap | None) -> None:
        """Make every later forward call `tap(layer, attended)` once per layer (None: no calls)."""

    @abstractmethod
    def set_gate(self, gate_LN: Tensor | None) -> None:
        """Multiply the output of each query head by its number in later forwards (0: masked; None: unchanged)."""

    def set_sparse(self, sparse: bool) -> None:
        """Make later forwards attend as in training, which may be sparse, or (False) densely."""

    def set_comm(self, comm: Comm) -> None:
        """Make the model and each of its layers reach other processes through `comm`."""
        for module in self.modules():
            if isinstance(getattr(module, "comm", None), Comm):
                module.comm = comm  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device
