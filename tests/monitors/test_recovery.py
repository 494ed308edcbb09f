"""Recovery of a needle: the ratio of its worth with and without haystack, and void where there is nothing to divide."""

import numpy as np
import pytest
import torch

from lccp_sim.data.pools import Corpus
from lccp_sim.monitors import Needle
from lccp_sim.monitors.observing import evaluating
from lccp_sim.monitors.recovery import recovery, recovery_records
from lccp_sim.monitors.values import Moment, Value
from tests.monitors.worlds import FILLER, NEEDLE, QUESTION, planted_item, planted_model, tiny_model

MONITOR = Needle(lengths=(160, 300), haystack="prose", items=10, depths=5, controls=4, variants={"heldout": 5})


def test_the_ratio_of_means_has_the_error_that_other_items_would_give() -> None:
    rng = np.random.default_rng(0)
    worth = rng.uniform(2, 6, (2000, 30))
    gain = 0.4 * worth + 0.5 * rng.standard_normal(worth.shape)
    made = [recovery(list(g), list(w)) for g, w in zip(gain, worth, strict=True)]
    values, errors = np.array([each for each in made if each]).T
    assert len(values) == 2000 and values.mean() == pytest.approx(0.4, abs=0.003)
    assert errors.mean() == pytest.approx(values.std(), rel=0.05)


@pytest.mark.parametrize("alone", [[0.05, 0.06, 0.04], [5.0, -4.9, 0.5], [-2.0, -2.1, -1.9], [3.0]])
def test_a_worth_near_zero_or_not_told_from_it_gives_none(alone: list[float]) -> None:
    assert recovery([1.0] * len(alone), alone) is None


def test_what_hurts_is_below_zero_and_what_the_haystack_helps_is_above_one() -> None:
    for gain, ratio in ((-1.0, -0.5), (3.0, 1.5)):
        found = recovery([gain, gain], [2.0, 2.0])
        assert found == (pytest.approx(ratio), pytest.approx(0.0))


def test_a_planted_copier_recovers_all_and_a_blind_model_has_no_record() -> None:
    rng, items = np.random.default_rng(1), []
    for i in range(6):
        needle = rng.choice(list(NEEDLE), 6, replace=False)
        item = planted_item(str(i), 120, needle.tolist(), i)
        control = item.tokens.copy()
        control[slice(*item.needle)] = rng.choice(list(FILLER), 6)
        alone = np.concatenate(([0, 1], needle, list(QUESTION), [1], needle)).astype(np.int64)
        items.append(item._replace(control=control, alone=alone))
    monitor, model = Needle(lengths=(120,), haystack="prose"), planted_model()
    with evaluating(model):
        found = {span: value for span, value in _by_span(monitor, model, items)}
    assert set(found) == {"full", "value"} and all(abs(value - 1) < 0.05 for value in found.values())
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all tokens alike: no needle is worth anything
    with evaluating(model):
        assert not list(_by_span(monitor, model, items))


def _by_span(monitor, model, items):
    records = monitor.aggregate(monitor.score(model, items), Moment(0, 0))
    return ((r.tags["span"], r.value) for r in records if r.metric == "recovery_frac" and set(r.tags) == {"span"})


def test_alone_is_the_same_question_without_haystack_and_scored_as_plain_logits_say(corpus: Corpus) -> None:
    items, model = MONITOR.prepare(corpus), tiny_model(corpus.vocab_size)
    with evaluating(model):
        values = MONITOR.score(model, items).values
        got = {(v.item, v.metric): v.value for v in values if v.tags["span"] == "full"}
        for item in items:
            assert (item.alone is not None) == (item.tags["variant"] == "single")
            if item.control is None:
                assert (item.id, "alone_nll_nats") not in got
                continue
            n = item.answer[1] - item.answer[0]
            assert item.alone[1 : n + 1].tolist() == item.alone[-n:].tolist() == item.tokens[-n:].tolist()
            asked = item.alone[n + 1 : -n].tolist()
            assert item.tokens[item.answer[0] - len(asked) : item.answer[0]].tolist() == asked
            logits = model(torch.from_numpy(item.alone[None])).hidden_BTD[0] @ model.head_weight.T
            nll = torch.nn.functional.cross_entropy(logits[-n - 1 : -1], torch.from_numpy(item.alone[-n:]))
            assert got[item.id, "alone_nll_nats"] == pytest.approx(float(nll), abs=1e-5)
            worth = got[item.id, "control_nll_nats"] - float(nll)
            assert got[item.id, "alone_gain_nats"] == pytest.approx(worth, abs=1e-5)


def test_records_are_ratios_of_the_cells_own_items() -> None:
    worth = {"a": (2.0, 4.0), "b": (1.0, 4.2), "c": (3.0, 3.0), "d": (3.0, 3.1)}  # gain, gain without haystack
    values = [
        Value("needle", metric, item, {"length": 128 if item in "ab" else 256, "span": "full", "variant": "single"}, x)
        for item, pair in worth.items()
        for metric, x in zip(("gain_nats", "alone_gain_nats"), pair, strict=True)
    ]
    other = Value("needle", "answer_nll_nats", "e", {"length": 512, "span": "full", "variant": "heldout"}, 9.0)
    records = recovery_records([*values, other], Moment(3, 30), "probabilistic")
    found = {r.tags.get("length"): (r.value, r.n) for r in records}
    assert found == {
        None: (pytest.approx(9.0 / 14.3), 4), 128: (pytest.approx(3 / 8.2), 2), 256: (pytest.approx(6 / 6.1), 2),
    }  # fmt: skip
    assert all(r.stderr is not None for r in records)
