"""Curves over seeds: the mean of runs that differ only in their seed, with intervals that cover variation over seeds.

Seeds are resampled, and items within them, because another study with the same number of seeds would draw both
differently. Design note: seeds are not drawn with replacement, which would make intervals of two or three seeds far too
short. Instead, their deviations get random weights with the tails of Student's t, which assumes that seeds are normally
distributed.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.run import differing
from lccp_sim.analysis.stats.curve import Curve, Estimate
from lccp_sim.analysis.stats.estimate import RESAMPLES, Array, seed_weights
from lccp_sim.analysis.stats.pairs import at_ceiling
from lccp_sim.records import Tag

Orders = Sequence[Findings]  # the runs of one seed, which differ in the order of their data


def arms(found: Sequence[Findings]) -> list[list[Findings]]:
    """Group runs that differ only in their seed (and in paths), in the order of each group's first run."""
    keys = differing([each.run for each in found]).drop(columns="seed", errors="ignore")
    groups: dict[tuple[str, ...], list[Findings]] = defaultdict(list)
    for each, (_, settings) in zip(found, keys.iterrows(), strict=True):
        groups[tuple(map(str, settings))].append(each)
    return list(groups.values())


def pooled_over_seeds(found: Sequence[Findings]) -> Findings:
    """Average the overall curves over seeds, with laws, t95 and verdicts; `run` is that of the first seed.

    Needles are left out if the seeds are judged by different answer spans.
    """
    over = Findings(found[0].run, eps=found[0].eps)
    for name, curve in found[0].curves.items():
        seeds = [each.curves[name] for each in found if name in each.curves]
        whole = curve.tags in ({}, over.run.sentence)
        same = len({each.run.span(curve.monitor) for each in found}) == 1
        if whole and same and len(seeds) == len(found) and (mean := over_seeds(seeds)) is not None:
            over.enter(mean)
    return over


def at_shared_windows(curves: Sequence[Curve]) -> tuple[Array, Array]:
    """Return the tokens [W] of the windows that all curves share, and the values [S, W] there."""
    tokens_W = np.array(sorted(set.intersection(*(set(curve.tokens_W) for curve in curves))))
    return tokens_W, np.stack([curve.value_W[np.isin(curve.tokens_W, tokens_W)] for curve in curves])


def over_orders(curves: Sequence[Curve]) -> Curve:
    """Average the curves [W] of one metric over runs of one seed, at the windows that all share.

    The runs share their items, so the same resample of items is averaged; there are none unless all runs have them.
    """
    if len(curves) == 1:
        return curves[0]
    tokens_W, value_OW = at_shared_windows(curves)
    kept = [np.isin(curve.tokens_W, tokens_W) for curve in curves]
    drawn = [
        curve.draws_RW[:, kept_W] for curve, kept_W in zip(curves, kept, strict=True) if curve.draws_RW is not None
    ]
    draws_RW = np.mean(drawn, axis=0) if len(drawn) == len(curves) else None
    stderr_W = curves[0].stderr_W[kept[0]] if draws_RW is None else draws_RW.std(0, ddof=1)
    return replace(curves[0], tokens_W=tokens_W, value_W=value_OW.mean(0), stderr_W=stderr_W, draws_RW=draws_RW)


def over_seeds(curves: Sequence[Curve]) -> Curve | None:
    """Average the curves [W] of one metric over seeds, at the windows that all share, with resamples [R, W].

    None with fewer than two curves or shared windows. A seed without resamples is used as it is. `stderr_W` is the
    standard deviation of the resamples, `n` the number of items of a seed.
    """
    if len(curves) < 2:
        return None
    tokens_W, value_SW = at_shared_windows(curves)
    if len(tokens_W) < 2:
        return None
    kept = [np.isin(curve.tokens_W, tokens_W) for curve in curves]
    draws_SRW = np.stack([
        np.broadcast_to(value_W, (RESAMPLES, len(tokens_W))) if curve.draws_RW is None else curve.draws_RW[:, kept_W]
        for curve, value_W, kept_W in zip(curves, value_SW, kept, strict=True)
    ])  # fmt: skip
    weight_RS = seed_weights(len(curves), draws_SRW.shape[1], 1)
    draws_RW = np.einsum("rs,srw->rw", weight_RS, draws_SRW)
    return replace(
        curves[0], tokens_W=tokens_W, value_W=value_SW.mean(0), stderr_W=draws_RW.std(0, ddof=1), draws_RW=draws_RW,
        source=f"{len(curves)} seeds, {curves[0].source}", n=min(curve.n for curve in curves),
    )  # fmt: skip


def longest_needles(seeds: Sequence[Orders]) -> tuple[int, list[Curve], list[Curve]] | None:
    """Find the greatest length of single needles, and each seed's curves of hit and answer NLL there."""
    rows = seeds[0][0].by_length("single")
    if not rows:
        return None
    tags = rows[-1].tags
    hits, nlls = (curves_of_seeds(seeds, "needle", metric, tags) for metric in ("hit_frac", "answer_nll_nats"))
    return None if hits is None or nlls is None else (int(tags["length"]), hits, nlls)


def curves_of_seeds(seeds: Sequence[Orders], monitor: str, metric: str, tags: Mapping[str, Tag]) -> list[Curve] | None:
    """Return each seed's mean curve over its data orders; None if a run lacks it."""
    found = [[each.curve(monitor, metric, **tags) for each in orders] for orders in seeds]
    if any(curve is None for own in found for curve in own):
        return None
    return [over_orders([curve for curve in own if curve is not None]) for own in found]


def over(values: Sequence[float], draws: Sequence[Array]) -> Estimate:
    """Estimate the mean of one quantity over seeds, from each seed's value and its resamples over items."""
    draws_SR = np.stack([np.resize(each, min(map(len, draws))) for each in draws])
    weight_RS = seed_weights(len(values), draws_SR.shape[1])
    return Estimate.of(float(np.mean(values)), np.einsum("rs,sr->r", weight_RS, draws_SR))


def ceiling(hit: Curve) -> float:
    """Return the tokens at the first window where the hit is at the ceiling; infinite if it never is."""
    place = at_ceiling(hit.value_W)
    return float("inf") if place is None else float(hit.tokens_W[place])


def drawn(curve: Curve) -> Array:
    """Return the resamples [R, W] of a curve, or the curve itself as the only one."""
    return curve.value_W[None] if curve.draws_RW is None else curve.draws_RW
