"""Tests on correlation coefficients themselves: one against zero, and two that share a variable.

They take coefficients, not data, so that printed tables can be checked as well as runs. Questionable: all of them
presume independent points, which windows of one training run are not; where that decides something, see the trend-free
coefficients and the bootstrap of `correlation`.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, t

LEVEL = 0.95
RANKS = 1.06  # variance of Fisher's z of a rank correlation, in units of that of Pearson's


def correlation_p(r: float, df: int) -> float:
    """The two-sided p value of a correlation with `df` degrees of freedom; df is n - 2 less what was partialled out.

    0 where |r| is 1. Raises ValueError below one degree of freedom. Source: Student 1908 (Biometrika 6); the p values
    of arXiv 2604.02650 Tables 6 and 7 are these with n = 6.
    """
    if df < 1:
        raise ValueError(f"correlation_p: df = {df}, at least 1 is needed; give more points")
    if abs(r) >= 1:
        return 0.0
    return float(2 * t.sf(abs(r) * math.sqrt(df / (1 - r * r)), df))


def critical_r(df: int, alpha: float = 1 - LEVEL) -> float:
    """The |r| above which `correlation_p` is below `alpha`."""
    bound = t.isf(alpha / 2, df)
    return float(bound / math.sqrt(df + bound * bound))


def fisher_interval(r: float, df: int, ranks: bool = False, level: float = LEVEL) -> tuple[float, float] | None:
    """The interval of a correlation with `df` degrees of freedom (n - 2 for two variables); None for df < 2 or |r| = 1.

    `ranks`: r is Spearman's, whose z has a 1.06 times larger variance. Source: Fisher 1921 (Metron 1); Fieller,
    Hartley and Pearson 1957 (Biometrika 44) for ranks.
    """
    if df < 2 or abs(r) >= 1:
        return None
    half = norm.ppf((1 + level) / 2) * math.sqrt((RANKS if ranks else 1.0) / (df - 1))
    low, high = np.tanh([math.atanh(r) - half, math.atanh(r) + half])
    return float(low), float(high)


def williams(r_a: float, r_b: float, r_ab: float, n: int) -> tuple[float, float] | None:
    """Williams's t and its two-sided p (df = n - 3) for r_a = r_b, where a and b correlate with the same target.

    `r_ab` is the correlation of a with b. Turn signs beforehand so that more of each means more of the target. None
    where n < 4, where the three coefficients cannot belong together, or where a and b are the same series. Source:
    Williams 1959 (J. R. Stat. Soc. B 21); recommended for small n by Steiger 1980 (Psychol. Bull. 87, eq. 7).
    """
    determinant = 1 - r_a**2 - r_b**2 - r_ab**2 + 2 * r_a * r_b * r_ab
    if n < 4 or determinant < -1e-12 or 1 - abs(r_ab) < 1e-12:
        return None
    mean = (r_a + r_b) / 2
    scale = 2 * (n - 1) / (n - 3) * max(determinant, 0.0) + mean**2 * (1 - r_ab) ** 3
    if scale <= 0:
        return None
    value = (r_a - r_b) * math.sqrt((n - 1) * (1 + r_ab) / scale)
    return float(value), float(2 * t.sf(abs(value), n - 3))


def holm(p_I: npt.ArrayLike) -> list[float]:
    """The p values adjusted for their number, in their order; nan stays and does not count.

    Source: Holm 1979 (Scand. J. Stat. 6). Not by statsmodels, with which a test compares: its multipletests collects
    garbage at each call, which took most of the time of `correlations`.
    """
    p_I = np.asarray(p_I, float)
    order_I = np.argsort(p_I, kind="stable")[: np.isfinite(p_I).sum()]
    adjusted_I = np.full(p_I.shape, np.nan)
    steps_I = p_I[order_I] * np.arange(len(order_I), 0, -1)
    adjusted_I[order_I] = np.minimum(np.maximum.accumulate(steps_I), 1)
    return adjusted_I.tolist()
