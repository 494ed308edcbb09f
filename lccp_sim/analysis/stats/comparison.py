"""Which of two monitors goes better with the probe, tested as two correlations that share the probe.

The paper orders its monitors by |r| (arXiv 2604.02650 Table 4) without a test. Questionable: every monitor is compared
with the hit alone, since that is the claim at stake; all pairs would be many tests of little power.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.correlation import over_tasks, points, why_not
from lccp_sim.analysis.stats.dependent import williams
from lccp_sim.analysis.stats.pairs import HIT, KINDS, Name, Panel, gather, monitors, target_name, targets
from lccp_sim.analysis.stats.within import degrees, pooled


@dataclass(frozen=True)
class Comparison:
    """Williams's test: does `monitor` go with the probe more than `against`, the hit, does at the same points?

    Pearson's coefficients, each series turned so that up is better: `r`, `r_against`, and `r_between` the two. `n` is
    what the test takes for independent points, df + 2 of the pooled correlation. `p_holm`: over tasks; None for the
    whole probe. All are None where `reason` says why.
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
    reason: str | None

    def row(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def comparisons(runs: Sequence[RunData | Panel], seed: int = 0) -> list[Comparison]:
    """Williams's test of each monitor against the hit, by target, task and kind; [] where no run has hits or a probe.

    Source: Williams 1959; Steiger 1980 (see `dependent.williams`).
    """
    panels = gather(runs, seed)
    others = [name for name in monitors(panels) if name != HIT]
    rows = [
        _comparison(panels, target, task, monitor, kind)
        for target, task in targets(panels)
        for monitor in (others if HIT in monitors(panels) else ())
        for kind in KINDS
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
        r = [up[x] * up[y] * pooled(each, False) for each, (x, y) in zip(made, pairs, strict=True)]
        test = williams(r[0], r[1], r[2], n)
        reason = None if test else f"the test needs n of at least 4 (here {n}) and two different series"
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
