"""Load of the experts where it is known: shares, dead experts, entropy."""

import math

import numpy as np
import pytest
import torch

from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors import Routing
from lccp_sim.monitors.observing import evaluating
from lccp_sim.monitors.values import Moment
from tests.monitors.worlds import tiny_model

MONITOR = Routing(source="prose", context_tokens=32, items=5)


def measure(model: Transformer, corpus: Corpus) -> dict[tuple, float]:
    items = MONITOR.prepare(corpus)
    with evaluating(model):
        records = MONITOR.aggregate(MONITOR.score(model, items), Moment(0, 0))
    assert len({r.key for r in records}) == len(records)
    return {(r.metric, r.tags.get("layer"), r.tags.get("expert")): r.value for r in records}


def test_shares_are_counts_of_the_router_and_sum_to_one(corpus: Corpus) -> None:
    model, seen = tiny_model(corpus.vocab_size), []
    handles = [
        block.moe.register_forward_hook(lambda _, __, out: seen.append(out[1].count_E)) for block in model.blocks
    ]
    with evaluating(model):
        model(torch.from_numpy(MONITOR.prepare(corpus)))
    for handle in handles:
        handle.remove()
    got = measure(model, corpus)
    for layer, count_E in enumerate(seen):
        assert count_E.sum() == 5 * 32 * 2
        share = (count_E / count_E.sum()).tolist()
        assert [got["load_frac", layer, e] for e in range(4)] == pytest.approx(share)
        assert sum(got["load_frac", layer, e] for e in range(4)) == pytest.approx(1.0)
        assert got["load_max_frac", layer, None] == pytest.approx(max(share))
        assert got["load_entropy_nats", layer, None] == pytest.approx(-sum(s * math.log(s) for s in share if s))
    assert got["load_max_frac", None, None] == max(got["load_max_frac", layer, None] for layer in (0, 1))
    mean = np.mean([got["load_entropy_nats", layer, None] for layer in (0, 1)])
    assert got["load_entropy_nats", None, None] == pytest.approx(mean)


def test_dead_experts_are_counted(corpus: Corpus) -> None:
    model = tiny_model(corpus.vocab_size)
    model.blocks[0].moe.bias_E[2] = -10.0
    model.blocks[1].moe.bias_E[1:] += torch.tensor([-10.0, -10.0, 0.0])
    got = measure(model, corpus)
    assert [got["dead_experts_count", layer, None] for layer in (0, 1, None)] == [1, 2, 3]
    assert got["load_frac", 0, 2] == 0 and got["load_frac", 1, 1] == got["load_frac", 1, 2] == 0
    # Two experts are left for the two slots of each token: half each.
    assert got["load_entropy_nats", 1, None] == pytest.approx(math.log(2))


def test_entropy_is_zero_for_one_expert_and_log_e_for_all(corpus: Corpus) -> None:
    one = tiny_model(corpus.vocab_size, num_experts_per_token=1)
    for block in one.blocks:
        block.moe.bias_E[3] = 10.0
    got = measure(one, corpus)
    assert got["load_entropy_nats", None, None] == 0 and got["load_max_frac", None, None] == 1
    everyone = measure(tiny_model(corpus.vocab_size, num_experts_per_token=4), corpus)
    assert everyone["load_entropy_nats", None, None] == pytest.approx(math.log(4))
    assert everyone["load_max_frac", None, None] == 0.25 and everyone["dead_experts_count", None, None] == 0


def test_small_forwards_count_the_same(corpus: Corpus) -> None:
    small = Routing(source="prose", context_tokens=32, items=5, tokens_per_forward=40)
    with evaluating(model := tiny_model(corpus.vocab_size)):
        items = MONITOR.prepare(corpus)
        assert (small.score(model, items) == MONITOR.score(model, items)).all()


def test_dense_layers_have_no_record_and_a_dense_model_is_refused(corpus: Corpus) -> None:
    got = measure(tiny_model(corpus.vocab_size, num_dense_layers=1, d_dense=16), corpus)
    assert {layer for _, layer, _ in got} == {None, 1}
    for metric in ("load_max_frac", "load_entropy_nats", "dead_experts_count"):
        assert got[metric, None, None] == got[metric, 1, None]
    with pytest.raises(ConfigError, match="a dense model has no experts to count; set monitors.routing=null"):
        measure(tiny_model(corpus.vocab_size, num_dense_layers=2, d_dense=16), corpus)
