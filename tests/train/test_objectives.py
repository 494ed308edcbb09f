"""What a step learns: the next token as before, more of it far away, answers alone, or a contrast of heads."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch

from lccp_sim.config import Config
from lccp_sim.configure.load import plain_config
from lccp_sim.data.batch import Batch
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tasks import question, teaching
from lccp_sim.data.tasks.question import Question
from lccp_sim.data.tasks.teaching import Teacher
from lccp_sim.errors import ConfigError
from lccp_sim.models.loss import cross_entropy
from lccp_sim.models.taps import tapping
from lccp_sim.monitors.observing import evaluating
from lccp_sim.monitors.probe import _answer_loss
from lccp_sim.monitors.sampled.answers import Answers
from lccp_sim.train.loop.loader import tensors_of
from lccp_sim.train.objectives import OBJECTIVES
from lccp_sim.train.objectives.head_choice import HeadChoice
from lccp_sim.train.objectives.head_contrast import HeadContrast, Pairs, log_probabilities
from lccp_sim.train.objectives.head_score import HeadScore, copied
from lccp_sim.train.objectives.lm import FarFeed
from lccp_sim.train.objectives.packed import batch_of
from lccp_sim.train.objectives.sft import Finetuning, Lessons
from lccp_sim.train.run import train
from lccp_sim.train.saved.run_directory import run_directory
from tests.monitors.worlds import make_corpus, tiny_model
from tests.train.test_resume import at_step, before_checkpoint, in_checkpoint, killed
from tests.train.test_rl import RL
from tests.train.test_run import UNWATCHED, losses, rows
from tests.train.tiny import BATCH, assert_same_run

SFT = {
    **UNWATCHED,
    "run.name": "sft",
    "run.context_tokens": 128,
    "run.batch_tokens": 512,
    "run.tokens": 6 * 512,
    "run.checkpoint_every_steps": 2,
    "objective": {"kind": "sft", "tasks": {"facts_multikey": 1}, "text_tokens": 100, "long_frac": 0.2, "questions": 2},
}
Make = Callable[..., Config]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus()


def sized(context: int, rows_: int) -> Any:
    run = type("Run", (), {"batch_tokens": context * rows_, "context_tokens": context, "precision": "fp32"})
    return type("Config", (), {"run": run, "data": type("Data", (), {"order_seed": None}), "seed": 0})


def teacher(corpus: Corpus, questions: int = 2) -> Teacher:
    return Teacher({"facts_multikey": 1}, corpus.tokenizer, corpus.bos, None, questions)


def loss_of(model: Any, batch: Batch, count: float) -> torch.Tensor:
    tensors = tensors_of(batch, count)
    out = model(tensors["tokens_BT"], tensors["positions_BT"], tensors["bounds"], tensors["text_BT"])
    learn_R = tensors["learn_R"]
    hidden_RD, targets_R = out.hidden_BTD.flatten(0, 1)[learn_R], tensors["targets_BT"].flatten()[learn_R]
    factor_R = tensors["factor_BT"].flatten()[learn_R] if "factor_BT" in tensors else None
    return cross_entropy(hidden_RD, model.head_weight, targets_R, count, factor_R)


def test_the_default_leaves_config_and_directory_as_they_were(make: Make) -> None:
    plain, named = make(), make({"objective": {"kind": "lm"}})
    assert plain == named and "objective" not in plain_config(named)
    assert run_directory(plain, None) == run_directory(named, None) != run_directory(make(SFT), None)
    assert plain_config(make(SFT))["objective"]["kind"] == "sft"
    assert all(OBJECTIVES[kind].kind == kind for kind in OBJECTIVES)


def test_rows_of_fine_tuning_learn_answers_alone_and_are_packed(corpus: Corpus) -> None:
    settings = Finetuning(tasks={"facts_multikey": 1}, text_tokens=90, long_frac=0.3, questions=2)
    lessons = Lessons(settings, teacher(corpus), sized(200, 4))
    batch = lessons.slice(3, 0, 1, 0, 1)
    parts = [lessons.slice(3, rank, 2, micro, 2) for rank in range(2) for micro in range(2)]
    for name in ("tokens_BT", "targets_BT", "learn_BT", "positions_BT", "text_BT"):
        assert (np.concatenate([getattr(each, name) for each in parts]) == getattr(batch, name)).all(), name
    assert batch.tokens_BT.shape == (4, 200) and batch.learn_BT.sum() == lessons.target_count(3)
    texts = [lesson for row in lessons.step(3) for lesson in row]
    assert len(texts) > 4 and any(len(lesson.tokens) > 90 for lesson in texts)
    wanted = np.concatenate([lesson.tokens[a:b] for lesson in texts for a, b in lesson.answers])
    assert (batch.targets_BT[batch.learn_BT] == wanted).all()
    starts = (batch.positions_BT == 0) & batch.text_BT
    assert starts.sum() == len(texts) and (batch.tokens_BT[starts] == corpus.bos).all()
    assert batch.bounds[0] == 0 and batch.bounds[-1] == 800 and (np.diff(batch.bounds) > 0).all()
    again = Lessons(settings, teacher(corpus), sized(200, 4)).slice(3, 0, 1, 0, 1)
    assert (again.tokens_BT == batch.tokens_BT).all()
    assert (lessons.slice(4, 0, 1, 0, 1).tokens_BT != batch.tokens_BT).any()


def test_packed_fine_tuning_has_the_loss_of_the_probe(corpus: Corpus) -> None:
    lessons = Lessons(Finetuning(tasks={"facts_multikey": 1}, text_tokens=90), teacher(corpus), sized(200, 3))
    model, texts = tiny_model(corpus.vocab_size), [lesson for row in lessons.step(0) for lesson in row]
    with torch.no_grad():
        packed = loss_of(model, lessons.slice(0, 0, 1, 0, 1), lessons.target_count(0))
        padded = float(_answer_loss(model, texts)) / lessons.target_count(0)
    assert float(packed) == pytest.approx(padded, rel=1e-4)


def test_a_run_says_that_its_texts_are_shorter_than_the_window(
    run: Callable[..., Path], say: Any, finished: Path
) -> None:
    short = {**SFT, "run.tokens": 512, "run.log_every_steps": 1, "objective": {**SFT["objective"], "long_frac": 0.0}}  # type: ignore[dict-item]
    directory = run({**short, "run.init_from": str(finished)})
    assert "no fine-tuning text is longer than 100 tokens, but the window is 128" in say.file.getvalue()
    assert {row["monitor"] for row in rows(directory)} == {"train"} and "objective" in (
        directory / "config.yaml"
    ).read_text()


@pytest.mark.parametrize(
    ("long_frac", "base", "longest"), [(0.1, 128, None), (0.1, None, None), (0.1, 256, 128), (0.0, 64, 100)]
)
def test_texts_shorter_than_the_window_of_the_run_before_are_warned_of(
    long_frac: float, base: int | None, longest: int | None
) -> None:
    settings = Finetuning(tasks={"facts_multikey": 1}, text_tokens=100, long_frac=long_frac)
    notes = settings.notes(sized(128, 2), base)
    assert len(notes) == (longest is not None)
    assert not notes or f"longer than {longest} tokens, but the window is {max(base or 0, 128)}" in notes[0]


def test_far_targets_weigh_more_and_all_buckets_alike(make: Make) -> None:
    class Fixed:
        """Two documents a row, of 8 and 56 tokens; every target is learnt."""

        def batch(self, index: int) -> Batch:
            positions = np.concatenate((np.arange(8), np.arange(56)))[None].repeat(2, axis=0)
            zeros = np.zeros((2, 64), dtype=np.int64)
            return Batch(zeros, zeros, np.ones((2, 64), bool), positions, np.array([0, 8, 64, 72, 128]), [])

        def slice(self, index: int, *place: int) -> Batch:
            return self.batch(index)

        def target_count(self, index: int) -> int:
            return 128

    batch = FarFeed(Fixed(), 16, 0.5).slice(0, 0, 1, 0, 1)  # type: ignore[arg-type]
    assert batch.factor_BT is not None and batch.factor_BT.mean() == pytest.approx(1)
    context, extra = batch.positions_BT + 1, batch.factor_BT * 1.5 - 1
    assert np.allclose(extra[context < 16], 0)
    sums = [extra[(context >= low) & (context < 2 * low)].sum() for low in (16, 32)]
    assert sums == pytest.approx([32, 32], rel=1e-5)  # half of the 128 targets, a half each
    with pytest.raises(
        ConfigError, match="^objective.far_tokens=100: no document of the mixture is that long; lower it"
    ):
        FarFeed(Fixed(), 100, 0.5)  # type: ignore[arg-type]
    for keys, line in (
        ({"far_weight": 0.5}, "objective.far_tokens=None: goes with objective.far_weight above 0, which needs it"),
        ({"far_weight": 0.5, "far_tokens": 64}, "objective.far_tokens=64: no target of a row of run.context_tokens=64"),
    ):
        with pytest.raises(ConfigError) as error:
            make({"objective": {"kind": "lm", **keys}})
        assert str(error.value).startswith(line)


def test_a_run_with_far_weights_trains(run: Callable[..., Path]) -> None:
    keys = {**UNWATCHED, "run.tokens": 2 * BATCH, "objective": {"kind": "lm", "far_weight": 1.0, "far_tokens": 32}}
    far, near = run(keys), run({**UNWATCHED, "run.tokens": 2 * BATCH, "run.name": "near"})
    assert losses(far)["loss_nats"] != losses(near)["loss_nats"]


def test_the_contrast_has_the_gradient_of_its_plain_formula(corpus: Corpus) -> None:
    settings = HeadContrast(
        tasks={"facts_multikey": 1}, short_tokens=80, long_tokens=110,
        heads=HeadChoice(lengths=(128,), text="prose", items=5, k=3),
        questions=8, answer_tokens=4, beta=0.5,
    )  # fmt: skip
    model = tiny_model(corpus.vocab_size)
    pairs = settings.rows(corpus, sized(128, 4), model)
    assert isinstance(pairs, Pairs) and len(pairs.pairs) > 1
    before = {pair.chosen.tokens.tobytes(): pair.chosen_logp for pair in pairs.pairs}
    with torch.no_grad():  # other weights than those that the pairs come from
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    with evaluating(model):
        pairs.play(model, 0)
    loss_of(model, pairs.slice(0, 0, 1, 0, 1), pairs.target_count(0)).backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    total = torch.zeros(())
    for pair in pairs.chosen(0):
        margin = torch.zeros(())
        for lesson, reference, sign in ((pair.chosen, pair.chosen_logp, 1), (pair.rejected, pair.rejected_logp, -1)):
            (start, stop), tokens = lesson.answers[0], torch.from_numpy(lesson.tokens)
            logp = model.logits(model(tokens[None, :-1]).hidden_BTD[0]).log_softmax(-1)
            own = logp[torch.arange(start - 1, stop - 1), tokens[start:stop]].sum()
            margin = margin + sign * settings.beta * (own - reference)
        total = total - torch.nn.functional.logsigmoid(margin)
    (total / pairs.target_count(0)).backward()
    assert pairs.said["contrast_loss_nats"] == pytest.approx(float(total.detach()) / pairs.target_count(0), rel=1e-4)
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert before  # the reference is that of the starting weights
    with evaluating(model):
        now = log_probabilities(model, [pair.chosen for pair in pairs.pairs], 10**6)
    assert any(abs(a - pair.chosen_logp) > 1e-3 for a, pair in zip(now, pairs.pairs, strict=True))


def test_each_pair_comes_once_in_a_pass(corpus: Corpus) -> None:
    settings = HeadContrast(
        tasks={"facts_multikey": 1}, short_tokens=80, long_tokens=110,
        heads=HeadChoice(lengths=(128,), text="prose", items=5, k=3, pick="random"),
        questions=8, answer_tokens=4,
    )  # fmt: skip
    pairs = settings.rows(corpus, sized(128, 2), tiny_model(corpus.vocab_size, num_layers=3))
    n = len(pairs.pairs)
    met = [pairs.chosen(step)[0].chosen.tokens.tobytes() for step in range(2 * n)]
    assert len(set(met[:n])) == len(set(met[n:])) == n


def test_a_contrast_that_masks_nothing_is_refused(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = HeadContrast(
        tasks={"facts_multikey": 1}, short_tokens=80, long_tokens=110,
        heads=HeadChoice(lengths=(128,), text="prose", items=5, k=2),
        questions=4, answer_tokens=3,
    )  # fmt: skip
    monkeypatch.setattr(HeadChoice, "heads", lambda *a: [])
    with pytest.raises(
        ConfigError, match="^objective.heads.pick='strongest': masking 0 heads changes none of 4 answers"
    ):
        settings.rows(corpus, sized(128, 2), tiny_model(corpus.vocab_size))


@pytest.mark.parametrize(
    ("references", "answer", "line"),
    [
        ((), " nothing", "objective.tasks.facts_multikey=1: has no answer that could be right; leave it out"),
        (("☃☃",), " cold", "objective.tasks.facts_multikey=1: the tokenizer cannot write its answer '☃☃' (it reads"),
    ],
)
def test_a_task_without_an_answer_and_one_that_tokens_cannot_express(
    references: tuple[str, ...], answer: str, line: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(rng: Any, tokenizer: Any, bos: int, *a: Any) -> Question:
        ids = np.array([bos, *tokenizer.encode(answer, add_special_tokens=False).ids], dtype=np.int64)
        return question.Question(ids, 1, "facts_multikey", references, "")

    monkeypatch.setitem(teaching.TASKS, "facts_multikey", drawn)
    with pytest.raises(ConfigError) as error:
        teacher(corpus).check_answers("objective.tasks", 90)
    assert str(error.value).startswith(line)


def test_a_tokenizer_without_a_token_that_ends_an_answer_is_refused(corpus: Corpus) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "the": 1}, unk_token="?"))
    line = "=.'facts_multikey': 1.: the tokenizer has no token with a line break, which ends an answer; take another"
    with pytest.raises(ConfigError, match=f"^objective.tasks{line}"):
        Teacher({"facts_multikey": 1}, words, 0, None).check_answers("objective.tasks", 90)
    monitor = Answers(tasks={"facts_multikey": 1}, short_tokens=80, long_tokens=110)
    with pytest.raises(ConfigError, match=f"^monitors.answers.tasks{line}"):
        monitor.prepare(dataclasses.replace(corpus, tokenizer=words))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {**SFT, "run.context_tokens": 64},
            "objective.text_tokens=100: longer than a row of run.context_tokens=64; low",
        ),
        ({**RL, "run.shard": True}, "run.shard=True: objective rl needs unsharded weights; use one device, or p"),
        ({"objective": {"kind": "sft", "tasks": {"facts": 1}}}, "objective.tasks.facts=1: there is no such task; the"),
    ],
)
def test_what_cannot_be_learnt_is_refused_in_one_line(changes: dict, line: str, make: Make) -> None:
    with pytest.raises(ConfigError) as error:
        make(changes)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_a_prompt_that_no_context_holds_is_refused_in_one_line(run: Callable[..., Path]) -> None:
    keys = {**RL, "objective": {**RL["objective"], "short_tokens": 10, "long_tokens": 12}}  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"^objective.tasks.facts_multikey=1: .*its shortest text has \d+ tokens"):
        run(keys)


def test_a_chain_that_is_killed_five_times_gives_the_same_bytes(
    run: Callable[..., Path], make: Make, say: Any, finished: Path, tmp_path: Path
) -> None:
    """base -> fine-tuning -> RL."""
    sft = {**SFT, "run.init_from": str(finished), "objective": {**SFT["objective"], "long_frac": 0.0}}  # type: ignore[dict-item]
    whole = run({**sft, "run.root": str(tmp_path / "whole")})
    for place, step in ((at_step, 1), (in_checkpoint, 4), (at_step, 5)):
        killed(make(sft), say, place, step)
    again = train(make(sft), say)
    assert_same_run(again, whole, step=6)
    rl = {**RL, "run.tokens": 3 * 1024}
    ends = run({**rl, "run.init_from": str(whole), "run.root": str(tmp_path / "whole")})
    other = make({**rl, "run.init_from": str(again)})
    for place, step in ((at_step, 1), (before_checkpoint, 3)):
        killed(other, say, place, step)
    assert_same_run(train(other, say), ends, step=3)


def test_a_score_that_is_trained_directly_rises(corpus: Corpus) -> None:
    """The penalty is the mean -log attention of the chosen heads on the token that each target copies."""
    settings = HeadScore(
        tasks={"facts_multikey": 1}, text_tokens=90, heads=HeadChoice(lengths=(128,), text="prose", items=5, k=2),
        score_weight=0.5,
    )  # fmt: skip
    model = tiny_model(corpus.vocab_size)
    copies = settings.rows(corpus, sized(100, 2), model)
    batch = copies.slice(0, 0, 1, 0, 1)
    assert batch.source_BT is not None and (batch.source_BT >= 0).sum() > 0.5 * batch.learn_BT.sum()
    taken = batch.source_BT >= 0
    keys = np.take_along_axis(batch.tokens_BT, np.maximum(batch.source_BT, 0), axis=1)
    assert (keys[taken] == batch.targets_BT[taken]).all() and batch.learn_BT[taken].all()

    def penalty() -> torch.Tensor:
        tensors = tensors_of(batch, copies.target_count(0))
        with copies.penalty(model, tensors) as added:
            model(tensors["tokens_BT"], tensors["positions_BT"], tensors["bounds"], tensors["text_BT"])
        return added()

    expected = 0.0
    for b, row in enumerate(copies.step(0)):
        at = 0
        for lesson in row:
            seen: dict[int, Any] = {}
            with tapping(model, lambda layer, attended: seen.update({layer: attended.rows(0, 0, len(lesson.tokens))})):  # noqa: B023
                model(torch.from_numpy(lesson.tokens)[None])
            for layer, head in copies.heads:
                expected -= sum(float(seen[layer][head, t - 1, place].log()) for t, place in copied(lesson))
            at += len(lesson.tokens)
        assert at <= 101, b
    assert float(penalty()) == pytest.approx(0.5 * expected / (2 * copies.target_count(0)), rel=1e-3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = float(penalty())
    for _ in range(12):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    assert float(penalty()) < 0.8 * before


HEADS = {"lengths": [192], "text": "prose", "items": 5, "k": 2}
TRAINED = {
    "head_contrast": {
        "tasks": {"facts_multikey": 1}, "short_tokens": 90, "long_tokens": 110, "heads": HEADS, "questions": 6,
        "answer_tokens": 6,
    },
    "head_score": {"tasks": {"facts_multikey": 1}, "text_tokens": 100, "heads": HEADS},
}  # fmt: skip


@pytest.mark.parametrize("kind", TRAINED)
def test_training_for_heads_is_a_run_that_resumes(
    kind: str, run: Callable[..., Path], make: Make, say: Any, finished: Path, tmp_path: Path
) -> None:
    """The pairs and the heads are those of the starting weights, after a resume, too."""
    keys = {**SFT, "run.init_from": str(finished), "objective": {"kind": kind, **TRAINED[kind]}}
    keys |= {"run.tokens": 4 * 512, "run.log_every_steps": 1}
    whole = run({**keys, "run.root": str(tmp_path / "whole")})
    killed(make(keys), say, at_step, 3)
    assert_same_run(train(make(keys), say), whole, step=4)
    assert ("chosen_wins_frac" in losses(whole)) == (kind == "head_contrast")


def test_batches_of_texts_are_what_they_are_made_of(corpus: Corpus) -> None:
    lesson = teacher(corpus).lesson(0, np.random.default_rng(0), 80)
    batch = batch_of([[lesson], [lesson, lesson]], ["a"], factors=[2.0, -1.0])
    (start, stop), *_ = lesson.answers
    assert batch.tokens_BT.shape == (2, 2 * len(lesson.tokens) - 1)
    assert (batch.targets_BT[0, start - 1 : stop - 1] == lesson.tokens[start:stop]).all()
    assert batch.factor_BT is not None and (batch.factor_BT[:, 0] == [2, -1]).all()
    assert not batch.text_BT[0, len(lesson.tokens) :].any()  # type: ignore[index]
    assert dataclasses.replace(batch, factor_BT=None).factor_BT is None
