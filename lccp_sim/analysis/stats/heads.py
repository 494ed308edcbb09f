"""Retrieval heads from per-head copy scores: which heads they are, and whether they stay the same.

Pure functions of score arrays [L, N] (layer, query head). So the callback compares a window with the previous and the
first window, and a report with the last one, with the same code. If nothing copies yet, "the initial heads" are simply
the strongest few.
"""

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from lccp_sim.config import RETRIEVES, TOP_FRAC, top_k

HeadScores = npt.NDArray[np.floating]


def retrieval_heads(score_LN: HeadScores, threshold: float = RETRIEVES) -> npt.NDArray[np.intp]:
    """Find the heads with scores above `threshold`, as pairs [n, 2] of (layer, head), strongest first.

    Ties by layer, then head. Source: arXiv 2604.02650 sec. 6, the number of heads above r = 0.1; arXiv 2404.15574
    sec. 2 for the score.
    """
    return strongest(score_LN, int((score_LN > threshold).sum()))


def initial_heads(score_LN: HeadScores) -> npt.NDArray[np.intp]:
    """Choose the heads to follow, pairs [n, 2], from the first window's scores: the retrieval heads, or the top 3 %.

    Source: arXiv 2604.02650 sec. 6 fixes the set at the checkpoint before training; the fallback (at least one head)
    is our own.
    """
    heads = retrieval_heads(score_LN)
    return heads if len(heads) else strongest(score_LN, max(1, round(TOP_FRAC * score_LN.size)))


def mean_score(score_LN: HeadScores, heads: npt.NDArray[np.intp]) -> float:
    """Average the score over `heads`, pairs [n, 2] of (layer, head) with n > 0."""
    if not len(heads):
        raise ValueError("mean_score: no heads given; initial_heads() always names at least one")
    return float(score_LN[heads[:, 0], heads[:, 1]].mean())


def topk_overlap(a_LN: HeadScores, b_LN: HeadScores, k: int | None = None) -> float:
    """Return the fraction of the k strongest heads of one window that are among the k strongest of the other.

    Two unrelated rankings share k / (L N) on average. Ties are ordered by layer, then head, so windows full of zeros
    agree: read it together with the count of heads above the threshold. Source: arXiv 2604.02650 Table 5.
    """
    _check_shapes(a_LN, b_LN)
    k = top_k(a_LN.size) if k is None else k
    both = {tuple(head) for head in strongest(a_LN, k)} & {tuple(head) for head in strongest(b_LN, k)}
    return len(both) / k


def rank_correlation(a_LN: HeadScores, b_LN: HeadScores) -> float | None:
    """Compute Spearman's rank correlation over all heads; None if one window's scores are all equal (undefined).

    Source: arXiv 2604.02650 Table 5.
    """
    _check_shapes(a_LN, b_LN)
    if np.ptp(a_LN) == 0 or np.ptp(b_LN) == 0:
        return None
    return float(spearmanr(a_LN.ravel(), b_LN.ravel()).statistic)


def strongest(score_LN: HeadScores, k: int) -> npt.NDArray[np.intp]:
    """Return the pairs [k, 2] of (layer, head) with the highest scores, strongest first; ties by layer, then head."""
    flat = np.argsort(-score_LN.ravel(), kind="stable")[:k]
    return np.stack(np.unravel_index(flat, score_LN.shape), axis=-1)


def _check_shapes(a_LN: HeadScores, b_LN: HeadScores) -> None:
    if a_LN.shape != b_LN.shape:
        raise ValueError(
            f"scores of two windows have different shapes, {a_LN.shape} and {b_LN.shape}: not the same model"
        )
