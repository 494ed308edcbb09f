"""Facts and synthetic documents: exact lengths, exact spans, and what is marked as not learnable."""

import itertools
import json
import re

import numpy as np
import pytest
import tokenizers

from lccp_sim.data.documents.facts import (
    HELDOUT_TEMPLATES,
    TRAIN_TEMPLATES,
    count_evaluation_keys,
    digit_atoms,
    draw_fact,
    is_evaluation_key,
    word_atoms,
)
from lccp_sim.data.documents.synthetic import Synthetic, draw_document, plain_tokens
from lccp_sim.data.tasks.keyed import facts_multikey
from lccp_sim.data.tasks.question import UNSEEN, Half
from lccp_sim.data.tokenizer import encode, train_tokenizer
from lccp_sim.errors import ConfigError
from tests.data.conftest import WORDS  # noqa: TID251


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    rng = np.random.default_rng(0)
    return train_tokenizer(600, (" ".join(rng.choice(WORDS, 50)) + f" {n}\n" for n in range(300)))


@pytest.fixture
def fill(tokenizer: tokenizers.Tokenizer):
    ids = np.array(encode(tokenizer, "~".join(WORDS) + "~"), dtype=np.int64)  # no word with a space: not an atom
    return lambda rng, count: np.tile(ids, count // len(ids) + 1)[:count]


def test_atoms_stay_themselves_beside_any_other(tokenizer: tokenizers.Tokenizer) -> None:
    words, digits = word_atoms(tokenizer), digit_atoms(tokenizer)
    assert len(words) > 40 and len(digits) >= 10
    assert all(re.fullmatch(" [A-Za-z]{2,}", tokenizer.decode([each])) for each in words)
    assert all(re.fullmatch(" ?[0-9]", tokenizer.decode([each])) for each in digits)
    ids = np.random.default_rng(0).choice(np.concatenate([words, digits]), 5000).tolist()
    assert encode(tokenizer, tokenizer.decode(ids)) == ids


def test_atoms_that_merge_are_dropped() -> None:
    """A tokenizer that joins some digits keeps those that never join; words stay."""
    from tokenizers import models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([" ".join(WORDS) + f" {n} {n}" for n in range(10, 100)] * 3, trainer)
    assert len(encode(made, " 12")) == 1
    words, digits = word_atoms(made), digit_atoms(made)
    assert len(words) > 40 and len(digits) < 20
    for atoms in (digits, np.concatenate([words, digits])):
        ids = np.random.default_rng(0).choice(atoms, 5000).tolist()
        assert encode(made, made.decode(ids)) == ids


@pytest.mark.parametrize("template", TRAIN_TEMPLATES + HELDOUT_TEMPLATES, ids=lambda template: template.statement)
def test_a_fact_is_exact(tokenizer: tokenizers.Tokenizer, template) -> None:
    rng = np.random.default_rng(0)
    for evaluation in (False, True) * 20:
        fact = draw_fact(rng, template, tokenizer, evaluation)
        needle, question = (tokenizer.decode(ids.tolist()) for ids in (fact.needle_ids, fact.question_ids))
        key, value = (tokenizer.decode(ids.tolist()) for ids in (fact.key_ids, fact.needle_ids[fact.value_mask]))
        assert needle == " " + template.statement.format(key=key, value=value)
        assert question == "\nQuestion: " + template.question.format(key=key) + "\nAnswer:"
        assert encode(tokenizer, needle) == fact.needle_ids.tolist()
        assert encode(tokenizer, question) == fact.question_ids.tolist()
        assert fact.value_mask.sum() == 4 and is_evaluation_key(fact.key_ids) == evaluation
        assert needle[0] == " " and needle[1].isalpha()


def test_a_tokenizer_that_merges_across_the_start_of_the_answer_is_refused(tokenizer: tokenizers.Tokenizer) -> None:
    """The same vocabulary, with one more merge and nothing that splits a text before the merges."""
    made = json.loads(tokenizer.to_str())
    made["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    unsplit = tokenizers.Tokenizer.from_str(json.dumps(made))
    fact = draw_fact(np.random.default_rng(0), TRAIN_TEMPLATES[0], unsplit)
    same = draw_fact(np.random.default_rng(0), TRAIN_TEMPLATES[0], tokenizer)
    assert all(np.array_equal(one, other) for one, other in zip(fact, same, strict=True))
    made["model"]["vocab"][":Ġ"] = len(made["model"]["vocab"])
    made["model"]["merges"].insert(0, [":", "Ġ"])
    merging = tokenizers.Tokenizer.from_str(json.dumps(made))
    with pytest.raises(ConfigError, match="merges across the start of ' The value of'...: token ': ' holds text of bo"):
        draw_fact(np.random.default_rng(0), TRAIN_TEMPLATES[0], merging)


def test_a_tokenizer_that_opens_each_text_with_a_space_puts_none_inside() -> None:
    """Unigram with Metaspace, as many sentencepiece models have it: the whole text is the encoding of the whole."""
    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    texts = [t.statement.format(key=" a", value=" b") + "\n" + t.question.format(key=" c") for t in TRAIN_TEMPLATES]
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=400, show_progress=False, unk_token="?", special_tokens=["?"]
    )
    made.train_from_iterator([" ".join(WORDS), "Question: Answer: . ; 0 1 2 3 4 5 6 7 8 9", *texts] * 30, trainer)
    rng = np.random.default_rng(0)
    for template in TRAIN_TEMPLATES[:4]:
        fact = draw_fact(rng, template, made)
        key, value = (
            "".join(made.id_to_token(int(id_)).replace("▁", " ") for id_ in ids)
            for ids in (fact.key_ids, fact.needle_ids[fact.value_mask])
        )
        statement = template.statement.format(key=key, value=value)
        text = f"a\nQuestion: {template.question.format(key=key)}\nAnswer: {statement}"
        ids = encode(made, text)
        assert [*encode(made, "a"), *fact.question_ids, *fact.needle_ids] == ids


def test_keys_set_aside_are_counted(tokenizer: tokenizers.Tokenizer) -> None:
    words = word_atoms(tokenizer)
    assert count_evaluation_keys(tokenizer) == sum(
        is_evaluation_key(np.array(k)) for k in itertools.product(words, words)
    )


def test_random_spans_are_drawn_from_printable_text(tokenizer: tokenizers.Tokenizer) -> None:
    texts = [tokenizer.decode([each]) for each in plain_tokens(tokenizer)]
    assert len(texts) > 200 and all(text.strip() and text.isprintable() for text in texts)
    assert tokenizer.token_to_id("<|document|>") not in plain_tokens(tokenizer)
    assert set(word_atoms(tokenizer)) < set(plain_tokens(tokenizer))


def test_templates_are_apart() -> None:
    assert not {t.statement for t in TRAIN_TEMPLATES} & {t.statement for t in HELDOUT_TEMPLATES}
    assert len(set(TRAIN_TEMPLATES)) == len(TRAIN_TEMPLATES)


def test_a_vocabulary_without_words_is_refused() -> None:
    small = train_tokenizer(300, iter(["xyz"]))
    with pytest.raises(ConfigError, match="0 plain word tokens.*enlarge"):
        draw_fact(np.random.default_rng(0), TRAIN_TEMPLATES[0], small)
    for half in (UNSEEN, Half(names=False, phrasings=False)):
        with pytest.raises(ConfigError, match="0 plain word tokens.*enlarge"):
            facts_multikey(small, np.random.default_rng(0), 100, half)


@pytest.mark.parametrize("task", ["facts", "copies", "repeats", "records"])
@pytest.mark.parametrize("length", [31, 127, 1000])
def test_documents_have_exactly_their_length_and_come_again(tokenizer, fill, task: str, length: int) -> None:
    source = Synthetic(task=task, text_from="x", skip_unpredictable=True)  # type: ignore[arg-type]
    one, again, other = (
        draw_document(source, tokenizer, fill, length, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert one[0].shape == one[1].shape == (length,) and one[1].dtype == bool
    assert (one[0] == again[0]).all() and (one[1] == again[1]).all()
    if length > 31:
        assert not (one[0] == other[0]).all()


def test_each_fact_is_stated_before_its_question_and_answered_verbatim(tokenizer, fill) -> None:
    source = Synthetic(task="facts", text_from="x")
    asked = 0
    gaps = []
    for seed in range(20):
        ids, learn = draw_document(source, tokenizer, fill, 2000, np.random.default_rng(seed))
        assert learn.all()
        text = tokenizer.decode(ids.tolist())
        for hit in re.finditer(r"\nQuestion: (.*?)\nAnswer:", text):
            found = [
                (template, re.fullmatch(re.escape(template.question).replace(r"\{key\}", "(.*)"), hit[1]))
                for template in TRAIN_TEMPLATES
            ]
            [(template, key)] = [(template, match[1]) for template, match in found if match]
            before, after = template.statement.format(key=key, value="{value}").split("{value}")
            at = text.index(" " + before)
            stated = text[at : text.index(after, at + 1 + len(before)) + len(after)]
            assert at + len(stated) <= hit.start() and text[hit.end() :].startswith(stated)
            assert text.count(stated) == 2
            gaps.append(hit.start() - at - len(stated))
            asked += 1
    assert 0.8 * 20 * 2000 / 80 <= asked <= 20 * 2000 / 80
    assert np.percentile(gaps, 10) < 200 and np.percentile(gaps, 95) > 2000  # characters: near and far


def questions_of(text: str) -> list[tuple[int, int, str, str, str]]:
    """Of each question in a text: where it stands and its answer begins, the template's statement, and the key."""
    found = []
    for hit in re.finditer(r"\nQuestion: (.*?)\nAnswer:", text):
        for template in TRAIN_TEMPLATES:
            if match := re.fullmatch(re.escape(template.question).replace(r"\{key\}", "(.*)"), hit[1]):
                found.append((hit.start(), hit.end(), template.statement, match[1], text[hit.end() : hit.end() + 200]))
    return found


def test_keyed_documents_hold_many_facts_of_one_template_each_asked_as_often_as_said(tokenizer, fill) -> None:
    source = Synthetic(
        task="facts", text_from="x", templates=1, tokens_per_fact=28, questions_per_fact=0.7, answers="both"
    )
    asked = stated = short = 0
    for seed in range(20):
        text = tokenizer.decode(draw_document(source, tokenizer, fill, 1000, np.random.default_rng(seed))[0].tolist())
        questions = questions_of(text)
        (statement,) = {statement for _, _, statement, _, _ in questions}
        before = " " + statement.split("{value}")[0]
        facts = re.finditer(re.escape(before).replace(r"\{key\}", "( [A-Za-z]+ [A-Za-z]+)"), text)
        values: dict[str, str] = {}
        for hit in facts:
            value = text[hit.end() : hit.end() + 8]
            assert values.setdefault(hit[1], value) == value  # one value a key
        for start, _, _, key, answer in questions:
            assert text.index(before.format(key=key)) < start
            line = answer.split("\n")[0]
            whole = answer.startswith(before.format(key=key) + values[key])
            assert whole or values[key].startswith(line[:8])
            short += not whole
        asked, stated = asked + len(questions), stated + len(values)
        assert len(values) > 12
    assert 0.6 < asked / stated < 0.8 and 0.4 < short / asked < 0.6


def test_log_uniform_distances_have_as_many_near_as_far(tokenizer, fill) -> None:
    source = Synthetic(task="facts", text_from="x", distances="log_uniform", answers="statement")
    gaps = []
    for seed in range(40):
        text = tokenizer.decode(draw_document(source, tokenizer, fill, 2000, np.random.default_rng(seed))[0].tolist())
        for start, _, statement, key, _ in questions_of(text):
            gaps.append(start - text.index(" " + statement.format(key=key, value="{value}").split("{value}")[0]))
    middle = np.log(gaps).mean() / np.log(len(text))
    quarter = np.quantile(np.log(gaps), [0.25, 0.5, 0.75])
    assert 0.5 < middle < 0.85 and 0.6 < (quarter[1] - quarter[0]) / (quarter[2] - quarter[1]) < 1.7


def test_closed_values_are_of_64_words(tokenizer, fill) -> None:
    words = word_atoms(tokenizer)
    rng = np.random.default_rng(0)
    facts = [draw_fact(rng, TRAIN_TEMPLATES[0], tokenizer, closed=True) for _ in range(300)]
    values = {tuple(fact.needle_ids[fact.value_mask].tolist()) for fact in facts}
    assert (
        len(values) <= 64 and {len(value) for value in values} == {1} and {v for (v,) in values} <= set(words.tolist())
    )
    assert all(fact.short_ids[:-1].tolist() == fact.needle_ids[fact.value_mask].tolist() for fact in facts)
    assert {tokenizer.decode([int(fact.short_ids[-1])]) for fact in facts} == {"\n"}


def test_questions_as_documents_teach_their_answers_alone(tokenizer) -> None:
    source = Synthetic(
        task="questions", questions={"niah_single_1": 1, "longbio_standard": 1}, question_tokens=200,
        skip_unpredictable=True,
    )  # fmt: skip
    ids, learn = draw_document(source, tokenizer, None, 900, np.random.default_rng(0))
    assert len(ids) == len(learn) == 900
    taught = [list(run) for on, run in itertools.groupby(range(900), key=lambda i: bool(learn[i])) if on]
    text = tokenizer.decode(ids.tolist())
    assert text.count("\nAnswer:") - len(taught) in (0, 1) and len(taught) >= 4
    for run in taught[:-1]:
        assert tokenizer.decode(ids[: run[0]].tolist()).endswith("\nAnswer:")
        assert tokenizer.decode(ids[run].tolist()).endswith("\n")
    assert (
        draw_document(source, tokenizer, None, 900, np.random.default_rng(0), evaluation=True)[0].tolist()
        != ids.tolist()
    )


def test_keys_of_training_and_evaluation_never_meet(tokenizer) -> None:
    rng = np.random.default_rng(0)
    keys = [
        {tuple(draw_fact(rng, TRAIN_TEMPLATES[0], tokenizer, evaluation).key_ids) for _ in range(500)}
        for evaluation in (False, True)
    ]
    assert not keys[0] & keys[1]
    assert {a for key in keys[0] for a in key} & {a for key in keys[1] for a in key}  # the atoms do: not rare tokens


def test_unpredictable_facts_are_marked_at_their_first_mention_only(tokenizer, fill) -> None:
    source = Synthetic(task="facts", text_from="x", skip_unpredictable=True)
    ids, learn = draw_document(source, tokenizer, fill, 1000, np.random.default_rng(0))
    runs = [list(run) for skipped, run in itertools.groupby(range(1000), key=lambda i: not learn[i]) if skipped]
    questions = tokenizer.decode(ids.tolist()).count("\nQuestion:")
    assert [len(run) for run in runs] == [2, 4] * questions
    for run in runs:
        span = ids[run].tolist()
        places = [i for i in range(1000 - len(span)) if ids[i : i + len(span)].tolist() == span]
        assert places[0] == run[0] and len(places) >= 2


def test_copies_repeat_spans_and_mark_random_first_copies(tokenizer) -> None:
    source = Synthetic(task="copies", text_from="x", skip_unpredictable=True)
    plain = set(plain_tokens(tokenizer).tolist())
    others = np.array(sorted(set(range(1, 256)) - plain))

    def fill(rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.choice(others, count)  # so that all plain tokens come from random spans

    marked = repeated = 0
    for seed in range(5):
        ids, learn = draw_document(source, tokenizer, fill, 1000, np.random.default_rng(seed))
        grams = [tuple(ids[i : i + 6].tolist()) for i in range(995)]
        first = {gram: i for i, gram in reversed(list(enumerate(grams)))}
        for i, gram in enumerate(grams):
            if not learn[i : i + 6].any():
                marked += 1
                assert set(gram) <= plain and first[gram] == i
            repeated += set(gram) <= plain and first[gram] < i
    assert 500 < marked <= repeated


def test_of_records_only_what_a_key_tells_is_learnt(tokenizer) -> None:
    """The record's width and separator are found from the text; each learnt token follows from key and earlier text."""
    source = Synthetic(task="records", skip_unpredictable=True)
    told = 0
    for seed in range(40):
        ids, learn = draw_document(source, tokenizer, None, 120, np.random.default_rng(seed))
        assert len(ids) == len(learn) == 120
        assert draw_document(source, tokenizer, None, 120, np.random.default_rng(seed))[0].tolist() == ids.tolist()
        for at in np.flatnonzero(learn):
            seen = [n for n in range(1, at) if ids[n] == ids[at]]
            assert seen, "a token that never stood before is not to be learnt"
        told += learn.sum()
    assert told > 40 * 50
    assert draw_document(Synthetic(task="records"), tokenizer, None, 100, np.random.default_rng(0))[1].all()


def test_repeats_have_one_period_and_learn_from_the_second(tokenizer) -> None:
    for seed in range(10):
        source = Synthetic(task="repeats", skip_unpredictable=True)
        ids, learn = draw_document(source, tokenizer, None, 100, np.random.default_rng(seed))
        period = int((~learn).sum())
        assert 4 <= period <= 20 and not learn[:period].any() and learn[period:].all()
        assert (ids[period:] == ids[:-period]).all()
    assert draw_document(Synthetic(task="repeats"), tokenizer, None, 100, np.random.default_rng(0))[1].all()
