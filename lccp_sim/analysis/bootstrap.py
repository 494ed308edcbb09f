"""A metric against tokens, with resamples of the whole curve.

Items are the same at every window, so one resample draws items once and averages the same ones everywhere: what is
common to all windows (a hard item) cancels in differences between them. Inside a cell of n items, n - 1 are drawn,
because drawing n understates the variance by 1/n, which shows in cells of few items.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm

from lccp_sim.analysis.table import RunData, matching
from lccp_sim.records import Tag

Array = npt.NDArray[np.float64]
RESAMPLES = 1000
LEVEL = 0.95
# What a record without tags averages over, where that is not everything (see the table of records).
WHOLE: dict[str, dict[str, Tag]] = {"needle": {"variant": "single", "span": "full"}}


@dataclass(frozen=True)
class Curve:
    """One metric at W windows. `draws_RW` are resampled curves; None without samples and standard errors.

    `source` says where the draws come from: "paired items", "standard errors" (windows independent: too wide), or
    "none".
    """

    monitor: str
    metric: str
    tags: Mapping[str, Tag]
    tokens_W: Array
    value_W: Array
    stderr_W: Array
    draws_RW: Array | None = None
    source: str = "none"
    n: int = 0

    @property
    def rising(self) -> bool:
        """Whether more is better: nats fall, unless they are a gain; all else rises."""
        return "gain" in self.metric or not self.metric.endswith("_nats")


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; no interval where the draws are missing.

    Bias-corrected percentiles of the resamples: t95 of a noisy curve comes out late, and later still in a resample,
    so that plain percentiles lie too late (simulated coverage 80-85 % instead of 85-98 %). Source: Efron 1981, Can.
    J. Stat. 9.
    """

    value: float
    low: float | None = None
    high: float | None = None
    draws: Array | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, value: float, draws_R: Array | None = None) -> "Estimate":
        """The estimate from its resamples; draws where the quantity does not exist (not finite) are left out."""
        finite_R = np.array([]) if draws_R is None else draws_R[np.isfinite(draws_R)]
        if not finite_R.size:
            return cls(float(value))
        below = (finite_R < value).mean() + (finite_R == value).mean() / 2
        bias = norm.ppf(np.clip(below, 1 / finite_R.size, 1 - 1 / finite_R.size))
        percents = 100 * norm.cdf(2 * bias + norm.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        low, high = np.percentile(finite_R, percents)
        return cls(float(value), float(low), float(high), draws_R)

    def above(self, bound: float) -> bool:
        """Whether the whole interval is above `bound`; without one, never."""
        return self.low is not None and self.low > bound

    def below(self, bound: float) -> bool:
        """Whether the whole interval is below `bound`; without one, never."""
        return self.high is not None and self.high < bound


def resampled_means(value_WI: Array, stratum_I: npt.NDArray[Any], resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Means [R, W] of resampled items: each stratum resampled by itself, every stratum weighs the same.

    Where a stratum has a single item, all items become one stratum: nothing inside it could vary.
    Source: Efron and Tibshirani 1993 sec. 6; n - 1 draws: Rao and Wu 1988 (J. Am. Stat. Assoc. 83) sec. 2.
    """
    names, stratum_I, sizes = np.unique(stratum_I, return_inverse=True, return_counts=True)
    if sizes.min() < 2:
        names, stratum_I, sizes = names[:1], np.zeros_like(stratum_I), np.array([len(stratum_I)])
    rng = np.random.default_rng(seed)
    weight_RI = np.zeros((resamples, len(stratum_I)))
    for stratum, size in enumerate(sizes):
        draws = max(size - 1, 1)
        counts = rng.multinomial(draws, np.full(size, 1 / size), size=resamples)
        weight_RI[:, stratum_I == stratum] = counts / (draws * len(names))
    return weight_RI @ value_WI.T


def curves(
    run: RunData, monitor: str, metrics: tuple[str, ...], tags: Mapping[str, Tag], seed: int = 0
) -> dict[str, Curve]:
    """The metrics that the run has with exactly these tags, by name, at the windows that all of them share.

    They are resampled together (the same items in each resample), so that a quantity of two metrics has a paired
    interval.
    """
    rows = {metric: run.select(monitor, metric, **dict(tags)).set_index("step") for metric in metrics}
    rows = {metric: frame for metric, frame in rows.items() if len(frame)}
    if not rows:
        return {}
    steps = sorted(set.intersection(*(set(frame.index) for frame in rows.values())))
    draws = _paired_draws(run, monitor, list(rows), steps, tags, seed)
    result = {}
    for number, (metric, frame) in enumerate(rows.items()):
        frame = frame.loc[steps]
        value_W, stderr_W = frame.value.to_numpy(float), frame.stderr.to_numpy(float)
        if draws is not None:
            draws_RW, source = draws[metric], "paired items"
            apart_W = np.abs(draws_RW.mean(0) - value_W) - 0.2 * draws_RW.std(0) - 1e-3 * np.abs(value_W)
            if (apart_W > 1e-6).any():
                run.warnings.append(f"{monitor}/{metric} {tags}: samples and records do not have the same mean")
        elif np.isfinite(stderr_W).all():
            noise_RW = np.random.default_rng([seed, number]).standard_normal((RESAMPLES, len(steps)))
            draws_RW, source = value_W + stderr_W * noise_RW, "standard errors"
        else:
            draws_RW, source = None, "none"
        tokens_W = frame.tokens.to_numpy(float)
        result[metric] = Curve(
            monitor, metric, tags, tokens_W, value_W, stderr_W, draws_RW, source, int(frame.n.iloc[-1])
        )
    return result


def _paired_draws(
    run: RunData, monitor: str, metrics: list[str], steps: list[int], tags: Mapping[str, Tag], seed: int
) -> dict[str, Array] | None:
    """Resampled curves [R, W] by metric, or None where some window or metric has no samples."""
    of_monitor = run.samples[run.samples.monitor == monitor]
    if of_monitor.empty:
        return None
    matrices = {}
    for metric in metrics:
        rows = matching(of_monitor[of_monitor.metric == metric], WHOLE.get(monitor, {}) | dict(tags))
        if "position" in rows and "position" not in tags:
            rows = rows[rows.position.isna()]
        matrices[metric] = _items(rows).reindex(columns=steps).dropna()
    shared = set.intersection(*(set(matrix.index) for matrix in matrices.values()))
    if not shared:
        return None
    index = pd.MultiIndex.from_tuples(sorted(shared))
    strata = index.get_level_values(0).to_numpy(str)
    return {
        metric: resampled_means(matrix.loc[index].to_numpy(float).T, strata, seed=seed)
        for metric, matrix in matrices.items()
    }


def _items(rows: pd.DataFrame) -> pd.DataFrame:
    """Values with one row an item (cell tags, item id) and one column a step."""
    return rows.set_index(["tags", "item_id", "step"])["value"].unstack("step")
