"""A tiny decoder for the tests of models/: every part that a real one has, in milliseconds."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lccp_sim.config import ModelConfig
from lccp_sim.models import experts
from lccp_sim.models.positions import BaseRope
from lccp_sim.models.transformer import Transformer, initialise

SHAPE = {
    "d_model": 32,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "d_head": 8,
    "num_experts": 4,
    "d_expert": 16,
}


def build(seed: int = 0, vocab_size: int = 50, base: float = 10_000.0, **changes: Any) -> Transformer:
    """A tiny Transformer in fp32, initialised; `changes` are keys of ModelConfig."""
    config = ModelConfig(rope=BaseRope(base), **(SHAPE | changes))
    return initialise(Transformer(config, vocab_size), seed)


def gmm(a: Tensor, b_EXY: Tensor, sizes_E: Tensor, trans_b: bool = False) -> Tensor:
    """What grouped_gemm's `ops.gmm` computes, and what it insists on: CPU int64 sizes that cover every row."""
    assert sizes_E.device.type == "cpu" and sizes_E.dtype == torch.int64
    assert a.is_contiguous() and b_EXY.is_contiguous() and a.dtype == b_EXY.dtype
    assert int(sizes_E.sum()) == len(a) and len(sizes_E) == len(b_EXY)
    parts = zip(a.split(sizes_E.tolist()), b_EXY.unbind(0), strict=True)
    return torch.cat([rows @ (b.T if trans_b else b) for rows, b in parts])


@pytest.fixture
def model() -> Callable[..., Transformer]:
    """`model(**changes)` builds a tiny Transformer."""
    return build


@pytest.fixture(params=list(experts.EXPERTS))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of each expert backend in turn; where grouped_gemm is asked for, the stand-in answers."""
    monkeypatch.setitem(__import__("sys").modules, "grouped_gemm", SimpleNamespace(ops=SimpleNamespace(gmm=gmm)))
    return request.param


def plain_attention(
    q_BTNH: Tensor, k_BTMH: Tensor, scale: float, document_BT: Tensor, window: int | None = None
) -> Tensor:
    """[B, N, T, T]: softmax over a full matrix, masked by order, by document and by distance."""
    k_BTNH = k_BTMH.repeat_interleave(q_BTNH.shape[2] // k_BTMH.shape[2], dim=2)
    logits = torch.einsum("btnh,bsnh->bnts", q_BTNH, k_BTNH) * scale
    T = q_BTNH.shape[1]
    seen = torch.ones(T, T, dtype=torch.bool).tril() & (document_BT[:, :, None] == document_BT[:, None, :])
    if window is not None:
        seen = seen & (torch.arange(T)[:, None] - torch.arange(T) < window)
    return F.softmax(logits.masked_fill(~seen[:, None], float("-inf")), dim=-1)


@pytest.fixture
def full_softmax() -> Callable[..., Tensor]:
    """The plain reference of attention, `(q_BTNH, k_BTMH, scale, document_BT, window) -> [B, N, T, T]`."""
    return plain_attention
