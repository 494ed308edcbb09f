"""The order of rows: exact quotas under any schedule, every item once an epoch, and no state."""

from fractions import Fraction

import numpy as np
import pytest

from lccp_sim.data.mixture import Mixture, integer_shares, rows_of

SHARES = [(1.0,), (0.1, 0.3, 0.6), (0.25, 0.75), (1 / 3, 1 / 3, 1 / 3), (1e-6, 0.0, 1.0), (7, 2, 2, 1)]


def still(*shares: float) -> Mixture:
    return Mixture((0,), (shares,))


def scheduled(seed: int) -> Mixture:
    """A mixture of 2 to 5 pools with 2 to 5 knots at random rows; some shares are 0."""
    rng = np.random.default_rng(seed)
    pools, knots = rng.integers(2, 6, size=2)
    rows = np.cumsum([0, *rng.integers(1, 90, size=knots - 1)])
    shares = rng.random((knots, pools)) * (rng.random((knots, pools)) < 0.8)
    shares[:, 0] += 0.01
    return Mixture(tuple(rows.tolist()), tuple(tuple(each) for each in shares.tolist()))


def integrals(mixture: Mixture, rows: int) -> list[list[Fraction]]:
    """C_j at 0 ... rows by adding up trapezoids of one row each, exactly."""
    whole = [integer_shares(each) for each in mixture.shares]

    def share(row: int) -> list[Fraction]:
        for (a, b), (first, last) in zip(
            zip(mixture.knots, mixture.knots[1:], strict=False), zip(whole, whole[1:], strict=False), strict=True
        ):
            if a <= row <= b:
                return [Fraction(f) + Fraction((e - f) * (row - a), b - a) for f, e in zip(first, last, strict=True)]
        return [Fraction(f) for f in whole[-1]]

    sums = [[Fraction(0)] * len(whole[0])]
    for row in range(rows):
        before, after = share(row), share(row + 1)
        sums.append([s + (b + a) / 2 / 2**40 for s, b, a in zip(sums[-1], before, after, strict=True)])
    return sums


@pytest.mark.parametrize("seed", range(12))
def test_the_closed_form_is_the_floor_of_the_integral_and_orders_the_rows(seed: int) -> None:
    mixture = scheduled(seed)
    floors = [[int(c) for c in row] for row in integrals(mixture, 400)]  # int() floors what is >= 0
    assert [mixture.due(t) for t in range(401)] == floors
    events = [(t, j) for t in range(400) for j in range(len(floors[0])) if floors[t + 1][j] > floors[t][j]]
    pools, counts = mixture.rows(0, 300)
    assert pools.tolist() == [j for _, j in events[:300]]
    seen = [0] * len(floors[0])
    for pool, count in zip(pools.tolist(), counts.tolist(), strict=True):
        assert count == seen[pool]
        seen[pool] += 1
    for n in (0, 1, 77, 300):
        assert mixture.drawn(n).tolist() == np.bincount(pools[:n], minlength=len(seen)).tolist()


@pytest.mark.parametrize("seed", range(6))
def test_the_drawn_rows_are_the_numeric_integral_of_the_shares(seed: int) -> None:
    mixture = scheduled(seed)
    at = np.array([mixture.at(row) for row in range(301)])
    assert np.allclose(at.sum(1), 1) and (at >= 0).all()
    middle = (at[1:] + at[:-1]) / 2
    assert np.abs(np.cumsum(middle, axis=0) - [mixture.drawn(n) for n in range(1, 301)]).max() <= len(at[0])
    for knot, shares in zip(mixture.knots, mixture.shares, strict=True):
        assert np.allclose(mixture.at(knot), np.array(shares) / sum(shares))


@pytest.mark.parametrize("shares", SHARES)
def test_counts_stay_within_a_row_per_pool_of_the_quota(shares: tuple[float, ...]) -> None:
    pools, _ = rows_of(0, 3000, still(*shares), [11] * len(shares), seed=0)
    counts = np.cumsum(pools[:, None] == np.arange(len(shares)), axis=0)
    quota = np.arange(1, 3001)[:, None] * np.array(shares) / sum(shares)
    assert np.abs(counts - quota).max() <= len(shares)
    assert not counts[-1][np.array(shares) == 0].any()


@pytest.mark.parametrize("mixture", [*(still(*shares) for shares in SHARES), scheduled(0), scheduled(1)])
def test_any_row_can_be_asked_for_alone(mixture: Mixture) -> None:
    sizes = [5 + j for j in range(len(mixture.shares[0]))]
    pools, items = rows_of(0, 400, mixture, sizes, seed=3)
    for n in (399, 0, 17, 200, 18):
        pool, item = rows_of(n, n + 1, mixture, sizes, seed=3)
        assert (pool[0], item[0]) == (pools[n], items[n])
    late = rows_of(123, 321, mixture, sizes, seed=3)
    assert (late[0] == pools[123:321]).all() and (late[1] == items[123:321]).all()


@pytest.mark.parametrize("shares", SHARES)
def test_a_schedule_that_does_not_change_is_none(shares: tuple[float, ...]) -> None:
    flat = Mixture((0, 7, 130), (shares, shares, shares))
    sizes = [5 + j for j in range(len(shares))]
    for one, other in zip(rows_of(0, 500, flat, sizes, 1), rows_of(0, 500, still(*shares), sizes, 1), strict=True):
        assert (one == other).all()


def test_each_item_comes_once_an_epoch_in_a_new_order() -> None:
    sizes = [7, 13, 29]
    pools, items = rows_of(0, 2000, Mixture((0, 900), ((0.1, 0.3, 0.6), (0.3, 0.3, 0.4))), sizes, seed=0)
    for j, size in enumerate(sizes):
        mine = items[pools == j]
        epochs = mine[: len(mine) // size * size].reshape(-1, size)
        assert (np.sort(epochs, axis=1) == np.arange(size)).all()
        assert not (epochs[0] == epochs[1]).all()


def test_the_seed_changes_the_items_and_not_the_pools() -> None:
    one, other = (rows_of(0, 100, still(0.5, 0.5), (50, 50), seed=seed) for seed in (0, 1))
    assert (one[0] == other[0]).all() and not (one[1] == other[1]).all()


def test_floors_are_exact_where_floating_point_is_not() -> None:
    assert sum(integer_shares((0.1, 0.3, 0.6))) == 2**40
    whole = integer_shares((0.5, 0.3, 0.2))
    for t in (0, 1, 2, 10, 2**20 - 1, 2**20, 2**31 + 7, 2**39 + 12345):
        assert still(0.5, 0.3, 0.2).due(t) == [(share * t) >> 40 for share in whole]


def test_far_rows_follow_the_quota_too() -> None:
    start = 10**10
    pools, items = rows_of(start, start + 1000, still(0.2, 0.8), (1000, 1000), seed=0)
    assert abs((pools == 0).sum() - 200) <= 2 and items.max() < 1000
    ramp = Mixture((0, start), ((0.0, 1.0), (1.0, 0.0)))
    assert np.abs(ramp.drawn(start) - start / 2).max() <= 1 and ramp.drawn(start + 10)[0] - ramp.drawn(start)[0] == 10


@pytest.mark.parametrize("shares", [(), (0.0, 0.0), (-0.1, 1.1), (float("nan"), 1.0), (float("inf"), 1.0)])
def test_what_is_no_mixture_is_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="shares"):
        integer_shares(shares)
