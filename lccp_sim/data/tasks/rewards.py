"""Verifiable rewards: the value of a written answer, from 0 to 1.

In a long context, a reward for the outcome alone gives a vanishing gradient for finding the place. LongRLVR (arXiv
2603.02146) therefore also rewards naming the right chunks, as F_beta with beta 2. Design note: our texts have no chunk
numbers. The answer to a question about a fact is the fact's sentence from the context, so an answer names a place by
quoting its sentence, and `place_reward` is the F_2 of the words.
"""

from collections import Counter
from collections.abc import Callable

from lccp_sim.data.tasks.question import Question, score_text

BETA = 2.0

Reward = Callable[[Question, str, str], float]  # (question, reference answer, given answer) -> 0 to 1


def answer_reward(question: Question, wanted: str, given: str) -> float:
    """1 if every reference occurs in the answer (after the prefix, if one is required), else 0."""
    right = score_text(question, given)["recall_frac"] == 1.0
    return float(right and given.strip().startswith(question.prefix))


def place_reward(question: Question, wanted: str, given: str) -> float:
    """F_2 of the words: a missing word of the reference weighs more than an extra word."""
    want, have = Counter(wanted.lower().split()), Counter(given.lower().split())
    shared = (want & have).total()
    return (1 + BETA**2) * shared / (BETA**2 * want.total() + have.total()) if shared else 0.0


REWARDS: dict[str, Reward] = {"answer": answer_reward, "place": place_reward}
