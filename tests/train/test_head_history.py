"""What compares windows keeps needles and other texts apart, and heads reach records and one image, never scalars."""

import json

import numpy as np
import pytest

from lccp_sim.monitors.values import Moment
from lccp_sim.records import Record, overall_name
from lccp_sim.train.window.images import window_images, window_maps
from lccp_sim.train.window.suite import HeadHistory

Grid = list[list[float]]
SETS = {"": {}, "longbio": {"samples": "longbio"}}


def scored(step: int, scores: Grid, metric: str = "copy_hard_frac", **tags: str) -> list[Record]:
    return [
        Record(step, step, "mechanistic", "heads", metric, value, 9, 0.1, {"layer": layer, "head": head, **tags})
        for (layer, head), value in np.ndenumerate(np.array(scores))
    ]


def derived(records: list[Record]) -> dict[tuple[str, str], float]:
    """Values by metric and tags."""
    return {(r.metric, json.dumps(dict(r.tags), sort_keys=True)): r.value for r in records}


FIRST, SECOND = [[0.0, 0.5], [0.2, 0.05]], [[0.3, 0.1], [0.2, 0.0]]


def test_heads_are_counted_beside_their_null() -> None:
    null = [[0.0, 0.15], [0.1, 0.0]]
    records = scored(0, FIRST) + scored(0, null, "copy_null_frac")
    got = derived(HeadHistory([], [0]).compare(records, Moment(0, 0)))
    assert got == {
        ("retrieval_heads_count", "{}"): 2.0,
        ("null_heads_count", "{}"): 1.0,
        ("initial_heads_mean_frac", "{}"): pytest.approx(0.35),
    }


@pytest.mark.parametrize("resumed", [False, True])
def test_each_set_of_texts_is_compared_with_its_own_windows(resumed: bool) -> None:
    """Needles at steps 0, 2 and 4, the other texts at 0 and 4; at step 4 they are what needles were at step 2."""
    history, seen = HeadHistory([], [0, 2, 4]), []
    for step, sets in ((0, {"": FIRST, "longbio": SECOND}), (2, {"": SECOND}), (4, {"": FIRST, "longbio": FIRST})):
        if resumed:
            history = HeadHistory(seen, [0, 2, 4])
        records = [record for name, scores in sets.items() for record in scored(step, scores, **SETS[name])]
        last = history.compare(records, Moment(step, step))
        seen += records + last
    got = derived(last)
    longbio = json.dumps({"samples": "longbio"})
    assert got["retrieval_heads_count", "{}"] == 2 and got["retrieval_heads_count", longbio] == 2
    assert got["initial_heads_mean_frac", "{}"] == pytest.approx(0.35)
    assert got["initial_heads_mean_frac", longbio] == pytest.approx(0.1)  # heads (0, 0) and (1, 0) of its first window
    one, other = (np.argsort(np.argsort(np.ravel(each))) for each in (FIRST, SECOND))
    rho = np.corrcoef(one, other)[0, 1]
    assert got["spearman", json.dumps({"against": "previous"})] == pytest.approx(rho)
    assert got["spearman", json.dumps({"against": "first"})] == pytest.approx(1.0)
    for against in ("previous", "first"):
        tags = json.dumps({"against": against, "samples": "longbio"})
        assert got["spearman", tags] == pytest.approx(rho)
    assert len(last) == 2 * (2 + 2 * 2)


def test_a_step_that_is_no_window_is_not_remembered() -> None:
    history = HeadHistory(scored(0, FIRST) + scored(3, SECOND), [0, 4])
    got = derived(history.compare(scored(4, FIRST), Moment(4, 4)))
    assert got["spearman", json.dumps({"against": "previous"})] == pytest.approx(1.0)


def test_the_largest_induction_head_is_recorded_without_any_copy_scores() -> None:
    got = HeadHistory([], [0]).compare(scored(0, FIRST, "induction_frac"), Moment(0, 0))
    assert [(r.metric, r.value, r.n, r.tags) for r in got] == [("induction_frac", 0.5, 4, {})]


def test_heads_have_a_map_for_each_set_of_texts_and_none_is_a_scalar() -> None:
    records = [record for name in SETS for record in scored(0, FIRST if name else SECOND, **SETS[name])]
    maps = window_maps(records)
    assert {name: grid.to_numpy().tolist() for name, (_, grid) in maps.items()} == {
        "heads/copy_hard": SECOND, "heads/copy_hard_longbio": FIRST,
    }  # fmt: skip
    assert {(metric.key, *grid.shape) for metric, grid in maps.values()} == {("heads/copy_hard_frac", 2, 2)}
    images = window_images(records)
    assert images.keys() == maps.keys()
    for image in images.values():
        assert image.dtype == np.uint8 and image.ndim == 3 and len(np.unique(image)) > 10
    assert not [r for r in records if overall_name(r)]
    others = HeadHistory([], [0]).compare(records, Moment(0, 0))
    assert {r.metric for r in others if overall_name(r)} == {"retrieval_heads_count", "initial_heads_mean_frac"}
