"""Correlations of the monitors with the fine-tuned probe, over the windows of one or several runs.

They are computed as in arXiv 2604.02650 (`level`), and in three ways that depend less on a shared trend. Design note:
the p values are those of the t-test, which treats windows as independent points. They are here because the paper prints
them. Between two series that both improve they are small whatever else the two share (docs/paper.md).

The tests take coefficients, not data, so that printed tables can be checked as well as runs. They assume independent
points, which the windows of one training run are not. Where this matters, use the trend-free coefficients and the
bootstrap.

Whether one of two monitors correlates better with the probe is a test of two correlations that share the probe; the
paper ranks its monitors by |r| (Table 4) without a test. Every monitor is compared only with the hit, because the claim
is about the hit; testing all pairs would have little power.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, t

from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.curve import LEVEL, Absent
from lccp_sim.analysis.stats.pairs import (
    HIT,
    MIN_POINTS,
    PAIR_KINDS,
    Name,
    Panel,
    Points,
    block,
    degrees,
    gather,
    monitors,
    pooled_correlation,
    pooled_interval,
    target_name,
    targets,
    varies,
)

RANKS = 1.06  # variance of Fisher's z of a rank correlation, in units of that of Pearson's


def correlation_p(r: float, df: int) -> float:
    """Compute the two-sided p value of a correlation; `df` is n - 2 minus the number of variables partialled out.

    0 if |r| is 1. Raises ValueError below one degree of freedom. Source: Student 1908 (Biometrika 6); arXiv 2604.02650
    Tables 6 and 7 have these p values with n = 6.
    """
    if df < 1:
        raise ValueError(f"correlation_p: df = {df}, at least 1 is needed; give more points")
    if abs(r) >= 1:
        return 0.0
    return float(2 * t.sf(abs(r) * math.sqrt(df / (1 - r * r)), df))


def fisher_interval(r: float, df: int, ranks: bool = False) -> tuple[float, float] | None:
    """Compute the interval of a correlation with `df` degrees of freedom (n - 2 for two variables).

    None for df < 2 or |r| = 1. `ranks`: r is Spearman's, whose z has a 1.06 times larger variance. Source: Fisher 1921
    (Metron 1); Fieller, Hartley and Pearson 1957 (Biometrika 44) for ranks.
    """
    if df < 2 or abs(r) >= 1:
        return None
    half = norm.ppf((1 + LEVEL) / 2) * math.sqrt((RANKS if ranks else 1.0) / (df - 1))
    low, high = np.tanh([math.atanh(r) - half, math.atanh(r) + half])
    return float(low), float(high)


def williams(r_a: float, r_b: float, r_ab: float, n: int) -> tuple[float, float] | None:
    """Test r_a = r_b for two series a and b that correlate with the same target.

    Returns Williams's t and its two-sided p (df = n - 3). `r_ab` is the correlation of a with b. Choose signs so that
    more of each means more of the target. None if n < 4, if the three coefficients are inconsistent, or if a and b are
    the same series. Source: Williams 1959 (J. R. Stat. Soc. B 21); recommended for small n by Steiger 1980 (Psychol.
    Bull. 87, eq. 7).
    """
    determinant = 1 - r_a**2 - r_b**2 - r_ab**2 + 2 * r_a * r_b * r_ab
    if n < 4 or determinant < -1e-12 or 1 - abs(r_ab) < 1e-12:
        return None
    mean = (r_a + r_b) / 2
    scale = 2 * (n - 1) / (n - 3) * max(determinant, 0.0) + mean**2 * (1 - r_ab) ** 3
    if scale <= 0:
        return None
    value = (r_a - r_b) * math.sqrt((n - 1) * (1 + r_ab) / scale)
    return float(value), float(2 * t.sf(abs(value), n - 3))


def holm(p_I: npt.ArrayLike) -> list[float]:
    """Adjust p values for their number, in their order; nan stays nan and does not count.

    Source: Holm 1979 (Scand. J. Stat. 6). A test compares it with statsmodels, whose multipletests is not used because
    it collects garbage at each call, which took most of the time of `correlations`.
    """
    p_I = np.asarray(p_I, float)
    order_I = np.argsort(p_I, kind="stable")[: np.isfinite(p_I).sum()]
    adjusted_I = np.full(p_I.shape, np.nan)
    steps_I = p_I[order_I] * np.arange(len(order_I), 0, -1)
    adjusted_I[order_I] = np.minimum(np.maximum.accumulate(steps_I), 1)
    return adjusted_I.tolist()


@dataclass(frozen=True)
class Coefficient:
    """A correlation coefficient with tests and intervals.

    `p`: t-test with independent windows. `p_holm`: adjusted over the tasks of the probe, None for the overall probe.
    `fisher`: interval of Fisher's z (independent windows; None below 2 df). `low`, `high`: bootstrap, see
    Correlation.interval; None for single tasks.
    """

    value: float
    p: float
    fisher: tuple[float, float] | None
    low: float | None = None
    high: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Correlation:
    """The correlation of a monitor with the probe (`target`, overall or one `task`) within runs, pooled over runs.

    `kind`: `level`, values; `differences`, slopes in log tokens between windows; `partial`, values given log tokens;
    `after_hit`, values from the point that `after_rule` names. `points` (windows, or slopes between them) of `runs`
    runs leave `df` degrees of freedom. Coefficients are None if `reason` is given. Only Spearman's is None if ranks do
    not vary: the ranks of a monotone series equal those of tokens, so nothing is left given tokens. `interval`: what
    was resampled.
    """

    target: str
    task: str | None
    monitor: Name
    kind: str
    points: int
    runs: int
    df: int
    pearson: Coefficient | None
    spearman: Coefficient | None
    interval: str
    after_rule: str | None
    reason: Absent | None


def correlations(runs: Sequence[RunData | Panel], seed: int = 0) -> list[Correlation]:
    """Correlate each monitor with each target, overall and by task, in each of the four kinds; [] without a probe.

    Bootstrap intervals are for the overall probe only. Source: arXiv 2604.02650 Tables 3, 4, 6, 7 for `level`; the
    other kinds and the resampling are our own.
    """
    panels = gather(runs, seed)
    rows = [
        _correlation(panels, target, task, monitor, kind, seed)
        for target, task in targets(panels)
        for monitor in monitors(panels)
        for kind in PAIR_KINDS
    ]
    keys = [(row.target, row.monitor, row.kind) if row.task else None for row in rows]
    for name in ("pearson", "spearman"):
        made = [getattr(row, name) for row in rows]
        adjusted = over_tasks(keys, [each.p if each else None for each in made])
        rows = [
            row if each is None else replace(row, **{name: replace(each, p_holm=p)})
            for row, each, p in zip(rows, made, adjusted, strict=True)
        ]
    return rows


def over_tasks(keys: Sequence[Hashable], p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p values by Holm among those of the same key; None if the key or the p value is None."""
    families = defaultdict(list)
    for place, (key, p) in enumerate(zip(keys, p_values, strict=True)):
        if key is not None and p is not None:
            families[key].append((place, p))
    adjusted: list[float | None] = [None] * len(keys)
    for family in families.values():
        for (place, _), p in zip(family, holm([p for _, p in family]), strict=True):
            adjusted[place] = p
    return adjusted


def points(
    panels: Sequence[Panel], kind: str, names: Sequence[Name], pairs: Sequence[tuple[int, int]], items: bool = False
) -> list[list[Points]]:
    """Return, for each pair of indices into `names`, the points of each run with two to spare, where all `names` exist.

    `items`: with resamples over items.
    """
    found = [each for panel in panels if (each := panel.aligned(kind, *names, items=items)) is not None]
    made = [
        [Points(each.values[x], each.values[y], each.draws[x], each.draws[y], each.trend_W) for each in found]
        for x, y in pairs
    ]
    return [[each for each in pair if each.spare >= 2] for pair in made]


def why_not(
    made: Sequence[Points], panels: Sequence[Panel], kind: str, names: Sequence[Name], x: int = 0, y: int = 1
) -> Absent | None:
    """Return why `made`, the points of names[x] against names[y], give no coefficient; None if they do."""
    if not any(panel.shared(*names) for panel in panels):
        return Absent("no window has all", ", ".join(names))
    if kind == "after_hit" and all(panel.after is None for panel in panels):
        return Absent("no hit to start after", "; ".join(sorted({panel.rule for panel in panels})))
    count = sum(len(each.x_W) for each in made)
    if count < MIN_POINTS or degrees(made) < 1:
        most = max((len(each.values[0]) for panel in panels if (each := panel.aligned(kind, *names))), default=0)
        return Absent("not enough points", f"{count or most}, at least {MIN_POINTS} are needed")
    return _constant(made, kind, (names[x], names[y]), False)


def _constant(made: Sequence[Points], kind: str, names: Sequence[Name], ranked: bool) -> Absent | None:
    still = [name for name, moves in zip(names, varies(made, ranked), strict=True) if not moves]
    given = {"partial": " given log tokens", "differences": " in slope", "after_hit": " after the hit"}.get(kind, "")
    return Absent(f"constant{given}", of=tuple("ranks of " * ranked + name for name in still)) if still else None


def _correlation(
    panels: list[Panel], target: str, task: str | None, monitor: Name, kind: str, seed: int
) -> Correlation:
    names = (monitor, target_name(target, task))
    (made,) = points(panels, kind, names, [(0, 1)], items=task is None)
    reason = why_not(made, panels, kind, names)
    pearson = spearman = None
    if reason is None:
        pearson = _coefficient(made, False, task is None, seed)
        reason = _constant(made, kind, names, True)
        spearman = None if reason else _coefficient(made, True, task is None, seed)
    rules = sorted({panel.rule for panel in panels if panel.after is not None})
    return Correlation(
        target=target,
        task=task,
        monitor=monitor,
        kind=kind,
        points=sum(len(each.x_W) for each in made),
        runs=len(made),
        df=max(degrees(made), 0),
        pearson=pearson,
        spearman=spearman,
        interval=_said(made, panels, names) if pearson and task is None else "none",
        after_rule="; ".join(rules) if kind == "after_hit" and rules else None,
        reason=reason,
    )


def _coefficient(made: list[Points], ranked: bool, bootstrap: bool, seed: int) -> Coefficient:
    value, df = pooled_correlation(made, ranked), degrees(made)
    drawn = pooled_interval(made, ranked, seed) if bootstrap else None
    low, high = (drawn.low, drawn.high) if drawn else (None, None)
    return Coefficient(value, correlation_p(value, df), fisher_interval(value, df, ranked), low, high)


def _said(made: Sequence[Points], panels: Sequence[Panel], names: Sequence[Name]) -> str:
    """Describe what the bootstrap resampled."""
    runs = [f"runs ({len(made)})"] if len(made) > 1 else []
    blocks = "-".join(map(str, sorted({block(len(each.x_W)) for each in made})))
    curves = [panel.curves[name] for panel in panels if panel.shared(*names) for name in names]
    sources = sorted({curve.source for curve in curves} - {"none"}) or ["no items"]
    return ", ".join([*runs, f"windows in blocks of {blocks}", *sources])


@dataclass(frozen=True)
class Comparison:
    """Williams's test of whether `monitor` correlates more with the probe than `against` (the hit) at the same points.

    Pearson's coefficients, with signs so that up is better: `r`, `r_against`, and `r_between` the two. `n`: the number
    of independent points that the test assumes, df + 2 of the pooled correlation. `p_holm`: adjusted over tasks; None
    for the overall probe. All are None if `reason` is given.
    """

    target: str
    task: str | None
    monitor: Name
    against: Name
    kind: str
    points: int
    runs: int
    n: int
    r: float | None
    r_against: float | None
    r_between: float | None
    t: float | None
    p: float | None
    p_holm: float | None
    reason: Absent | None


def comparisons(runs: Sequence[RunData | Panel]) -> list[Comparison]:
    """Run Williams's test of each monitor against the hit, by target, task and kind; [] if no run has hits or a probe.

    Source: Williams 1959; Steiger 1980 (see `williams`).
    """
    panels = gather(runs)
    others = [name for name in monitors(panels) if name != HIT]
    rows = [
        _comparison(panels, target, task, monitor, kind)
        for target, task in targets(panels)
        for monitor in (others if HIT in monitors(panels) else ())
        for kind in PAIR_KINDS
    ]
    keys = [(row.target, row.monitor, row.kind) if row.task else None for row in rows]
    adjusted = over_tasks(keys, [row.p for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]


def _comparison(panels: list[Panel], target: str, task: str | None, monitor: Name, kind: str) -> Comparison:
    names = (monitor, HIT, target_name(target, task))
    pairs = ((0, 2), (1, 2), (0, 1))
    made = points(panels, kind, names, pairs)
    reasons = [why_not(each, panels, kind, names, x, y) for each, (x, y) in zip(made, pairs, strict=True)]
    reason = next((each for each in reasons if each), None)
    n, r, test = max(degrees(made[0]), 0) + 2, [], None
    if reason is None:
        up = [_up(panels, name) for name in names]
        r = [up[x] * up[y] * pooled_correlation(each, False) for each, (x, y) in zip(made, pairs, strict=True)]
        test = williams(r[0], r[1], r[2], n)
        reason = None if test else Absent("no test", f"it needs n of at least 4 (here {n}) and two different series")
    return Comparison(
        target=target,
        task=task,
        monitor=monitor,
        against=HIT,
        kind=kind,
        points=sum(len(each.x_W) for each in made[0]),
        runs=len(made[0]),
        n=n,
        r=r[0] if r else None,
        r_against=r[1] if r else None,
        r_between=r[2] if r else None,
        t=test[0] if test else None,
        p=test[1] if test else None,
        p_holm=None,
        reason=reason,
    )


def _up(panels: Sequence[Panel], name: Name) -> float:
    return 1.0 if next(panel.curves[name].rising for panel in panels if name in panel.curves) else -1.0
