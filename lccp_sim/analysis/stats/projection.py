"""Least squares for laws that are linear in all but one or two parameters, for many curves at once.

For each point of a grid over the searched parameters the linear ones are a projection, so that a thousand resampled
curves cost one matrix product (variable projection: Golub and Pereyra 1973, SIAM J. Numer. Anal. 10). What a reader
would question: resamples take the best point of the grid without refining it; its steps are far below their scatter.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import minimize

from lccp_sim.analysis.stats.estimate import Array

# Parameters, without the noise's scale. A break counts twice: where there is none it still finds a place that fits
# (Davies 1987, Biometrika 74), so that one parameter's penalty lets it in too often.
FREE = {"constant": 1, "log": 3, "power": 3, "cpt": 4, "broken_stick": 5}
OFFSETS, EXPONENTS, BREAKS = 40, 24, 40  # points of the grid
LEAST, MOST = 0.05, 10.0  # exponents: from nearly a log law to nearly an exponential
FLOOR = 0.1  # of the largest standard error: the smallest that a window can have


@dataclass(frozen=True)
class Solution:
    """A law's searched parameters, as logarithms [Q], its linear ones [P], and the weighted residual sum of squares."""

    theta_Q: Array
    linear_P: Array
    rss: float


def columns(law: str, tokens_W: Array, tokens: Array, theta_GQ: Array) -> Array:
    """The law's linear part [G, tokens, P] at logarithms of its searched parameters: a constant, then its shapes.

    The shapes are ln(1 + N / N0), 1 - (1 + N / N0)^-a, and for the broken stick ln(1 + N / N0) and its part after the
    break; N0 is the first window after step 0 where the law does not search it.
    """
    value_GQ, first = np.exp(theta_GQ)[..., None], first_window(tokens_W)
    one = np.ones((len(theta_GQ), len(tokens)))
    if law == "constant":
        return one[..., None]
    if law == "log":
        return np.stack([one, np.log1p(tokens / value_GQ[:, 0])], -1)
    if law == "power":
        return np.stack([one, -np.expm1(-value_GQ[:, 0] * np.log1p(tokens / first))], -1)
    if law == "cpt":
        return np.stack([one, -np.expm1(-value_GQ[:, 1] * np.log1p(tokens / value_GQ[:, 0]))], -1)
    x = np.log1p(tokens / first) * one
    return np.stack([one, x, np.maximum(0, x - np.log1p(value_GQ[:, 0] / first))], -1)


def first_window(tokens_W: Array) -> float:
    """Tokens at the first window after step 0."""
    return float(tokens_W[tokens_W > 0][0])


def grid(law: str, tokens_W: Array) -> Array:
    """Points [G, Q] over the logarithms of the searched parameters: offset, exponent, both, or the break."""
    offsets = np.linspace(np.log(first_window(tokens_W) / 16), np.log(10 * tokens_W[-1]), OFFSETS)
    exponents = np.linspace(np.log(LEAST), np.log(MOST), EXPONENTS)
    if law == "constant":
        return np.zeros((1, 0))
    if law == "cpt":
        return np.stack(np.meshgrid(offsets, exponents, indexing="ij"), -1).reshape(-1, 2)
    breaks = np.linspace(np.log(tokens_W[2]), np.log(tokens_W[-3]), BREAKS)
    return {"log": offsets, "power": exponents, "broken_stick": breaks}[law][:, None]


def carried(windows: int) -> list[str]:
    """The laws that so many windows can carry: with k parameters, the noise's scale among them, k + 2 windows."""
    return [law for law in FREE if windows >= FREE[law] + 3]


def moving(windows: int) -> list[str]:
    """Those of them that move: a constant foretells no gain without any uncertainty, so it has no part in forecasts."""
    return [law for law in carried(windows) if law != "constant"]


def aicc(rss: float | Array, root_W: Array, free: int) -> Array:
    """-2 log likelihood + 2 k + 2 k (k + 1) / (W - k - 1) of a weighted residual sum of squares, k = free + 1."""
    n, k = len(root_W), free + 1
    twice = n * (np.log(2 * np.pi * np.asarray(rss) / n) + 1) - 2 * np.log(root_W).sum()
    return twice + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def root_weights(stderr_W: Array) -> Array:
    """Square roots [W] of the weights, of mean square 1; all 1 without usable standard errors.

    A standard error counts as at least FLOOR of the largest: a hit that is 0 for all items has none, and is not exact.
    """
    if not np.isfinite(stderr_W).all() or np.max(stderr_W) <= 0:
        return np.ones(len(stderr_W))
    root_W = 1 / np.maximum(stderr_W, FLOOR * np.max(stderr_W))
    return root_W / np.sqrt((root_W**2).mean())


def search(law: str, tokens_W: Array, value_RW: Array, root_W: Array, ahead: Array) -> tuple[Array, Array]:
    """The law's values [R, ahead] at the tokens `ahead` and residual sums of squares [R], best point of the grid."""
    theta_GQ, centre = grid(law, tokens_W), float((value_RW[0] * root_W**2).mean())  # the constant takes it up
    scaled_RW = (value_RW - centre) * root_W
    upper_GPP, along_RGP, rss_RG = _projected(law, tokens_W, theta_GQ, scaled_RW, root_W)
    rows, best_R = np.arange(len(value_RW)), rss_RG.argmin(1)
    linear_RP = np.linalg.solve(upper_GPP[best_R], along_RGP[rows, best_R][..., None])[..., 0]
    ahead_RN = np.einsum("rnp,rp->rn", columns(law, tokens_W, ahead, theta_GQ)[best_R], linear_RP)
    return centre + ahead_RN, np.maximum(rss_RG[rows, best_R], _rounding(scaled_RW))


def solve(law: str, tokens_W: Array, value_W: Array, root_W: Array) -> Solution:
    """The best fit of one curve, refined from the best point of the grid within the grid's bounds.

    The last few are remembered, because the rule, the laws and the scatter of one curve all ask for the same.
    """
    return _solved(law, *(np.asarray(each, float).tobytes() for each in (tokens_W, value_W, root_W)))


@lru_cache(maxsize=256)
def _solved(law: str, *data: bytes) -> Solution:
    tokens_W, value_W, root_W = (np.frombuffer(each) for each in data)
    theta_GQ, scaled_W = grid(law, tokens_W), value_W * root_W
    start_Q = theta_GQ[_projected(law, tokens_W, theta_GQ, scaled_W[None], root_W)[2][0].argmin()]

    def at(theta_Q: Array) -> Solution:
        design_WP = columns(law, tokens_W, tokens_W, np.asarray(theta_Q)[None])[0] * root_W[:, None]
        linear_P = np.linalg.lstsq(design_WP, scaled_W, rcond=None)[0]
        return Solution(np.asarray(theta_Q), linear_P, float(((scaled_W - design_WP @ linear_P) ** 2).sum()))

    best = at(start_Q)
    if len(start_Q):
        bounds = list(zip(theta_GQ.min(0), theta_GQ.max(0), strict=True))
        options = {"xatol": 1e-7, "fatol": 1e-14 * float((scaled_W**2).sum()), "maxiter": 400}
        found = minimize(lambda t: at(t).rss, start_Q, method="Nelder-Mead", bounds=bounds, options=options)
        best = min(best, at(found.x), key=lambda solution: solution.rss)
    return Solution(best.theta_Q, best.linear_P, max(best.rss, float(_rounding(scaled_W[None])[0])))


def tangent(law: str, tokens_W: Array, solution: Solution) -> Array:
    """Derivatives [W, free parameters] of the law's values; the searched ones by central differences."""
    columns_WP = columns(law, tokens_W, tokens_W, solution.theta_Q[None])[0]
    step = 1e-4
    slopes = []
    for shift_Q in step * np.eye(len(solution.theta_Q)):
        up, down = (columns(law, tokens_W, tokens_W, (solution.theta_Q + s * shift_Q)[None])[0] for s in (1, -1))
        slopes.append((up - down) @ solution.linear_P / (2 * step))
    return np.column_stack([columns_WP, *slopes])


def _projected(
    law: str, tokens_W: Array, theta_GQ: Array, scaled_RW: Array, root_W: Array
) -> tuple[Array, Array, Array]:
    """R of QR [G, P, P], the curves along Q [R, G, P], and what is left of them, squared [R, G]."""
    basis_GWP, upper_GPP = np.linalg.qr(columns(law, tokens_W, tokens_W, theta_GQ) * root_W[:, None])
    flat = basis_GWP.swapaxes(0, 1).reshape(len(root_W), -1)
    along_RGP = (scaled_RW @ flat).reshape(len(scaled_RW), len(theta_GQ), -1)
    return upper_GPP, along_RGP, (scaled_RW**2).sum(1)[:, None] - (along_RGP**2).sum(-1)


def _rounding(scaled_RW: Array) -> Array:
    """What rounding leaves of a residual sum of squares [R]: below it, laws are not told apart."""
    return 1e-18 + 1e-14 * (scaled_RW**2).sum(-1)
