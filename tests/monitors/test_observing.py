"""Looking leaves no trace, spans are scored as a plain loop does, and summaries are the textbook's."""

import copy
import math

import numpy as np
import pytest
import torch

from lccp_sim.models.language_model import Attended
from lccp_sim.models.taps import tapping
from lccp_sim.monitors.observing import batches, counting, evaluating, score_spans
from lccp_sim.monitors.values import Moment, Value, mean_and_stderr, summarise
from tests.monitors.worlds import tiny_model


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_modes_random_state_and_gradients_are_restored(fails: bool, grad: bool) -> None:
    model = tiny_model(64).train()
    model.blocks[1].eval()  # one part has a mode of its own
    before, state = [m.training for m in model.modules()], torch.get_rng_state()
    with torch.set_grad_enabled(grad):
        try:
            with evaluating(model):
                assert not any(m.training for m in model.modules()) and not torch.is_grad_enabled()
                torch.randn(3)
                if fails:
                    raise KeyError("a monitor broke")
        except KeyError:
            assert fails
        assert torch.is_grad_enabled() == grad
    assert [m.training for m in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_in_bf16_logits_and_what_a_head_attends_to_are_fp32() -> None:
    model, tokens_BT = tiny_model(64), torch.randint(1, 64, (2, 40))
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []

    def tap(layer: int, attended: Attended) -> None:
        assert attended.q_BTNH.dtype == torch.bfloat16
        seen = attended.rows(0, 30, 34)
        with torch.autocast("cpu", enabled=False):
            rows.append((seen, attended.rows(0, 30, 34)))

    with evaluating(model, bf16=True), tapping(model, tap):
        hidden_BTD = model(tokens_BT).hidden_BTD
        logits_BTV = model.logits(hidden_BTD)
    assert not torch.is_autocast_enabled("cpu") and model.embedding.weight.dtype == torch.float32
    assert torch.equal(logits_BTV, hidden_BTD.float() @ model.head_weight.detach().T)
    assert len(rows) == model.num_layers and all(torch.equal(mine, exact) for mine, exact in rows)
    with evaluating(model):
        exact_BTV = model.logits(model(tokens_BT).hidden_BTD)
    assert 1e-4 < (logits_BTV - exact_BTV).abs().max() < 0.05 * exact_BTV.abs().max()


def test_the_random_state_inside_is_always_the_same() -> None:
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with evaluating(tiny_model(64)):
            drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


def test_spans_equal_full_logits_cross_entropy_in_padded_rows() -> None:
    rng, model = np.random.default_rng(0), tiny_model(64)
    tokens = [rng.integers(0, 64, n) for n in (40, 23, 31)]
    spans = [(1, 6), (20, 23), (13, 31)]
    with evaluating(model):
        got = score_spans(model, tokens, spans)
        for i, (row, (start, stop)) in enumerate(zip(tokens, spans, strict=True)):
            logits = model(torch.from_numpy(row[None])).hidden_BTD[0] @ model.head_weight.T
            want = torch.nn.functional.cross_entropy(
                logits[start - 1 : stop - 1], torch.from_numpy(row[start:stop]), reduction="none"
            )
            np.testing.assert_allclose(got.nll[i, got.mask[i]], want, atol=1e-5)
            assert (
                got.hit[i, got.mask[i]] == (logits[start - 1 : stop - 1].argmax(-1).numpy() == row[start:stop])
            ).all()
    assert got.mask.sum(1).tolist() == [5, 3, 18] and not got.nll[~got.mask].any()


def test_batches_hold_one_length_each_within_the_budget() -> None:
    lengths = [8, 4, 8, 8, 4, 100]
    groups = list(batches(lengths, 16))
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert groups == [[0, 2], [3], [1, 4], [5]]


def test_a_summary_is_the_mean_its_standard_error_and_the_count() -> None:
    rng = np.random.default_rng(0)
    numbers = {0: rng.normal(size=7), 1: rng.normal(size=4), 2: np.array([3.5])}
    values = [Value("m", "x", f"{c}-{i}", {"cell": c}, float(v)) for c, xs in numbers.items() for i, v in enumerate(xs)]
    records = summarise(values, Moment(3, 30), "probabilistic")
    assert [r.tags for r in records] == [{"cell": 0}, {"cell": 1}, {"cell": 2}]
    for record, xs in zip(records, numbers.values(), strict=True):
        assert (record.step, record.tokens, record.n) == (3, 30, len(xs))
        assert record.value == pytest.approx(xs.mean())
        if len(xs) > 1:
            assert record.stderr == pytest.approx(xs.std(ddof=1) / math.sqrt(len(xs)))
    assert records[2].stderr is None
    (whole,) = summarise(values, Moment(3, 30), "probabilistic", lambda v: {} if v.tags["cell"] < 2 else None)
    assert whole.n == 11 and whole.value == pytest.approx(np.concatenate([numbers[0], numbers[1]]).mean())


def test_equal_numbers_have_no_spread() -> None:
    assert mean_and_stderr([0.1] * 10) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-17))


def test_every_token_sent_is_counted_and_learning_counts_three_times() -> None:
    model = tiny_model(64)
    tokens_BT = torch.zeros((2, 5), dtype=torch.int64)
    with counting(model) as sent, torch.no_grad():
        model(tokens_BT)
        fork = copy.deepcopy(model)
        with torch.enable_grad():
            fork(tokens_BT)
    model(tokens_BT)
    assert sent == [10 + 3 * 10]
