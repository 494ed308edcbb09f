"""Head dynamics, on scores that are counted by hand."""

import numpy as np
import pytest

from lccp_sim.analysis.run import load_run
from lccp_sim.analysis.stats.dynamics import dynamics, like_the_paper
from lccp_sim.files import append_lines
from lccp_sim.records import Record

LAYERS, HEADS = 4, 8  # 32 heads: the 8 strongest are compared


def write(path, score_WLN, texts="needle"):
    records = []
    for window, score_LN in enumerate(score_WLN):
        for layer, head in np.ndindex(score_LN.shape):
            tags = {"layer": layer, "head": head} | ({} if texts == "needle" else {"samples": texts})
            value = float(score_LN[layer, head])
            tokens = window * 100
            records.append(Record(window, tokens, "mechanistic", "heads", "copy_hard_frac", value, 4, None, tags))
            records.append(Record(window, tokens, "mechanistic", "heads", "copy_null_frac", value / 4, 4, None, tags))
    append_lines(path / "records.jsonl", [record.line() for record in records])
    return load_run(path)


@pytest.fixture
def score_WLN():
    """Five windows: the strongest eight lose two members at window 2, for good."""
    score_WLN = np.tile(np.linspace(0, 0.62, LAYERS * HEADS).reshape(LAYERS, HEADS), (5, 1, 1))
    score_WLN[2:, 3, 6:] = 0.01
    score_WLN[2:, 0, :2] = 0.9
    return score_WLN


def test_stages_survival_and_the_last_set(tmp_path, score_WLN):
    moved = dynamics(write(tmp_path, score_WLN))
    assert (moved.k, moved.heads, moved.chance) == (8, 32, 0.25)
    assert [stage.shared for stage in moved.stages] == [8, 6, 8, 8]
    assert [stage.tokens for stage in moved.stages] == [(0, 100), (100, 200), (200, 300), (300, 400)]
    assert moved.stages[0].spearman == pytest.approx(1) and moved.stages[1].spearman < 1
    initial = int((score_WLN[0] > 0.1).sum())
    assert len(moved.initial) == initial == 26
    assert moved.surviving_W.tolist() == [1, 1, *[(initial - 2) / initial] * 3]
    assert moved.final_W.tolist() == [6 / 8, 6 / 8, 1, 1, 1]
    assert moved.fixed_at == 200
    assert moved.count_W.tolist() == [26] * 5, "two fell out, two came in"
    assert moved.null_W.tolist() == [int((window / 4 > 0.1).sum()) for window in score_WLN]
    assert moved.halves is None, "without samples nothing is said about their halves"


def test_a_set_that_comes_back_is_fixed_where_it_came_back(tmp_path, score_WLN):
    moved = dynamics(write(tmp_path, score_WLN[[2, 0, 2, 0, 2]]))
    assert moved.final_W.tolist() == [1, 6 / 8, 1, 6 / 8, 1] and moved.fixed_at == 400


def test_longbio_is_apart_from_needles(tmp_path, score_WLN):
    write(tmp_path, score_WLN)
    run = write(tmp_path, score_WLN[:, ::-1], "longbio")
    needle, bio = dynamics(run), dynamics(run, "longbio")
    assert set(needle.initial) != set(bio.initial) and bio.texts == "longbio"
    assert [stage.shared for stage in bio.stages] == [stage.shared for stage in needle.stages]


def test_stages_like_the_paper_take_the_nearest_windows(tmp_path, score_WLN):
    run = write(tmp_path, score_WLN)
    assert [stage.tokens for stage in like_the_paper(run, (0.0, 0.3, 0.8))] == [(0, 100), (100, 300)]
    assert like_the_paper(run, (0.0, 0.01, 1.0)) == [], "two fractions at one window say nothing"


def test_one_window_and_a_missing_head_have_no_dynamics(tmp_path, score_WLN):
    assert dynamics(write(tmp_path, score_WLN[:1])) is None
    assert dynamics(load_run(tmp_path), "longbio") is None


def test_halves_of_the_items_bound_what_windows_can_share(make_run):
    path, _ = make_run()
    moved = dynamics(load_run(path))
    assert 0.5 < moved.halves <= 1
