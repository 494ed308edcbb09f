"""Resamples of a curve that hold, beside the items, what its windows scatter about any smooth law.

Items are the same at every window, so resampling them leaves out what moves all of them together from one checkpoint
to the next; an interval without it is too narrow wherever training wobbles. What a reader would question: what the best
law does not fit counts as scatter, so that a curve that follows no law gets wider intervals, not a warning.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit

from lccp_sim.analysis.stats.curve import Curve
from lccp_sim.analysis.stats.estimate import RESAMPLES, Array
from lccp_sim.analysis.stats.projection import FREE, aicc, moving, root_weights, search, solve, tangent

MIN_WINDOWS = 6
ITEMS = 100  # where a curve does not say how many it has


@dataclass(frozen=True)
class Scale:
    """A scale on which laws are fitted, by name; shares count as `least` at least and as 1 - `least` at most."""

    name: str = "identity"
    least: float = 0.0

    def of(self, value: Array) -> Array:
        """Values on this scale."""
        return value if self.name == "identity" else logit(np.clip(value, self.least, 1 - self.least))

    def back(self, value: Array) -> Array:
        """Values in the metric's unit."""
        return value if self.name == "identity" else expit(value)


def onto_scale(curve: Curve) -> tuple[Curve, Scale]:
    """The curve, without its resamples, on the scale for laws: logits for shares of items (_frac), else unchanged.

    A share counts as half an item of n + 1 at least, and as much less than 1 at most (Haldane 1956, Ann. Hum. Genet.
    20, has the half item), and so does its standard error. Without standard errors those of the resamples are taken.
    """
    if curve.draws_RW is not None and not (np.isfinite(curve.stderr_W).all() and curve.stderr_W.any()):
        curve = replace(curve, stderr_W=curve.draws_RW.std(0))
    if not curve.metric.endswith("_frac") or "gain" in curve.metric or (np.abs(curve.value_W - 0.5) > 0.5).any():
        return replace(curve, draws_RW=None), Scale()
    scale = Scale("logit", 0.5 / ((curve.n or ITEMS) + 1))
    share_W = np.clip(curve.value_W, scale.least, 1 - scale.least)
    stderr_W = np.maximum(curve.stderr_W, scale.least) / (share_W * (1 - share_W))
    return replace(curve, value_W=scale.of(curve.value_W), stderr_W=stderr_W, draws_RW=None), scale


def scattered(curve: Curve) -> Array:
    """The curve's resamples [R, W], with noise added for the scatter about its best law that items do not explain.

    Both are measured orthogonally to the law's tangent space: the curve's residual variance, less what resampling items
    gives there. The first is known to its degrees of freedom only, so each resample draws it anew (chi-squared). The
    noise of NLLs and perplexities, which stay above 0, is log-normal, that of others normal.
    Without resamples the noise is all there is; with fewer than MIN_WINDOWS they come back as they are.
    """
    draws_RW = np.repeat(curve.value_W[None], RESAMPLES, axis=0) if curve.draws_RW is None else curve.draws_RW
    if len(curve.tokens_W) < MIN_WINDOWS:
        return draws_RW
    scaled, scale = onto_scale(curve)
    tokens_W, value_W, root_W = scaled.tokens_W, scaled.value_W, root_weights(scaled.stderr_W)

    def score(law: str) -> float:
        return float(aicc(search(law, tokens_W, value_W[None], root_W, tokens_W[-1:])[1][0], root_W, FREE[law]))

    law = min(moving(len(tokens_W)), key=score)
    best = solve(law, tokens_W, value_W, root_W)
    df = len(root_W) - FREE[law]
    basis_WP = np.linalg.qr(tangent(law, tokens_W, best) * root_W[:, None])[0]
    off_RW = (scale.of(draws_RW) - value_W) * root_W
    items = float((off_RW**2).sum(1).mean() - ((off_RW @ basis_WP) ** 2).sum(1).mean())
    rng = np.random.default_rng([len(root_W), curve.rising])
    scale_R = np.sqrt(np.maximum(0.0, best.rss / rng.chisquare(df, len(draws_RW)) - items / df))
    std_RW, normal_RW = scale_R[:, None] / root_W, rng.standard_normal(draws_RW.shape)
    if curve.rising or scale.name != "identity" or (draws_RW <= 0).any():
        return np.where(std_RW == 0, draws_RW, scale.back(scale.of(draws_RW) + std_RW * normal_RW))
    return draws_RW * np.exp(np.sqrt(np.log1p((std_RW / draws_RW) ** 2)) * normal_RW)
