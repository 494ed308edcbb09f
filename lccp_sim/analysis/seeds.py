"""Curves over seeds: the mean of runs that differ in their seed alone, with intervals that hold what seeds differ in.

Resampled are seeds, and within them items, as a study of so many seeds would have had others of both. What a reader
would question: seeds are not drawn with replacement, which of two or three would give far too short intervals; their
deviations get random weights with the tails of Student's t, which takes seeds to be normal.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.run import differing
from lccp_sim.analysis.stats.curve import Curve
from lccp_sim.analysis.stats.estimate import RESAMPLES, Array, seed_weights


def arms(found: Sequence[Findings]) -> list[list[Findings]]:
    """The runs in groups that differ in their seed alone (and in where things lie), in the order of their firsts."""
    keys = differing([each.run for each in found]).drop(columns="seed", errors="ignore")
    groups: dict[tuple[str, ...], list[Findings]] = defaultdict(list)
    for each, (_, settings) in zip(found, keys.iterrows(), strict=True):
        groups[tuple(map(str, settings))].append(each)
    return list(groups.values())


def pooled_over_seeds(found: Sequence[Findings]) -> Findings:
    """The mean curves of whole monitors over seeds, with laws, t95 and verdicts; `run` is that of the first seed.

    None of needles where the seeds are judged by different spans of the answer.
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
    """Tokens [W] of the windows that all curves have, and the values [S, W] there."""
    tokens_W = np.array(sorted(set.intersection(*(set(curve.tokens_W) for curve in curves))))
    return tokens_W, np.stack([curve.value_W[np.isin(curve.tokens_W, tokens_W)] for curve in curves])


def over_seeds(curves: Sequence[Curve], seed: int = 0) -> Curve | None:
    """The mean curve [W] of one metric over seeds, at the windows that all share, and its resamples [R, W].

    None for fewer than two curves or shared windows. A seed without resamples is taken as it is. `stderr_W` is that of
    the resamples, `n` the items of a seed.
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
    weight_RS = seed_weights(len(curves), draws_SRW.shape[1], seed + 1)
    draws_RW = np.einsum("rs,srw->rw", weight_RS, draws_SRW)
    return replace(
        curves[0], tokens_W=tokens_W, value_W=value_SW.mean(0), stderr_W=draws_RW.std(0, ddof=1), draws_RW=draws_RW,
        source=f"{len(curves)} seeds, {curves[0].source}", n=min(curve.n for curve in curves),
    )  # fmt: skip
