"""Sampled answers to held-out questions: pass@k without bias, the parts of the reward, the same numbers every time."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from lccp_sim.data.pools import Corpus
from lccp_sim.data.tasks.question import Question
from lccp_sim.data.tasks.rewards import REWARDS
from lccp_sim.errors import ConfigError
from lccp_sim.models.sampling import Sampled
from lccp_sim.monitors.observing import evaluating
from lccp_sim.monitors.sampled import answers
from lccp_sim.monitors.sampled.answers import Answers, pass_at
from lccp_sim.monitors.values import Moment
from tests.monitors.worlds import tiny_model

MONITOR = Answers(tasks={"facts_multikey": 1}, short_tokens=90, long_tokens=120, items=4, draws=3, answer_tokens=6)


@pytest.mark.parametrize(("n", "right"), [(5, 0), (5, 2), (5, 5), (4, 1)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples(n: int, right: int) -> None:
    for k in range(1, n + 1):
        chosen = list(combinations([True] * right + [False] * (n - right), k))
        assert pass_at(k, n, right) == pytest.approx(np.mean([any(each) for each in chosen]))


def test_records_are_shares_and_the_same_every_time(corpus: Corpus) -> None:
    items, model = MONITOR.prepare(corpus), tiny_model(corpus.vocab_size)
    with evaluating(model):
        first, again = MONITOR.score(model, items), MONITOR.score(model, items)
    assert first == again
    records = MONITOR.aggregate(first, Moment(3, 4))
    overall = {record.metric: record for record in records if not record.tags}
    assert overall.keys() == {"pass_at_1_frac", "pass_at_3_frac", "place_frac", "entropy_nats"}
    assert all(record.n == 4 and 0 <= record.value <= 7 for record in overall.values())
    assert {str(record.tags) for record in records} == {"{}", "{'task': 'facts_multikey'}"}
    assert MONITOR.prepare(corpus).questions[2].tokens.tolist() == items.questions[2].tokens.tolist()


def test_the_reference_answer_has_the_full_reward(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    items = MONITOR.prepare(corpus)
    by_prompt = {q.tokens[: q.answer_start].tobytes(): q.tokens[q.answer_start :] for q in items.questions}

    def right(model: Any, prompts: Any, stops: Any, uniform_PGA: np.ndarray) -> list[list[Sampled]]:
        zeros = np.zeros(1)
        return [[Sampled(by_prompt[prompt.tobytes()], zeros, zeros)] * uniform_PGA.shape[1] for prompt in prompts]

    monkeypatch.setattr(answers, "sample", right)
    values = MONITOR.score(tiny_model(corpus.vocab_size), items)
    assert {value.value for value in values if value.metric != "entropy_nats"} == {1.0}


def test_rewards_tell_a_right_value_from_a_right_place() -> None:
    question = Question(np.zeros(1, np.int64), 0, "facts_multikey", ("red 4",), "")
    wanted = "The value of an old house is red 4."
    worth = {given: [REWARDS[name](question, wanted, given) for name in ("answer", "place")] for given in (
        wanted, "red 4", "The value of an old house is red 5.", "", "blue",
    )}  # fmt: skip
    assert worth[wanted] == [1, 1] and worth[""] == worth["blue"] == [0, 0]
    assert worth["red 4"][0] == 1 and 0 < worth["red 4"][1] < 0.3  # "4" and "4." are other words
    assert worth["The value of an old house is red 5."] == [0, pytest.approx(8 / 9)]
    coded = question._replace(prefix="XK")
    assert [REWARDS["answer"](coded, wanted, given) for given in ("XK red 4", "red 4 XK")] == [1, 0]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"short_tokens": 120}, "monitors.answers.short_tokens=120: must be less than long_tokens=120"),
        (
            {"tasks": {"facts_single": 1}},
            "monitors.answers.haystack=None: task facts_single hides its needle in real t",
        ),
    ],
)
def test_settings_that_go_not_together_are_refused(keys: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        Answers(**({"tasks": {"facts_multikey": 1}, "short_tokens": 90, "long_tokens": 120} | keys))
    assert str(error.value).startswith(line)
