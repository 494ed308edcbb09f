"""The paper's findings: planted curves give the answers that they were planted for, by the rules that stand beside."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bench.simulate import NLL, World, run_data
from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.report.answers import NO, OPEN, YES, Answer, answers, table
from lccp_sim.analysis.report.replication import cost_table, needle_table, probe_over_seeds_table, stopping_costs
from lccp_sim.analysis.seeds import over, over_orders
from lccp_sim.analysis.stats.curve import Curve
from lccp_sim.analysis.stats.laws import Fit

GRID = np.array([0, *(31_250 * 2 ** (np.arange(13) / 2))])
LOG = Fit("log", {"A": -0.4, "B": 8.0, "N0": 5e4}, 0.0).predict(GRID)
POWER = Fit("power", {"E": 0.5, "A": 3 * 31_250.0**0.9, "a": 0.9, "N0": 31_250.0}, 0.0).predict(GRID)
RUN = run_data(World(Fit("power", {"E": 0.3, "A": 3.5 * 31_250.0**0.9, "a": 0.9, "N0": 31_250.0}, 0.0)))
TAGS = {"variant": "single", "length": 1024, "span": "value"}
ITEMS = 60

EARLY = np.where(GRID >= 60_000, 1.0, 0.2)  # the share of items that hit
LATE = np.where(GRID >= 1_500_000, 1.0, 0.2)
NEVER = np.full(len(GRID), 0.4)
FALLS = 2.0 * (1 + GRID / 31_250) ** -0.7  # mean NLL
STAYS = np.where(GRID >= 60_000, 0.5, 2.0)
RISES = 0.2 + 0.1 * np.log2(1 + GRID / 31_250)


def items(hit_W: np.ndarray, nll_W: np.ndarray, threshold: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits and NLL [I, W]. With `threshold` a hit is an NLL below a level, else it comes whatever the NLL is."""
    rng = np.random.default_rng(seed)
    nll_IW = nll_W * np.exp(0.5 * rng.standard_normal((ITEMS, 1)) + 0.1 * rng.standard_normal((ITEMS, len(GRID))))
    hit_IW = (np.arange(ITEMS)[:, None] < hit_W * ITEMS).astype(float)
    return (nll_IW < 1.0).astype(float) if threshold else hit_IW, nll_IW


def planted(hit_W, nll_W=FALLS, *, threshold=False, probe=RISES, heads=RISES, count=None, ppl=10 * LOG, seed=0):
    """Findings of a run: needles of 1024 tokens with samples, a probe, heads, perplexity."""
    hit_IW, nll_IW = items(hit_W, nll_W, threshold, seed)
    records, samples = [], []
    for metric, value_IW in (("hit_frac", hit_IW), (NLL, nll_IW)):
        for step, tokens in enumerate(GRID):
            row = {"step": step, "tokens": tokens, "tier": "", "monitor": "needle", "metric": metric, "n": ITEMS}
            records.append(
                row | TAGS | {"value": value_IW[:, step].mean(), "stderr": 0.01, "names": "length,span,variant"}
            )
            frame = pd.DataFrame({"item_id": [str(i) for i in range(ITEMS)], "value": value_IW[:, step]})
            samples.append(frame.assign(step=step, monitor="needle", metric=metric, stratum="{}", tags="{}", **TAGS))
    run = replace(RUN, records=pd.DataFrame(records), samples=pd.concat(samples, ignore_index=True))
    found = Findings(run)
    found.add("needle", ("hit_frac", NLL), TAGS)
    rng = np.random.default_rng(seed)
    for monitor, metric, value_W, noise in (
        ("probe", "exact_match_frac", probe, 0.004), ("perplexity", "ppl", ppl, 0.004),
        ("heads", "initial_heads_mean_frac", heads, 0.004), ("heads", "retrieval_heads_count", count, 0.2),
    ):  # fmt: skip
        if value_W is not None:
            value_W = value_W + noise * rng.standard_normal(len(GRID))
            draws_RW = value_W + noise * rng.standard_normal((300, len(GRID)))
            found.enter(Curve(monitor, metric, {}, GRID, value_W, np.full(len(GRID), noise), draws_RW, "x", 100))
    return found


def told(seeds: list[list[Findings]]) -> dict[str, Answer]:
    return {each.finding: each for each in answers(seeds)}


def grid(orders: int = 2, **planting) -> list[list[Findings]]:
    """Three seeds."""
    return [[planted(seed=10 * seed + order, **planting) for order in range(orders)] for seed in range(3)]


SATURATES, GOES_ON = "the NIAH score saturates early", "the answer's likelihood keeps improving after that"
PROBE, COUNT = "the probe keeps improving after the hit's ceiling", "the number of retrieval heads grows"
LAW, MEAN = "held-out perplexity is A log N + B", "the mean score of the initial retrieval heads grows"


def test_what_the_paper_found_is_found_where_it_is_planted() -> None:
    found = told(grid(hit_W=EARLY, count=4 + 3 * RISES * 10))
    assert {finding: each.answer for finding, each in found.items()} == dict.fromkeys(
        (SATURATES, GOES_ON, PROBE, COUNT, MEAN, LAW), YES
    )
    assert "3.0 %" in found[SATURATES].numbers or "3.1 %" in found[SATURATES].numbers
    assert not any(each.would_tell for each in found.values())


def test_what_goes_the_other_way_is_refuted() -> None:
    found = told(grid(hit_W=LATE, nll_W=STAYS, heads=0.8 - RISES / 2, ppl=10 * POWER))
    assert found[SATURATES].answer == NO and found[GOES_ON].answer == NO
    assert found[MEAN].answer == NO and found[LAW].answer == NO
    assert told(grid(hit_W=EARLY, probe=0.5 - RISES / 10))[PROBE].answer == NO


def test_a_hit_that_is_a_threshold_of_the_nll_gives_its_own_factor() -> None:
    """The NLL falls by more than 2 after the ceiling, and by as much as any threshold would give by itself."""
    found = told(grid(hit_W=EARLY, threshold=True))[GOES_ON]
    assert found.answer != YES and "thresholding alone gives" in found.numbers


def test_a_hit_without_a_ceiling_leaves_what_follows_open() -> None:
    found = told(grid(hit_W=NEVER))
    assert found[SATURATES].answer == NO and found[GOES_ON].answer == OPEN and found[PROBE].answer == OPEN
    assert "Better bases" in found[GOES_ON].would_tell
    assert found[GOES_ON].numbers == found[PROBE].numbers == "in 3 of 3 seeds the hit never reaches 0.95 (at most 0.4)"


def test_seeds_that_reach_the_ceiling_are_told_of_beside_one_that_does_not() -> None:
    mixed = [*grid(hit_W=EARLY)[:2], *grid(hit_W=NEVER)[2:]]
    found = told(mixed)
    assert found[GOES_ON].answer == found[PROBE].answer == OPEN
    assert found[GOES_ON].numbers.startswith("in 1 of 3 seeds the hit never reaches 0.95")
    assert len(found[GOES_ON].numbers.rsplit("falls by ", 1)[1].split(", ")) == 2
    first = stopping_costs(mixed)[0]
    assert first.read_at[2] == float("inf") and first.cost is not None and np.isfinite(first.read_at[:2]).all()


def test_one_order_cannot_tell_the_gain_of_the_probe_from_what_order_does() -> None:
    found = told(grid(orders=1, hit_W=EARLY))[PROBE]
    assert found.answer == OPEN and found.would_tell == "Repeats would decide."


def test_seeds_that_disagree_leave_it_open_and_say_how_many_would_tell() -> None:
    rising = [0.4 + slope * RISES for slope in (0.02, 0.5, 1.2)]
    seeds = [[planted(EARLY, heads=heads, seed=seed)] for seed, heads in enumerate(rising)]
    found = told(seeds)[MEAN]
    assert found.answer == OPEN and found.would_tell.endswith("seeds with the same scatter would separate it from 0.")
    assert 4 <= int(found.would_tell.split()[0]) <= 20


@pytest.mark.parametrize("quantity", ["hit_frac", NLL])
def test_a_seed_is_the_mean_of_its_orders(quantity: str) -> None:
    both = [planted(EARLY, seed=seed).curve("needle", quantity, **TAGS) for seed in (0, 1)]
    mean = over_orders(both)
    assert mean.value_W == pytest.approx((both[0].value_W + both[1].value_W) / 2)
    assert mean.draws_RW == pytest.approx((both[0].draws_RW + both[1].draws_RW) / 2)
    assert over_orders(both[:1]) is both[0]


def test_the_interval_over_seeds_holds_what_seeds_differ_in() -> None:
    covered = 0
    rng = np.random.default_rng(0)
    for _ in range(300):
        values = rng.standard_normal(3)
        found = over(list(values), [value + 0.01 * rng.standard_normal(400) for value in values])
        covered += found.low <= 0 <= found.high
    assert covered / 300 == pytest.approx(0.95, abs=0.04)


def test_each_answer_stands_beside_its_rules_and_numbers() -> None:
    made = answers(grid(hit_W=EARLY))
    rows = table(made, 3).rows
    assert [row[2] for row in rows] == [answer.answer for answer in made]
    assert all(all(row) for row in rows)


def test_the_cost_of_stopping_is_what_the_probe_still_gains() -> None:
    costs = stopping_costs(grid(hit_W=EARLY))
    first, *_, log = costs
    place = int(np.argmax(GRID >= 60_000))
    assert set(first.read_at) == {GRID[place]} == set(first.at)
    assert first.cost.value == pytest.approx(RISES[-1] - RISES[place], abs=0.01)
    assert first.cost.low < first.cost.value < first.cost.high
    assert all(log_at > at for log_at, at in zip(log.at, costs[2].at, strict=True)), "the logarithm falls for longer"
    assert log.cost.value < costs[2].cost.value < first.cost.value
    assert len(cost_table(costs).rows) == 4


def test_a_signal_that_never_comes_has_no_cost() -> None:
    first = stopping_costs(grid(orders=1, hit_W=NEVER))[0]
    assert first.cost is None and cost_table([first]).rows[0][1].startswith("never")


def test_the_tables_of_needles_and_probe_show_what_was_planted() -> None:
    seeds = grid(hit_W=EARLY)
    (row,) = needle_table(seeds).rows
    assert row[:2] == ["single", "1024"] and float(row[2]) == pytest.approx(0.2) and float(row[4]) == 1
    assert float(row[5]) > float(row[6]) > float(row[7])
    table_ = probe_over_seeds_table(seeds)
    assert len(table_.rows) == len(GRID) and table_.rows[-1][1].startswith(f"{RISES[-1]:.2f}"[:3])
    assert all(float(error) > 5 for error in table_.note.rsplit(": ", 1)[1].rstrip(".").split(", "))
