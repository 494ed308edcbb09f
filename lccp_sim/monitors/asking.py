"""Answers of a model to questions with one known answer, by teacher forcing alone, greedy decoding included.

Greedy decoding is a fixed point: a causal model that is fed its own argmaxes predicts them again. So answers
are found in a few full forward passes, without a cache. Design note: padding changes a logit by a rounding error, so
if two tokens tie to the last bit, the result may differ from token-by-token decoding.
"""

from collections.abc import Callable, Iterator

import numpy as np

from lccp_sim.data.tasks import Question, score_text
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.observing import Spans, map_batches, score_spans

AnswerScores = dict[str, float]


def ask(
    model: LanguageModel,
    questions: list[Question],
    to_decode: set[int],
    decode: Callable[[list[int]], str],
    tokens_per_forward: int,
) -> list[AnswerScores]:
    """Score each question by its canonical answer; for those in `to_decode` also score the model's greedy answer.

    exact_match_frac: every token is the argmax, including the stop. canonical_pass_at_k_frac: 1 - (1 - p)^k, where p is
    the product of the tokens' probabilities. answer_nll_nats: mean over the tokens. The greedy answer is scored with
    `score_text`, up to its first line break and at most as many tokens as the reference has.
    """
    scores: list[AnswerScores] = [{} for _ in questions]
    tops: list[np.ndarray] = [np.zeros(0, np.int64) for _ in questions]
    for group, spans in _scored(model, [q.tokens for q in questions], questions, tokens_per_forward):
        for row, i in enumerate(group):
            nll, hit = spans.nll[row, spans.mask[row]], spans.hit[row, spans.mask[row]]
            p = float(np.exp(-nll.sum()))
            tops[i] = spans.top[row, spans.mask[row]]
            scores[i] = {
                "exact_match_frac": float(hit.all()),
                "canonical_pass_at_1_frac": p,
                "canonical_pass_at_3_frac": 1 - (1 - p) ** 3,
                "answer_nll_nats": float(nll.mean()),
            }
    which = sorted(to_decode)
    answers = greedy(model, [questions[i] for i in which], [tops[i] for i in which], tokens_per_forward)
    for i, answer in zip(which, answers, strict=True):
        scores[i] |= score_text(questions[i], decode(answer.tolist()).split("\n")[0])
    return scores


def greedy(
    model: LanguageModel, questions: list[Question], tops: list[np.ndarray], tokens_per_forward: int
) -> list[np.ndarray]:
    """Decode the greedy answer to each question: int64 ids, as many as its reference has; those after a stop are void.

    `tops` are the argmaxes given the reference, so their first token is already right. Each forward of the tokens found
    so far makes at least one more right, and once all are right nothing changes. The stop is the reference's last
    token: a question is done when the tokens known to be right contain it.
    """
    found = list(tops)
    left = [i for i, q in enumerate(questions) if not np.array_equal(tops[i], q.tokens[q.answer_start :])]
    right = 1
    while left := [i for i in left if right < len(found[i]) and questions[i].tokens[-1] not in found[i][:right]]:
        texts = [np.concatenate((questions[i].tokens[: questions[i].answer_start], found[i])) for i in left]
        changed = []
        for group, spans in _scored(model, texts, [questions[i] for i in left], tokens_per_forward):
            for row, i in enumerate(left[j] for j in group):
                top = spans.top[row, spans.mask[row]]
                changed += [] if np.array_equal(top, found[i]) else [i]
                found[i] = top
        left, right = changed, right + 1
    return found


def alike(lengths: list[int], tokens_per_forward: int) -> Iterator[list[int]]:
    """Group indices so that little is lost to padding: the longest at most twice the shortest, and a token limit."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[group[0]] if group else 0
        if group and ((len(group) + 1) * longest > tokens_per_forward or 2 * lengths[i] < longest):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _scored(
    model: LanguageModel, texts: list[np.ndarray], questions: list[Question], tokens_per_forward: int
) -> Iterator[tuple[list[int], Spans]]:
    """Yield groups of indices, with the scores of `texts` at the places of the questions' answers."""

    def look(group: list[int]) -> Spans:
        spans = [(questions[i].answer_start, len(questions[i].tokens)) for i in group]
        return score_spans(model, [texts[i] for i in group], spans)

    return map_batches(model, [len(text) for text in texts], tokens_per_forward, look, alike)
