"""The order of rows: a pure function of (n, mixture, sizes, seed), without any state to save.

Pool j has C_j(t) rows due by time t, the integral of its share from row 0 to t, and its next row comes at the time when
floor(C_j) rises. Rows are these events in the order of (time, pool), so after any n rows every pool is within a few
rows of its quota. Shares are rounded to multiples of 2^-40 at each knot and are linear in between, so their integral is
quadratic and every floor is exact in integers. In floating point, 0.3 * 10 would not be.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np

SCALE_BITS = 40


@lru_cache(maxsize=32)
def integer_shares(shares: tuple[float, ...]) -> tuple[int, ...]:
    """Shares as integers that sum to 2^40, by largest remainder. Raises ValueError if they are not valid shares."""
    if not shares or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise ValueError(f"shares {shares} must be finite, >= 0 and not all 0")
    exact = [share / sum(shares) * 2**SCALE_BITS for share in shares]
    whole = [int(value) for value in exact]
    order = sorted(range(len(shares)), key=lambda j: (whole[j] - exact[j], j))
    for j in order[: 2**SCALE_BITS - sum(whole)]:
        whole[j] += 1
    whole[max(range(len(shares)), key=lambda j: whole[j])] += 2**SCALE_BITS - sum(whole)  # what rounding left over
    return tuple(whole)


@dataclass(frozen=True)
class Mixture:
    """Shares of the pools over the rows of a run: `shares[k]` at row `knots[k]`, linear in between, then constant.

    Knots are integers, rise, and begin at 0. A single knot is a mixture that never changes.
    """

    knots: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]

    @cached_property
    def _pieces(self) -> list[tuple[int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """Per knot: its row, the length up to the next one, twice the rows due by then, the shares at both ends."""
        whole = [integer_shares(each) for each in self.shares]
        due = (0,) * len(whole[0])
        pieces = []
        for (row, stop), (first, last) in zip(pairwise(self.knots), pairwise(whole), strict=True):
            pieces.append((row, stop - row, due, first, last))
            due = tuple(d + (f + e) * (stop - row) for d, f, e in zip(due, first, last, strict=True))
        return [*pieces, (self.knots[-1], 1, due, whole[-1], whole[-1])]

    def due(self, t: int) -> list[int]:
        """floor(C_j(t)) of each pool j: rows that it has by time t."""
        row, length, due, first, last = self._pieces[bisect_right(self.knots, t) - 1]
        u, scale = t - row, length << (SCALE_BITS + 1)
        return [(length * (d + 2 * f * u) + (e - f) * u * u) // scale for d, f, e in zip(due, first, last, strict=True)]

    def at(self, row: int) -> np.ndarray:
        """float64 [pools]: the shares at a row."""
        shares = np.array(self.shares)
        shares = shares / shares.sum(1, keepdims=True)
        return np.array([np.interp(row, self.knots, column) for column in shares.T])

    def rows(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """For rows first ... last - 1: the pool, and the number of earlier rows of that pool; two int64 arrays.

        M(t) = sum_j floor(C_j(t)) events lie before time t, and t - J < M(t) <= t for J pools; so row n is found among
        the times n ... n + J.
        """
        due = np.array([self.due(t) for t in range(first, last + len(self.shares[0]) + 1)], dtype=np.int64)
        at, pools = np.nonzero(due[1:] > due[:-1])
        skip = first - int(due[0].sum())
        chosen = slice(skip, skip + last - first)
        return pools[chosen], due[at[chosen], pools[chosen]]

    def drawn(self, n: int) -> np.ndarray:
        """int64 [pools]: the number of rows of each pool among the first n."""
        due = np.array([self.due(t) for t in range(n, n + len(self.shares[0]) + 1)], dtype=np.int64)
        _, pools = np.nonzero(due[1:] > due[:-1])
        early = pools[: n - int(due[0].sum())]
        return due[0] + np.bincount(early, minlength=due.shape[1])


def rows_of(
    first: int, last: int, mixture: Mixture, sizes: Sequence[int] | np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pool and item of rows first ... last - 1: two int64 arrays. Every epoch passes through a pool in a new order."""
    pools, counts = mixture.rows(first, last)
    items = np.empty(len(pools), dtype=np.int64)
    epochs = counts // np.asarray(sizes, dtype=np.int64)[pools]
    for j, epoch in sorted(set(zip(pools.tolist(), epochs.tolist(), strict=True))):
        here = (pools == j) & (epochs == epoch)
        items[here] = _order(seed, j, epoch, int(sizes[j]))[counts[here] % int(sizes[j])]
    return pools, items


@lru_cache(maxsize=32)
def _order(seed: int, pool: int, epoch: int, size: int) -> np.ndarray:
    bits = np.random.Philox(np.random.SeedSequence((seed, pool, epoch)))
    return np.random.Generator(bits).permutation(size)
