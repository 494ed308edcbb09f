"""Which row stands where: a pure function of (n, shares, sizes, seed), without any state to save.

Pool j has C_j(t) = share_j * t rows due by time t, and its next row comes at the time when floor(C_j) rises. Rows are
these events in the order of (time, pool), so after any n every pool is within a few rows of its quota. Shares are
rounded to multiples of 2^-40, which makes every floor exact in integers, where 0.3 * 10 would not be.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

SCALE_BITS = 40
HALF = SCALE_BITS // 2


@lru_cache(maxsize=32)
def integer_shares(shares: tuple[float, ...]) -> tuple[int, ...]:
    """Shares as integers that sum to 2^40, by largest remainder. Raises ValueError where they cannot be shares."""
    if not shares or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise ValueError(f"shares {shares} must be finite, >= 0 and not all 0")
    exact = [share / sum(shares) * 2**SCALE_BITS for share in shares]
    whole = [int(value) for value in exact]
    order = sorted(range(len(shares)), key=lambda j: (whole[j] - exact[j], j))
    for j in order[: 2**SCALE_BITS - sum(whole)]:
        whole[j] += 1
    whole[max(range(len(shares)), key=lambda j: whole[j])] += 2**SCALE_BITS - sum(whole)  # what rounding left over
    return tuple(whole)


def rows_due(t: np.ndarray, share: int) -> np.ndarray:
    """floor(C_j(t)), int64 like `t` (below 2^40): rows that a pool of integer share `share` has by time `t`."""
    high, low = t >> HALF, t & ((1 << HALF) - 1)  # in halves, so that no product leaves 64 bits
    return (share * high + (share * low >> HALF)) >> (SCALE_BITS - HALF)


def rows_of(
    first: int, last: int, shares: Sequence[float] | np.ndarray, sizes: Sequence[int] | np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pool and item of rows first ... last - 1: two int64 arrays.

    M(t) = sum_j floor(C_j(t)) events lie before time t, and t - J < M(t) <= t for J pools; so row n is found among the
    times n ... n + J. Each pool is passed through in a new order every epoch.
    """
    whole = integer_shares(tuple(float(share) for share in shares))
    times = np.arange(first, last + len(whole) + 1, dtype=np.int64)
    due = np.stack([rows_due(times, share) for share in whole], axis=1)
    at, pools = np.nonzero(due[1:] > due[:-1])
    skip = first - int(due[0].sum())
    chosen = slice(skip, skip + last - first)
    pools, counts = pools[chosen], due[at[chosen], pools[chosen]]
    items = np.empty(len(pools), dtype=np.int64)
    size_of = np.asarray(sizes, dtype=np.int64)[pools]
    epochs = counts // size_of
    for j, epoch in sorted(set(zip(pools.tolist(), epochs.tolist(), strict=True))):
        here = (pools == j) & (epochs == epoch)
        items[here] = _order(seed, j, epoch, int(sizes[j]))[counts[here] % int(sizes[j])]
    return pools, items


def row_of(
    n: int, shares: Sequence[float] | np.ndarray, sizes: Sequence[int] | np.ndarray, seed: int
) -> tuple[int, int]:
    """Pool and item of row n."""
    pools, items = rows_of(n, n + 1, shares, sizes, seed)
    return int(pools[0]), int(items[0])


@lru_cache(maxsize=32)
def _order(seed: int, pool: int, epoch: int, size: int) -> np.ndarray:
    bits = np.random.Philox(np.random.SeedSequence((seed, pool, epoch)))
    return np.random.Generator(bits).permutation(size)
