"""Head sets and their stability, on scores that are counted by hand."""

import numpy as np
import pytest

from lccp_sim.analysis.stats import heads
from lccp_sim.config import top_k

SCORES = np.array([[0.05, 0.30, 0.10], [0.90, 0.02, 0.11]])


def test_retrieval_heads_are_above_the_threshold_strongest_first():
    assert heads.retrieval_heads(SCORES).tolist() == [[1, 0], [0, 1], [1, 2]]
    assert heads.retrieval_heads(SCORES, threshold=0.5).tolist() == [[1, 0]]
    assert heads.retrieval_heads(np.zeros((2, 3))).shape == (0, 2)


def test_initial_heads_fall_back_to_the_strongest():
    assert heads.initial_heads(SCORES).tolist() == [[1, 0], [0, 1], [1, 2]]
    weak = SCORES / 100
    assert heads.initial_heads(weak).tolist() == [[1, 0]]
    many = np.linspace(0, 0.09, 400).reshape(20, 20)
    assert len(heads.initial_heads(many)) == 12


def test_mean_score_follows_the_set_into_another_window():
    initial = heads.initial_heads(SCORES)
    assert heads.mean_score(SCORES, initial) == pytest.approx((0.9 + 0.3 + 0.11) / 3)
    assert heads.mean_score(1 - SCORES, initial) == pytest.approx(1 - (0.9 + 0.3 + 0.11) / 3)
    with pytest.raises(ValueError, match="no heads given"):
        heads.mean_score(SCORES, np.zeros((0, 2), dtype=int))


@pytest.mark.parametrize(("num_heads", "k"), [(4, 4), (32, 8), (400, 12), (1024, 30), (10_000, 30)])
def test_top_k(num_heads, k):
    assert top_k(num_heads) == k


def test_overlap_counts_shared_heads():
    score_LN = np.arange(40.0).reshape(4, 10)
    assert heads.topk_overlap(score_LN, score_LN) == 1.0
    assert heads.topk_overlap(score_LN, -score_LN) == 0.0
    moved = score_LN.copy()
    moved[3, 8:] = -1  # two of the eight strongest fall out
    assert heads.topk_overlap(score_LN, moved) == 6 / 8
    assert heads.topk_overlap(score_LN, moved, k=2) == 0.0


def test_rank_correlation():
    assert heads.rank_correlation(SCORES, SCORES**3) == pytest.approx(1)
    assert heads.rank_correlation(SCORES, -SCORES) == pytest.approx(-1)
    assert heads.rank_correlation(SCORES, np.zeros_like(SCORES)) is None


def test_scores_of_another_model_are_refused():
    with pytest.raises(ValueError, match="different shapes"):
        heads.topk_overlap(SCORES, SCORES.T)
    with pytest.raises(ValueError, match="different shapes"):
        heads.rank_correlation(SCORES, SCORES.T)
