"""Full and short NLL against a plain loop over tokens, the position buckets, and stretches that do not overlap."""

import dataclasses

import numpy as np
import pytest
import torch

from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors import Perplexity
from lccp_sim.monitors.observing import evaluating
from lccp_sim.monitors.values import Moment, Value
from tests.monitors.worlds import tiny_model


def plain_nll(model: Transformer, context: np.ndarray, target: int) -> float:
    """-log p of one token after `context`, from all logits."""
    logits = model(torch.from_numpy(context[None])).hidden_BTD[0, -1] @ model.head_weight.T
    return -float(logits.double().log_softmax(-1)[target])


def by_metric(values: list[Value]) -> dict[tuple, float]:
    return {(v.item, v.metric, v.tags.get("position")): v.value for v in values}


@pytest.mark.parametrize("short", [8, 11, 24, 40])
def test_full_and_short_nll_equal_a_loop_over_tokens(short: int, corpus: Corpus) -> None:
    """The same targets twice; short windows each begin with BOS, and the last may be cut."""
    monitor = Perplexity(sources=("prose",), context_tokens=24, short_tokens=short, items=3)
    items, model = monitor.prepare(corpus), tiny_model(corpus.vocab_size)
    with evaluating(model):
        got = by_metric(monitor.score(model, items))
        for item in items:
            bos, text = item.tokens[:1], item.tokens[1:]
            full = [plain_nll(model, item.tokens[: t + 1], text[t]) for t in range(24)]
            begins = [t - t % short for t in range(24)]
            brief = [plain_nll(model, np.concatenate((bos, text[b:t])), text[t]) for t, b in enumerate(begins)]
            assert got[item.id, "nll_nats", None] == pytest.approx(np.mean(full), abs=1e-5)
            assert got[item.id, "ppl", None] == pytest.approx(np.exp(np.mean(full)), rel=1e-5)
            assert got[item.id, "short_nll_nats", None] == pytest.approx(np.mean(brief), abs=1e-5)
            gain = np.mean(brief) - np.mean(full)
            assert got[item.id, "long_short_gain_nats", None] == pytest.approx(gain, abs=1e-5)
            assert abs(gain) > 1e-3 or short >= 24
            for low in (1, 2, 4, 8, 16):  # tokens of the document before the target
                bucket = np.mean(full[low : min(2 * low, 24)])
                assert got[item.id, "nll_nats", low] == pytest.approx(bucket, abs=1e-5)
                gain = np.mean(brief[low : min(2 * low, 24)]) - bucket
                assert got[item.id, "long_short_gain_nats", low] == pytest.approx(gain, abs=1e-5)
    assert {position for _, _, position in got} == {None, 1, 2, 4, 8, 16}


def test_batches_do_not_change_the_numbers(corpus: Corpus) -> None:
    monitor = Perplexity(sources=("prose", "other"), context_tokens=50, short_tokens=16, items=5)
    items, model = monitor.prepare(corpus), tiny_model(corpus.vocab_size)
    with evaluating(model):
        together = by_metric(monitor.score(model, items))
        apart = by_metric(dataclasses.replace(monitor, tokens_per_forward=1).score(model, items))
    assert together.keys() == apart.keys()
    np.testing.assert_allclose(list(together.values()), list(apart.values()), atol=1e-5)


def test_stretches_are_held_out_text_and_do_not_overlap(corpus: Corpus) -> None:
    monitor = Perplexity(sources=("prose", "other"), context_tokens=64, short_tokens=16, items=40)
    items = monitor.prepare(corpus)
    assert len(items) == 80 and len({item.id for item in items}) == 80
    used: dict[tuple[str, int], list[int]] = {}
    for item in items:
        source, document, start = item.id.split("-")
        ids = corpus.held_out(source)[int(document)]
        assert item.tokens[0] == corpus.bos and (item.tokens[1:] == ids[int(start) : int(start) + 64]).all()
        used.setdefault((source, int(document)), []).append(int(start))
    assert all(np.diff(sorted(starts)).min(initial=64) >= 64 for starts in used.values())


def test_records_by_source_and_position(corpus: Corpus) -> None:
    monitor = Perplexity(sources=("prose", "other"), context_tokens=32, short_tokens=8, items=4)
    with evaluating(model := tiny_model(corpus.vocab_size)):
        values = monitor.score(model, monitor.prepare(corpus))
    records = {(r.metric, tuple(sorted(r.tags.items()))): r for r in monitor.aggregate(values, Moment(0, 0))}
    assert len(records) == 4 + 2 * (4 + 2 * 5)
    nll = [records["nll_nats", (("source", source),)].value for source in ("prose", "other")]
    assert records["nll_nats", ()].n == 8 and records["nll_nats", ()].value == pytest.approx(np.mean(nll))
    buckets = [records["nll_nats", (("position", low), ("source", "prose"))] for low in (1, 2, 4, 8, 16)]
    weighted = sum(r.value * low for r, low in zip(buckets, (1, 2, 4, 8, 16), strict=True))
    first = nll[0] * 32 - weighted  # the token after BOS is in no bucket
    assert 0 < first < 30 and {r.n for r in buckets} == {4}


def test_ppl_averages_perplexities_and_not_nll(corpus: Corpus) -> None:
    """By Jensen it lies above exp of the mean NLL: the two say different things about one hard stretch."""
    monitor = Perplexity(sources=("prose", "other"), context_tokens=32, short_tokens=8, items=4)
    with evaluating(model := tiny_model(corpus.vocab_size)):
        values = monitor.score(model, monitor.prepare(corpus))
    whole = {r.metric: r.value for r in monitor.aggregate(values, Moment(0, 0)) if not r.tags}
    each = [v.value for v in values if v.metric == "nll_nats" and "position" not in v.tags]
    assert whole["ppl"] == pytest.approx(np.mean(np.exp(each))) and whole["ppl"] > np.exp(whole["nll_nats"]) * 1.001


def test_a_source_with_fewer_stretches_than_asked_gives_all_and_says_so(corpus: Corpus) -> None:
    monitor = Perplexity(sources=("prose", "other"), context_tokens=500, short_tokens=8, items=12)
    items = monitor.prepare(corpus)
    count = {name: sum(len(ids) // 500 for ids in corpus.held_out(name)) for name in ("prose", "other")}
    assert len(items) == sum(count.values()) and 2 <= count["prose"] < 12
    assert monitor.notes(items)[0] == (
        f"monitors.perplexity: 'prose' has only {count['prose']} held-out stretches of 500 tokens "
        f"(12 requested); its means are over {count['prose']}"
    )
    assert len(monitor.notes(items)) == 2
    fewer = dataclasses.replace(monitor, items=2)
    assert fewer.notes(fewer.prepare(corpus)) == []


def test_a_hundred_stretches_a_source_unless_told_otherwise() -> None:
    assert Perplexity(sources=("prose",), context_tokens=64, short_tokens=8).items == 100


def test_sources_without_text_or_name_are_refused(corpus: Corpus) -> None:
    long = Perplexity(sources=("prose",), context_tokens=100_000, short_tokens=8)
    with pytest.raises(
        ConfigError, match="'prose' has 0 held-out stretches of 100000 tokens .its longest document: 2171"
    ):
        long.prepare(corpus)
    with pytest.raises(ConfigError, match="there is no source named 'web'"):
        Perplexity(sources=("web",), context_tokens=64, short_tokens=8).prepare(corpus)
