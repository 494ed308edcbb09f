"""Masking heads: planted truth, sets of heads by hand, and each arm against a model with the heads cut out."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors import Intervention, Needle
from lccp_sim.monitors.intervention import ArmValues, random_heads, strongest_heads
from lccp_sim.monitors.needle_items import NeedleItem
from lccp_sim.monitors.observing import evaluating
from lccp_sim.monitors.values import Moment, Value
from tests.monitors.worlds import NEEDLE, digest, planted_item, planted_model, tiny_model

MONITOR = Intervention(lengths=(100,), haystack="prose", items=20, depths=5, k=1)


def planted_items(count: int, length: int = 100) -> list[NeedleItem]:
    rng = np.random.default_rng(2)
    return [planted_item(str(i), length, rng.choice(list(NEEDLE), 8, replace=False).tolist(), i) for i in range(count)]


def by_arm(seen: ArmValues, metric: str) -> dict[str, float]:
    records = MONITOR.aggregate(seen, Moment(0, 0))
    return {r.tags["arm"]: r.value for r in records if r.metric == metric and r.tags.get("span", "full") == "full"}


@pytest.mark.parametrize("k", [1, 2])
def test_masking_the_planted_head_destroys_the_answer_and_masking_others_does_not(k: int) -> None:
    """The second of two comes by the tie of all other heads; what random heads write, nothing reads."""
    monitor, items, model = dataclasses.replace(MONITOR, k=k), planted_items(20), planted_model()
    with evaluating(model):
        model.lm_head.weight *= 0.1  # less sure of itself, so that more of the copying head shows
        seen = monitor.score(model, items)
    assert by_arm(seen, "hit_frac") == {"none": 1.0, "mask_top": 0.0, "mask_random": 1.0, "boost_top": 1.0}
    nll = by_arm(seen, "answer_nll_nats")
    assert nll["none"] == pytest.approx(nll["mask_random"]) and 0 < nll["boost_top"] < nll["none"] < 2
    assert nll["mask_top"] == pytest.approx(np.log(64), abs=1e-4)  # nothing is written: all tokens are equally likely
    assert by_arm(seen, "answer_ppl")["mask_top"] == pytest.approx(64, rel=1e-3)
    found = monitor.aggregate(seen, Moment(0, 0))
    records = {(r.metric, r.tags.get("arm")): r for r in found if r.tags.get("span", "full") == "full"}
    effect = records["causal_nll_nats", None]
    assert effect.value == pytest.approx(nll["mask_top"] - nll["mask_random"]) and effect.n == 10
    assert records["masked_heads_count", "mask_top"].value == records["masked_heads_count", "mask_random"].value == k
    assert records["masked_heads_count", "mask_random"].n == 3


def test_the_second_half_measures_and_the_first_selects() -> None:
    """Texts of the first half on which nothing can be copied leave the choice to the ties."""
    items = planted_items(20)
    blind = [item._replace(needle=(1, 2), answer=(2, 3), value_mask=np.ones(1, dtype=bool)) for item in items[:10]]
    with evaluating(model := planted_model()):
        lucky, unlucky = MONITOR.score(model, items), MONITOR.score(model, blind + items[10:])
    assert {v.item for v in lucky.values} == {str(i) for i in range(10, 20)}
    assert by_arm(lucky, "hit_frac")["mask_top"] == 0.0 and by_arm(unlucky, "hit_frac")["none"] == 1.0
    assert by_arm(unlucky, "answer_nll_nats")["mask_top"] != by_arm(lucky, "answer_nll_nats")["mask_top"]


def test_each_length_is_halved() -> None:
    items = planted_items(20, 80) + [item._replace(id=f"long-{item.id}") for item in planted_items(20, 120)]
    with evaluating(model := planted_model()):
        seen = dataclasses.replace(MONITOR, lengths=(80, 120)).score(model, items)
    names = [str(i) for i in range(10, 20)]
    assert {v.item for v in seen.values} == {*names, *(f"long-{name}" for name in names)}


def test_the_effect_is_paired_item_by_item() -> None:
    nll = {"none": [1.0, 9.0], "mask_top": [4.0, 13.0], "mask_random": [2.0, 10.0], "boost_top": [1.0, 9.0]}
    values = [
        Value("intervention", "answer_nll_nats", str(i), {"length": 100, "arm": arm, "span": span}, x * scale)
        for span, scale in (("full", 1), ("value", 10))
        for arm, numbers in nll.items()
        for i, x in enumerate(numbers)
    ]
    sets = [[(1, 2), (1, 3)], [(1, 2), (0, 3)], [(0, 0)]]
    records = MONITOR.aggregate(ArmValues(values, [(1, 0), (1, 1)], sets), Moment(0, 0))
    effect, of_value = (r for r in records if r.metric == "causal_nll_nats")
    assert (effect.value, effect.n, effect.stderr, effect.tags) == (2.5, 2, 0.5, {"span": "full"})
    assert (of_value.value, of_value.tags) == (25.0, {"span": "value"})
    tags = {"arm": "mask_top", "span": "full"}
    spread = next(r for r in records if r.metric == "answer_nll_nats" and r.tags == tags)
    assert spread.stderr == pytest.approx(4.5)
    counts = {(r.metric, r.tags["arm"]): (r.value, r.n) for r in records if r.metric.endswith(("count", "layers_frac"))}
    assert counts == {
        ("masked_heads_count", "mask_top"): (2, 1),
        ("masked_heads_count", "mask_random"): (pytest.approx(5 / 3), 3),
        ("same_layers_frac", "mask_random"): (0.5, 3),
    }


SCORES = np.array([[0.9, 0.05, 0.02, 0.0], [0.0, 0.0, 0.2, 0.3], [0.5, 0.4, 0.15, 0.01], [0.0] * 4])


def test_sets_of_heads() -> None:
    top = strongest_heads(SCORES, 4)
    assert top == [(0, 0), (2, 0), (2, 1), (1, 3)]
    seen = set()
    for draw in range(40):
        heads = random_heads(SCORES, top, np.random.default_rng(draw))
        assert heads == random_heads(SCORES, top, np.random.default_rng(draw))
        assert len(set(heads)) == 4 and not set(heads) & set(top)
        assert not set(heads) & {(1, 2), (2, 2)}  # above 0.1: they retrieve
        assert {0, 1, 2} <= {layer for layer, _ in heads} and (2, 3) in heads  # layer 2 has one for two
        seen |= set(heads)
    assert seen == {(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (2, 3), (3, 0), (3, 1), (3, 2), (3, 3)}
    assert strongest_heads(np.zeros((2, 3)), 4) == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_random_heads_are_of_the_layers_of_the_strongest_where_these_have_enough() -> None:
    score_LN = np.zeros((3, 8))
    score_LN[1, :3], score_LN[2, 0] = 0.5, 0.4
    for draw in range(20):
        heads = random_heads(score_LN, strongest_heads(score_LN, 4), np.random.default_rng(draw))
        assert sorted(layer for layer, _ in heads) == [1, 1, 1, 2]


def without(model: Transformer, heads: list[tuple[int, int]]) -> Transformer:
    """The model with the columns of these heads cut out of its output matrices."""
    cut = copy.deepcopy(model)
    for layer, head in heads:
        cut.layers[layer].attention.out.weight.data.unflatten(1, (model.num_heads, -1))[:, head] = 0.0
    return cut


def test_arms_equal_models_with_the_heads_cut_out() -> None:
    monitor, items, model = dataclasses.replace(MONITOR, k=2, draws=2), planted_items(20), tiny_model(64)
    needle = Needle(lengths=(100,), haystack="prose", heads=False)
    with evaluating(model):
        seen = monitor.score(model, items)
        scores = dataclasses.replace(needle, heads=True).score(model, items[:10]).head_scores[..., 0].mean(0)
        top = strongest_heads(scores, 2)
        sets = [random_heads(scores, top, np.random.default_rng((0, draw))) for draw in range(2)]
        assert (seen.top, seen.others) == (top, sets)
        for arm, cuts in (("none", [[]]), ("mask_top", [top]), ("mask_random", sets)):
            want = [
                {(v.item, v.tags["span"]): v.value for v in needle.score(without(model, heads), items[10:]).values
                 if v.metric == "answer_nll_nats"}
                for heads in cuts
            ]  # fmt: skip
            of_arm = [v for v in seen.values if v.metric == "answer_nll_nats" and v.tags["arm"] == arm]
            got = {(v.item, v.tags["span"]): v.value for v in of_arm}
            assert got == pytest.approx({item: np.mean([each[item] for each in want]) for item in want[0]}, abs=1e-5)
    assert all(block.attention.gate_N is None for block in model.blocks)
    assert torch.isfinite(torch.tensor([v.value for v in seen.values])).all()


def test_items_are_those_of_the_needle_without_controls(corpus: Corpus) -> None:
    monitor = dataclasses.replace(MONITOR, lengths=(160,), haystack=("prose", "other"))
    items = monitor.prepare(corpus)
    needles = Needle(lengths=(160,), haystack=("prose", "other"), items=20).prepare(corpus)
    assert digest(items) == digest([item._replace(control=None) for item in needles])
    for half in (items[:10], items[10:]):
        assert [item.tags["depth"] for item in half] == [i / 4 for i in range(5)] * 2


def test_what_does_not_fit_is_refused_in_its_own_name(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"^monitors.intervention.items=15: must be a multiple of 2 x depths=10"):
        dataclasses.replace(MONITOR, items=15)
    with pytest.raises(ConfigError, match=r"^monitors.intervention.lengths \(single\): 30 tokens do not hold"):
        dataclasses.replace(MONITOR, lengths=(30,)).prepare(corpus)
    with pytest.raises(ConfigError, match=r"^monitors.intervention.lengths=\(\): must not be empty"):
        dataclasses.replace(MONITOR, lengths=())


def test_k_left_out_is_three_percent_within_bounds() -> None:
    with evaluating(model := planted_model()):
        seen = dataclasses.replace(MONITOR, k=None).score(model, planted_items(20))
    assert len(seen.top) == 8 and seen.others == [[], [], []]  # all heads of the model
    assert by_arm(seen, "same_layers_frac") == {"mask_random": 0.0}
