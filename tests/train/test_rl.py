"""Reinforcement learning: the gradients of the plain formula, a bandit and two tokens, and a reward that is learnt."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lccp_sim.config import Config
from lccp_sim.data.tasks import rewards
from lccp_sim.data.tasks.question import Question
from lccp_sim.errors import ConfigError, NoSignal
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.models.loss import cross_entropy
from lccp_sim.train.loop.loader import tensors_of
from lccp_sim.train.loop.module import LccpModule
from lccp_sim.train.objectives.rl import Reinforcement, Rollouts
from lccp_sim.train.run import train
from tests.monitors.worlds import tiny_model
from tests.train.test_dense_stage import SPARSE
from tests.train.test_resume import at_step, before_checkpoint, killed
from tests.train.test_run import UNWATCHED, losses
from tests.train.tiny import assert_same_run

VOCAB = 12


class Talk(NamedTuple):
    """A teacher whose questions are random tokens and whose answers are read as numbers."""

    prompt: int = 6
    stops: frozenset[int] = frozenset()

    def question(self, i: int, rng: np.random.Generator, limit: int) -> Question:
        return Question(rng.integers(VOCAB, size=self.prompt + 1), self.prompt, "planted", ("",), "")

    def between(self, i: int, rng: np.random.Generator, short: int, long: int, key: str) -> Question:
        return self.question(i, rng, long)

    def text(self, tokens: np.ndarray) -> str:
        return " ".join(map(str, tokens))


class Table(LanguageModel):
    """A policy whose logits are a weight: of the first token, and of each second token after each first."""

    def __init__(self, prompt: int, vocab: int):
        super().__init__()
        self.num_layers = self.num_heads = 0
        self.vocab_size, self.prompt = vocab, prompt
        rng = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(1, vocab, generator=rng))
        self.second = nn.Parameter(torch.randn(vocab, vocab, generator=rng))

    def forward(self, tokens_BT: Tensor) -> Any:
        """The hidden state of a place is its logits."""
        hidden = torch.zeros(*tokens_BT.shape, self.vocab_size)
        hidden[:, self.prompt - 1] = self.first
        if tokens_BT.shape[1] > self.prompt:
            hidden[:, self.prompt] = self.second[tokens_BT[:, self.prompt]]
        return type("Output", (), {"hidden_BTD": hidden})

    def logits(self, hidden_RD: Tensor) -> Tensor:
        return hidden_RD

    def set_tap(self, tap: Any) -> None: ...

    def set_gate(self, gate_LN: Any) -> None: ...


def rollouts(monkeypatch: pytest.MonkeyPatch, reward: Callable[[str], float], groups: int, longest: int) -> Rollouts:
    """Samples in groups of four under one planted reward."""
    monkeypatch.setitem(rewards.REWARDS, "planted", lambda question, wanted, given: reward(given))
    settings = Reinforcement(
        tasks={"facts_multikey": 1}, short_tokens=8, long_tokens=16, group=4, answer_tokens=longest,
        rewards={"planted": 1.0}, silent_steps=3, tokens_per_forward=10**6,
    )  # fmt: skip
    run = type("Run", (), {"batch_tokens": 32 * groups * 4, "context_tokens": 32})
    data = type("Data", (), {"order_seed": None})
    return Rollouts(settings, Talk(), type("Config", (), {"run": run, "data": data, "seed": 0}))  # type: ignore[arg-type]


def plain_gradient(model: LanguageModel, played: Rollouts) -> list[Tensor]:
    """The gradient of -sum(advantage x log-probability) / tokens, one sample after the other."""
    model.zero_grad()
    total = torch.zeros(())
    for each in played.played:
        (start, stop), tokens = each.lesson.answers[0], torch.from_numpy(each.lesson.tokens)
        logp = model.logits(model(tokens[None, :-1]).hidden_BTD[0]).log_softmax(-1)
        total = total - each.advantage * logp[torch.arange(start - 1, stop - 1), tokens[start:stop]].sum()
    (total / played.target_count(0)).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def step_loss(model: Any, played: Rollouts, micro: int = 1) -> Tensor:
    """The loss as training has it, in micro-batches."""
    loss = torch.zeros(())
    for part in range(micro):
        batch = tensors_of(played.slice(0, 0, 1, part, micro), played.target_count(0))
        out = model(batch["tokens_BT"], batch["positions_BT"], batch["bounds"], batch["text_BT"])
        learn_R = batch["learn_R"]
        hidden_RD, targets_R = out.hidden_BTD.flatten(0, 1)[learn_R], batch["targets_BT"].flatten()[learn_R]
        factor_R = batch["factor_BT"].flatten()[learn_R]
        loss = loss + cross_entropy(hidden_RD, model.head_weight, targets_R, batch["target_count"], factor_R)
    return loss


@pytest.mark.parametrize("micro", [1, 4])
def test_the_gradient_of_a_step_is_that_of_the_plain_formula(micro: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(VOCAB)
    played = rollouts(monkeypatch, lambda text: len(set(text.split())) / 5, groups=3, longest=5)
    played.play(model, 0)
    expected = plain_gradient(model, played)
    model.zero_grad()
    step_loss(model, played, micro).backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) == len(expected)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    advantage = np.array([each.advantage for each in played.played]).reshape(3, 4)
    assert np.allclose(advantage.sum(1), 0) and advantage.any()


def test_a_bandit_has_the_gradient_of_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """J = sum p r; dJ / d logit_i = p_i (r_i - J), times 1 - 1 / group, as the mean includes the sample itself."""
    model = Table(6, 4)
    worth = torch.tensor([0.0, 0.2, 1.0, 0.5])
    played = rollouts(monkeypatch, lambda text: float(worth[int(text)]), groups=1200, longest=1)
    played.play(model, 0)  # type: ignore[arg-type]
    (first,) = plain_gradient(model, played)[:1]
    p = model.first.detach().softmax(-1)[0]
    assert torch.allclose(-first[0], 0.75 * p * (worth - (p * worth).sum()), atol=0.02)


def test_two_tokens_have_the_gradient_of_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """J = p(a) q(b | a); its gradient is J (1 - p) at the first logits, and J (1 - q) at those after a alone."""
    model = Table(6, 3)
    played = rollouts(monkeypatch, lambda text: float(text == "2 1"), groups=1200, longest=2)
    played.play(model, 0)  # type: ignore[arg-type]
    first, second = plain_gradient(model, played)
    p, q = model.first.detach().softmax(-1)[0], model.second.detach().softmax(-1)
    J, one = p[2] * q[2, 1], torch.eye(3)
    scale = 0.75 / 2  # the mean includes the sample; the loss is divided by tokens, two a sample
    assert torch.allclose(-first[0], scale * J * (one[2] - p), atol=0.01)
    assert torch.allclose(-second[2], scale * J * (one[1] - q[2]), atol=0.01)
    assert torch.allclose(second[:2], torch.zeros(2, 3), atol=0.01)


def test_a_planted_reward_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(VOCAB).train()
    played = rollouts(monkeypatch, lambda text: np.mean([int(t) % 3 == 0 for t in text.split()]), 4, 3)
    optimizer, means = torch.optim.AdamW(model.parameters(), lr=5e-3), []
    for step in range(35):
        played.play(model, step)
        means.append(played.said["reward"])
        optimizer.zero_grad()
        step_loss(model, played).backward()
        optimizer.step()
    assert np.mean(means[:5]) < 0.5 and np.mean(means[-5:]) > 0.9


def test_a_reward_without_differences_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model, played = tiny_model(VOCAB), rollouts(monkeypatch, lambda text: 0.5, groups=2, longest=2)
    played.play(model, 0), played.play(model, 1)
    assert (played.state, played.said["silent_groups_frac"]) == (2, 1.0)
    with pytest.raises(NoSignal, match=r"^objective.rewards=.*no group of the last 3 steps had two different rewards"):
        played.play(model, 2)


RL = {
    **UNWATCHED,
    "run.name": "rl",
    "run.context_tokens": 128,
    "run.batch_tokens": 1024,
    "run.tokens": 6 * 1024,
    "run.checkpoint_every_steps": 2,
    "objective": {
        "kind": "rl",
        "tasks": {"facts_multikey": 1},
        "short_tokens": 90,
        "long_tokens": 110,
        "group": 4,
        "answer_tokens": 6,
        "rewards": {"place": 1.0},
    },
}


def test_a_run_records_rewards_and_killed_and_resumed_it_is_the_same(
    run: Callable[..., Path], make: Callable[..., Config], say: Any, tmp_path: Path
) -> None:
    whole = run({**RL, "run.root": str(tmp_path / "whole")})
    for place, step in ((at_step, 3), (before_checkpoint, 6)):
        killed(make(RL), say, place, step)
    assert_same_run(train(make(RL), say), whole, step=6)
    found = losses(whole)
    assert {"reward", "silent_groups_frac", "entropy_nats", "place_reward_frac"} <= found.keys()
    assert len(found["reward"]) == 3 and min(found["entropy_nats"]) > 1


def test_samples_are_drawn_from_the_weights_that_their_step_updates(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On-policy: the loader runs ahead, and the rows of a step must not be made with it."""
    sampled, updated, play, step = [], [], Rollouts.play, LccpModule.training_step

    def norm(model: Any) -> float:
        return float(sum(p.detach().abs().sum() for p in model.parameters()))

    monkeypatch.setattr(Rollouts, "play", lambda self, model, at: (sampled.append(norm(model)), play(self, model, at)))
    monkeypatch.setattr(
        LccpModule, "training_step", lambda self, *a: (updated.append(norm(self.model)), step(self, *a))[1]
    )
    run({**RL, "run.tokens": 3 * 1024, "run.micro_batch_tokens": 512})
    assert sampled == updated[::2] and len(set(sampled)) == 3


def test_a_run_without_signal_keeps_the_reason(run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(NoSignal):
        run(wrong(rewards={"answer": 1.0}, silent_steps=2) | {"run.root": str(tmp_path / "silent")})
    (directory,) = (tmp_path / "silent").iterdir()
    reason = (directory / "FAILED").read_text()
    assert "no group of the last 2 steps had two different rewards" in reason and "answer 0.00" in reason


def wrong(**keys: Any) -> dict[str, Any]:
    return {**RL, "objective": {**RL["objective"], **keys}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (wrong(rewards={"place": 0.0}), "objective.rewards={'place': 0.0}: is constant; give a part a weight other th"),
        (wrong(rewards={"answer": math.nan}), "objective.rewards.answer=nan: must be finite"),
        (wrong(rewards={"plaec": 1.0}), "objective.rewards.plaec=1.0: no such reward; there are answer, place; did yo"),
        (
            wrong(long_tokens=125),
            "objective.long_tokens=125: plus objective.answer_tokens=6 must not exceed run.context",
        ),
        (wrong(tasks={}), "objective.tasks={}: needs a task with a weight above 0"),
        (wrong(tasks={"facts_single": 1}), "objective.haystack=None: task facts_single hides its needle in real text"),
        (
            {**RL, "model.attention": SPARSE, "monitors.attention": "both"},
            "monitors.attention='both': objective rl trains densely, so there is nothing to compare; leave this out",
        ),
        (wrong(group=3), "objective.group=3: the 8 rows of a step (run.batch_tokens / run.context_tokens) must be a"),
        ({**RL, "objective": {"kind": "lr"}}, "objective.kind='lr': one of lm, sft, rl"),
    ],
)
def test_what_cannot_be_learnt_is_refused_in_one_line(changes: dict, line: str, make: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError) as error:
        make(changes)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
