"""The fine-tuning probe: it learns, what it asks was never taught, and the model that it looks at stays as it is."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from lccp_sim.config import ConfigError
from lccp_sim.data.biographies import STATEMENTS, VALUES, Question
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tokenizer import encode
from lccp_sim.monitors import Probe
from lccp_sim.monitors.observing import observing
from lccp_sim.monitors.probe import ProbeItems
from lccp_sim.monitors.values import Moment
from tests.monitors.worlds import digest, tiny_model

MONITOR = Probe(short_tokens=160, long_tokens=420, train_tokens=224, lr=3e-3, steps=12, rows=6, items=10)


@pytest.fixture(scope="module")
def items(corpus: Corpus) -> ProbeItems:
    return MONITOR.prepare(corpus)


def test_the_main_model_is_untouched_to_the_bit(items: ProbeItems, corpus: Corpus) -> None:
    model = tiny_model(corpus.vocab_size).train()
    before, state = {name: x.clone() for name, x in model.state_dict().items()}, torch.get_rng_state()
    with observing(model):
        MONITOR.score(model, dataclasses.replace(MONITOR, items=2).prepare(corpus))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state) and model.training


def test_fine_tuning_lowers_the_loss_of_its_own_questions_and_is_deterministic(
    items: ProbeItems, corpus: Corpus
) -> None:
    own = ProbeItems(items.train, [question for batch in items.train[:3] for question in batch])
    runs = []
    for _ in range(2):
        with observing(model := tiny_model(corpus.vocab_size)):
            runs.append(MONITOR.score(model, own))
    assert runs[0] == runs[1]
    means = {r.tags["sft_step"]: r for r in MONITOR.aggregate(runs[0], Moment(0, 0))
             if r.metric == "answer_nll_nats" and r.tags.keys() == {"sft_step"}}  # fmt: skip
    assert means[12].value < means[0].value - 1.0 and means[0].n == means[12].n == 18


def test_the_order_of_the_questions_goes_by_the_probe_seed(items: ProbeItems, corpus: Corpus) -> None:
    monitor = dataclasses.replace(MONITOR, seeds=(0, 7))
    few = ProbeItems(items.train, items.evaluation[:3])
    with observing(model := tiny_model(corpus.vocab_size)):
        values = monitor.score(model, few)
    tuned = {seed: [v.value for v in values if v.tags["seed"] == seed and v.tags["sft_step"] == 12] for seed in (0, 7)}
    assert len(tuned[0]) == len(tuned[7]) == 12 and tuned[0] != tuned[7]
    assert [v.tags["seed"] for v in values if v.tags["sft_step"] == 0] == [0] * 12


def words(questions: list[Question], corpus: Corpus) -> list[str]:
    return [corpus.tokenizer.decode(q.tokens.tolist()) for q in questions]


def test_fine_tuning_and_evaluation_share_no_person_value_or_held_out_phrasing(corpus: Corpus) -> None:
    monitor = dataclasses.replace(MONITOR, steps=20, items=60)
    items = monitor.prepare(corpus)
    taught, asked = words([q for batch in items.train for q in batch], corpus), words(items.evaluation, corpus)
    people = [{t.split(" of ")[-1].split("?")[0] for t in texts} for texts in (taught, asked)]
    assert not people[0] & people[1] and min(map(len, people)) > 20
    in_text = [{w.strip(".") for text in texts for w in text.split()} for texts in (taught, asked)]
    values = {value for pool in VALUES.values() for value in pool}
    assert not in_text[0] & in_text[1] & values and all(len(x & values) > 20 for x in in_text)
    for pieces in ("In free time", "The office of", "The degree of"):
        assert any(s[2].startswith(pieces) for s in STATEMENTS.values())
        assert not any(pieces in text for text in taught)
        assert [pieces in text for text in asked] == [q.task == "paraphrase" for q in items.evaluation]
    assert {q.task for batch in items.train for q in batch} == {"standard"}


def test_a_question_is_about_one_biography_of_its_text_and_fits(items: ProbeItems, corpus: Corpus) -> None:
    for question, limit in [(q, 224) for batch in items.train for q in batch] + [(q, 420) for q in items.evaluation]:
        text = corpus.tokenizer.decode(question.tokens.tolist())
        context, asked = text.split("\nQuestion: What is the ")
        attribute, who = asked.split("?")[0].split(" of ")
        answer = corpus.tokenizer.decode(question.tokens[question.answer_start :].tolist())
        assert answer[0] == " " and answer[-1] == "\n" and answer.strip() in VALUES[attribute]
        (bio,) = [line for line in context.split("\n") if f"{who} " in line or f"{who}." in line]
        assert any(s.format(x=who, v=answer.strip()) in bio for s in STATEMENTS[attribute])
        assert len(question.tokens) <= limit and question.tokens[0] == corpus.bos
        assert encode(corpus.tokenizer, answer[:-1]) + encode(corpus.tokenizer, "\n") == list(
            question.tokens[question.answer_start :]
        )
    lengths = [len(q.tokens) for q in items.evaluation]
    assert max(lengths) > 250 and digest(items) == digest(MONITOR.prepare(corpus))


def test_numbers_equal_greedy_decoding_and_brute_force(items: ProbeItems, corpus: Corpus) -> None:
    """A model that has learnt half of the questions by heart answers those, and not all of the others."""
    short = [q for batch in items.train[:4] for q in batch][:12]
    monitor = dataclasses.replace(MONITOR, steps=60, lr=6e-3)
    own = ProbeItems([short[:6]] * 60, short)
    with observing(model := tiny_model(corpus.vocab_size)):
        tuned = monitor._tune(model, own, 0)
        values = list(monitor._evaluate(tuned, own, {"sft_step": 60, "seed": 0}))
        got = {(v.item, v.metric): v.value for v in values}
        exact = []
        for i, question in enumerate(short):
            tokens, probability, nll = torch.from_numpy(question.tokens[None]), 1.0, []
            logits = (tuned(tokens).hidden_BTD[0] @ tuned.head_weight.T).double()
            decoded = tokens[:, : question.answer_start]
            for p in range(question.answer_start, len(question.tokens)):
                token_probability = float(logits[p - 1].softmax(-1)[question.tokens[p]])
                probability *= token_probability
                nll.append(-np.log(token_probability))
                following = tuned(decoded).hidden_BTD[:, -1] @ tuned.head_weight.T
                decoded = torch.cat((decoded, following.argmax(-1, keepdim=True)), dim=1)
            exact.append(torch.equal(decoded, tokens))
            assert got[str(i), "exact_match_frac"] == float(exact[-1])
            assert got[str(i), "answer_nll_nats"] == pytest.approx(np.mean(nll), abs=1e-4)
            for k in (1, 3):  # at least one right among k independent samples: all outcomes, one by one
                outcomes = itertools.product((True, False), repeat=k)
                chance = sum(np.prod([probability if o else 1 - probability for o in x]) for x in outcomes if any(x))
                assert got[str(i), f"canonical_pass_at_{k}_frac"] == pytest.approx(chance, rel=1e-3, abs=1e-9)
    assert 0 < sum(exact) < 12


def test_limits_that_hold_no_biography_are_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"^monitors.probe.train_tokens=40: does not hold .* at least \d+$"):
        dataclasses.replace(MONITOR, train_tokens=40).prepare(corpus)
    with pytest.raises(ConfigError, match=r"^monitors.probe.long_tokens=50: does not hold"):
        dataclasses.replace(MONITOR, short_tokens=40, long_tokens=50).prepare(corpus)
    with pytest.raises(ConfigError, match="monitors.probe.short_tokens=420: must be less than long_tokens=420"):
        dataclasses.replace(MONITOR, short_tokens=420).prepare(corpus)


def test_very_long_texts_end_when_everyone_has_been_introduced(corpus: Corpus) -> None:
    monitor = dataclasses.replace(MONITOR, steps=1, rows=1, items=2, short_tokens=399_999, long_tokens=400_000)
    assert all(100_000 < len(q.tokens) < 400_000 for q in monitor.prepare(corpus).evaluation)


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1,)])
def test_seeds_that_cannot_be_told_apart_are_refused(seeds: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="^monitors.probe.seeds=.*: needs at least one seed >= 0, and no seed twice$"):
        dataclasses.replace(MONITOR, seeds=seeds)
