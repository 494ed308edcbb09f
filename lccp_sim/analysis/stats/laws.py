"""Laws that a curve may follow in training tokens, and the gain that they predict for the next doubling.

AICc says which law the windows support; the gain of the next doubling is averaged over the laws. Design note: with a
free offset the power law *is* the reduced CPT law. So `power` has its offset fixed at the first window after step 0,
and `cpt` is the same family with a free offset. The log law is its limit beta -> 0, an exponential approach its limit
beta -> oo.

Laws use the areas of the learning rate (`areas.py`): the forward area and, if the rate has fallen, an annealing term in
every law, as in arXiv 2505.07796 eq. 4. Under a constant rate the area equals the tokens, and there is no such term.

Fits are least squares for laws that are linear in all but one or two parameters, for many curves at once. At each point
of a grid over the searched parameters, the linear ones are a projection, so that a thousand resampled curves cost one
matrix product (variable projection: Golub and Pereyra 1973, SIAM J. Numer. Anal. 10). Resamples use the best point of
the grid without refinement: the grid spacing is far smaller than the scatter of the resamples.

`scattered` adds the scatter of the windows about a smooth law to the resamples of a curve. Items are the same at every
window, so resampling them omits what changes all of them together from one checkpoint to the next. Without it an
interval is too narrow wherever training fluctuates. What the best law does not fit counts as scatter, so a curve that
follows no law gets wider intervals, not a warning.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from lccp_sim.analysis.areas import Areas
from lccp_sim.analysis.metrics import LOGIT
from lccp_sim.analysis.stats.curve import LEVEL, Curve, Estimate
from lccp_sim.analysis.stats.estimate import RESAMPLES, Array
from lccp_sim.errors import ConfigError

# Number of parameters, without the noise scale. A break counts twice: without a true break it still finds a place that
# fits (Davies 1987, Biometrika 74), so the penalty of one parameter would select it too often.
FREE_PARAMETERS = {"constant": 1, "log": 3, "power": 3, "cpt": 4, "broken_stick": 5}
OFFSETS, EXPONENTS, BREAKS = 40, 24, 40  # grid points
LEAST, MOST = 0.05, 10.0  # exponents: from nearly a log law to nearly an exponential
UNDER_ANNEALING = ("constant", "log", "power", "cpt")  # a break cannot be distinguished from the start of a decay
FLOOR = 0.1  # least standard error of a window, as a share of the largest


@dataclass(frozen=True)
class Solution:
    """A fitted law: logarithms of searched parameters [Q], linear ones [P], and the weighted sum of squares left."""

    theta_Q: Array
    linear_P: Array
    rss: float


def columns(law: str, seen: Areas, at: Areas, theta_GQ: Array) -> Array:
    """Compute the law's linear part [G, places, P] at logarithms of its searched parameters.

    Its columns are a constant and the shapes. The shapes are ln(1 + N / N0), 1 - (1 + N / N0)^-a, and for the broken
    stick ln(1 + N / N0) and its part after the break. N0 is the first window after step 0 unless the law searches it.
    If the windows `seen` include annealing, the last column is the negative annealing area.
    """
    shape_GNP = _shapes(law, seen.forward, at.forward, theta_GQ)
    if not seen.annealed:
        return shape_GNP
    fallen_GN1 = np.broadcast_to(-at.annealing[:, None], (*shape_GNP.shape[:2], 1))
    return np.concatenate([shape_GNP, fallen_GN1], -1)


def _shapes(law: str, tokens_W: Array, tokens: Array, theta_GQ: Array) -> Array:
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
    """Return the tokens at the first window after step 0."""
    return float(tokens_W[tokens_W > 0][0])


def grid(law: str, tokens_W: Array) -> Array:
    """Return grid points [G, Q] over logarithms of the searched parameters: offset, exponent, both, or the break."""
    offsets = np.linspace(np.log(first_window(tokens_W) / 16), np.log(10 * tokens_W[-1]), OFFSETS)
    exponents = np.linspace(np.log(LEAST), np.log(MOST), EXPONENTS)
    if law == "constant":
        return np.zeros((1, 0))
    if law == "cpt":
        return np.stack(np.meshgrid(offsets, exponents, indexing="ij"), -1).reshape(-1, 2)
    breaks = np.linspace(np.log(tokens_W[2]), np.log(tokens_W[-3]), BREAKS)
    return {"log": offsets, "power": exponents, "broken_stick": breaks}[law][:, None]


def free_parameters(law: str, seen: Areas) -> int:
    """Count the law's parameters for these windows, without the noise scale; an annealing term adds one."""
    return FREE_PARAMETERS[law] + seen.annealed


def carried(seen: Areas) -> list[str]:
    """Return the laws that these windows support: k parameters, including the noise scale, need k + 2 windows."""
    laws = UNDER_ANNEALING if seen.annealed else tuple(FREE_PARAMETERS)
    return [law for law in laws if len(seen.forward) >= free_parameters(law, seen) + 3]


def moving(seen: Areas) -> list[str]:
    """Return these laws without the constant, which predicts no gain with no uncertainty, so forecasts leave it out."""
    return [law for law in carried(seen) if law != "constant"]


def aicc(rss: float | Array, root_W: Array, free: int) -> Array:
    """Compute AICc from a weighted residual sum of squares.

    It is -2 log likelihood + 2 k + 2 k (k + 1) / (W - k - 1), with k = free + 1.
    """
    n, k = len(root_W), free + 1
    twice = n * (np.log(2 * np.pi * np.asarray(rss) / n) + 1) - 2 * np.log(root_W).sum()
    return twice + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def root_weights(stderr_W: Array) -> Array:
    """Compute square roots [W] of the weights, with mean square 1; all 1 without usable standard errors.

    A standard error counts as at least FLOOR of the largest: a hit of 0 for all items has none, but is not exact.
    """
    if not np.isfinite(stderr_W).all() or np.max(stderr_W) <= 0:
        return np.ones(len(stderr_W))
    root_W = 1 / np.maximum(stderr_W, FLOOR * np.max(stderr_W))
    return root_W / np.sqrt((root_W**2).mean())


def search(law: str, seen: Areas, value_RW: Array, root_W: Array, ahead: Areas) -> tuple[Array, Array]:
    """Return the law's values [R, ahead] at the areas `ahead` and residual sums of squares [R], at the best point."""
    theta_GQ, centre = grid(law, seen.forward), float((value_RW[0] * root_W**2).mean())  # absorbed by the constant
    scaled_RW = (value_RW - centre) * root_W
    upper_GPP, along_RGP, rss_RG = _projected(law, seen, theta_GQ, scaled_RW, root_W)
    rows, best_R = np.arange(len(value_RW)), rss_RG.argmin(1)
    linear_RP = np.linalg.solve(upper_GPP[best_R], along_RGP[rows, best_R][..., None])[..., 0]
    ahead_RN = np.einsum("rnp,rp->rn", columns(law, seen, ahead, theta_GQ)[best_R], linear_RP)
    return centre + ahead_RN, np.maximum(rss_RG[rows, best_R], _rounding(scaled_RW))


def solve(law: str, seen: Areas, value_W: Array, root_W: Array) -> Solution:
    """Fit one curve, refined from the best grid point within the grid's bounds.

    The last few fits are cached, because the rule, the laws and the scatter of one curve all need the same fit.
    """
    data = (seen.forward, seen.annealing, value_W, root_W)
    return _solved(law, *(np.asarray(each, float).tobytes() for each in data))


@lru_cache(maxsize=256)
def _solved(law: str, *data: bytes) -> Solution:
    forward_W, annealing_W, value_W, root_W = (np.frombuffer(each) for each in data)
    seen = Areas(forward_W, annealing_W)
    theta_GQ, scaled_W = grid(law, forward_W), value_W * root_W
    start_Q = theta_GQ[_projected(law, seen, theta_GQ, scaled_W[None], root_W)[2][0].argmin()]

    def at(theta_Q: Array) -> Solution:
        design_WP = columns(law, seen, seen, np.asarray(theta_Q)[None])[0] * root_W[:, None]
        linear_P = np.linalg.lstsq(design_WP, scaled_W, rcond=None)[0]
        return Solution(np.asarray(theta_Q), linear_P, float(((scaled_W - design_WP @ linear_P) ** 2).sum()))

    best = at(start_Q)
    if len(start_Q):
        bounds = list(zip(theta_GQ.min(0), theta_GQ.max(0), strict=True))
        options = {"xatol": 1e-7, "fatol": 1e-14 * float((scaled_W**2).sum()), "maxiter": 400}
        found = minimize(lambda t: at(t).rss, start_Q, method="Nelder-Mead", bounds=bounds, options=options)
        best = min(best, at(found.x), key=lambda solution: solution.rss)
    return Solution(best.theta_Q, best.linear_P, max(best.rss, float(_rounding(scaled_W[None])[0])))


def tangent(law: str, seen: Areas, solution: Solution) -> Array:
    """Compute derivatives [W, free parameters] of the law's values; for searched parameters by central differences."""
    columns_WP = columns(law, seen, seen, solution.theta_Q[None])[0]
    step = 1e-4
    slopes = []
    for shift_Q in step * np.eye(len(solution.theta_Q)):
        up, down = (columns(law, seen, seen, (solution.theta_Q + s * shift_Q)[None])[0] for s in (1, -1))
        slopes.append((up - down) @ solution.linear_P / (2 * step))
    return np.column_stack([columns_WP, *slopes])


def _projected(law: str, seen: Areas, theta_GQ: Array, scaled_RW: Array, root_W: Array) -> tuple[Array, Array, Array]:
    """Return R of QR [G, P, P], the curves along Q [R, G, P], and their squared residuals [R, G]."""
    basis_GWP, upper_GPP = np.linalg.qr(columns(law, seen, seen, theta_GQ) * root_W[:, None])
    flat = basis_GWP.swapaxes(0, 1).reshape(len(root_W), -1)
    along_RGP = (scaled_RW @ flat).reshape(len(scaled_RW), len(theta_GQ), -1)
    return upper_GPP, along_RGP, (scaled_RW**2).sum(1)[:, None] - (along_RGP**2).sum(-1)


def _rounding(scaled_RW: Array) -> Array:
    """Return the rounding error of a residual sum of squares [R], below which laws cannot be distinguished."""
    return 1e-18 + 1e-14 * (scaled_RW**2).sum(-1)


LAW_WINDOWS = 6
ASSUMED_ITEMS = 100  # assumed number of items of a curve that does not say


@dataclass(frozen=True)
class Scale:
    """A scale on which laws are fitted, by name; shares are clipped to `least` and 1 - `least`."""

    name: str = "identity"
    least: float = 0.0

    def of(self, value: Array) -> Array:
        """Convert values to this scale."""
        return value if self.name == "identity" else logit(np.clip(value, self.least, 1 - self.least))

    def back(self, value: Array) -> Array:
        """Convert values back to the metric's unit."""
        return value if self.name == "identity" else expit(value)


def onto_scale(curve: Curve) -> tuple[Curve, Scale]:
    """Put the curve, without its resamples, on the scale for laws: logits for shares of items, else unchanged.

    A share is clipped to at least half an item of n + 1, and to as much below 1 (half items: Haldane 1956, Ann. Hum.
    Genet. 20), and so is its standard error. Without standard errors those of the resamples are used.
    """
    if curve.draws_RW is not None and not (np.isfinite(curve.stderr_W).all() and curve.stderr_W.any()):
        curve = replace(curve, stderr_W=curve.draws_RW.std(0))
    if curve.row.scale != LOGIT or (np.abs(curve.value_W - 0.5) > 0.5).any():
        return replace(curve, draws_RW=None), Scale()
    scale = Scale("logit", 0.5 / ((curve.n or ASSUMED_ITEMS) + 1))
    share_W = np.clip(curve.value_W, scale.least, 1 - scale.least)
    stderr_W = np.maximum(curve.stderr_W, scale.least) / (share_W * (1 - share_W))
    return replace(curve, value_W=scale.of(curve.value_W), stderr_W=stderr_W, draws_RW=None), scale


def scattered(curve: Curve) -> Array:
    """Add noise to the curve's resamples [R, W] for the scatter about its best law that items do not explain.

    Its variance is the curve's residual variance minus that of resampled items, both orthogonal to the law's tangent
    space. The first is uncertain given its degrees of freedom, so each resample draws it (chi-squared). The noise is
    log-normal for NLLs and perplexities, which stay above 0, and normal for other metrics. Without resamples the result
    is noise only; with fewer than LAW_WINDOWS windows resamples are returned unchanged.
    """
    draws_RW = np.repeat(curve.value_W[None], RESAMPLES, axis=0) if curve.draws_RW is None else curve.draws_RW
    if len(curve.tokens_W) < windows_needed(curve):
        return draws_RW
    scaled, scale = onto_scale(curve)
    seen, value_W, root_W = scaled.areas, scaled.value_W, root_weights(scaled.stderr_W)
    laws = moving(seen)

    def score(law: str) -> float:
        rss_R = search(law, seen, value_W[None], root_W, seen[-1:])[1]
        return float(aicc(rss_R[0], root_W, free_parameters(law, seen)))

    law = min(laws, key=score)
    best = solve(law, seen, value_W, root_W)
    df = len(root_W) - free_parameters(law, seen)
    basis_WP = np.linalg.qr(tangent(law, seen, best) * root_W[:, None])[0]
    off_RW = (scale.of(draws_RW) - value_W) * root_W
    items = float((off_RW**2).sum(1).mean() - ((off_RW @ basis_WP) ** 2).sum(1).mean())
    rng = np.random.default_rng([len(root_W), curve.rising])
    scale_R = np.sqrt(np.maximum(0.0, best.rss / rng.chisquare(df, len(draws_RW)) - items / df))
    std_RW, normal_RW = scale_R[:, None] / root_W, rng.standard_normal(draws_RW.shape)
    if curve.rising or scale.name != "identity" or (draws_RW <= 0).any():
        return np.where(std_RW == 0, draws_RW, scale.back(scale.of(draws_RW) + std_RW * normal_RW))
    return draws_RW * np.exp(np.sqrt(np.log1p((std_RW / draws_RW) ** 2)) * normal_RW)


LAWS: tuple[str, ...] = ("constant", "log", "power", "cpt", "broken_stick")


@dataclass(frozen=True)
class Fit:
    """One law fitted to one curve. N are training tokens, and the value has the metric's unit.

    `parameters` by law: constant {c}; log {A, B, N0}: A ln(N + N0) + B; power {E, A, a, N0}: E + A (N + N0)^-a;
    cpt {c, B, E, beta}: c + B (1 - (1 + E N)^-beta); broken_stick {A, B, C, N0, Nb}: A x + B + C max(0, x - x(Nb))
    with x = ln(N + N0). If the rate fell, N is the forward area and C2 is the coefficient of the annealing term
    - C2 S2. `tail_error`: RMSE on the last quarter of the windows (at least two) of the law fitted without them; None
    if fewer than LAW_WINDOWS, or too few for the law, remain.

    Sources: log, arXiv 2604.02650 sec. 7.1 (the offset, which allows for step 0, is our own); cpt, arXiv 2505.07796
    eq. 4 under a constant learning rate, with the slow term of pre-training in c.
    """

    law: str
    parameters: dict[str, float]
    aicc: float
    tail_error: float | None = None
    scale: str = "identity"

    def predict(self, tokens: float | Array, annealing: float | Array = 0.0) -> Array:
        """Compute the law's value at `tokens` >= 0 (the forward area) and an annealing area; same shape."""
        fallen = self.parameters.get("C2", 0.0) * np.asarray(annealing, float)
        return Scale(self.scale).back(self._value(np.asarray(tokens, float)) - fallen)

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


def fit_laws(tokens_W: Array, value_W: Array, stderr_W: Array | None = None, areas: Areas | None = None) -> list[Fit]:
    """Fit every law that W windows support, lowest AICc first; [] with fewer than LAW_WINDOWS.

    `areas`: at the windows; None under a constant rate.

    Weighted least squares with `stderr_W` as relative weights. Their common scale is estimated, because a standard
    error over items includes the spread of items, which all windows share. A law with k parameters, including the
    scale, needs k + 2 windows. Source of AICc: Hurvich and Tsai 1989 (Biometrika 76). Raises ConfigError if a number is
    not finite, or tokens do not increase.
    """
    tokens_W, value_W = np.asarray(tokens_W, float), np.asarray(value_W, float)
    if len(tokens_W) != len(value_W) or not np.isfinite([tokens_W, value_W]).all() or (np.diff(tokens_W) <= 0).any():
        raise ConfigError(
            "fit_laws: tokens and values must be finite and of the same length, and tokens must increase; fix them"
        )
    if len(tokens_W) < LAW_WINDOWS:
        return []
    root_W, kept = (
        root_weights(np.zeros_like(value_W) if stderr_W is None else stderr_W),
        len(tokens_W) - max(2, len(tokens_W) // 4),
    )
    seen = Areas.constant(tokens_W) if areas is None else areas
    fits = [_fit(law, seen, value_W, root_W) for law in carried(seen)]
    judges = kept >= LAW_WINDOWS and seen[:kept].annealed == seen.annealed  # else the last ones alone fix it
    able = carried(seen[:kept]) if judges else []
    for number, fit in enumerate(fits):
        if fit.law in able:
            early, late = _fit(fit.law, seen[:kept], value_W[:kept], root_W[:kept]), seen[kept:]
            error = np.sqrt(((early.predict(late.forward, late.annealing) - value_W[kept:]) ** 2).mean())
            fits[number] = replace(fit, tail_error=float(error))
    return sorted(fits, key=lambda fit: fit.aicc)


def windows_needed(curve: Curve) -> int:
    """Return the least number of windows for a prediction: one more if the learning rate fell."""
    return LAW_WINDOWS + curve.areas.annealed


def laws_of(curve: Curve) -> list[Fit]:
    """Run `fit_laws` on a curve on its scale: logits for a share of items, so that laws bend at floor and ceiling.

    `parameters` and `tail_error` are then in logits; `predict` returns the metric's unit.
    """
    scaled, scale = onto_scale(curve)
    fits = fit_laws(curve.tokens_W, scaled.value_W, scaled.stderr_W, curve.areas)
    return [replace(fit, scale=scale.name) for fit in fits]


def law_predictions(curve: Curve, ahead: Areas, law: str | None = None) -> Array:
    """Predict the metric at the areas `ahead`, in its unit: a row for the curve, then one per resample.

    Uses `law`, or averages the laws by their Akaike weights, separately in each row, over all but the constant, which
    predicts no change with no uncertainty. Resamples are those of `scattered`. Source of the weights: Burnham and
    Anderson 2002 sec. 2.9.
    """
    scaled, scale = onto_scale(curve)
    seen, root_W = scaled.areas, root_weights(scaled.stderr_W)
    value_RW = np.vstack([scaled.value_W, scale.of(scattered(curve))])
    paths, scores = [], []
    for name in [law] if law else moving(seen):
        value_RN, rss_R = search(name, seen, value_RW, root_W, ahead)
        if seen.annealed:  # annealing nearly equals one of the shapes, so a grid point is too coarse
            best = solve(name, seen, scaled.value_W, root_W)
            value_RN[0] = columns(name, seen, ahead, best.theta_Q[None])[0] @ best.linear_P
            rss_R[0] = best.rss
        paths.append(scale.back(value_RN))
        scores.append(aicc(rss_R, root_W, free_parameters(name, seen)))
    weight_LR = np.exp(-(np.array(scores) - np.min(scores, axis=0)) / 2)
    return np.einsum("lrn,lr->rn", np.array(paths), weight_LR / weight_LR.sum(0))


def gain_per_doubling(curve: Curve, fit: Fit | None = None) -> Estimate:
    """Predict the improvement (positive = better) by the next doubling of tokens, from the end N to 2 N.

    It has the unit of the metric and respects its bounds: a share of items at 0.97 gains 0.03 at most. If the rate is
    not constant, it is the improvement of a run twice as long under the same schedule (`Rate.doubled`). It uses the law
    of `fit`, or averages over the laws, so that the interval includes the choice of a law. nan with too few windows.
    The interval has plain percentiles: a bias correction would mistake the shrinkage by averaging in a resample for a
    bias.
    """
    end = curve.tokens_W[-1]
    if len(curve.tokens_W) < windows_needed(curve):
        return Estimate(float("nan"))
    path_RN = law_predictions(curve, curve.areas[-1:].then(doubled(curve, end)), fit.law if fit else None)
    gain_R = np.minimum((path_RN[:, 1] - path_RN[:, 0]) * (1 if curve.rising else -1), room(curve))
    low, high = np.quantile(gain_R[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(gain_R[0]), float(low), float(high), gain_R[1:])


def doubled(curve: Curve, tokens: float) -> Areas:
    """Return the areas at the end of a run of twice `tokens`."""
    return Areas.constant(np.array([2 * tokens])) if curve.rate is None else curve.rate.doubled(tokens)


def room(curve: Curve) -> float:
    """Return how much better than its last value a metric can get; inf if it has no bound on that side."""
    low, high = curve.row.bounds
    bound = high if curve.rising else low
    return float("inf") if bound is None else abs(bound - float(curve.value_W[-1]))


def _fit(law: str, seen: Areas, value_W: Array, root_W: Array) -> Fit:
    solution = solve(law, seen, value_W, root_W)
    parameters = _named(law, solution, first_window(seen.forward))
    if seen.annealed:
        parameters["C2"] = float(solution.linear_P[-1])
    return Fit(law, parameters, float(aicc(solution.rss, root_W, free_parameters(law, seen))))


def _named(law: str, solution: Solution, first: float) -> dict[str, float]:
    """Convert the parameters of the linear form c0 + c1 shape(N) (+ c2 shape(N)) to those of `Fit`."""
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
