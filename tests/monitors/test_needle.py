"""The needle's numbers equal greedy decoding and plain cross-entropy; records average what they say."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from lccp_sim.data.pools import Corpus
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors import Needle
from lccp_sim.monitors.needle_items import NeedleItem
from lccp_sim.monitors.observing import evaluating
from lccp_sim.monitors.values import Moment
from lccp_sim.train.window.images import window_maps
from lccp_sim.train.window.logs import overall_values, window_line
from tests.monitors.worlds import NEEDLE, planted_item, planted_model, tiny_model

MONITOR = Needle(
    lengths=(160, 300),
    haystack="prose",
    items=15,
    depths=5,
    controls=6,
    variants={"heldout": 9, "distractor": 9, "multikey": 4, "interference": 4},
    interference_tokens=64,
)


@pytest.fixture(scope="module")
def items(corpus: Corpus) -> list[NeedleItem]:
    return MONITOR.prepare(corpus)


@torch.no_grad()
def greedy(model: Transformer, prompt: np.ndarray, count: int) -> np.ndarray:
    """The next `count` tokens, one whole forward and one argmax over all logits each."""
    tokens = torch.from_numpy(prompt[None])
    for _ in range(count):
        logits = model(tokens).hidden_BTD[:, -1] @ model.head_weight.T
        tokens = torch.cat((tokens, logits.argmax(-1, keepdim=True)), dim=1)
    return tokens[0, len(prompt) :].numpy()


@pytest.mark.parametrize("kind", ["planted", "random"])
def test_the_teacher_forced_hit_equals_greedy_decoding(kind: str) -> None:
    """Planted: a needle that repeats a token leaves the copying head two places to look at.

    Random: the answers are the model's own continuations, half of them with one token changed.
    """
    rng = np.random.default_rng(0)
    model, items = (planted_model(), []) if kind == "planted" else (tiny_model(64), [])
    for i in range(24):
        n = int(rng.integers(4, 12))
        item = planted_item(str(i), 100, rng.choice(list(NEEDLE), n).tolist(), i)
        if kind == "random":
            answer = greedy(model, item.tokens[: item.answer[0]], n)
            if i % 2:
                answer[rng.integers(n)] += 1
            item.tokens[slice(*item.answer)] = answer % 64
        items.append(item)
    with evaluating(model):
        seen = Needle(lengths=(100,), haystack="prose").score(model, items)
    hits = {v.item: v.value for v in seen.values if v.metric == "hit_frac" and v.tags["span"] == "full"}
    for item in items:
        start, stop = item.answer
        decoded = greedy(model, item.tokens[:start], stop - start)
        assert hits[item.id] == float((decoded == item.tokens[start:stop]).all())
    assert 4 <= sum(hits.values()) <= 20


def test_nll_hit_control_and_gain_equal_full_logits(items: list[NeedleItem], corpus: Corpus) -> None:
    model = tiny_model(corpus.vocab_size)
    with evaluating(model):
        seen = MONITOR.score(model, items)
        got = {(v.item, v.metric, v.tags["span"]): v.value for v in seen.values}
        assert len(got) == len(seen.values) == 6 * len(items) + 8 * 12
        for item in items:
            nll = {}
            for name, tokens in (("answer", item.tokens), ("control", item.control)):
                if tokens is None:
                    continue
                logits = model(torch.from_numpy(tokens[None])).hidden_BTD[0] @ model.head_weight.T
                rows, asked = logits[item.answer[0] - 1 : -1], torch.from_numpy(tokens[slice(*item.answer)])
                each = torch.nn.functional.cross_entropy(rows, asked, reduction="none").double().numpy()
                for span, part in (("full", each), ("value", each[item.value_mask])):
                    nll[name, span] = part.mean()
                    assert got[item.id, f"{name}_nll_nats", span] == pytest.approx(part.mean(), abs=1e-5)
                    if name == "answer":
                        assert got[item.id, "answer_ppl", span] == pytest.approx(np.exp(part.mean()), rel=1e-4)
            for span in ("full", "value") if item.control is not None else ():
                gain = nll["control", span] - nll["answer", span]
                assert got[item.id, "gain_nats", span] == pytest.approx(gain, abs=1e-5)


def test_a_model_that_knows_the_value_and_not_the_sentence_hits() -> None:
    """After the needle's first token either of two may follow: the sentence is missed, the value behind it is not."""
    rng, items = np.random.default_rng(3), []
    for i in range(5):
        first, second, third, *value = rng.choice(list(NEEDLE), 5, replace=False).tolist()
        items.append(planted_item(str(i), 100, [first, second, first, third, *value], i))
    monitor, moment = Needle(lengths=(100,), haystack="prose"), Moment(0, 0)
    with evaluating(model := planted_model()):
        records = monitor.aggregate(monitor.score(model, items), moment)
    overall = overall_values(records)
    assert (overall["needle/hit_frac"], overall["needle/sentence_hit_frac"]) == (1.0, 0.0)
    assert overall["needle/answer_nll_nats"] < overall["needle/sentence_answer_nll_nats"]
    assert "| hit 1.00 | sentence 0.00 | answer NLL " in window_line(moment, records, 1.0)
    grid = window_maps(records)["needle/hit"][1]
    assert grid.equals(window_maps([r for r in records if r.tags.get("span") == "value"])["needle/hit"][1])
    other = [dataclasses.replace(r, tags=r.tags | {"span": "value"}) for r in records if r.tags.get("span") == "full"]
    assert not grid.equals(window_maps(other)["needle/hit"][1])


def test_records_average_the_grid(items: list[NeedleItem], corpus: Corpus) -> None:
    model = tiny_model(corpus.vocab_size)
    with evaluating(model):
        seen = MONITOR.score(model, items)
    records = MONITOR.aggregate(seen, Moment(4, 40))
    assert len({record.key for record in records}) == len(records)
    nll = [v for v in seen.values if v.metric == "answer_nll_nats" and v.tags["span"] == "value"]
    by = {(r.metric, tuple(sorted(r.tags.items()))): r for r in records if r.monitor == "needle"}
    value = (("span", "value"),)
    whole = by["answer_nll_nats", value]
    single = [v.value for v in nll if v.tags["variant"] == "single"]
    assert whole.n == 30 and whole.value == pytest.approx(np.mean(single))
    assert by["gain_nats", value].n == by["control_nll_nats", value].n == 12
    cell = by["answer_nll_nats", (("length", 300), ("span", "value"), ("variant", "heldout"))]
    held = [v.value for v in nll if v.tags["variant"] == "heldout" and v.tags["length"] == 300]
    assert cell.n == 9 and cell.value == pytest.approx(np.mean(held))
    for span, metric in itertools.product(("full", "value"), ("hit_frac", "answer_nll_nats", "answer_ppl")):
        assert by[metric, (("depth", 0.25), ("length", 160), ("span", span), ("variant", "single"))].n == 3
    ppl = by["answer_ppl", value]
    assert ppl.value == pytest.approx(np.mean(np.exp(single))) and ppl.value > np.exp(whole.value)
    for span, metric in itertools.product(("full", "value"), ("hit_frac", "answer_nll_nats", "answer_ppl")):
        of_depth = [r for r in records if r.metric == metric and r.tags.keys() == {"depth", "span"}]
        of_depth = [r for r in of_depth if r.tags["span"] == span]
        assert [(r.tags["depth"], r.n) for r in of_depth] == [(i / 4, 6) for i in range(5)]
        assert np.mean([r.value for r in of_depth]) == pytest.approx(by[metric, (("span", span),)].value)
    cells = {tuple(sorted(r.tags)) for r in records if r.monitor == "needle"}
    assert cells == {
        ("span",),
        ("depth", "span"),
        ("length", "span", "variant"),
        ("depth", "length", "span", "variant"),
    }
    assert by["hit_frac", (("length", 300), ("span", "value"), ("variant", "interference"))].n == 4
    heads = [r for r in records if r.monitor == "heads" and r.metric != "answer_tokens_count"]
    answer_tokens = sum(len(item.value_mask) for item in items if item.tags["variant"] == "single")
    [tokens] = [r for r in records if r.metric == "answer_tokens_count"]
    assert (tokens.value, tokens.n, tokens.tags) == (answer_tokens, 30, {})
    assert len(heads) == 8 * 5 and {r.n for r in heads} == {30} and {r.tier for r in heads} == {"mechanistic"}
    samples = [v for v in MONITOR.samples(seen) if v.monitor == "heads"]
    of_head = [v.value for v in samples if v.tags == {"layer": 1, "head": 2}]
    record = next(r for r in heads if r.metric == "copy_hard_frac" and r.tags == {"layer": 1, "head": 2})
    assert len(of_head) == 30 and record.value == pytest.approx(np.mean(of_head))


def test_heads_off_leaves_the_rest_as_it_is(items: list[NeedleItem], corpus: Corpus) -> None:
    model = tiny_model(corpus.vocab_size)
    with evaluating(model):
        on, off = MONITOR.score(model, items), dataclasses.replace(MONITOR, heads=False).score(model, items)
    assert on.values == off.values and not off.head_items
    assert not [r for r in MONITOR.aggregate(off, Moment(0, 0)) if r.monitor == "heads"]
