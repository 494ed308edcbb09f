"""The fine-tuning probe: it learns, what it asks was never taught, and the model that it looks at stays as it is."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom

from lccp_sim.analysis.findings import examine
from lccp_sim.analysis.report.tables import probe_table
from lccp_sim.analysis.run import load_run
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tasks import TASKS, Half, Lesson, Question, score_text
from lccp_sim.errors import ConfigError
from lccp_sim.files import append_lines
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors import Probe
from lccp_sim.monitors.asking import alike, ask, greedy
from lccp_sim.monitors.observing import counting, evaluating
from lccp_sim.monitors.probe import Answered, ProbeItems, _answer_loss, probe_records
from lccp_sim.monitors.values import Moment, Value
from lccp_sim.records import Record
from lccp_sim.train.window.images import window_maps
from tests.monitors.worlds import digest, tiny_model

MONITOR = Probe(
    short_tokens=300, long_tokens=520, train_tokens=256, lr=3e-3, steps=12, rows=6, items=10, seeds=(0,),
    tasks={"longbio_standard": 2, "variable_tracking_1": 1, "coreference": 0},
)  # fmt: skip


@pytest.fixture(scope="module")
def items(corpus: Corpus) -> ProbeItems:
    return MONITOR.prepare(corpus)


def questions_of(corpus: Corpus, task: str, limit: int, n: int) -> list[Question]:
    draws = (
        TASKS[task](np.random.default_rng(i), corpus.tokenizer, corpus.bos, limit, Half(False, False)) for i in range(n)
    )
    return list(draws)


def lessons_of(questions: list[Question]) -> list[Lesson]:
    return [Lesson(q.tokens, ((q.answer_start, len(q.tokens)),)) for q in questions]


def tuned(corpus: Corpus, by_heart: list[Question], steps: int) -> LanguageModel:
    """A model that has seen a few questions again and again, in eval mode and without gradients."""
    monitor = dataclasses.replace(MONITOR, steps=steps, lr=6e-3)
    model = monitor._tune(
        tiny_model(corpus.vocab_size), ProbeItems([lessons_of(by_heart)] * steps, [], corpus.tokenizer.decode), seed=0
    )
    return model.requires_grad_(False)


def test_the_main_model_is_untouched_to_the_bit(corpus: Corpus) -> None:
    model = tiny_model(corpus.vocab_size).train()
    before, state = {name: x.clone() for name, x in model.state_dict().items()}, torch.get_rng_state()
    with evaluating(model):
        MONITOR.score(model, dataclasses.replace(MONITOR, items=2).prepare(corpus))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state) and model.training


def test_fine_tuning_lowers_the_loss_of_its_own_questions_and_is_deterministic(
    items: ProbeItems, corpus: Corpus
) -> None:
    asked = questions_of(corpus, "longbio_standard", 256, 18)
    own = ProbeItems([lessons_of(asked[i % 3 :: 3]) for i in range(12)], asked, items.decode)
    runs = []
    for _ in range(2):
        with evaluating(model := tiny_model(corpus.vocab_size)):
            runs.append(MONITOR.score(model, own))
    assert runs[0] == runs[1]
    records = MONITOR.aggregate(runs[0], Moment(0, 0))
    means = {r.tags["sft_step"]: r for r in records if r.metric == "answer_nll_nats" and r.tags.keys() == {"sft_step"}}
    assert means[12].value < means[0].value - 1.0 and means[0].n == means[12].n == 18
    (gain,) = [r for r in records if r.metric == "answer_nll_gain_nats"]
    assert gain.value == pytest.approx(means[0].value - means[12].value) and gain.n == 18 and not gain.tags


def test_the_order_of_the_questions_goes_by_the_probe_seed(items: ProbeItems, corpus: Corpus) -> None:
    monitor = dataclasses.replace(MONITOR, seeds=(0, 7))
    with evaluating(model := tiny_model(corpus.vocab_size)):
        values = monitor.score(model, items._replace(evaluation=items.evaluation[:3])).values
    of_seed = {
        seed: [v.value for v in values if v.tags["seed"] == seed and v.tags["sft_step"] == 12] for seed in (0, 7)
    }
    assert len(of_seed[0]) == len(of_seed[7]) and of_seed[0] != of_seed[7]
    assert {v.tags["seed"] for v in values if v.tags["sft_step"] == 0} == {0}


def test_the_gradient_of_a_step_does_not_depend_on_how_its_rows_are_grouped(items: ProbeItems, corpus: Corpus) -> None:
    """Short and long rows go through the model apart; the update is that of all of them together."""
    mixed = [[*items.train[0][:3], *lessons_of(items.evaluation[:1])]]
    states = []
    for tokens in (10**6, 1):
        monitor = dataclasses.replace(MONITOR, steps=1, tokens_per_forward=tokens)
        fork = monitor._tune(tiny_model(corpus.vocab_size).double(), items._replace(train=mixed), 0)
        states.append(fork.state_dict())
    assert all(torch.allclose(x, states[1][name], atol=1e-5) for name, x in states[0].items())


def test_lengths_and_shares_are_as_asked(corpus: Corpus) -> None:
    monitor = dataclasses.replace(MONITOR, steps=20, items=60, long_train_frac=0.2)
    drawn = monitor.prepare(corpus)
    train = [q for batch in drawn.train for q in batch]
    assert [len(batch) for batch in drawn.train] == [6] * 20
    tasks = [q.task for q in drawn.evaluation]
    assert tasks.count("longbio_standard") == 2 * tasks.count("variable_tracking_1") == 2 * len(tasks) // 3
    tracked = sum("Which variables" in corpus.tokenizer.decode(lesson.tokens.tolist()) for lesson in train)
    assert tracked == len(train) // 3
    short = [len(q.tokens) for q in train if len(q.tokens) <= 256]
    assert 0.1 < 1 - len(short) / len(train) < 0.3 and max(len(q.tokens) for q in train) <= 520
    lengths = [len(q.tokens) for q in drawn.evaluation]
    assert 200 < min(lengths) < 330 and 480 < max(lengths) <= 520
    assert digest(drawn) == digest(monitor.prepare(corpus))
    assert not {tuple(q.tokens[: len(q.tokens) // 2]) for q in train} & {
        tuple(q.tokens[: len(q.tokens) // 2]) for q in drawn.evaluation
    }


def test_fine_tuning_and_evaluation_come_from_different_halves(items: ProbeItems, corpus: Corpus) -> None:
    taught = {
        corpus.tokenizer.decode(lesson.tokens[start:stop].tolist()).strip()
        for batch in items.train
        for lesson in batch
        for start, stop in lesson.answers
    }
    assert not taught & {", ".join(question.references) for question in items.evaluation}


def plain_greedy(model: LanguageModel, question: Question) -> list[int]:
    tokens = torch.from_numpy(question.tokens[None, : question.answer_start])
    while tokens.shape[1] < len(question.tokens) and question.tokens[-1] not in tokens[0, question.answer_start :]:
        following = model.logits(model(tokens).hidden_BTD[:, -1]).argmax(-1, keepdim=True)
        tokens = torch.cat((tokens, following), dim=1)
    return tokens[0, question.answer_start :].tolist()


@torch.no_grad()
def test_decoding_by_fixed_point_is_token_by_token_decoding_in_few_forwards(corpus: Corpus) -> None:
    some = questions_of(corpus, "variable_tracking_2", 300, 6) + questions_of(corpus, "longbio_standard", 256, 6)
    for model in (tiny_model(corpus.vocab_size), tuned(corpus, some[::2], 25), tuned(corpus, some[::2], 80)):
        scores = ask(model, some, set(range(12)), corpus.tokenizer.decode, 3000)
        plain = [plain_greedy(model, question) for question in some]
        for given in ([q.tokens[q.answer_start :] for q in some], [q.tokens[q.answer_start :] * 0 for q in some]):
            filled = [np.concatenate((q.tokens[: q.answer_start], a)) for q, a in zip(some, given, strict=True)]
            tops = [
                model.logits(model(torch.from_numpy(text[None, :-1])).hidden_BTD[0, q.answer_start - 1 :]).argmax(-1)
                for text, q in zip(filled, some, strict=True)
            ]
            found = greedy(model, some, [top.numpy() for top in tops], 3000)
            assert [answer[: len(own)].tolist() for answer, own in zip(found, plain, strict=True)] == plain
        for question, numbers, answer in zip(some, scores, plain, strict=True):
            assert numbers["exact_match_frac"] == (answer == question.tokens[question.answer_start :].tolist())
            text = corpus.tokenizer.decode(answer).split("\n")[0]
            assert numbers["recall_frac"] == score_text(question, text)["recall_frac"]
            assert numbers["recall_frac"] == 1 or not numbers["exact_match_frac"]
    with counting(model) as tokens:
        greedy(model, some[::2], [q.tokens[q.answer_start :] for q in some[::2]], 3000)
    assert tokens[0] == 0, "what is right at once is not sent again"


def test_likeness_is_recorded_for_coreference_alone_and_only_the_first_are_decoded(corpus: Corpus) -> None:
    monitor = dataclasses.replace(MONITOR, tasks={"coreference": 1, "longbio_pronoun": 1}, decoded=3, steps=1, rows=2)
    items = monitor.prepare(corpus)
    with evaluating(model := tiny_model(corpus.vocab_size)):
        values = monitor.score(model, items).values
    of = {m: [v for v in values if v.metric == m] for m in ("recall_frac", "similarity_frac", "exact_match_frac")}
    assert [len(rows) for rows in of.values()] == [2 * 6, 2 * 3, 2 * 10]
    assert {v.tags["task"] for v in of["similarity_frac"]} == {"coreference"}


@torch.no_grad()
def test_canonical_pass_at_k_is_how_often_ancestral_samples_are_the_answer(corpus: Corpus) -> None:
    some = questions_of(corpus, "longbio_standard", 200, 4)
    model, samples = tuned(corpus, some, 32), 1500
    checked = 0
    for question, numbers in zip(some, ask(model, some, set(), corpus.tokenizer.decode, 3000), strict=True):
        if not 0.02 < numbers["canonical_pass_at_1_frac"] < 0.98:
            continue
        reference = torch.from_numpy(question.tokens[question.answer_start :])
        context = torch.from_numpy(question.tokens[None, : question.answer_start])
        rows, right = context.expand(samples, -1), torch.ones(samples, dtype=torch.bool)
        for token in reference:  # what has gone wrong cannot become right: only the others are sampled on
            live = rows[right]
            probabilities = model.logits(model(live[:1]).hidden_BTD[:, -1]).softmax(-1)
            drawn = torch.multinomial(probabilities.expand(len(live), -1), 1)
            ok = drawn[:, 0] == token
            right = right.masked_scatter(right, ok)
            rows = torch.cat((rows, torch.full((samples, 1), int(token))), dim=1)
        for k in (1, 3):
            hits = int(right.view(-1, k).any(1).sum())
            low, high = binom.interval(0.999, samples // k, numbers[f"canonical_pass_at_{k}_frac"])
            assert low <= hits <= high
        checked += 1
    assert checked >= 2


def test_the_probability_of_an_answer_is_the_product_of_its_tokens(corpus: Corpus) -> None:
    some = questions_of(corpus, "two_hop", 256, 4)
    model = tuned(corpus, some[:2], 30)
    for question, numbers in zip(some, ask(model, some, set(), corpus.tokenizer.decode, 3000), strict=True):
        with torch.no_grad():
            logits = model.logits(model(torch.from_numpy(question.tokens[None])).hidden_BTD[0]).double()
        places = range(question.answer_start, len(question.tokens))
        nll = [-float(logits[p - 1].log_softmax(-1)[question.tokens[p]]) for p in places]
        assert numbers["answer_nll_nats"] == pytest.approx(np.mean(nll), abs=1e-4)
        assert numbers["canonical_pass_at_1_frac"] == pytest.approx(np.exp(-np.sum(nll)), rel=1e-3, abs=1e-9)


def test_pass_at_k_is_drawn_with_the_probability_of_an_answer_the_same_at_every_window(corpus: Corpus) -> None:
    """400 questions of one text whose answer has probability p: passes are binomial with 1 - (1 - p)^3."""
    asked = questions_of(corpus, "longbio_standard", 200, 4)
    model = tuned(corpus, asked, 32)
    p = [n["canonical_pass_at_1_frac"] for n in ask(model, asked, set(), corpus.tokenizer.decode, 3000)]
    which = min(range(4), key=lambda i: abs(p[i] - 0.3))
    assert 0.02 < p[which] < 0.98
    items = ProbeItems([], [asked[which]] * 400, corpus.tokenizer.decode)
    with evaluating(model):
        values = dataclasses.replace(MONITOR, decoded=0)._evaluate(model, items, 12, 0)
        again = dataclasses.replace(MONITOR, decoded=0)._evaluate(model, items, 12, 0)
        off = dataclasses.replace(MONITOR, decoded=0, pass_at=None)._evaluate(model, items, 12, 0)
    assert values == again and not [v for v in off if v.metric.startswith("pass_at")]
    passed = [v.value for v in values if v.metric == "pass_at_3_frac"]
    low, high = binom.interval(0.999, 400, 1 - (1 - p[which]) ** 3)
    assert low <= sum(passed) <= high and set(passed) == {0.0, 1.0}


def test_a_text_carries_several_questions_and_all_their_answers_are_learnt(corpus: Corpus) -> None:
    """Of as many tokens, up to four questions a text; the loss is that of each answer's tokens, and of no others."""
    one, four = (
        dataclasses.replace(MONITOR, train_tokens=500, questions=n, tasks={"longbio_standard": 1}).prepare(corpus)
        for n in (1, 4)
    )
    answers = [sum(len(lesson.answers) for batch in items.train for lesson in batch) for items in (one, four)]
    assert answers[0] == 12 * 6 and answers[1] > 2.5 * answers[0]
    assert all(len(lesson.tokens) <= 500 for items in (one, four) for batch in items.train for lesson in batch)
    model = tiny_model(corpus.vocab_size)
    lessons = four.train[0][:2]
    with torch.no_grad():
        nll = 0.0
        for lesson in lessons:
            logits = model.logits(model(torch.from_numpy(lesson.tokens[None])).hidden_BTD[0]).log_softmax(-1)
            for start, stop in lesson.answers:
                nll -= sum(float(logits[p - 1, lesson.tokens[p]]) for p in range(start, stop))
        assert float(_answer_loss(model, lessons)) == pytest.approx(nll, rel=1e-4)


def planted() -> Answered:
    """Two questions of each of two tasks; before: 1 right of 4; after: 3 right with seed 0, 1 with seed 1."""
    right = {(0, 0): [1, 0, 0, 0], (8, 0): [1, 1, 1, 0], (8, 1): [1, 0, 0, 0]}
    values = [
        Value("probe", metric, str(i), {"sft_step": step, "seed": seed, "task": "ab"[i // 2]}, scale * float(hit))
        for (step, seed), hits in right.items()
        for i, hit in enumerate(hits)
        for metric, scale in (("exact_match_frac", 1), ("answer_nll_nats", -2))
    ]
    return Answered(values, {"0": 128, "1": 129, "2": 256, "3": 300})


def test_records_average_over_seeds_first_and_count_questions() -> None:
    records = probe_records(planted(), Moment(5, 50), "behavioural")
    assert len({record.key for record in records}) == len(records)

    def one(metric: str, **tags: int | str) -> Record:
        (found,) = [record for record in records if record.metric == metric and record.tags == tags]
        return found

    whole = one("exact_match_frac")
    assert whole.value == 0.5 and whole.n == 4
    assert whole.stderr == pytest.approx(np.std([1, 0.5, 0.5, 0], ddof=1) / 2), "over questions, not over 8 values"
    assert one("exact_match_frac", sft_step=8).value == 0.5 and one("exact_match_frac", sft_step=0).value == 0.25
    assert one("exact_match_frac", sft_step=8, seed=0).value == 0.75
    assert one("exact_match_frac", sft_step=8, task="b").value == 0.25
    assert one("exact_match_frac", sft_step=8, seed=1, task="a").value == 0.5
    assert [one("exact_match_frac", sft_step=8, length=n).value for n in (128, 256, 512)] == [1, 0.5, 0]
    assert one("exact_match_frac", sft_step=8, length=256).n == 2
    cells = {"a": {128: 1, 256: 0.5}, "b": {256: 0.5, 512: 0}}  # task and length, by question 0 to 3
    for task, by_length in cells.items():
        for length, value in by_length.items():
            cell = one("exact_match_frac", sft_step=8, length=length, task=task)
            assert (cell.value, cell.n) == (value, 1)
    gain, nll_gain = one("exact_match_gain_frac"), one("answer_nll_gain_nats")
    assert gain.value == 0.25 and nll_gain.value == 0.5 and gain.n == 4
    assert gain.stderr == pytest.approx(np.std([0, 0.5, 0.5, 0], ddof=1) / 2), "paired by question"
    spread = one("exact_match_seed_std_frac")
    assert spread.value == pytest.approx(np.std([0.75, 0.25], ddof=1)) and spread.n == 2
    assert one("answer_nll_seed_std_nats").value == pytest.approx(2 * spread.value)


def test_a_small_table_and_an_image_show_the_cells_of_task_and_length(tmp_path: Path) -> None:
    first = planted()
    better = first._replace(values=[v._replace(value=1.0) if v.tags["sft_step"] else v for v in first.values])
    windows = [probe_records(first, Moment(0, 0), "behavioural"), probe_records(better, Moment(4, 40), "behavioural")]
    append_lines(tmp_path / "records.jsonl", [record.line() for records in windows for record in records])
    table = probe_table(examine(load_run(tmp_path)))
    assert table.head == ["task", "128 tokens", "256 tokens", "512 tokens", "all"]
    a, b, whole = table.rows
    assert a == ["a", "1 to 1 (1)", "0.5 to 1 (1)", "", "0.75 ± 0.25 to 1 ± 0 (2)"]
    assert b[:4] == ["b", "", "0.5 to 1 (1)", "0 to 1 (1)"]
    assert whole[0] == "all" and whole[2] == "0.5 ± 0 to 1 ± 0 (2)" and whole[4].endswith("to 1 ± 0 (4)")
    metric, grid = window_maps(windows[0])["probe/exact_match"]
    assert metric.key == "probe/exact_match_frac" and [*grid.index] == ["a", "b"] and [*grid] == [128, 256, 512]
    cells = grid.loc["a", 128], grid.loc["a", 256], grid.loc["b", 256], grid.loc["b", 512]
    assert cells == (1, 0.5, 0.5, 0), "fine-tuned"
    assert np.isnan(grid.loc["a", 512]), "not asked"


def test_one_seed_has_no_spread() -> None:
    answered = planted()
    one = answered._replace(values=[value for value in answered.values if value.tags["seed"] == 0])
    assert not [r for r in probe_records(one, Moment(0, 0), "behavioural") if "seed_std" in r.metric]


def test_groups_lose_little_to_padding() -> None:
    lengths = [500, 100, 120, 90, 480, 260, 30]
    groups = list(alike(lengths, 1000))
    assert sorted(i for group in groups for i in group) == list(range(7))
    for group in groups:
        own = [lengths[i] for i in group]
        assert max(own) * len(own) <= 1000 and max(own) <= 2 * min(own)
    assert list(alike([7, 9], 1)) == [[1], [0]]


def test_limits_that_hold_no_text_are_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"^monitors.probe.train_tokens=40: task longbio_standard: its shortest text"):
        dataclasses.replace(MONITOR, train_tokens=40).prepare(corpus)
    with pytest.raises(ConfigError, match=r"^monitors.probe.short_tokens=40: task .* allow at least as many$"):
        dataclasses.replace(MONITOR, short_tokens=40, long_tokens=50).prepare(corpus)
    with pytest.raises(ConfigError, match="monitors.probe.short_tokens=520: must be less than long_tokens=520"):
        dataclasses.replace(MONITOR, short_tokens=520)


def test_fine_tuning_shorter_than_the_questions_is_said_in_one_line(items: ProbeItems, corpus: Corpus) -> None:
    (said,) = MONITOR.notes(items)
    longest = max(len(question.tokens) for question in items.evaluation)
    assert re.match(rf"the probe is fine-tuned on texts of at most 2\d\d tokens and asked .* up to {longest}: ", said)
    long = dataclasses.replace(MONITOR, long_train_frac=1.0)
    drawn = long.prepare(corpus)
    longest = max((lesson for batch in drawn.train for lesson in batch), key=lambda lesson: len(lesson.tokens))
    asked = Question(longest.tokens, 1, "", (), "")
    assert long.notes(drawn._replace(evaluation=[asked])) == []


def test_tasks_are_checked_by_name_weight_and_haystack(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"^monitors.probe.tasks.two_hops=1: there is no .*did you mean 'two_hop'\?$"):
        dataclasses.replace(MONITOR, tasks={"two_hops": 1})
    with pytest.raises(ConfigError, match=r"^monitors.probe.tasks=.*: needs a task with a weight above 0$"):
        dataclasses.replace(MONITOR, tasks={"two_hop": 0})
    with pytest.raises(ConfigError, match=r"^monitors.probe.haystack=None: task niah_single_3 hides .* name a source"):
        dataclasses.replace(MONITOR, tasks={"niah_single_3": 1})
    real = dataclasses.replace(MONITOR, tasks={"niah_single_3": 1}, haystack="prose").prepare(corpus)
    held_out = np.concatenate(corpus.held_out("prose")).tolist()
    stretch = real.evaluation[0].tokens[1:9].tolist()
    assert any(held_out[i : i + 8] == stretch for i in range(len(held_out)))


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1,)])
def test_seeds_that_cannot_be_told_apart_are_refused(seeds: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="^monitors.probe.seeds=.*: needs at least one seed >= 0, and no seed twice$"):
        dataclasses.replace(MONITOR, seeds=seeds)
