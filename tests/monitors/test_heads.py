"""Retrieval heads: planted ones are found, alone; fast scores equal those of the full matrix."""

import dataclasses

import numpy as np
import pytest
import torch

from lccp_sim.models.taps import tapping
from lccp_sim.monitors import Needle
from lccp_sim.monitors.heads import HEAD_METRICS, CopyTap
from lccp_sim.monitors.needle_items import NeedleItem
from lccp_sim.monitors.observing import evaluating, score_spans
from lccp_sim.monitors.values import Moment
from tests.monitors.worlds import (
    COPY_HEAD,
    NEEDLE,
    SINK_HEAD,
    planted_item,
    planted_model,
    tiny_model,
)

MONITOR = Needle(lengths=(64,), haystack="prose")
HARD, SOFT, MASS, SINK, NULL = range(5)


def planted_items(counts: tuple[int, ...] = (4, 9, 17), length: int = 120) -> list[NeedleItem]:
    rng = np.random.default_rng(1)
    return [
        planted_item(str(i), length, rng.choice(list(NEEDLE), n, replace=False).tolist(), i)
        for i, n in enumerate(counts)
    ]


def full_matrix_scores(model: torch.nn.Module, items: list[NeedleItem]) -> np.ndarray:
    """The five scores [items, layers, heads, metrics] from whole causal attention matrices in fp64, in plain loops."""
    seen: list[tuple[torch.Tensor, torch.Tensor, float]] = []
    out = []
    for item in items:
        seen.clear()
        with torch.no_grad(), tapping(model, lambda layer, attended: seen.append(attended[:3])):
            model(torch.from_numpy(item.tokens[None, :-1]))  # as long as the monitor's: bf16 rounds by the shape
        scores = np.zeros((len(seen), seen[0][0].shape[2], 5))
        needle = range(*item.needle)
        moved = np.random.default_rng(item.tokens[needle].tolist()).permutation(item.tokens[needle])
        for layer, (q, k, scale) in enumerate(seen):
            k = k.double().repeat_interleave(q.shape[2] // k.shape[2], dim=2)
            logits = torch.einsum("tnh,snh->nts", q[0].double(), k[0]) * scale
            future = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
            full = logits.masked_fill(future, float("-inf")).softmax(-1).numpy()
            for head in range(len(full)):
                for p in range(*item.answer):
                    row = full[head, p - 1]
                    same = [j for j in needle if item.tokens[j] == item.tokens[p]]
                    null = [j for j, token in zip(needle, moved, strict=True) if token == item.tokens[p]]
                    scores[layer, head] += [
                        row.argmax() in same,
                        row[same].sum(),
                        row[slice(*item.needle)].sum(),
                        row[0],
                        row.argmax() in null,
                    ]
        out.append(scores / (item.answer[1] - item.answer[0]))
    return np.stack(out)


@pytest.mark.parametrize("qk_norm", ["none", "before_rope", "after_rope"])
def test_the_planted_head_copies_everything_and_no_other_head_copies(qk_norm: str) -> None:
    items = planted_items()
    with evaluating(model := planted_model(qk_norm)):
        seen = MONITOR.score(model, items)
    assert seen.head_items == ["0", "1", "2"]
    np.testing.assert_allclose(seen.head_scores[:, *COPY_HEAD, :3], 1.0, atol=1e-4)
    assert (seen.head_scores[:, *COPY_HEAD, HARD] == 1.0).all()
    np.testing.assert_allclose(seen.head_scores[:, *SINK_HEAD, SINK], 1.0, atol=1e-4)
    records = [r for r in MONITOR.aggregate(seen, Moment(0, 0)) if r.metric == "copy_hard_frac"]
    above = {(r.tags["layer"], r.tags["head"]): r.value for r in records if r.value > 0.1}
    assert len(records) == 8 and above == {COPY_HEAD: 1.0}
    assert all(v.value == 1.0 for v in seen.values if v.metric == "hit_frac")


def test_a_planted_head_one_token_off_scores_nothing() -> None:
    """The row that predicts token p is p-1: a needle span or an answer shifted by one must not score."""
    with evaluating(model := planted_model()):
        for item in planted_items():
            shifted = item._replace(answer=(item.answer[0] - 1, item.answer[1] - 1))
            n = item.answer[1] - item.answer[0]
            exact = MONITOR.score(model, [shifted]).head_scores[0, *COPY_HEAD, HARD]
            assert exact == pytest.approx((n - 1) / n)  # the separator before the needle is outside of the span
            late = item._replace(needle=(item.needle[0] + 1, item.needle[1] + 1))
            assert MONITOR.score(model, [late]).head_scores[0, *COPY_HEAD, HARD] == pytest.approx((n - 1) / n)


def test_the_null_of_a_copying_head_is_chance_and_that_of_a_sink_is_nothing() -> None:
    """A head that copies all n distinct tokens keeps the share of tokens that a permutation leaves in place: 1 / n."""
    with evaluating(model := planted_model()):
        for n in (4, 16):
            scores = MONITOR.score(model, planted_items((n,) * 200, 60)).head_scores
            null = scores[:, *COPY_HEAD, NULL]
            places = np.round(null * n).astype(int)
            np.testing.assert_allclose(null, places / n, atol=1e-6)
            assert places.mean() == pytest.approx(1.0, abs=0.25)  # the standard error is 0.07
            assert not scores[:, *SINK_HEAD, NULL].any()


def test_the_null_does_not_depend_on_the_batch() -> None:
    items, model = planted_items((9, 9, 9, 9)), planted_model()
    with evaluating(model):
        whole = MONITOR.score(model, items)
        apart = dataclasses.replace(MONITOR, tokens_per_forward=1).score(model, items)
    assert (whole.head_scores[..., NULL] == apart.head_scores[..., NULL]).all()
    assert whole.answer_tokens == apart.answer_tokens == 36


def test_uniform_attention_scores_at_chance() -> None:
    model = planted_model()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight[: 4 * 128] = 0.0
    items = planted_items()
    with evaluating(model):
        scores = MONITOR.score(model, items).head_scores
    for item, got in zip(items, scores, strict=True):
        n, keys = item.needle[1] - item.needle[0], np.arange(*item.answer)  # row p-1 sees p keys
        chance = [0.0, (1 / keys).mean(), (n / keys).mean(), (1 / keys).mean(), 0.0]
        np.testing.assert_allclose(got, np.broadcast_to(chance, got.shape), atol=1e-6)


@pytest.mark.parametrize("qk_norm", ["none", "before_rope", "after_rope"])
@pytest.mark.parametrize("length", [64, 131, 258])
def test_tapped_scores_equal_those_of_the_full_matrix(qk_norm: str, length: int) -> None:
    """Answers of different lengths in one batch, two query heads per key head; needles with repeated tokens too."""
    rng = np.random.default_rng(length)
    items = [
        planted_item(str(i), length, rng.choice(list(NEEDLE), n).tolist(), i) for i, n in enumerate((3, 12, 12, 20))
    ]
    model = tiny_model(64, seed=length, qk_norm=qk_norm, qk_norm_gain=3.0)
    if qk_norm == "none":  # nothing bounds q and k: make them as sharp as the norm's gain does
        for block in model.blocks:
            block.attention.qkv.weight.data[: 6 * 8] *= 5.0
    with evaluating(model):
        got = MONITOR.score(model, items).head_scores
    want = full_matrix_scores(model, items)
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert want[..., HARD].max() > 0 and want[..., SOFT].max() > 0.05  # there was something to compare


def test_bf16_scores_equal_those_of_its_own_matrix_and_are_near_fp32() -> None:
    items = planted_items()
    model = tiny_model(64)
    with evaluating(model):
        fp32 = MONITOR.score(model, items).head_scores
    with evaluating(model.to(torch.bfloat16)):  # one text a forward: in bf16 a batch rounds q and k otherwise
        bf16 = dataclasses.replace(MONITOR, tokens_per_forward=1).score(model, items).head_scores
    np.testing.assert_allclose(bf16, full_matrix_scores(model, items), atol=1e-6)
    np.testing.assert_allclose(bf16[..., 1:], fp32[..., 1:], atol=0.02)


def test_an_answer_inside_a_text_is_scored_from_what_lies_before_it() -> None:
    items, model = planted_items((9, 17)), tiny_model(64)
    inside = [
        item._replace(answer=(item.answer[0] + 1, item.answer[1] - 4), value_mask=~item.value_mask[:-5])
        for item in items
    ]
    with evaluating(model):
        got = MONITOR.score(model, inside).head_scores
    np.testing.assert_allclose(got, full_matrix_scores(model, inside), atol=1e-6)


def test_only_single_needles_are_scored_whatever_stands_beside_them() -> None:
    items, model = planted_items((5, 9, 17)), tiny_model(64)
    mixed = [items[0]._replace(tags=items[0].tags | {"variant": "distractor"}), *items[1:]]
    with evaluating(model):
        seen, alone = MONITOR.score(model, mixed), MONITOR.score(model, items[1:])
    assert seen.head_items == alone.head_items == ["1", "2"]
    np.testing.assert_allclose(seen.head_scores, alone.head_scores, atol=1e-6)


def test_scoring_heads_does_not_change_what_the_forward_gives() -> None:
    items, model = planted_items(), tiny_model(64)
    with evaluating(model):
        tokens, answers = [item.tokens for item in items], [item.answer for item in items]
        plain = score_spans(model, tokens, answers)
        tap = CopyTap(torch.from_numpy(np.stack(tokens)), answers, [item.needle for item in items], [0, 2])
        with tapping(model, tap):
            tapped = score_spans(model, tokens, answers)
    assert (plain.nll == tapped.nll).all() and tap.scores.shape == (2, 2, 4, len(HEAD_METRICS))
    assert all(block.attention.tap is None for block in model.blocks)
