"""The order of rows: exact quotas, every item once an epoch, and no state."""

import numpy as np
import pytest

from lccp_sim.data.mixture import integer_shares, row_of, rows_due, rows_of

SHARES = [(1.0,), (0.1, 0.3, 0.6), (0.25, 0.75), (1 / 3, 1 / 3, 1 / 3), (1e-6, 0.0, 1.0), (7, 2, 2, 1)]


@pytest.mark.parametrize("shares", SHARES)
def test_counts_stay_within_a_row_per_pool_of_the_quota(shares: tuple[float, ...]) -> None:
    pools, _ = rows_of(0, 3000, shares, [11] * len(shares), seed=0)
    counts = np.cumsum(pools[:, None] == np.arange(len(shares)), axis=0)
    quota = np.arange(1, 3001)[:, None] * np.array(shares) / sum(shares)
    assert np.abs(counts - quota).max() <= len(shares)
    assert not counts[-1][np.array(shares) == 0].any()


@pytest.mark.parametrize("shares", SHARES)
def test_any_row_can_be_asked_for_alone(shares: tuple[float, ...]) -> None:
    sizes = [5 + j for j in range(len(shares))]
    pools, items = rows_of(0, 400, shares, sizes, seed=3)
    for n in (399, 0, 17, 200, 18):
        assert row_of(n, shares, sizes, seed=3) == (pools[n], items[n])
    late = rows_of(123, 321, shares, sizes, seed=3)
    assert (late[0] == pools[123:321]).all() and (late[1] == items[123:321]).all()


def test_each_item_comes_once_an_epoch_in_a_new_order() -> None:
    sizes = [7, 13, 29]
    pools, items = rows_of(0, 2000, (0.1, 0.3, 0.6), sizes, seed=0)
    for j, size in enumerate(sizes):
        mine = items[pools == j]
        epochs = mine[: len(mine) // size * size].reshape(-1, size)
        assert (np.sort(epochs, axis=1) == np.arange(size)).all()
        assert not (epochs[0] == epochs[1]).all()


def test_the_seed_changes_the_items_and_not_the_pools() -> None:
    one, other = (rows_of(0, 100, (0.5, 0.5), (50, 50), seed=seed) for seed in (0, 1))
    assert (one[0] == other[0]).all() and not (one[1] == other[1]).all()


def test_floors_are_exact_where_floating_point_is_not() -> None:
    assert sum(integer_shares((0.1, 0.3, 0.6))) == 2**40
    whole = integer_shares((0.5, 0.3, 0.2))
    times = np.array([0, 1, 2, 10, 2**20 - 1, 2**20, 2**31 + 7, 2**39 + 12345], dtype=np.int64)
    for share in (*whole, 2**40):
        assert rows_due(times, share).tolist() == [(share * int(t)) >> 40 for t in times]


def test_far_rows_follow_the_quota_too() -> None:
    start = 10**10
    pools, items = rows_of(start, start + 1000, (0.2, 0.8), (1000, 1000), seed=0)
    assert abs((pools == 0).sum() - 200) <= 2 and items.max() < 1000


@pytest.mark.parametrize("shares", [(), (0.0, 0.0), (-0.1, 1.1), (float("nan"), 1.0), (float("inf"), 1.0)])
def test_what_is_no_mixture_is_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="shares"):
        integer_shares(shares)
