"""The needle's texts are what they claim: every span, depth, key, control and variant, in every process."""

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lccp_sim.data.documents.facts import (
    HELDOUT_TEMPLATES,
    TRAIN_TEMPLATES,
    Fact,
    Template,
    draw_fact,
    is_evaluation_key,
    word_atoms,
)
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tokenizer import encode
from lccp_sim.errors import ConfigError
from lccp_sim.monitors import Induction, Intervention, LongBioHeads, Needle, Perplexity, Probe, Routing
from lccp_sim.monitors.needle_items import NeedleItem
from tests.monitors.worlds import digest, make_corpus

MONITOR = Needle(
    lengths=(160, 300), haystack="prose", items=15, depths=5, controls=6, variants={"heldout": 9, "distractor": 9}
)


@pytest.fixture(scope="module")
def items(corpus: Corpus) -> list[NeedleItem]:
    return MONITOR.prepare(corpus)


def occurrences(tokens: np.ndarray, span: np.ndarray) -> list[int]:
    """Where `span` starts in `tokens`."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens, len(span))
    return np.flatnonzero((windows == span).all(1)).tolist()


def told(needle: np.ndarray, templates: Sequence[Template], corpus: Corpus) -> list[tuple[Template, int, int]]:
    """The templates whose words `needle` is made of, each with the places of key and value in it."""
    found = []
    for template in templates:
        before, rest = f" {template.statement}".split("{key}")
        pieces = [encode(corpus.tokenizer, text) for text in (before, *rest.split("{value}"))]
        key = len(pieces[0])
        value = key + 2 + len(pieces[1])
        want = np.array([*pieces[0], -1, -1, *pieces[1], -1, -1, -1, -1, *pieces[2]])
        if len(want) == len(needle) and ((want == -1) | (want == needle)).all():
            found.append((template, key, value))
    return found


def test_every_text_is_before_needle_after_question_answer(items: list[NeedleItem], corpus: Corpus) -> None:
    assert len(items) == 2 * (15 + 9 + 9) and len({item.id for item in items}) == len(items)
    for item in items:
        needle, tokens = item.tokens[slice(*item.needle)], item.tokens
        assert len(tokens) == item.tags["length"] == item.answer[1] and tokens[0] == corpus.bos
        assert (tokens[slice(*item.answer)] == needle).all()
        assert occurrences(tokens, needle) == [item.needle[0], item.answer[0]]  # once before the question
        text = corpus.tokenizer.decode(tokens[: item.answer[0]].tolist())
        assert text.count("\nQuestion:") == 1 and text.endswith("\nAnswer:")


def asked_at(item: NeedleItem, corpus: Corpus) -> int:
    """Where the question begins."""
    return occurrences(item.tokens, np.array(encode(corpus.tokenizer, "\nQuestion:")))[-1]


def test_depth_is_the_share_of_haystack_before_the_needle(items: list[NeedleItem], corpus: Corpus) -> None:
    for item in items:
        assert item.tags["depth"] == int(item.id.split("-")[-1]) % 5 / 4
        if item.tags["variant"] != "distractor":
            room = asked_at(item, corpus) - 1 - (item.needle[1] - item.needle[0])
            assert item.needle[0] == 1 + round(item.tags["depth"] * room)
    single = [item.tags["depth"] for item in items if item.tags["variant"] == "single"]
    assert {depth: single.count(depth) for depth in single} == {i / 4: 6 for i in range(5)}


def test_the_value_span_leaves_out_what_the_question_says(items: list[NeedleItem], corpus: Corpus) -> None:
    for item in items:
        needle = item.tokens[slice(*item.needle)]
        _, key, value = told(needle, TRAIN_TEMPLATES + HELDOUT_TEMPLATES, corpus)[0]
        assert is_evaluation_key(needle[key : key + 2])
        assert np.flatnonzero(item.value_mask).tolist() == list(range(value, value + 4))
        question = item.tokens[asked_at(item, corpus) : item.answer[0]]
        assert occurrences(question, needle[key : key + 2]) and not occurrences(question, needle[value : value + 4])


def test_heldout_templates_are_never_those_of_training(items: list[NeedleItem], corpus: Corpus) -> None:
    for item in items:
        needle, held = item.tokens[slice(*item.needle)], item.tags["variant"] == "heldout"
        assert bool(told(needle, HELDOUT_TEMPLATES, corpus)) == held != bool(told(needle, TRAIN_TEMPLATES, corpus))
    assert not {t.statement for t in HELDOUT_TEMPLATES} & {t.statement for t in TRAIN_TEMPLATES}
    assert not {t.question for t in HELDOUT_TEMPLATES} & {t.question for t in TRAIN_TEMPLATES}


@pytest.mark.parametrize("keys", [None, 8])
def test_distractors_share_the_template_and_have_keys_of_their_own(
    keys: int | None, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only `keys` keys exist, so that a draw often repeats one."""

    def few_keys(rng: np.random.Generator, *args: Any, **kwargs: Any) -> Fact:
        fact = draw_fact(rng, *args, **kwargs)
        (at,), key = (
            occurrences(fact.needle_ids, fact.key_ids)[:1],
            word_atoms(corpus.tokenizer)[[0, rng.integers(keys)]],
        )
        fact.needle_ids[at : at + 2] = key
        return fact._replace(key_ids=key)

    if keys:
        monkeypatch.setattr("lccp_sim.monitors.needle_items.draw_fact", few_keys)
    monitor = dataclasses.replace(MONITOR, lengths=(300,), items=5, variants={"distractor": 20}, distractors=6)
    for item in (item for item in monitor.prepare(corpus) if item.tags["variant"] == "distractor"):
        n, context = item.needle[1] - item.needle[0], item.tokens[: item.answer[0]]
        ((template, key, _),) = told(item.tokens[slice(*item.needle)], TRAIN_TEMPLATES, corpus)
        places = [i for i in range(len(context) - n + 1) if told(context[i : i + n], [template], corpus)]
        assert len(places) == 7 and item.needle[0] in places
        assert len({tuple(context[i + key : i + key + 2].tolist()) for i in places}) == 7


def test_the_control_differs_from_its_text_in_the_needle_only(items: list[NeedleItem]) -> None:
    with_control = [item for item in items if item.control is not None]
    assert [item.id for item in with_control] == [f"single-{n}-{i}" for n in (160, 300) for i in range(6)]
    for item in with_control:
        start, stop = item.needle
        assert len(item.control) == len(item.tokens)
        assert (np.delete(item.control, np.s_[start:stop]) == np.delete(item.tokens, np.s_[start:stop])).all()
        assert not occurrences(item.control[: item.answer[0]], item.tokens[start:stop])


def test_items_are_the_same_at_every_call_and_in_every_process(corpus: Corpus) -> None:
    monitors = [
        MONITOR,
        Induction(lengths=(128,), haystack="prose"),
        Perplexity(sources=("prose", "other"), context_tokens=128, short_tokens=32),
        Probe(tasks={"longbio_standard": 1}, short_tokens=300, long_tokens=520, lr=1e-3, steps=2),
        Routing(source="prose", context_tokens=64),
        Intervention(lengths=(128,), haystack="prose", items=10),
        LongBioHeads(lengths=(500,)),
    ]
    here = [digest(m.prepare(corpus)) for m in monitors]
    assert here == [digest(m.prepare(make_corpus())) for m in monitors]
    code = "from lccp_sim.monitors import *\n"
    code += "from tests.monitors.worlds import digest, make_corpus\ncorpus = make_corpus()\n"
    code += f"for m in {monitors!r}: print(digest(m.prepare(corpus)))"
    run = [sys.executable, "-c", code]
    there = subprocess.run(
        run, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    ).stdout.split()
    assert there == here and len(set(here)) == len(here)
    assert digest(dataclasses.replace(MONITOR, seed=1).prepare(corpus)) != here[0]


def test_a_length_that_does_not_hold_a_needle_is_refused_with_the_least_that_does(corpus: Corpus) -> None:
    for keys in (
        {},
        {"variants": {"heldout": 5}, "lengths": (400, 30)},
        {"variants": {"distractor": 5}, "distractors": 9},
    ):
        monitor = Needle(**({"lengths": (30,), "haystack": "prose", "items": 5} | keys))
        with pytest.raises(
            ConfigError, match=r"^monitors.needle.lengths \(single\): 30 tokens.*at least \d+$"
        ) as error:
            monitor.prepare(corpus)
        least = int(str(error.value).split()[-1])
        assert len(dataclasses.replace(monitor, lengths=(least,), variants=None).prepare(corpus)) == 5
        with pytest.raises(ConfigError):
            dataclasses.replace(monitor, lengths=(least - 1,), variants=None).prepare(corpus)
    crowded = Needle(lengths=(130,), haystack="prose", items=5, variants={"distractor": 5}, distractors=32)
    with pytest.raises(ConfigError, match=r"\(distractor\): 130 tokens do not hold a needle, 32 distractors") as error:
        crowded.prepare(corpus)
    least = int(str(error.value).split()[-1])
    assert len(dataclasses.replace(crowded, lengths=(least,)).prepare(corpus)) == 10


def test_bad_haystacks_are_refused(corpus: Corpus) -> None:
    with pytest.raises(
        ConfigError, match="there is no source named 'pros'; this run has prose, other; did you mean 'prose'"
    ):
        Needle(lengths=(160,), haystack="pros").prepare(corpus)
    with pytest.raises(ConfigError, match="no held-out document of 'prose' has .*the longest: 2171"):
        Needle(lengths=(100_000,), haystack="prose").prepare(corpus)
    empty = dataclasses.replace(corpus, held_out_documents={"prose": []})
    with pytest.raises(ConfigError, match="'prose' has no held-out documents"):
        Needle(lengths=(160,), haystack="prose").prepare(empty)
    with pytest.raises(ConfigError, match="must be a multiple of depths=5"):
        Needle(lengths=(160,), haystack="prose", items=12)
    with pytest.raises(ConfigError, match="monitors.needle.haystack=.*: needs at least one source"):
        Needle(lengths=(160,), haystack=())
