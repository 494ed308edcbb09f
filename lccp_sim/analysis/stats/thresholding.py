"""Hits that an NLL would give by itself, to tell an early hit from what any threshold does.

A hit is a threshold on an item's NLL, so its mean ends early by construction. The null hypothesis is that the item's
NLL says all: P(hit | NLL) is one falling function, the same for all items and at all windows, fitted by isotonic
regression to all item-windows; a threshold and every monotone link are inside it. Questionable: one function for all
items. Where each item has a threshold of its own, in proportion to its own level, this null is rejected although every
hit is a threshold; so the same null on `own_scale` stands beside it. It rejects little, because a hit that comes once
and stays is always monotone in its item's own NLL.
"""

import numpy as np
from scipy.optimize import isotonic_regression

from lccp_sim.analysis.stats.estimate import Array
from lccp_sim.analysis.stats.saturation import isotonic, tokens_to


def hit_given_nll(nll_IW: Array, hit_IW: Array) -> Array:
    """P(hit | NLL) [I, W] at each item and window: the falling function of NLL nearest to the hits in least squares.

    Source: Barlow et al. 1972, isotonic regression, as scipy has it; its mean over all is that of the hits.
    """
    _, place, count = np.unique(nll_IW.ravel(), return_inverse=True, return_counts=True)
    mean = np.bincount(place, hit_IW.ravel()) / count
    fitted = isotonic_regression(mean, weights=count, increasing=False).x
    return np.clip(fitted, 0, 1)[place].reshape(nll_IW.shape)


def own_scale(nll_IW: Array) -> Array:
    """Log NLL [I, W] less its mean over the item's own windows; an NLL of 0 counts as the smallest positive float."""
    log_IW = np.log(np.maximum(nll_IW, np.finfo(float).tiny))
    return log_IW - log_IW.mean(1, keepdims=True)


def null_hits(hit_given_IW: Array, weight_RI: Array, seed: int = 0) -> Array:
    """Mean hits [R, W] under the null, each resample with new hits of its own resample of items.

    An item keeps one uniform number through the run and hits where that is below P(hit | NLL): its threshold stays.
    """
    uniform_RI = np.random.default_rng([seed, 1]).random(weight_RI.shape)
    return np.stack([(weight_RI * (uniform_RI < p_I)).sum(1) for p_I in hit_given_IW.T], axis=1)


def t95_of(tokens_W: Array, value_RW: Array, rising: bool) -> Array:
    """Tokens [R] to 95 % of the improvement of each resampled curve, nan where it has none."""
    return np.array([tokens_to(tokens_W, isotonic(value_W, rising)) for value_W in value_RW])
