"""Attention is a masked softmax over the whole row, document by document, with GQA and QK-norm where they belong."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lccp_sim.config import ModelConfig
from lccp_sim.errors import ConfigError
from lccp_sim.models import attention
from lccp_sim.models.attention import Attention, RMSNorm, attend, attend_pieces, attend_varlen, takes_varlen
from lccp_sim.models.language_model import Attended
from lccp_sim.models.positions import BaseRope, rotate, rotation
from lccp_sim.models.taps import gating, tapping

B, T, D, N, M, H = 2, 24, 32, 4, 2, 8
# Lengths of the documents of both rows in turn: equal neighbours, a single token, one that fills its row.
PACKINGS = {"one a row": [24, 24], "several": [5, 5, 14, 1, 8, 15], "tokens": [1] * 48}

WINDOWS = [{}, {"window_tokens": 4}, {"window_tokens": 4, "full_attention_every": 2}]


def bounds_of(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """The bounds of the documents, and the number of the document of every token [B, T]."""
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    return bounds, torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).view(B, T)


@pytest.mark.parametrize("lengths", PACKINGS.values(), ids=PACKINGS)
@pytest.mark.parametrize("qk_norm", ["none", "before_rope", "after_rope", "full_width"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("more", [{}, {"qkv_bias": True, "out_bias": True, "window_tokens": 5}], ids=["", "biased"])
def test_attention_is_a_masked_softmax(
    full_softmax: Callable[..., Tensor], lengths: list[int], qk_norm: Any, kv_heads: int, more: dict[str, Any]
) -> None:
    config = ModelConfig(
        rope=None, d_model=D, num_heads=N, num_kv_heads=kv_heads, d_head=H, qk_norm=qk_norm, qk_norm_gain=1.5, **more
    )
    layer = Attention(config, 0)
    for weight in layer.parameters():
        nn.init.normal_(weight, std=0.3) if weight.ndim > 1 else nn.init.uniform_(weight, 0.5, 2)
    bounds, document_BT = bounds_of(lengths)
    x_BTD = torch.randn(B, T, D, requires_grad=True)
    rope = rotation(torch.arange(T).expand(B, T), *BaseRope(100.0).frequencies(H), torch.float32)
    ours = layer(x_BTD, rope, bounds)

    q, k, v = F.linear(x_BTD, layer.qkv.weight, layer.qkv.bias).split((N * H, kv_heads * H, kv_heads * H), dim=-1)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    if qk_norm == "full_width":
        assert layer.q_norm.weight.shape == (N * H,) and layer.k_norm.weight.shape == (kv_heads * H,)
        q, k = norm(q, layer.q_norm.weight), norm(k, layer.k_norm.weight)
    q, k, v = (x.unflatten(-1, (-1, H)) for x in (q, k, v))
    if qk_norm == "before_rope":
        q, k = norm(q, layer.q_norm.weight), norm(k, layer.k_norm.weight)
    q, k = rotate(q, *rope), rotate(k, *rope)
    if qk_norm == "after_rope":
        q, k = norm(q, layer.q_norm.weight), norm(k, layer.k_norm.weight)
    prob_BNTS = full_softmax(q, k, H**-0.5, document_BT, config.window_tokens)
    y_BTNH = torch.einsum("bnts,bsnh->btnh", prob_BNTS, v.repeat_interleave(N // kv_heads, dim=2))
    truth = F.linear(y_BTNH.flatten(2), layer.out.weight, layer.out.bias)
    torch.testing.assert_close(ours, truth, atol=1e-5, rtol=1e-5)
    leaves = (x_BTD, *layer.parameters())
    found, wanted = (torch.autograd.grad(y.square().sum(), leaves) for y in (ours, truth))
    # A gradient that is zero (of a norm, where each document is one token) is as wrong as the sums that make it.
    noise = 1e-6 * max(want.abs().max().item() for want in wanted)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, atol=max(noise, 1e-4 * max(1.0, want.abs().max().item())), rtol=1e-4)


def test_gradients_do_not_cross_documents_in_attention() -> None:
    bounds, document_BT = bounds_of(PACKINGS["several"])
    q, k, v = (torch.randn(B, T, heads, H, requires_grad=True) for heads in (N, M, M))
    y_BTNH = attend(q, k, v, H**-0.5, bounds)
    grads = torch.autograd.grad(y_BTNH[document_BT == 1].square().sum(), (q, k, v))
    for grad in grads:
        assert grad[document_BT != 1].eq(0).all() and grad[document_BT == 1].ne(0).any()


def test_full_layers_stand_between_windows() -> None:
    config = ModelConfig(rope=None, num_layers=4, window_tokens=4, full_attention_every=2)
    assert [config.window(layer) for layer in range(4)] == [4, None, 4, None], "as in gpt-oss"
    assert ModelConfig(rope=None, window_tokens=4).window(1) == 4 and ModelConfig(rope=None).window(0) is None


@pytest.mark.parametrize("window", [1, 3, 8, 9, 23, 24])
@pytest.mark.parametrize("block", [1, 4, 64])
@pytest.mark.parametrize("lengths", PACKINGS.values(), ids=PACKINGS)
def test_a_window_is_a_band_of_the_whole_matrix(
    full_softmax: Callable[..., Tensor], lengths: list[int], block: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the blocks: narrower and wider than the window, rows of them and one that all fit in."""
    monkeypatch.setattr(attention, "SMALLEST_BLOCK", block)
    bounds, document_BT = bounds_of(lengths)
    q, k, v = (torch.randn(B, T, heads, H, requires_grad=True) for heads in (N, M, M))
    got = attend(q, k, v, 0.3, bounds, window)
    prob_BNTS = full_softmax(q, k, 0.3, document_BT, window)
    want = torch.einsum("bnts,bsnh->btnh", prob_BNTS, v.repeat_interleave(N // M, dim=2))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    cotangent = torch.randn(got.shape)
    for mine, truth in zip(*(torch.autograd.grad(y, (q, k, v), cotangent) for y in (got, want)), strict=True):
        torch.testing.assert_close(mine, truth, atol=1e-5, rtol=1e-4)


def plain_varlen(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, key_starts: Tensor, longest: int, longest_key: int,
    *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """What torch's varlen_attn promises, in full matrices: query i sees keys from i - left to i + right, -1 is all."""
    assert starts.dtype == key_starts.dtype == torch.int32 and starts.equal(key_starts)
    assert longest == longest_key == starts.diff().max() and enable_gqa == (q.shape[1] != k.shape[1])
    (left, right), pieces = window_size, []
    for start, stop in itertools.pairwise(starts.tolist()):
        place = torch.arange(stop - start)
        ahead = place - place[:, None]
        seen = (ahead <= right) & (ahead >= (-left if left >= 0 else -len(place)))
        heads = [x[start:stop].transpose(0, 1)[None] for x in (q, k, v)]
        y = F.scaled_dot_product_attention(*heads, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)
        pieces.append(y[0].transpose(0, 1))
    return torch.cat(pieces)


@pytest.mark.parametrize("window", [None, 1, 4, 23, 24])
@pytest.mark.parametrize("lengths", PACKINGS.values(), ids=PACKINGS)
def test_one_call_for_all_documents_gives_what_a_call_for_each_gives(lengths: list[int], window: int | None) -> None:
    bounds, _ = bounds_of(lengths)
    q, k, v = (torch.randn(B, T, heads, H, requires_grad=True) for heads in (N, M, M))
    got = attend_varlen(q, k, v, 0.3, bounds, window, kernel=plain_varlen)
    want = attend(q, k, v, 0.3, bounds, window)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    cotangent = torch.randn(got.shape)
    for mine, truth in zip(*(torch.autograd.grad(y, (q, k, v), cotangent) for y in (got, want)), strict=True):
        torch.testing.assert_close(mine, truth, atol=1e-5, rtol=1e-4)


def test_the_variable_length_kernel_is_for_packed_rows_in_half_precision() -> None:
    (alone, _), (packed, _) = bounds_of(PACKINGS["one a row"]), bounds_of(PACKINGS["several"])
    half = torch.zeros(B, T, N, H, dtype=torch.bfloat16)
    assert takes_varlen(half, packed, None) and takes_varlen(half, alone, 4)
    assert not takes_varlen(half, alone, None), "one call anyway"
    assert not takes_varlen(half.float(), packed, None) and not takes_varlen(half[..., :4], packed, None)


def test_a_narrow_window_needs_no_square_of_a_long_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time and memory grow with rows x window: what a query is compared with is its window and a block more."""
    calls = []
    real = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **settings: Any) -> Tensor:
        calls.append((len(q), q.shape[2], k.shape[2], None if attn_mask is None else tuple(attn_mask.shape)))
        return real(q, k, v, attn_mask, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    q, k, v = (torch.randn(1, 5000, 1, 4) for _ in range(3))
    attend(q, k, v, 0.5, torch.tensor([0, 5000]), 200)
    assert calls == [(1, 200, 200, None), (48, 100, 300, (100, 300))]


def test_rms_norm_is_the_formula() -> None:
    layer = RMSNorm(D, 1e-5, gain=2.0)
    x = torch.randn(3, 5, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer.double(), (x,))
    want = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * 2
    torch.testing.assert_close(layer(x), want)
    with torch.no_grad():
        layer.weight[3] = 0  # its gradient must not be lost with the output that it zeroes
    got, truth = (
        torch.autograd.grad(y.square().sum() + y.sum(), layer.weight)[0] for y in (layer(x), want / 2 * layer.weight)
    )
    torch.testing.assert_close(got, truth)
    assert got[3] != 0 and layer.float()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("changes", WINDOWS, ids=str)
def test_rows_of_a_tap_are_rows_of_the_whole_matrix(full_softmax: Callable[..., Tensor], model, changes: dict) -> None:
    transformer = model(**changes).eval()
    seen = {}
    with torch.no_grad(), tapping(transformer, lambda layer, attended: seen.update({layer: attended})):
        transformer(torch.randint(50, (B, T)))
    assert sorted(seen) == [0, 1, 2], "one call a layer"
    assert [seen[layer].window for layer in range(3)] == [transformer.config.window(layer) for layer in range(3)]
    for attended in seen.values():
        whole_BNTS = full_softmax(*attended[:3], torch.zeros(B, T), attended.window)
        for b, (start, stop) in itertools.product(range(B), ((0, 1), (3, 9), (0, T))):
            rows_NAS = attended.rows(b, start, stop)
            torch.testing.assert_close(rows_NAS, whole_BNTS[b][:, start:stop], atol=1e-6, rtol=0)


@pytest.mark.parametrize("changes", WINDOWS, ids=str)
@pytest.mark.parametrize("lengths", PACKINGS.values(), ids=PACKINGS)
def test_rows_of_a_packed_document_are_those_of_the_document_alone(
    full_softmax: Callable[..., Tensor], model, lengths: list[int], changes: dict
) -> None:
    """Against a forward of the document alone, and against the whole matrix masked by document."""
    transformer, tokens_BT = model(**changes).eval(), torch.randint(50, (B, T))
    bounds, document_BT = bounds_of(lengths)
    starts = torch.repeat_interleave(bounds[:-1], bounds.diff()).view(B, T)
    positions_BT = torch.arange(B * T).view(B, T) - starts
    packed: dict[int, Attended] = {}
    alone: dict[int, Attended] = {}
    with torch.no_grad():
        with tapping(transformer, packed.__setitem__):
            transformer(tokens_BT, positions_BT, bounds)
        for first, stop in itertools.pairwise(bounds.tolist()):
            with tapping(transformer, alone.__setitem__):
                transformer(tokens_BT.flatten()[None, first:stop])
            row, begin, end = first // T, first % T, first % T + stop - first
            for layer, attended in packed.items():
                rows_NAS = attended.rows(row, begin, end)
                torch.testing.assert_close(rows_NAS[..., begin:end], alone[layer].rows(0, 0, end - begin))
                assert not rows_NAS[..., :begin].any() and not rows_NAS[..., end:].any()
                whole_NTS = full_softmax(*attended[:3], document_BT, attended.window)[row]
                torch.testing.assert_close(rows_NAS, whole_NTS[:, begin:end], atol=1e-6, rtol=0)
    assert (packed[0].start_BT is None) == (lengths == PACKINGS["one a row"])


def test_rows_know_windows_sinks_soft_caps_and_masks() -> None:
    """Each against one plain softmax over the whole matrix."""
    q, k = torch.randn(2, 12, 4, 8), torch.randn(2, 12, 2, 8)
    logits = torch.einsum("btnh,bsnh->bnts", q, k.repeat_interleave(2, dim=2)) * 0.7
    order = torch.arange(12)
    causal = order[:, None] >= order
    window = causal & (order[:, None] - order < 5)
    blocked = causal.expand(2, 1, 12, 12).clone()
    blocked[1, :, 6:, :3] = False
    additive = torch.zeros(blocked.shape).masked_fill(~blocked, torch.finfo(torch.float32).min)
    sinks = torch.randn(4)
    with_sink = torch.cat((logits.masked_fill(~causal, -torch.inf), sinks.view(1, 4, 1, 1).expand(2, 4, 12, 1)), -1)
    cases = [
        ({"window": 5}, logits.masked_fill(~window, -torch.inf).softmax(-1)),
        ({"softcap": 2.0}, (2 * (logits / 2).tanh()).masked_fill(~causal, -torch.inf).softmax(-1)),
        ({"mask": blocked}, logits.masked_fill(~blocked, -torch.inf).softmax(-1)),
        ({"mask": additive}, logits.masked_fill(~blocked, -torch.inf).softmax(-1)),
        ({"sinks_N": sinks}, with_sink.softmax(-1)[..., :12]),
    ]
    for settings, want in cases:
        for b, (start, stop) in itertools.product(range(2), ((0, 12), (4, 7), (11, 12))):
            got = Attended(q, k, 0.7, **settings).rows(b, start, stop)
            torch.testing.assert_close(got, want[b, :, start:stop], atol=1e-6, rtol=0)


def test_a_gate_scales_single_heads_and_goes_away(model) -> None:
    transformer, tokens = model().eval(), torch.randint(50, (1, 9))
    gate_LN = torch.ones(3, transformer.num_heads)
    with torch.no_grad():
        plain = transformer(tokens).hidden_BTD
        with gating(transformer, gate_LN):
            assert torch.equal(transformer(tokens).hidden_BTD, plain)
        gate_LN[1, 2] = 0.0
        with gating(transformer, gate_LN):
            masked = transformer(tokens).hidden_BTD
        columns = transformer.layers[1].attention.out.weight.unflatten(1, (transformer.num_heads, -1))
        columns[:, 2] = 0.0
        torch.testing.assert_close(transformer(tokens).hidden_BTD, masked)
    assert not torch.allclose(masked, plain) and transformer.layers[1].attention.gate_N is None


def test_attention_that_bypasses_the_tap_is_refused(model) -> None:
    transformer = model()
    transformer.num_layers = 5  # as if layers 3 and 4 had attention of another kind
    with pytest.raises(ConfigError, match="attention of layer 3, 4 of 5 bypassed the tap.*monitors.needle.heads=false"):
        with tapping(transformer, lambda *_: None):
            transformer(torch.randint(50, (1, 4)))


def test_tapping_forces_eager_and_leaves_nothing_behind(model, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = model()
    stances = []
    real = torch.compiler.set_stance
    monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: stances.append(stance) or real(stance))
    with (
        pytest.raises(RuntimeError, match="from a tap"),
        tapping(transformer, lambda *_: exec("raise RuntimeError('from a tap')")),
    ):
        transformer(torch.randint(50, (1, 4)))
    assert stances == ["force_eager"]
    assert all(block.attention.tap is None for block in transformer.blocks)


@pytest.mark.parametrize("window", [None, 5])
def test_pieces_of_rows_attend_as_whole_rows_do(window: int | None) -> None:
    B, T, N, M, H = 2, 32, 4, 2, 8
    q, k, v = torch.randn(B, T, N, H), torch.randn(B, T, M, H), torch.randn(B, T, M, H)
    bounds = torch.tensor([0, 3, 20, 32, 33, 64])
    wanted = attend(q, k, v, 0.3, bounds, window)
    for starts in ((0, 24), (8, 16)):
        places = torch.cat([torch.arange(start, start + 8) for start in starts])
        got = attend_pieces(q[:, places], k, v, 0.3, bounds, window, starts)
        assert torch.allclose(got, wanted[:, places], atol=1e-6)
