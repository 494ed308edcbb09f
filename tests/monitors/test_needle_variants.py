"""What stands around a needle: several sources in turn, nothing but facts, or text of a fixed length behind it."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from lccp_sim.data.documents.facts import TRAIN_TEMPLATES, is_evaluation_key
from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError
from lccp_sim.monitors import Needle
from lccp_sim.monitors.needle_items import NeedleItem
from tests.monitors.test_needle_items import asked_at, occurrences, told
from tests.monitors.worlds import digest


def without_haystack(item: NeedleItem, corpus: Corpus) -> np.ndarray:
    """The ids between BOS and the question, without the needle."""
    start, stop = item.needle
    return np.concatenate((item.tokens[1:start], item.tokens[stop : asked_at(item, corpus)]))


def stands_in(piece: np.ndarray, documents: list[np.ndarray]) -> bool:
    return any(occurrences(document, piece) for document in documents if len(document) >= len(piece))


def test_several_haystacks_take_turns_at_every_depth(corpus: Corpus) -> None:
    monitor = Needle(lengths=(160,), haystack=("prose", "other"), items=20, depths=5, controls=2)
    sources: dict[float, list[str]] = {}
    for item in monitor.prepare(corpus):
        filler = without_haystack(item, corpus)
        found = [name for name in ("prose", "other") if stands_in(filler, corpus.held_out(name))]
        assert len(found) == 1
        sources.setdefault(item.tags["depth"], []).append(found[0])
    assert all(sorted(names) == ["other"] * 2 + ["prose"] * 2 for names in sources.values()) and len(sources) == 5
    alone = dataclasses.replace(monitor, haystack="prose").prepare(corpus)
    assert digest(alone) == digest(dataclasses.replace(monitor, haystack=("prose",)).prepare(corpus))
    with pytest.raises(ConfigError, match="there is no source named 'pros'"):
        dataclasses.replace(monitor, haystack=("other", "pros")).prepare(corpus)


def test_a_haystack_of_facts_has_nothing_else_and_each_key_once(corpus: Corpus) -> None:
    monitor = Needle(lengths=(300,), haystack="prose", items=5, variants={"multikey": 10})
    for item in (item for item in monitor.prepare(corpus) if item.tags["variant"] == "multikey"):
        n = item.needle[1] - item.needle[0]
        ((template, key, _),) = told(item.tokens[slice(*item.needle)], TRAIN_TEMPLATES, corpus)
        asked, count = asked_at(item, corpus), (asked_at(item, corpus) - 1) // n
        first = asked - count * n  # the remainder, text of the haystack, stands at the start
        facts = [item.tokens[first + j * n :][:n] for j in range(count)]
        assert first - 1 < n and all(told(fact, [template], corpus) for fact in facts)
        assert len({tuple(fact[key : key + 2].tolist()) for fact in facts}) == count >= 10
        assert all(is_evaluation_key(fact[key : key + 2]) for fact in facts)
        assert (item.needle[0] - first) / n == round(item.tags["depth"] * (count - 1))


def test_interference_has_a_fixed_distance_and_a_growing_context_before(corpus: Corpus) -> None:
    monitor = Needle(
        lengths=(90, 100, 200, 300), haystack="prose", items=5, variants={"interference": 6}, interference_tokens=100
    )
    items = [item for item in monitor.prepare(corpus) if item.tags["variant"] == "interference"]
    assert [item.tags for item in items] == [
        {"length": n, "variant": "interference"} for n in (200, 300) for _ in range(6)
    ]
    for item in items:
        start, stop = item.needle
        assert asked_at(item, corpus) - stop == 100
        question = item.answer[0] - asked_at(item, corpus)
        assert start - 1 == item.tags["length"] - 1 - 100 - question - 2 * (stop - start) >= 0
    with pytest.raises(ConfigError, match="monitors.needle.interference_tokens=100: the longest text has 100 tokens"):
        dataclasses.replace(monitor, lengths=(90, 100))


@pytest.mark.parametrize(
    ("variant", "length", "what"),
    [("multikey", 90, "2 other facts"), ("interference", 120, "100 tokens of interference")],
)
def test_a_variant_that_does_not_fit_is_refused_with_the_least_that_does(
    variant: Any, length: int, what: str, corpus: Corpus
) -> None:
    monitor = Needle(lengths=(length,), haystack="prose", items=5, variants={variant: 5}, interference_tokens=100)
    with pytest.raises(
        ConfigError, match=rf"^monitors.needle.lengths \({variant}\): .* a needle, {what}, the"
    ) as error:
        monitor.prepare(corpus)
    least = int(str(error.value).split()[-1])
    assert len(dataclasses.replace(monitor, lengths=(least,)).prepare(corpus)) == 10
    with pytest.raises(ConfigError, match=rf"use at least {least}$"):
        dataclasses.replace(monitor, lengths=(least - 1,)).prepare(corpus)


def test_too_few_keys_for_the_facts_of_a_text_are_refused(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lccp_sim.monitors.needle_items.count_evaluation_keys", lambda tokenizer: 10)
    monitor = Needle(lengths=(400,), haystack="prose", items=5, variants={"multikey": 5})
    with pytest.raises(ConfigError, match="other facts in a text=[0-9]+: there are 10 keys.*larger vocabulary"):
        monitor.prepare(corpus)
