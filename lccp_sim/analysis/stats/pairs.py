"""The monitors and the probe of a run beside each other, at the windows that they share.

The probe is measured at fewer windows than the rest, so every comparison first asks which windows both sides have.
Questionable: "after the hit" starts at the first window where the mean hit is at least 0.95, one window being enough,
and in a run that never gets there at the hit's t95, which is no ceiling.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.curve import Curve, curves
from lccp_sim.analysis.stats.estimate import Array
from lccp_sim.analysis.stats.saturation import progress
from lccp_sim.records import Tag

CEILING = 0.95
HIT, NLL = "needle/hit_frac", "needle/answer_nll_nats"
MONITORS = {  # what is asked for together shares its items
    "needle": ("hit_frac", "answer_nll_nats", "answer_ppl"),
    "heads": ("retrieval_heads_count", "initial_heads_mean_frac"),
    "perplexity": ("nll_nats", "short_nll_nats", "longppl_nats"),
    "induction": ("second_copy_nll_nats",),
}
TARGETS = ("exact_match_frac", "answer_nll_nats")
KINDS = ("level", "differences", "partial", "after_hit")
MIN_POINTS = 4
Name = str  # "monitor/metric", "probe/metric" or "probe/metric/task"


@dataclass(frozen=True)
class Shared:
    """Curves at their common windows, by name; `kept_W`: which of a curve's own windows these are."""

    tokens_W: Array
    value_W: dict[Name, Array]
    kept_W: dict[Name, npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Aligned:
    """Values [W] and resamples over items [R or 1, W] of curves, in the order asked for; the trend to partial out."""

    values: list[Array]
    draws: list[Array]
    trend_W: Array | None


@dataclass(frozen=True)
class Panel:
    """One run's curves by name. `first` is its first window after step 0, in tokens.

    `after` is where "after the hit" starts, in tokens, and `rule` says by which rule, or why there is no such place.
    """

    path: Path
    run: str
    curves: dict[Name, Curve] = field(repr=False)
    first: float
    after: float | None
    rule: str

    def shared(self, *names: Name) -> Shared | None:
        """The curves `names` at the windows that all of them have; None where one is missing or none is shared."""
        if not set(names) <= set(self.curves):
            return None
        chosen = [self.curves[name] for name in names]
        tokens_W = reduce(np.intersect1d, [curve.tokens_W for curve in chosen])
        if not len(tokens_W):
            return None
        kept = [np.isin(curve.tokens_W, tokens_W) for curve in chosen]
        value_W = {name: curve.value_W[at_W] for name, curve, at_W in zip(names, chosen, kept, strict=True)}
        return Shared(tokens_W, value_W, dict(zip(names, kept, strict=True)))

    def aligned(self, kind: str, *names: Name, items: bool = False) -> Aligned | None:
        """The curves `names` as `kind` wants them; None where they share no window or the hit's place is not known.

        `level`: values. `differences`: slopes between windows in log tokens, so that a straight line in log tokens has
        none, however the windows lie. `partial`: values, with log tokens as their trend. `after_hit`: values from
        `after` on. `items`: with resamples over items, where there are any. Raises ValueError for another kind.
        """
        if kind not in KINDS:
            raise ValueError(f"aligned: kind {kind!r} is none of {', '.join(KINDS)}")
        shared = self.shared(*names)
        if shared is None or (kind == "after_hit" and self.after is None):
            return None
        log_W = self.log_tokens(shared.tokens_W)
        values = [shared.value_W[name] for name in names]
        draws = [value[None] for value in values]
        if items:
            found = {name: self.curves[name].draws_RW for name in names}
            draws = [
                d if (r := found[n]) is None else r[:, shared.kept_W[n]] for n, d in zip(names, draws, strict=True)
            ]
        if kind == "differences":
            values, draws = ([np.diff(value) / np.diff(log_W) for value in each] for each in (values, draws))
        if kind == "after_hit" and self.after is not None:
            later_W = shared.tokens_W >= self.after
            values, draws = ([value[..., later_W] for value in each] for each in (values, draws))
            log_W = log_W[later_W]
        return Aligned(values, draws, log_W if kind == "partial" else None)

    def log_tokens(self, tokens_W: Array) -> Array:
        """ln(tokens + first window after step 0), as t95 has it."""
        return np.log(tokens_W + self.first)


def gather(runs: Sequence[RunData | Panel], seed: int = 0, by_task: bool = True) -> list[Panel]:
    """One panel a run; a run that is given twice is used once, since it is one observation. `seed`: of the resamples.

    The probe is taken after its last fine-tuning step; `by_task`: its tasks, too. Monitors draw their resamples apart
    from each other and from the probe, whose items are others. A panel stands for itself, so that several analyses can
    share what `gather` made.
    """
    distinct = {run.path.resolve() if isinstance(run, RunData) else run.path: run for run in runs}
    return [run if isinstance(run, Panel) else _panel(run, seed, by_task) for run in distinct.values()]


def probe_tags(run: RunData, metric: str) -> dict[str, Tag]:
    """The tags of the probe after its last fine-tuning step; {} where the run has no records by step."""
    rows = run.select("probe", metric, "sft_step")
    return {"sft_step": int(rows.sft_step.max())} if len(rows) else {}


def monitors(panels: Sequence[Panel]) -> list[Name]:
    """The monitors' metrics that some run has, in the order of MONITORS."""
    names = [f"{monitor}/{metric}" for monitor, metrics in MONITORS.items() for metric in metrics]
    return [name for name in names if any(name in panel.curves for panel in panels)]


def targets(panels: Sequence[Panel]) -> list[tuple[str, str | None]]:
    """(metric, task) of the probe that some run has; task None is the whole probe."""
    return [
        (metric, task)
        for metric in TARGETS
        if any(f"probe/{metric}" in panel.curves for panel in panels)
        for task in (None, *tasks(panels, metric))
    ]


def target_name(metric: str, task: str | None) -> Name:
    """The name of a target's curve."""
    return f"probe/{metric}" + (f"/{task}" if task else "")


def tasks(panels: Sequence[Panel], metric: str) -> list[str]:
    """The probe's tasks that some run has `metric` of, sorted."""
    start = f"probe/{metric}/"
    return sorted({name.removeprefix(start) for panel in panels for name in panel.curves if name.startswith(start)})


def _panel(run: RunData, seed: int, by_task: bool) -> Panel:
    found: dict[Name, Curve] = {}
    for number, (monitor, metrics) in enumerate(MONITORS.items()):
        groups = [metrics] if monitor == "heads" else [(metric,) for metric in metrics]
        for group in groups:
            for metric, curve in curves(run, monitor, group, {}, seed=seed + number).items():
                found[f"{monitor}/{metric}"] = curve
    for metric in TARGETS:
        tags = probe_tags(run, metric)
        for curve in curves(run, "probe", (metric,), tags, seed=seed + len(MONITORS)).values():
            found[f"probe/{metric}"] = curve
        if tags and by_task:
            rows = run.select("probe", metric, "task", **tags)
            for task in sorted(set(rows.task)) if len(rows) else ():
                only = curves(run, "probe", (metric,), tags | {"task": str(task)}, seed=seed + len(MONITORS))
                found[f"probe/{metric}/{task}"] = only[metric]
    later = [float(t) for curve in found.values() for t in curve.tokens_W if t > 0]
    return Panel(run.path.resolve(), run.name, found, min(later, default=1.0), *_after(found.get(HIT)))


def _after(hit: Curve | None) -> tuple[float | None, str]:
    if hit is None:
        return None, "no needle records"
    reached = hit.tokens_W[hit.value_W >= CEILING]
    if len(reached):
        return float(reached[0]), f"hit >= {CEILING}"
    row = progress(hit)
    if row.t95 is None:
        return None, f"the hit never reaches {CEILING} and has no t95 ({row.reason})"
    return row.t95.value, f"t95 of the hit, which never reaches {CEILING}"
