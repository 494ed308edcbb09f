"""Heads on biographies: the texts are completions of their needle, planted heads are found, records carry their tag."""

import dataclasses

import numpy as np
import pytest

from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError
from lccp_sim.monitors import LongBioHeads, Needle
from lccp_sim.monitors.heads import HEAD_METRICS
from lccp_sim.monitors.observing import evaluating
from lccp_sim.monitors.values import Moment
from tests.monitors.worlds import COPY_HEAD, NEEDLE, digest, make_corpus, planted_item, planted_model, tiny_model

MONITOR = LongBioHeads(lengths=(500, 700), items=10, depths=5)


def test_texts_end_with_a_sentence_that_they_hold_once_before_the_question(corpus: Corpus) -> None:
    items = MONITOR.prepare(corpus)
    assert len({item.id for item in items}) == len(items) == 20
    places: dict[float, list[int]] = {}
    for item in items:
        needle, tokens = item.tokens[slice(*item.needle)], item.tokens
        assert len(tokens) == item.tags["length"] == item.answer[1] and tokens[0] == corpus.bos
        assert (tokens[slice(*item.answer)] == needle).all() and item.tags["samples"] == "longbio"
        text = corpus.tokenizer.decode(tokens[: item.answer[0]].tolist())
        sentence = corpus.tokenizer.decode(needle.tolist())
        assert text.count(sentence) == 1 and text.count("\nQuestion:") == 1 and text.endswith("\nAnswer:")
        assert item.value_mask.any() and not item.value_mask.all() and item.control is None
        places.setdefault(item.tags["depth"], []).append(item.needle[0])
    means = [np.mean(at) for _, at in sorted(places.items())]
    assert len(means) == 5 and means == sorted(means)
    assert digest(items) == digest(MONITOR.prepare(make_corpus()))
    assert digest(items) != digest(dataclasses.replace(MONITOR, seed=1).prepare(corpus))


def test_the_planted_head_is_found_under_its_tag() -> None:
    rng = np.random.default_rng(1)
    tags = {"length": 120, "depth": 0.0, "samples": "longbio"}
    items = [
        planted_item(str(i), 120, rng.choice(list(NEEDLE), n, replace=False).tolist(), i)._replace(tags=tags)
        for i, n in enumerate((4, 9, 17))
    ]
    with evaluating(model := planted_model()):
        seen = MONITOR.score(model, items)
    records = MONITOR.aggregate(seen, Moment(0, 0))
    assert {r.monitor for r in records} == {"heads"} and all(r.tags["samples"] == "longbio" for r in records)
    copy = {(r.tags["layer"], r.tags["head"]): r for r in records if r.metric == "copy_hard_frac"}
    assert len(copy) == 8 and {head for head, r in copy.items() if r.value > 0.1} == {COPY_HEAD}
    assert copy[COPY_HEAD].value == 1.0 and copy[COPY_HEAD].n == 3
    whole = {r.metric: r for r in records if r.tags == {"samples": "longbio"}}
    assert whole["hit_frac"].value == 1.0 and whole["hit_frac"].n == 3 and whole["answer_nll_nats"].value < 0.01
    assert whole["answer_tokens_count"].value == 4 + 9 + 17
    assert len(records) == 8 * len(HEAD_METRICS) + 3
    samples = [v for v in MONITOR.samples(seen) if v.metric == "copy_hard_frac"]
    assert len(samples) == 3 * 8 and all(v.tags["samples"] == "longbio" for v in samples)


def test_scores_are_those_of_the_needle_monitor_on_the_same_texts(corpus: Corpus) -> None:
    items, model = MONITOR.prepare(corpus)[:5], tiny_model(corpus.vocab_size)
    plain = [item._replace(tags=item.tags | {"variant": "single"}) for item in items]
    with evaluating(model):
        seen, needle = MONITOR.score(model, items), Needle(lengths=(500,), haystack="prose").score(model, plain)
    assert (seen.scores == needle.head_scores).all() and seen.items == needle.head_items
    nll = [v.value for v in needle.values if v.metric == "answer_nll_nats" and v.tags["span"] == "full"]
    assert [v.value for v in seen.values if v.metric == "answer_nll_nats"] == nll


def test_what_does_not_fit_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"^monitors.heads.lengths=60: completion: the shortest text has \d+ tokens"):
        dataclasses.replace(MONITOR, lengths=(60,)).prepare(corpus)
    with pytest.raises(ConfigError, match="^monitors.heads.items=12: must be a multiple of depths=5"):
        dataclasses.replace(MONITOR, items=12)
    with pytest.raises(ConfigError, match="^monitors.heads.lengths="):
        dataclasses.replace(MONITOR, lengths=())
