"""Laws that a curve may follow in training tokens, fitted beside each other, and what they foretell for a doubling.

AICc says which law the windows can carry; the next doubling's gain is averaged over the laws. What a reader would
question: with a free offset the power law *is* the reduced CPT law, letter for letter, so that `power` has its offset
fixed at the first window after step 0, and `cpt` is the same family with the offset free. The log law is its limit
beta -> 0, an exponential approach that of beta -> oo.
"""

from dataclasses import dataclass, replace

import numpy as np

from lccp_sim.analysis.bootstrap import RESAMPLES, Array
from lccp_sim.analysis.curves import Curve, Estimate
from lccp_sim.analysis.projection import FREE, Solution, first_window, search, solve, tangent
from lccp_sim.config import ConfigError

LAWS: tuple[str, ...] = ("constant", "log", "power", "cpt", "broken_stick")
MIN_WINDOWS = 6
FLOOR = 0.2  # of the largest standard error: the smallest that a window can have


@dataclass(frozen=True)
class Fit:
    """One law fitted to one curve; N are training tokens, and the value has the metric's unit.

    `parameters` by law: constant {c}; log {A, B, N0}: A ln(N + N0) + B; power {E, A, a, N0}: E + A (N + N0)^-a;
    cpt {c, B, E, beta}: c + B (1 - (1 + E N)^-beta); broken_stick {A, B, C, N0, Nb}: A x + B + C max(0, x - x(Nb))
    with x = ln(N + N0). `tail_error` is the RMSE on the last quarter of the windows (at least two) of the law fitted
    without them; None where fewer than MIN_WINDOWS, or too few for the law, remain.

    Sources: log, arXiv 2604.02650 sec. 7.1 (the offset, which gives step 0 a place, is ours); cpt, arXiv 2505.07796
    eq. 4 under a constant learning rate, with the slow term of pre-training in c.
    """

    law: str
    parameters: dict[str, float]
    aicc: float
    tail_error: float | None = None

    def predict(self, tokens: float | Array) -> Array:
        """The law's value at `tokens` >= 0, of their shape."""
        tokens, p = np.asarray(tokens, float), self.parameters
        if self.law == "constant":
            return np.full_like(tokens, p["c"])
        if self.law == "power":
            return p["E"] + p["A"] * (tokens + p["N0"]) ** -p["a"]
        if self.law == "cpt":
            return p["c"] - p["B"] * np.expm1(-p["beta"] * np.log1p(p["E"] * tokens))
        x = np.log(tokens + p["N0"])
        bend = p["C"] * np.maximum(0, x - np.log(p["Nb"] + p["N0"])) if self.law == "broken_stick" else 0.0
        return p["A"] * x + p["B"] + bend


def fit_laws(tokens_W: Array, value_W: Array, stderr_W: Array | None = None) -> list[Fit]:
    """Every law that W windows can carry, lowest AICc first; [] with fewer than MIN_WINDOWS.

    Weighted least squares, `stderr_W` being relative weights: their common scale is estimated, because a standard error
    over items holds the spread of items, which all windows share. A law of k parameters, the scale among them, needs
    k + 2 windows. Source of AICc: Hurvich and Tsai 1989 (Biometrika 76). ConfigError where a number is not finite, or
    tokens do not increase.
    """
    tokens_W, value_W = np.asarray(tokens_W, float), np.asarray(value_W, float)
    if len(tokens_W) != len(value_W) or not np.isfinite([tokens_W, value_W]).all() or (np.diff(tokens_W) <= 0).any():
        raise ConfigError(
            "fit_laws: tokens and values must be finite, one for one, and tokens must increase; mend them"
        )
    if len(tokens_W) < MIN_WINDOWS:
        return []
    root_W, kept = root_weights(value_W, stderr_W), len(tokens_W) - max(2, len(tokens_W) // 4)
    fits = [_fit(law, tokens_W, value_W, root_W) for law in carried(len(tokens_W))]
    able = carried(kept) if kept >= MIN_WINDOWS else []
    for number, fit in enumerate(fits):
        if fit.law in able:
            early = _fit(fit.law, tokens_W[:kept], value_W[:kept], root_W[:kept])
            error = np.sqrt(((early.predict(tokens_W[kept:]) - value_W[kept:]) ** 2).mean())
            fits[number] = replace(fit, tail_error=float(error))
    return sorted(fits, key=lambda fit: fit.aicc)


def gain_per_doubling(curve: Curve, fit: Fit | None = None) -> Estimate:
    """The improvement (positive = better) that the next doubling of tokens brings, from the end N to 2 N, if laws hold.

    Unit of the metric. Under the law of `fit`; else averaged over the laws by their Akaike weights, anew in each
    resample, so that the interval holds the choice of a law, too. nan with fewer than MIN_WINDOWS. Resamples are of
    items; what the windows scatter about the best law beyond them is added as noise (see `scattered`). Source of
    the weights: Burnham and Anderson 2002 sec. 2.9.
    """
    tokens_W = curve.tokens_W
    if len(tokens_W) < MIN_WINDOWS:
        return Estimate(float("nan"))
    root_W = root_weights(curve.value_W, curve.stderr_W)
    laws = [fit.law] if fit else carried(len(tokens_W))
    value_RW = np.vstack([curve.value_W, scattered(curve, root_W, laws)])
    ahead = tokens_W[-1] * np.array([1.0, 2.0])
    gains, scores = [], []
    for law in laws:
        value_RN, rss_R = search(law, tokens_W, value_RW, root_W, ahead)
        gains.append(value_RN[:, 1] - value_RN[:, 0])
        scores.append(aicc(rss_R, root_W, FREE[law]))
    weight_LR = np.exp(-(np.array(scores) - np.min(scores, axis=0)) / 2)
    gain_R = (np.array(gains) * weight_LR).sum(0) / weight_LR.sum(0) * (1 if curve.rising else -1)
    return Estimate.of(gain_R[0], gain_R[1:])


def carried(windows: int) -> list[str]:
    """The laws that so many windows can carry: with k parameters, the noise's scale among them, k + 2 windows."""
    return [law for law in LAWS if windows >= FREE[law] + 3]


def aicc(rss: float | Array, root_W: Array, free: int) -> Array:
    """-2 log likelihood + 2 k + 2 k (k + 1) / (W - k - 1) of a weighted residual sum of squares, k = free + 1."""
    n, k = len(root_W), free + 1
    twice = n * (np.log(2 * np.pi * np.asarray(rss) / n) + 1) - 2 * np.log(root_W).sum()
    return twice + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def root_weights(value_W: Array, stderr_W: Array | None) -> Array:
    """Square roots [W] of the weights, of mean square 1; all 1 without usable standard errors.

    A standard error counts as at least FLOOR of the largest: a hit that is 0 for all items has none, and is not exact.
    """
    if stderr_W is None or not np.isfinite(stderr_W).all() or np.max(stderr_W) <= 0:
        return np.ones_like(value_W)
    root_W = 1 / np.maximum(stderr_W, FLOOR * np.max(stderr_W))
    return root_W / np.sqrt((root_W**2).mean())


def scattered(curve: Curve, root_W: Array, laws: list[str]) -> Array:
    """The resamples [R, W] of a curve, with noise added for the scatter about its best law that items do not explain.

    Both are measured orthogonally to the law's tangent space: the curve's residual variance, less what resampling items
    gives there. Without resamples the noise is all there is.
    """
    tokens_W, draws_RW = curve.tokens_W, curve.draws_RW
    both = [(law, solve(law, tokens_W, curve.value_W, root_W)) for law in laws]
    law, best = min(both, key=lambda pair: float(aicc(pair[1].rss, root_W, FREE[pair[0]])))
    df, items = len(root_W) - FREE[law], 0.0
    if draws_RW is None:
        draws_RW = np.repeat(curve.value_W[None], RESAMPLES, axis=0)
    else:
        basis_WP = np.linalg.qr(tangent(law, tokens_W, best) * root_W[:, None])[0]
        off_RW = (draws_RW - curve.value_W) * root_W
        items = float((off_RW**2).sum(1).mean() - ((off_RW @ basis_WP) ** 2).sum(1).mean()) / df
    scale = np.sqrt(max(0.0, best.rss / df - items))
    return draws_RW + scale / root_W * np.random.default_rng(0).standard_normal(draws_RW.shape)


def _fit(law: str, tokens_W: Array, value_W: Array, root_W: Array) -> Fit:
    solution = solve(law, tokens_W, value_W, root_W)
    return Fit(law, _named(law, solution, first_window(tokens_W)), float(aicc(solution.rss, root_W, FREE[law])))


def _named(law: str, solution: Solution, first: float) -> dict[str, float]:
    """The parameters of `Fit` from those of the linear form c0 + c1 shape(N) (+ c2 shape(N))."""
    theta, linear = [float(t) for t in np.exp(solution.theta_Q)], [float(c) for c in solution.linear_P]
    if law == "constant":
        return {"c": linear[0]}
    if law == "power":
        return {"E": linear[0] + linear[1], "A": -linear[1] * first ** theta[0], "a": theta[0], "N0": first}
    if law == "cpt":
        return {"c": linear[0], "B": linear[1], "E": 1 / theta[0], "beta": theta[1]}
    offset = theta[0] if law == "log" else first
    line = {"A": linear[1], "B": linear[0] - linear[1] * float(np.log(offset)), "N0": offset}
    return line if law == "log" else {**line, "C": linear[2], "Nb": theta[0]}
