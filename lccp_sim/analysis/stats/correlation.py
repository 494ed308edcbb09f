"""How the monitors go with the fine-tuned probe, over the windows of one or several runs.

As arXiv 2604.02650 correlates them (`level`), and in three ways that take less of a shared trend along. Questionable:
the p values are those of the t-test, which takes windows for independent points. They stand here because the paper
prints them; between two series that both improve they are small whatever else the two have in common (docs/paper.md).
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.dependent import correlation_p, fisher_interval, holm
from lccp_sim.analysis.stats.pairs import KINDS, MIN_POINTS, Name, Panel, gather, monitors, target_name, targets
from lccp_sim.analysis.stats.within import Points, block, degrees, interval, pooled, varies


@dataclass(frozen=True)
class Coefficient:
    """A correlation. `p`: t-test, independent windows; `p_holm`: over the tasks of the probe, None for the whole probe.

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
    """A monitor with the probe (`target`, whole or one `task`) inside runs, pooled over runs.

    `kind`: `level`, the values; `differences`, slopes in log tokens between windows; `partial`, given log tokens;
    `after_hit`, the values from where `after_rule` says. `points` (windows, or slopes between them) of `runs` runs
    leave `df`. Coefficients are None where `reason` says why; Spearman's alone where ranks do not vary (those of a
    monotone series are those of its windows, so nothing is left given tokens). `interval`: what was resampled.
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
    reason: str | None

    def row(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def correlations(runs: Sequence[RunData | Panel], seed: int = 0) -> list[Correlation]:
    """Each monitor that some run has, with each target, whole and by task, in each of the four kinds; [] without probe.

    Bootstrap intervals for the whole probe only. Source: arXiv 2604.02650 Tables 3, 4, 6, 7 for `level`; the other
    kinds and the resampling are ours.
    """
    panels = gather(runs, seed)
    rows = [
        _correlation(panels, target, task, monitor, kind, seed)
        for target, task in targets(panels)
        for monitor in monitors(panels)
        for kind in KINDS
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
    """The p values adjusted by Holm among those of the same key; None where the key or the p value is None."""
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
    """For each pair of places in `names`, the points of each run that has two to spare, where all `names` exist.

    `items`: with their resamples over items.
    """
    found = [each for panel in panels if (each := panel.aligned(kind, *names, items=items)) is not None]
    made = [
        [Points(each.values[x], each.values[y], each.draws[x], each.draws[y], each.trend_W) for each in found]
        for x, y in pairs
    ]
    return [[each for each in pair if each.spare >= 2] for pair in made]


def why_not(
    made: Sequence[Points], panels: Sequence[Panel], kind: str, names: Sequence[Name], x: int = 0, y: int = 1
) -> str | None:
    """Why `made`, the points of names[x] against names[y], give no coefficient; None where they do."""
    if not any(panel.shared(*names) for panel in panels):
        return f"no window has {', '.join(names)}"
    if kind == "after_hit" and all(panel.after is None for panel in panels):
        return "; ".join(sorted({panel.rule for panel in panels}))
    count = sum(len(each.x_W) for each in made)
    if count < MIN_POINTS or degrees(made) < 1:
        most = max((len(each.values[0]) for panel in panels if (each := panel.aligned(kind, *names))), default=0)
        return f"not enough points: {count or most}, at least {MIN_POINTS} needed"
    return _constant(made, kind, (names[x], names[y]), False)


def _constant(made: Sequence[Points], kind: str, names: Sequence[Name], ranked: bool) -> str | None:
    still = [name for name, moves in zip(names, varies(made, ranked), strict=True) if not moves]
    given = {"partial": " given log tokens", "differences": " in slope", "after_hit": " after the hit"}.get(kind, "")
    return f"{'ranks of ' * ranked}{' and '.join(still)}: constant{given}" if still else None


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
    value, df = pooled(made, ranked), degrees(made)
    drawn = interval(made, ranked, seed) if bootstrap else None
    low, high = (drawn.low, drawn.high) if drawn else (None, None)
    return Coefficient(value, correlation_p(value, df), fisher_interval(value, df, ranked), low, high)


def _said(made: Sequence[Points], panels: Sequence[Panel], names: Sequence[Name]) -> str:
    """What the bootstrap resampled, in words."""
    runs = [f"runs ({len(made)})"] if len(made) > 1 else []
    blocks = "-".join(map(str, sorted({block(len(each.x_W)) for each in made})))
    curves = [panel.curves[name] for panel in panels if panel.shared(*names) for name in names]
    sources = sorted({curve.source for curve in curves} - {"none"}) or ["no items"]
    return ", ".join([*runs, f"windows in blocks of {blocks}", *sources])
