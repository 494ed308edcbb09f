"""Repeated runs: noise is pooled inside them, and neither a change nor a difference inside it is called one."""

import numpy as np
import pytest

from lccp_sim.analysis.report.study_page import write_study
from lccp_sim.analysis.stats.arms import Curves, Noise, curves_of, moved, noise, results
from tests.analysis.test_arms import HIT, NLL, run_of


def orders(ends: dict[str, list[list[float]]], metric: str = HIT) -> list[dict]:
    """Runs by arm and seed for each order of data, of ends[arm][seed][order]; every metric begins at 0.5."""
    count = max(len(own) for seeds in ends.values() for own in seeds)
    return [
        {
            arm: {s: run_of({metric: own[r]}) for s, own in enumerate(seeds) if r < len(own)}
            for arm, seeds in ends.items()
        }
        for r in range(count)
    ]


def curves(runs: list[dict], metric: str = HIT) -> tuple[Curves, list[Curves]]:
    first, *again = [curves_of(each, [metric]) for each in runs]
    return first, again


def test_noise_is_pooled_inside_groups_and_its_floor_is_reached_one_time_in_twenty() -> None:
    assert noise([[1.0], [2.0]]) is None and noise([]) is None
    found = noise([[1.0, 3.0], [10.0, 10.0], [7.0]])
    assert found == Noise(pytest.approx(1.0), 2)
    rng, beyond = np.random.default_rng(0), 0
    for _ in range(2000):
        a, b = (0.3 * rng.standard_normal((3, 2)) for _ in range(2))  # three seeds, two orders, the same truth
        scatter = noise([*a.tolist(), *b.tolist()])
        assert scatter is not None
        sides = ({s: list(own) for s, own in enumerate(side)} for side in (a, b))
        beyond += abs(a.mean() - b.mean()) > scatter.floor(*sides)
    assert beyond / 2000 == pytest.approx(0.05, abs=0.015)


def test_a_difference_inside_the_spread_of_repeats_is_not_called_one() -> None:
    """Seeds agree on 0.02 to a hair, so the paired test sees it; but another order of the data moves a run by 0.05."""
    near = {"a": [[0.60, 0.65], [0.70, 0.75], [0.65, 0.70]], "b": [[0.62, 0.67], [0.72, 0.7701], [0.67, 0.72]]}
    first, again = curves(orders(near))
    row = next(row for row in results(first, "a", again) if row.arm == "b")
    assert row.p_holm is not None and row.p_holm < 0.01 and row.inside
    assert row.floor is not None and row.floor > 0.02 == pytest.approx(row.difference.value, abs=1e-4)
    far = {"a": near["a"], "b": [[x + 0.2 for x in own] for own in near["b"]]}
    first, again = curves(orders(far))
    row = next(row for row in results(first, "a", again) if row.arm == "b")
    assert not row.inside and row.values[0] == pytest.approx(0.845), "a seed's value is the mean over its orders"
    assert not any(row.inside or row.floor for row in results(first, "a")), "without repeats nothing is said"


def test_a_change_is_told_where_repeats_agree_and_not_where_they_scatter() -> None:
    for spread, told in ((0.01, True), (0.4, False)):
        ends = {"a": [[0.8 - spread, 0.8 + spread], [0.8 + spread, 0.8 - spread]]}
        (row,) = moved(*curves(orders(ends)))
        assert row.told == told and row.change == pytest.approx(0.3) and row.degrees == 2
        assert row.spread == pytest.approx(spread * 2**0.5)
    assert moved(curves(orders(ends))[0], []) == []


def test_the_page_puts_the_spread_beside_the_verdicts(tmp_path) -> None:
    runs = orders({"a": [[0.60, 0.65], [0.70, 0.75], [0.65, 0.70]], "b": [[0.62, 0.67], [0.72, 0.7701], [0.67, 0.72]]})
    for r, each in enumerate(runs):
        for arm, seeds in each.items():
            for seed, run in seeds.items():
                object.__setattr__(run, "path", tmp_path / f"{arm}{seed}{r}")
                run.path.mkdir()
                (run.path / "corpus.json").write_text(f'{{"hash": "{seed}"}}')
    page = write_study("s", ["Why?", ""], "a", [HIT, NLL], runs[0], tmp_path / "out", [], repeats=runs[1:])
    markdown = (page.parent / "report.md").read_text()
    assert "2 data orders" in markdown and "Repeated runs" in markdown and ", so none" in markdown
    assert "beyond the effect of data order: none." in markdown
