"""Rewards that can be verified: what a written answer is worth, from 0 to 1.

A reward for the outcome alone leaves a vanishing gradient for finding the place in a long context (LongRLVR, arXiv
2603.02146), which therefore also rewards naming the right chunks, as F_beta with beta 2. Design note: our texts have no
chunk numbers. The answer to a question about a fact is the fact's sentence as the context has it, so the place that an
answer points to is the sentence that it quotes, and `place_reward` is the F_2 of their words.
"""

from collections import Counter
from collections.abc import Callable

from lccp_sim.data.tasks.question import Question, score_text

BETA = 2.0

Reward = Callable[[Question, str, str], float]  # (question, reference answer, given answer) -> 0 to 1


def answer_reward(question: Question, wanted: str, given: str) -> float:
    """1 where every reference occurs in the answer, behind the prefix if one is asked for, else 0."""
    right = score_text(question, given)["recall_frac"] == 1.0
    return float(right and given.strip().startswith(question.prefix))


def place_reward(question: Question, wanted: str, given: str) -> float:
    """F_2 of the words: a word of the reference that is missing weighs more than one too many."""
    want, have = Counter(wanted.lower().split()), Counter(given.lower().split())
    shared = (want & have).total()
    return (1 + BETA**2) * shared / (BETA**2 * want.total() + have.total()) if shared else 0.0


REWARDS: dict[str, Reward] = {"answer": answer_reward, "place": place_reward}
