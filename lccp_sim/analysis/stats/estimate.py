"""Resamples of entire curves from the per-item values of a run.

Items are the same at every window, so one resample draws items once and averages the same items at all windows. What is
common to all windows (a hard item) cancels in differences between them. Within a cell of n items, n - 1 are drawn,
because drawing n understates the variance by 1/n, which matters in small cells.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lccp_sim.analysis.run import RunData, matching
from lccp_sim.analysis.stats.heads import initial_heads
from lccp_sim.config import RETRIEVES
from lccp_sim.records import Tag

Array = npt.NDArray[np.float64]
Resamples = dict[str, tuple[Array, Array]]
RESAMPLES = 1000


def weights(stratum_I: npt.NDArray[Any], resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Draw weights [R, I], summing to 1, that turn item values into means of resampled items, within strata.

    A stratum keeps its share of the items. If a stratum has a single item, all strata are merged, because it could not
    vary. Source: Efron and Tibshirani 1993 sec. 6; n - 1 draws: Rao and Wu 1988 (J. Am. Stat. Assoc. 83) sec. 2.
    """
    _, stratum_I, sizes = np.unique(stratum_I, return_inverse=True, return_counts=True)
    if sizes.min() < 2:
        stratum_I, sizes = np.zeros_like(stratum_I), np.array([len(stratum_I)])
    rng = np.random.default_rng(seed)
    weight_RI = np.zeros((resamples, len(stratum_I)))
    for stratum, size in enumerate(sizes):
        draws = max(size - 1, 1)
        counts = rng.multinomial(draws, np.full(size, 1 / size), size=resamples)
        weight_RI[:, stratum_I == stratum] = counts / draws * (size / len(stratum_I))
    return weight_RI


def seed_weights(seeds: int, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Draw weights [R, S], summing to 1, that turn values of S seeds into resamples of their mean.

    Drawing two or three seeds with replacement gives the right variance but far too short tails. These resamples
    scatter about the mean like Student's t with S - 1 degrees of freedom: normal multipliers of the seeds' deviations,
    divided by the root of a chi-squared share (random weights: Rubin 1981, Ann. Stat. 9). All 1 for one seed.
    """
    if seeds == 1:
        return np.ones((resamples, 1))
    rng = np.random.default_rng(seed)
    normal_RS = rng.standard_normal((resamples, seeds))
    normal_RS -= normal_RS.mean(1, keepdims=True)
    share_R = rng.chisquare(seeds - 1, resamples) / (seeds - 1)
    return 1 / seeds + normal_RS / np.sqrt(share_R * seeds * (seeds - 1))[:, None]


def item_values(
    run: RunData, monitor: str, metrics: list[str], steps: list[int], tags: Mapping[str, Tag]
) -> tuple[dict[str, Array], npt.NDArray[Any]] | None:
    """Return values [I, W] by metric, and each item's stratum, for the items that every metric has at all steps.

    None if there is no such item. Probe seeds ask the same items, so an item's value is its mean over them.
    """
    matrices = []
    for metric in metrics:
        rows = matching(run.items(monitor, metric), run.counted(monitor) | dict(tags))
        if "position" in rows and "position" not in tags:
            rows = rows[rows.position.isna()]
        table = rows.groupby(["stratum", "item_id", "step"]).value.mean().unstack("step")
        matrices.append(table.reindex(columns=steps).dropna())
    shared = sorted(set.intersection(*(set(matrix.index) for matrix in matrices)))
    if not shared:
        return None
    values = {metric: matrix.loc[shared].to_numpy(float) for metric, matrix in zip(metrics, matrices, strict=True)}
    return values, np.array([stratum for stratum, _ in shared])


def item_resamples(
    run: RunData, monitor: str, metrics: list[str], steps: list[int], tags: Mapping[str, Tag], seed: int
) -> Resamples | None:
    """Compute means [W] and resampled means [R, W] by metric; None if some window or metric has no samples."""
    found = item_values(run, monitor, metrics, steps, tags)
    if found is None:
        return None
    values, stratum_I = found
    weight_RI = weights(stratum_I, seed=seed)
    return {metric: (value_IW.mean(0), weight_RI @ value_IW) for metric, value_IW in values.items()}


def head_resamples(
    run: RunData, monitor: str, metrics: list[str], steps: list[int], tags: Mapping[str, Tag], seed: int
) -> Resamples | None:
    """Resample the summaries of all heads on needles or other `samples`: items are resampled, then heads averaged.

    The initial heads remain those of all items of the first window. None for other metrics, and without samples at
    every window.
    """
    summaries: dict[str, Callable[[Array], Array]] = {
        "retrieval_heads_count": lambda score: (score > RETRIEVES).sum(-1).astype(float),
        "initial_heads_mean_frac": lambda score: score[..., initial].mean(-1),
    }
    rows = run.items(monitor, "copy_hard_frac")
    if "samples" in rows:  # a tag of texts other than needles
        rows = rows[rows["samples"] == tags["samples"] if "samples" in tags else rows["samples"].isna()]
    if set(tags) - {"samples"} or not set(metrics) <= set(summaries) or set(rows.step) < set(steps) or rows.empty:
        return None
    columns = ["item_id", "layer", "head", "step"]
    table = rows.drop_duplicates(columns).set_index(columns).value.unstack(["step", "layer", "head"]).dropna()
    scores = [table[step].sort_index(axis=1).to_numpy(float) for step in steps]  # [items, heads] of each window
    initial = initial_heads(scores[0].mean(0)[None])[:, 1]
    asked = run.items("needle", "hit_frac")
    cells = matching(asked, {"span": run.span()}).drop_duplicates("item_id").set_index("item_id").tags
    weight_RI = weights(cells.reindex(table.index).fillna("").to_numpy(str), seed=seed)
    return {
        metric: (
            np.stack([summaries[metric](score.mean(0)) for score in scores]),
            np.stack([summaries[metric](weight_RI @ score) for score in scores], axis=-1),
        )
        for metric in metrics
    }
