"""Lighthouse attention is its plain definition, window by window, and each of its traps is closed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lccp_sim.config import ModelConfig
from lccp_sim.models import lighthouse
from lccp_sim.models.attention import Attention
from lccp_sim.models.lighthouse import LighthouseAttention, attend_chosen, choose_windows
from lccp_sim.models.positions import BaseRope, rotation
from lccp_sim.models.transformer import Transformer
from lccp_sim.train.loop.recompute import recompute

H = 8
# levels, factor, windows opened a tile, width of a tile, tokens, query heads, key heads
CASES = {
    "two levels": (2, 2, 2, 4, 32, 2, 2),
    "three levels": (3, 2, 4, 6, 64, 2, 2),
    "shared keys": (3, 4, 2, 3, 96, 4, 2),
    "one key head": (3, 2, 2, 4, 48, 3, 1),
    "filled up": (3, 2, 4, 5, 61, 2, 1),
    "a factor of three": (3, 3, 2, 2, 50, 2, 2),
    "shorter than a window": (3, 4, 4, 2, 5, 2, 2),
    "everything open": (3, 2, 64, 8, 37, 2, 2),
    "one token": (3, 2, 2, 1, 1, 2, 1),
}


def heads(tokens: int, queries: int, keys: int, seed: int = 0, documents: int = 1) -> list[Tensor]:
    """q, k and v in fp64, some tokens louder than others."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for each in (queries, keys, keys):
        x = torch.randn(documents, tokens, each, H, generator=generator, dtype=torch.float64)
        found.append((x * torch.rand(documents, tokens, each, 1, generator=generator).mul(2).exp()).requires_grad_())
    return found


def loud(q_GTNH: Tensor, k_GTMH: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of q and of the k of each query head."""
    group = q_GTNH.shape[2] // k_GTMH.shape[2]
    return q_GTNH.detach().norm(dim=-1), k_GTMH.detach().norm(dim=-1).repeat_interleave(group, dim=2)


def reference(q_TH: Tensor, k_TH: Tensor, v_TH: Tensor, scale: float, settings: tuple[int, int, int, int]) -> Tensor:
    """[T, H]: one head of one document, window by window, with the whole matrix of the entries."""
    (levels, factor, opened, width), T = settings, len(q_TH)
    coarsest = factor ** (levels - 1)
    tokens = -(-T // coarsest) * coarsest
    norms = [[float(x.detach().norm()) for x in x_TH] + [-1.0] * (tokens - T) for x_TH in (q_TH, k_TH)]
    padded = [F.pad(x, (0, 0, 0, tokens - T)) for x in (q_TH, k_TH, v_TH)]

    def score(which: int, level: int, i: int) -> float:
        c = factor**level
        return float("inf") if which == 0 and i == 0 else max(norms[which][i * c : (i + 1) * c])

    entries = []
    for first in range(0, tokens // coarsest, width):
        candidates = list(range(first, min(first + width, tokens // coarsest)))
        for level in range(levels - 1, 0, -1):
            c = factor**level
            best = sorted(candidates, key=lambda i, level=level: -score(0, level, i))[: opened // 2]
            rest = sorted(set(candidates) - set(best), key=lambda i, level=level: -score(1, level, i))
            is_open = {*best, *rest[: opened - len(best)]}
            entries += [(c * (i + 1) - 0.5**level if i in is_open else c * i, level, i) for i in candidates]
            candidates = [factor * i + j for i in sorted(is_open) for j in range(factor)]
        entries += [(i, 0, i) for i in candidates]
    entries.sort()
    spans = [(i * factor**level, (i + 1) * factor**level) for _, level, i in entries]
    q, k, v = (torch.stack([x[a:b].mean(0) for a, b in spans]) for x in padded)
    future = torch.ones(len(spans), len(spans), dtype=torch.bool).triu(1)
    y_SH = (q @ k.T * scale).masked_fill(future, float("-inf")).softmax(-1) @ v
    out: list[Any] = [0.0] * T
    for (start, stop), y in zip(spans, y_SH, strict=True):
        for t in range(stop - 1, min(stop - 1 + stop - start, T)):
            out[t] = out[t] + y
    return torch.stack(out)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_the_plain_definition_with_its_gradients(case: tuple[int, ...]) -> None:
    *settings, tokens, queries, keys = case
    q, k, v = heads(tokens, queries, keys, documents=2)
    got = attend_chosen(q, k, v, 0.3, choose_windows(*loud(q, k), *settings))
    group = queries // keys
    want = torch.stack([
        torch.stack([reference(q[g, :, n], k[g, :, n // group], v[g, :, n // group], 0.3, settings)
                     for n in range(queries)], dim=1)
        for g in range(2)
    ])  # fmt: skip
    torch.testing.assert_close(got, want)
    cotangent = torch.randn(got.shape, dtype=torch.float64)
    for mine, truth in zip(*(torch.autograd.grad(y, (q, k, v), cotangent) for y in (got, want)), strict=True):
        torch.testing.assert_close(mine, truth)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True).transpose(1, 2)


def test_one_level_is_dense_attention_and_more_are_not() -> None:
    """Even where every window is open: the means stay in, and so the end of training has to be dense (trap f)."""
    q, k, v = heads(48, 4, 2)
    one, more = (attend_chosen(q, k, v, 0.3, choose_windows(*loud(q, k), levels, 2, 64, 48)) for levels in (1, 3))
    torch.testing.assert_close(one, dense(q, k, v))
    assert (more - dense(q, k, v)).abs().mean() > 0.1


@pytest.mark.parametrize(("levels", "factor", "budget", "tokens"), [(2, 4, 8, 256), (3, 4, 16, 1024), (4, 2, 32, 1024)])
def test_entries_are_as_many_as_the_formula_says_whatever_the_content(
    levels: int, factor: int, budget: int, tokens: int
) -> None:
    attention = LighthouseAttention(levels, factor, budget, tile_budget=8)
    width = tokens // attention.coarsest * 8 // budget
    for seed in range(3):
        q, k, _ = heads(tokens, 2, 2, seed)
        chosen = choose_windows(*loud(q, k), levels, factor, 8, width)
        want = tokens // factor ** (levels - 1) + (levels - 1) * factor * budget
        assert chosen.window_GNS.shape[-1] == attention.entries(tokens) == want
        assert torch.equal(chosen.place_GNS.sort(-1).values[0, 0], torch.arange(want))


def test_a_text_shorter_than_the_budget_has_all_its_windows_and_no_more() -> None:
    attention = LighthouseAttention(3, 2, 64, tile_budget=8)
    q, k, _ = heads(40, 2, 2)
    chosen = choose_windows(*loud(q, k), 3, 2, 8, width=2)
    assert chosen.window_GNS.shape[-1] == attention.entries(40) == 40 + 20 + 10


def test_of_a_choice_held_fixed_nothing_of_the_future_comes_through() -> None:
    q, k, v = heads(40, 2, 1)
    chosen = choose_windows(*loud(q, k), 3, 2, 2, 5)
    y, sees_itself = attend_chosen(q, k, v, 0.3, chosen), []
    for t in range(40):
        grads = torch.autograd.grad(y[:, t].sum(), (q, k, v), retain_graph=True)
        assert not any(grad[:, t + 1 :].any() for grad in grads), t
        sees_itself.append(bool(grads[2][:, t].any()))
    assert all(sees_itself[:2]) and not all(sees_itself), "a token in a window that is not open waits for its end"


def test_gradients_are_those_of_finite_differences() -> None:
    q, k, v = heads(9, 2, 1)
    chosen = choose_windows(*loud(q, k), 3, 2, 2, 2)
    assert torch.autograd.gradcheck(lambda *x: attend_chosen(*x, 0.3, chosen), (q, k, v))


def test_the_choice_sees_the_future_and_the_leak_is_as_large_as_documented() -> None:
    """Trap a: with other tokens in the last quarter of a one-tile row, fresh choices move what is earlier."""
    moved = []
    for seed in range(4):
        q, k, v = heads(256, 1, 1, seed)
        later = [
            torch.cat((a[:, :192], 2 * b[:, 192:]), dim=1) for a, b in zip((q, k, v), heads(256, 1, 1, 9), strict=True)
        ]
        chosen, again = choose_windows(*loud(q, k), 3, 4, 4, 16), choose_windows(*loud(*later[:2]), 3, 4, 4, 16)
        before = attend_chosen(q, k, v, 0.3, chosen)[:, :192]
        assert torch.equal(attend_chosen(*later, 0.3, chosen)[:, :192], before)
        change = attend_chosen(*later, 0.3, again)[:, :192] - before
        moved.append(float((change.abs().max() / before.std()).detach()))
    assert 3 < min(moved) and max(moved) < 7


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_token_is_answered_by_one_window_a_level_at_most(case: tuple[int, ...]) -> None:
    """Trap d, too: the first tokens are as quiet as can be, and none is left with an exact zero."""
    levels, factor, opened, width, tokens, queries, keys = case
    q, k, _ = (x.detach().clone() for x in heads(tokens, queries, keys))
    q[:, : factor**levels], k[:, : factor**levels] = 0, 0
    chosen = choose_windows(*loud(q, k), levels, factor, opened, width)
    answers = attend_chosen(q, k, torch.ones_like(k), 0.3, chosen)
    torch.testing.assert_close(answers, answers.round())
    assert answers.min() > 0.5 and answers.max() < levels + 0.5
    ends = sum(1 for c in (factor**level for level in range(levels)) if tokens >= c)
    assert answers[:, -1].max() < ends + 0.5


def test_heads_that_share_a_key_choose_for_themselves() -> None:
    """Trap e."""
    q, k, _ = heads(128, 4, 1)
    window = choose_windows(*loud(q, k), 3, 2, 4, 16).window_GNS[0].sort(-1).values
    assert not any(torch.equal(window[0], window[n]) for n in range(1, 4))


def test_in_bf16_choices_are_those_of_fp32_and_sums_stay_near() -> None:
    q, k, v = (x.detach().bfloat16() for x in heads(256, 2, 1))
    norms = [torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32) for x in (q, k)]
    norms[1] = norms[1].repeat_interleave(2, dim=2)
    chosen = choose_windows(*norms, 3, 2, 8, 16)
    exact = choose_windows(*loud(q.double(), k.double()), 3, 2, 8, 16)
    assert torch.equal(chosen.window_GNS, exact.window_GNS)
    coarse = choose_windows(*(x.bfloat16() for x in norms), 3, 2, 8, 16)
    assert not torch.equal(coarse.window_GNS, exact.window_GNS), "ties of bf16 would choose by chance"
    got, want = (attend_chosen(*(x.to(dtype) for x in (q, k, v)), 0.3, exact) for dtype in (q.dtype, torch.float64))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), want, atol=0.03 * float(want.abs().max()), rtol=0.02)


def test_means_of_bf16_are_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, _ = heads(256, 2, 2)
    chosen, x = choose_windows(*loud(q.double(), k.double()), 4, 2, 8, 16), q.detach().bfloat16()

    def means(of: Tensor) -> Tensor:
        return lighthouse._collect(of, 2, chosen, late=False)

    once = means(x.double()).bfloat16()
    assert torch.equal(means(x), once)
    monkeypatch.setattr(lighthouse, "_exact", lambda dtype: dtype)
    assert not torch.equal(means(x), once), "sums in bf16 would be rounded at each level"


# Documents of two rows of 64: equal neighbours, one shorter than a window, a single token, one that fills its row.
PACKINGS = {"one a row": [64, 64], "several": [16, 16, 5, 1, 26, 37, 27], "tokens": [1] * 128}


@pytest.mark.parametrize("lengths", PACKINGS.values(), ids=PACKINGS)
def test_documents_share_neither_windows_nor_choices(lengths: list[int]) -> None:
    """Trap c: each is as it would be alone, whatever its neighbours are, and no gradient crosses."""
    attention = LighthouseAttention(levels=3, factor=2, budget=8, tile_budget=4)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    q, k, v = heads(64, 4, 2, documents=2)
    norms = torch.cat([x.detach().norm(dim=-1) for x in (q, k)], dim=2)
    packed = attention.attend(q, k, v, 0.3, bounds, norms).flatten(0, 1)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        alone = [x.flatten(0, 1)[None, start:stop] for x in (q, k, v)]
        chosen = choose_windows(*loud(*alone[:2]), 3, 2, 4, 64 // 4 * 4 // 8)
        torch.testing.assert_close(packed[start:stop], attend_chosen(*alone, 0.3, chosen)[0])
    start, stop = bounds[1].item(), bounds[2].item()
    for grad in torch.autograd.grad(packed[start:stop].square().sum(), (q, k, v)):
        row_TXH = grad.flatten(0, 1)
        assert not row_TXH[:start].any() and not row_TXH[stop:].any()


@pytest.mark.parametrize("qk_norm", ["none", "before_rope", "after_rope", "full_width"])
def test_loudness_is_measured_before_qk_norm(qk_norm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap b: after it all tokens are equally loud, and which windows are opened is an accident."""
    settings = LighthouseAttention(levels=3, factor=2, budget=8, tile_budget=4)
    shape = {"d_model": 32, "num_heads": 4, "num_kv_heads": 2, "d_head": H}
    layer = Attention(ModelConfig(rope=None, qk_norm=qk_norm, attention=settings, **shape), 0)
    x_BTD = torch.randn(1, 64, 32) * torch.rand(1, 64, 1).mul(3).exp()
    norms = F.linear(x_BTD, layer.qkv.weight).unflatten(-1, (-1, H)).norm(dim=-1).detach()
    want = choose_windows(norms[..., :4], norms[..., 4:6].repeat_interleave(2, dim=2), 3, 2, 4, 8)
    seen, hidden = [], []
    monkeypatch.setattr(lighthouse, "choose_windows", lambda *x: seen.append(choose_windows(*x)) or seen[0])
    monkeypatch.setattr(lighthouse, "attend_chosen", lambda *x: hidden.append(x[0]) or attend_chosen(*x))
    rope = rotation(torch.arange(64)[None], *BaseRope(100.0).frequencies(H), torch.float32)
    y_BTD = layer(x_BTD, rope, torch.tensor([0, 64]), sparse=True)
    assert torch.equal(seen[0].window_GNS, want.window_GNS) and torch.equal(seen[0].place_GNS, want.place_GNS)
    after = hidden[0].norm(dim=-1)
    assert qk_norm in ("none", "full_width") or after.std() < 1e-2 * after.mean() < 1e-2 * norms.std()
    assert not torch.equal(y_BTD, layer(x_BTD, rope, torch.tensor([0, 64])))


def test_a_layer_in_bf16_measures_loudness_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = LighthouseAttention(levels=3, factor=2, budget=8, tile_budget=4)
    layer = Attention(ModelConfig(rope=None, d_model=32, num_heads=2, num_kv_heads=2, d_head=H, attention=settings), 0)
    seen: list[Tensor] = []
    monkeypatch.setattr(lighthouse, "choose_windows", lambda *x: seen.extend(x[:2]) or choose_windows(*x))
    rope = rotation(torch.arange(256)[None], *BaseRope(100.0).frequencies(H), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y_BTD = layer(torch.randn(1, 256, 32), rope, torch.tensor([0, 256]), sparse=True)
    assert y_BTD.dtype == torch.bfloat16 and {x.dtype for x in seen} == {torch.float32}
    assert len(seen[0].unique()) > 2 * len(seen[0].bfloat16().unique()), "in bf16 most of them would be ties"


def test_training_alone_is_sparse_and_some_layers_never_are(model: Callable[..., Transformer]) -> None:
    settings = LighthouseAttention(3, 2, 4, tile_budget=2)
    tokens, bounds = torch.randint(50, (1, 64)), torch.tensor([0, 40, 64])
    plain, sparse = (model(attention=each) for each in (None, settings))
    with torch.no_grad():
        want = plain(tokens, bounds=bounds).hidden_BTD
        assert torch.equal(sparse(tokens, bounds=bounds).hidden_BTD, want), "monitors see dense attention"
        assert torch.equal(plain(tokens, bounds=bounds, sparse=True).hidden_BTD, want)
        assert not torch.allclose(sparse(tokens, bounds=bounds, sparse=True).hidden_BTD, want)
        all_dense = model(attention=replace(settings, dense_layers=(0, 1, -1)))
        assert torch.equal(all_dense(tokens, bounds=bounds, sparse=True).hidden_BTD, want)
    some = replace(settings, dense_layers=(0, -2))
    assert [some.at(layer, 5) is not None for layer in range(5)] == [False, True, True, False, True]


def test_a_block_that_runs_again_chooses_the_same(model: Callable[..., Transformer]) -> None:
    """Activation checkpointing: the same loss and gradients."""
    tokens, found = torch.randint(50, (1, 64)), []
    for every in (None, 1):
        transformer = model(attention=LighthouseAttention(3, 2, 4, tile_budget=2))
        recompute(transformer, every)
        transformer(tokens, sparse=True).hidden_BTD.square().sum().backward()
        found.append([p.grad for p in transformer.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
