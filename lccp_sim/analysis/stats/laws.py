"""Laws that a curve may follow in training tokens, fitted beside each other, and what they foretell for a doubling.

AICc says which law the windows can carry; the next doubling's gain is averaged over the laws. What a reader would
question: with a free offset the power law *is* the reduced CPT law, letter for letter, so that `power` has its offset
fixed at the first window after step 0, and `cpt` is the same family with the offset free. The log law is its limit
beta -> 0, an exponential approach that of beta -> oo.
"""

from dataclasses import dataclass, replace

import numpy as np

from lccp_sim.analysis.stats.curve import LEVEL, Curve, Estimate
from lccp_sim.analysis.stats.estimate import Array
from lccp_sim.analysis.stats.projection import (
    FREE,
    Solution,
    aicc,
    carried,
    first_window,
    moving,
    root_weights,
    search,
    solve,
)
from lccp_sim.analysis.stats.scatter import MIN_WINDOWS, Scale, onto_scale, scattered
from lccp_sim.config import ConfigError

LAWS: tuple[str, ...] = ("constant", "log", "power", "cpt", "broken_stick")


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
    scale: str = "identity"

    def predict(self, tokens: float | Array) -> Array:
        """The law's value at `tokens` >= 0, of their shape."""
        return Scale(self.scale).back(self._value(np.asarray(tokens, float)))

    def _value(self, tokens: Array) -> Array:
        p = self.parameters
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
    root_W, kept = (
        root_weights(np.zeros_like(value_W) if stderr_W is None else stderr_W),
        len(tokens_W) - max(2, len(tokens_W) // 4),
    )
    fits = [_fit(law, tokens_W, value_W, root_W) for law in carried(len(tokens_W))]
    able = carried(kept) if kept >= MIN_WINDOWS else []
    for number, fit in enumerate(fits):
        if fit.law in able:
            early = _fit(fit.law, tokens_W[:kept], value_W[:kept], root_W[:kept])
            error = np.sqrt(((early.predict(tokens_W[kept:]) - value_W[kept:]) ** 2).mean())
            fits[number] = replace(fit, tail_error=float(error))
    return sorted(fits, key=lambda fit: fit.aicc)


def laws_of(curve: Curve) -> list[Fit]:
    """`fit_laws` of a curve on its scale: logits for a share of items, so that laws bend at floor and ceiling.

    `parameters` and `tail_error` are then in logits; `predict` answers in the metric's unit.
    """
    scaled, scale = onto_scale(curve)
    return [replace(fit, scale=scale.name) for fit in fit_laws(curve.tokens_W, scaled.value_W, scaled.stderr_W)]


def foretold(curve: Curve, ahead: Array, law: str | None = None) -> Array:
    """What the laws foretell at the tokens `ahead`, in the metric's unit: a row for the curve, then one a resample.

    Under `law`; else averaged by their Akaike weights, anew in each row, over all but the constant, which would
    foretell no change and no uncertainty. Resamples are those of `scattered`.
    Source of the weights: Burnham and Anderson 2002 sec. 2.9.
    """
    scaled, scale = onto_scale(curve)
    root_W = root_weights(scaled.stderr_W)
    value_RW = np.vstack([scaled.value_W, scale.of(scattered(curve))])
    paths, scores = [], []
    for name in [law] if law else moving(len(root_W)):
        value_RN, rss_R = search(name, scaled.tokens_W, value_RW, root_W, np.asarray(ahead, float))
        paths.append(scale.back(value_RN))
        scores.append(aicc(rss_R, root_W, FREE[name]))
    weight_LR = np.exp(-(np.array(scores) - np.min(scores, axis=0)) / 2)
    return np.einsum("lrn,lr->rn", np.array(paths), weight_LR / weight_LR.sum(0))


def gain_per_doubling(curve: Curve, fit: Fit | None = None) -> Estimate:
    """The improvement (positive = better) that the next doubling of tokens brings, from the end N to 2 N, if laws hold.

    Unit of the metric. Under the law of `fit`; else averaged over the laws, so that the interval holds the choice of a
    law, too. nan with fewer than MIN_WINDOWS. The interval is of plain percentiles: a bias correction would take for a
    bias what averaging shrinks in a resample.
    """
    if len(curve.tokens_W) < MIN_WINDOWS:
        return Estimate(float("nan"))
    path_RN = foretold(curve, curve.tokens_W[-1] * np.array([1.0, 2.0]), fit.law if fit else None)
    gain_R = (path_RN[:, 1] - path_RN[:, 0]) * (1 if curve.rising else -1)
    low, high = np.quantile(gain_R[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(gain_R[0]), float(low), float(high), gain_R[1:])


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
