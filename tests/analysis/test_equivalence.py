"""Whether the probe stays: the test is that of statsmodels, and it compares the right windows and questions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats.weightstats import ttost_paired

from lccp_sim.analysis.report.verdict import deceptive_here
from lccp_sim.analysis.run import RunData, load_run
from lccp_sim.analysis.stats.curve import Estimate, to_json
from lccp_sim.analysis.stats.equivalence import equivalent, probe_stays
from lccp_sim.analysis.stats.rule import Decision
from lccp_sim.errors import ConfigError
from lccp_sim.monitors.values import Moment, Value
from lccp_sim.records import Record
from lccp_sim.train.saved.journal import Journal

QUESTIONS = 200


def probed(directory: Path, shares: dict[int, float], samples: bool = True) -> RunData:
    """A run whose probe answers a share of its questions at each step of 1000 tokens: the first so many of them."""
    directory.mkdir(exist_ok=True)
    journal = Journal(directory)
    for step, share in shares.items():
        values = []
        for sft_step, level in ((0, 0.0), (32, share)):
            tags = {"task": "niah", "seed": 0, "sft_step": sft_step}
            right = [float(i < level * QUESTIONS) for i in range(QUESTIONS)]
            values += [Value("probe", "exact_match_frac", f"{i:03}", tags, each) for i, each in enumerate(right)]
            moment = Moment(step, 1000 * step)
            row = Record(*moment, "behavioural", "probe", "exact_match_frac", level, QUESTIONS, 0.01)
            journal.write([replace(row, tags=each) for each in (tags, {"sft_step": sft_step})])
        if samples:
            journal.write_samples(step, values)
    return load_run(directory)


def test_it_compares_the_last_window_with_the_last_at_half_its_tokens_or_before(tmp_path):
    found = probed(tmp_path, {0: 0.0, 2: 0.3, 4: 0.5, 7: 0.9, 10: 0.52})
    stays = probe_stays(found)
    assert (stays.before_tokens, stays.after_tokens, stays.items) == (4000, 10000, QUESTIONS)
    assert stays.change.value == pytest.approx(0.02) and stays.holds
    assert not probe_stays(found, margin=0.02).holds
    assert "from 4k to 10k tokens the probe is stable to within 0.05" in stays.said()
    assert to_json(stays)["change"]["high"] == pytest.approx(stays.change.high) and "draws" not in str(to_json(stays))


@pytest.mark.parametrize("last", [0.7, 0.3])
def test_a_probe_that_moves_either_way_does_not_stay(tmp_path, last):
    stays = probe_stays(probed(tmp_path, {0: 0.0, 4: 0.5, 10: last}))
    assert not stays.holds and "is not shown to be stable" in stays.said()


def test_a_window_is_not_held_against_itself(tmp_path):
    stays = probe_stays(probed(tmp_path, {0: 0.5}))
    assert not stays.holds and "half its last window's tokens" in stays.reason.code


def test_without_probe_windows_or_samples_it_says_so(tmp_path):
    assert "half its last window's tokens" in probe_stays(probed(tmp_path / "a", {7: 0.5, 10: 0.5})).reason.code
    bare = probe_stays(probed(tmp_path / "b", {4: 0.5, 10: 0.5}, samples=False))
    assert bare.change is None and not bare.holds and "no samples" in bare.said()
    assert probe_stays(replace(load_run(tmp_path / "b"), records=load_run(tmp_path / "b").records.iloc[:0])) is None


def test_intrinsic_saturation_asks_for_the_probe_where_there_is_one(tmp_path):
    level = Decision("saturated", 4000, Estimate(0.0, -0.01, 0.01), 1.0, "power", [])
    moves = probe_stays(probed(tmp_path / "a", {0: 0, 4: 0.5, 10: 0.7}))
    stays = probe_stays(probed(tmp_path / "b", {0: 0, 4: 0.5, 10: 0.5}))
    assert "(intrinsic saturation, in this run)" in deceptive_here(level, level, None)
    assert "(intrinsic saturation, in this run)" in deceptive_here(level, level, stays)
    said = deceptive_here(level, level, moves)
    assert "(intrinsic" not in said and "not shown to be stable" in said
    falls = replace(level, verdict="improving")
    assert "deceptive saturation, in this run" in deceptive_here(level, falls, moves)


@pytest.mark.parametrize("margin", [0.02, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("seed", range(5))
def test_equivalence_is_that_of_statsmodels(seed, margin):
    rng = np.random.default_rng(seed)
    before_I = rng.standard_normal(60)
    after_I = before_I + 0.02 + 0.2 * rng.standard_normal(60)
    same, change = equivalent(before_I, after_I, margin)
    assert same == (ttost_paired(after_I, before_I, -margin, margin)[0] < 0.05)
    for bound in (change.low, change.high):  # the interval's ends are where a one-sided test is just at 5 %
        one_sided = ttost_paired(after_I - bound, before_I, -1e-9, 1e-9)
        assert min(one_sided[1][1], one_sided[2][1]) == pytest.approx(0.05, rel=1e-3)


def test_items_of_which_none_changed_leave_room_for_those_not_seen():
    same, change = equivalent(np.ones(50), np.ones(50), 0.1)
    assert same and change.high == pytest.approx(1 - 0.05 ** (1 / 50)) == pytest.approx(3 / 50, rel=0.05)
    assert not equivalent(np.ones(20), np.ones(20), 0.1)[0]


@pytest.mark.parametrize(
    ("before", "after", "margin"),
    [([1.0], [1.0], 0.1), ([1, 2], [1, 2, 3], 0.1), ([1, np.nan], [1, 2], 0.1), ([1, 2], [1, 2], 0.0)],
)
def test_no_equivalence_without_pairs_or_margin(before, after, margin):
    with pytest.raises(ConfigError, match="equivalence needs"):
        equivalent(before, after, margin)
