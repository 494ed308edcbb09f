"""What a model answers to questions with one known answer: from teacher forcing alone, decoding included.

Greedy decoding is the fixed point of teacher forcing: fed its own argmaxes, a causal model repeats them. So answers
are found in a few whole forwards, without a cache. Questionable: padding moves a logit by a rounding error, so where
two tokens are equal to the last bit, the one found may differ from that of token-by-token decoding.
"""

from collections.abc import Callable, Iterator

import numpy as np

from lccp_sim.data.tasks import Question, score_text
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.observing import Spans, map_batches, score_spans

Scores = dict[str, float]


def ask(
    model: LanguageModel,
    questions: list[Question],
    to_decode: set[int],
    decode: Callable[[list[int]], str],
    tokens_per_forward: int,
) -> list[Scores]:
    """The scores of each question: of its canonical answer, and for those `to_decode` of what the model would write.

    exact_match_frac: every token is the argmax, stop included. canonical_pass_at_k_frac: 1 - (1 - p)^k, p the product
    of the tokens' probabilities. answer_nll_nats: mean over the tokens. Then `score_text` of the greedy answer up to
    its first line break, at most as many tokens as the reference has.
    """
    scores: list[Scores] = [{} for _ in questions]
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
    """The greedy answer of each question, int64 ids, as many as its reference has; those after a stop mean nothing.

    `tops` are the argmaxes where the reference is given, so their first token is right already; each forward of the
    tokens found so far makes at least one more right, and nothing changes once all are. The stop is the reference's
    last token: a question is done once the tokens known to be right hold it.
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
    """Indices in groups that lose little to padding: the longest at most twice the shortest, and so many tokens."""
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
    """Groups of indices, and the scores of what stands in `texts` where the questions have their answers."""

    def look(group: list[int]) -> Spans:
        spans = [(questions[i].answer_start, len(questions[i].tokens)) for i in group]
        return score_spans(model, [texts[i] for i in group], spans)

    return map_batches(model, [len(text) for text in texts], tokens_per_forward, look, alike)
