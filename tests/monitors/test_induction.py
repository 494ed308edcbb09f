"""Repeated spans are where the items say; planted heads of both kinds are found, alone; short texts are refused."""

import numpy as np
import pytest
import torch

from lccp_sim.data.documents.synthetic import plain_tokens
from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError
from lccp_sim.models.taps import tapping
from lccp_sim.monitors import Induction
from lccp_sim.monitors.induction import RepeatItem
from lccp_sim.monitors.observing import evaluating
from lccp_sim.monitors.values import Moment
from tests.monitors.worlds import COPY_HEAD, FILLER, NEEDLE, PREVIOUS_HEAD, planted_model, tiny_model


def test_both_copies_stand_where_the_items_say(corpus: Corpus) -> None:
    monitor = Induction(lengths=(40, 41, 300), haystack="prose", items=30, span_tokens=18)
    items, plain = monitor.prepare(corpus), set(plain_tokens(corpus.tokenizer).tolist())
    assert len(items) == 90
    for item in items:
        first, second = item.tokens[slice(*item.first)], item.tokens[slice(*item.second)]
        assert len(item.tokens) == item.length == item.second[1] and item.tokens[0] == corpus.bos
        assert (first == second).all() and len(first) == 18 and set(first.tolist()) <= plain
        assert 1 <= item.first[0] and item.first[1] <= item.second[0]
        assert item.second[0] - item.first[0] >= item.length // 2 - 1
    assert len(np.unique([item.first[0] for item in items if item.length == 300])) > 15


def test_a_length_for_less_than_two_spans_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="monitors.induction.lengths: 39 tokens do not hold two spans of 18"):
        Induction(lengths=(39,), haystack="prose", span_tokens=18).prepare(corpus)


def repeat_item(length: int, n: int, seed: int) -> RepeatItem:
    rng = np.random.default_rng(seed)
    span, filler = rng.choice(list(NEEDLE), n, replace=False), rng.choice(list(FILLER), length - 1 - 2 * n)
    start = 1 + int(rng.integers(length // 2 - n))
    tokens = np.concatenate(([0], filler[: start - 1], span, filler[start - 1 :], span)).astype(np.int64)
    return RepeatItem(str(seed), length, tokens, (start, start + n), (length - n, length))


def test_the_planted_induction_head_matches_every_prefix_and_the_copy_is_free() -> None:
    monitor = Induction(lengths=(90,), haystack="prose", span_tokens=12)
    with evaluating(model := planted_model()):
        seen = monitor.score(model, [repeat_item(90, 12, seed) for seed in range(5)])
    found = {
        tuple(r.tags.values()): r.value for r in monitor.aggregate(seen, Moment(0, 0)) if r.metric == "induction_frac"
    }
    assert len(found) == 8
    np.testing.assert_allclose(seen.scores[:, *COPY_HEAD, 0], 1.0, atol=1e-4)
    others = seen.scores[..., 0].mean(0)
    others[COPY_HEAD] = 0
    assert others.max() < 0.1
    by_metric = {m: [v.value for v in seen.values if v.metric == m] for m in {v.metric for v in seen.values}}
    assert max(by_metric["second_copy_nll_nats"]) < 0.01 and set(by_metric["second_copy_hit_frac"]) == {1.0}
    assert min(by_metric["first_copy_nll_nats"]) > 2


def test_both_copies_are_scored_where_they_are() -> None:
    """Values equal a plain loop over the logits; the first token of a copy, which nothing foretells, is left out."""
    monitor, item, model = (
        Induction(lengths=(90,), haystack="prose", span_tokens=12),
        repeat_item(90, 12, 3),
        tiny_model(64),
    )
    with evaluating(model):
        values = {v.metric: v.value for v in monitor.score(model, [item]).values}
        logp = (model(torch.from_numpy(item.tokens[None])).hidden_BTD[0] @ model.head_weight.T).log_softmax(-1)
    for metric, (start, stop) in (("first_copy_nll_nats", item.first), ("second_copy_nll_nats", item.second)):
        want = -np.mean([float(logp[p - 1, item.tokens[p]]) for p in range(start + 1, stop)])
        assert values[metric] == pytest.approx(want, abs=1e-5)


def test_the_planted_previous_token_head_is_found_alone() -> None:
    """Heads of uniform attention have 1 / keys on the position before; the copying head has its mass elsewhere."""
    monitor, items = (
        Induction(lengths=(90,), haystack="prose", span_tokens=12),
        [repeat_item(90, 12, s) for s in range(5)],
    )
    with evaluating(model := planted_model()):
        seen = monitor.score(model, items)
    found = {
        (r.tags["layer"], r.tags["head"]): (r.value, r.n)
        for r in monitor.aggregate(seen, Moment(0, 0))
        if r.metric == "previous_token_frac"
    }
    assert len(found) == 8 and found[PREVIOUS_HEAD] == (pytest.approx(1.0, abs=0.02), 5)
    uniform = np.mean([1 / (query + 1) for query in range(78, 89)])
    assert found[0, 1][0] == found[1, 3][0] == pytest.approx(uniform, rel=1e-4)
    assert all(value < 0.02 for head, (value, _) in found.items() if head != PREVIOUS_HEAD)


def test_both_head_scores_equal_those_of_whole_rows() -> None:
    monitor, item, model = (
        Induction(lengths=(90,), haystack="prose", span_tokens=12),
        repeat_item(90, 12, 3),
        tiny_model(64),
    )
    whole = {}
    with evaluating(model):
        got = monitor.score(model, [item]).scores[0]
        with tapping(model, lambda layer, attended: whole.update({layer: attended.rows(0, 0, 89).numpy()})):
            model(torch.from_numpy(item.tokens[None, :-1]))
    (first, _), (start, stop) = item.first, item.second
    for layer, rows in whole.items():
        for head, row in enumerate(rows):
            want = [(row[start + i, first + i + 1], row[start + i, start + i - 1]) for i in range(stop - 1 - start)]
            np.testing.assert_allclose(got[layer, head], np.mean(want, axis=0), atol=1e-6)
