"""A metric against tokens with resamples of the entire curve, and estimates with intervals from these resamples."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

from lccp_sim.analysis.areas import Areas, Rate, rate_of
from lccp_sim.analysis.metrics import DOWN, Metric, metric_of
from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.estimate import RESAMPLES, Array, head_resamples, item_resamples
from lccp_sim.records import OF_SENTENCE, Tag

LEVEL = 0.95


@dataclass(frozen=True)
class Curve:
    """One metric at W windows. `draws_RW`: resampled curves; None without samples and standard errors.

    `source`: where the draws come from, "paired items", "standard errors" (a parametric bootstrap with independent
    windows, which gives too wide intervals), or "none". `rate`: the learning rate if it is not constant; laws then use
    its areas.
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
    rate: Rate | None = None

    @property
    def areas(self) -> Areas:
        """The forward and annealing areas at its windows."""
        return self.areas_at(self.tokens_W)

    def areas_at(self, tokens: Array) -> Areas:
        """Compute the areas at token counts of this run."""
        return Areas.constant(tokens) if self.rate is None else self.rate.at(tokens)

    @property
    def rising(self) -> bool:
        """Whether more is better (or neither)."""
        return self.row.better != DOWN

    @property
    def row(self) -> Metric:
        """Its row of the catalogue."""
        return metric_of(self.monitor, self.metric)


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; no interval without draws.

    Intervals are bias-corrected percentiles of the resamples. The t95 of a noisy curve is biased late, and more so in a
    resample, so plain percentiles would lie too late (simulated coverage 80-85 % instead of 85-98 %). Source: Efron
    1981, Can. J. Stat. 9.
    """

    value: float
    low: float | None = None
    high: float | None = None
    draws: Array | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, value: float, draws_R: Array | None = None) -> "Estimate":
        """Build the estimate from its resamples; draws for which the quantity is not finite are left out."""
        finite_R = np.array([]) if draws_R is None else draws_R[np.isfinite(draws_R)]
        if not finite_R.size:
            return cls(float(value))
        below = (finite_R < value).mean() + (finite_R == value).mean() / 2
        bias = norm.ppf(np.clip(below, 1 / finite_R.size, 1 - 1 / finite_R.size))
        percents = 100 * norm.cdf(2 * bias + norm.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        low, high = np.percentile(finite_R, percents)
        return cls(float(value), float(low), float(high), draws_R)

    def above(self, bound: float) -> bool:
        """Whether the interval is entirely above `bound`; False without an interval."""
        return self.low is not None and self.low > bound

    def below(self, bound: float) -> bool:
        """Whether the interval is entirely below `bound`; False without an interval."""
        return self.high is not None and self.high < bound


@dataclass(frozen=True)
class Absent:
    """The reason why a quantity does not exist: a `code` that programs may compare, and a `detail` with the numbers.

    `of`: the metrics that cause it, if they are not all metrics of the quantity.
    """

    code: str
    detail: str = ""
    of: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ": ".join(filter(None, (" and ".join(self.of), self.code, self.detail)))

    def beside(self, name: str) -> "Absent":
        """Return the reason for a place that already names the metric `name`."""
        return replace(self, of=()) if self.of == (name,) else self


def to_json(node: Any) -> Any:
    """Convert results to JSON values: dataclasses to objects, estimates to value, low, high, reasons to sentences."""
    if isinstance(node, Absent):
        return str(node)
    if isinstance(node, Estimate):
        return {"value": node.value, "low": node.low, "high": node.high}
    if is_dataclass(node):
        return {each.name: to_json(getattr(node, each.name)) for each in fields(node)}
    if isinstance(node, Mapping):
        return {name: to_json(value) for name, value in node.items()}
    return [to_json(value) for value in node] if isinstance(node, list | tuple) else node


def curves(
    run: RunData,
    monitor: str,
    metrics: tuple[str, ...],
    tags: Mapping[str, Tag],
    seed: int = 0,
    of_items: Mapping[str, Tag] | None = None,
) -> dict[str, Curve]:
    """Return the curves of metrics with exactly these tags, by name, at the windows that all of them share.

    They are resampled together (the same items in each resample), so that a quantity of two metrics has a paired
    interval. Request only metrics of the same items together. `of_items`: the tags of their samples, if these differ
    from the records' tags.
    """
    rows = {metric: run.select(monitor, metric, **dict(tags)).set_index("step") for metric in metrics}
    rows = {metric: frame[~frame.index.duplicated(keep="last")] for metric, frame in rows.items() if len(frame)}
    steps = sorted(set.intersection(*(set(frame.index) for frame in rows.values()))) if rows else []
    if not steps:
        return {}
    by_text = monitor != "heads" or any(metric_of(monitor, name).group == "answer" for name in rows)
    rate = rate_of(run)
    resample = item_resamples if by_text else head_resamples  # texts or heads have these values
    paired = resample(run, monitor, list(rows), steps, tags if of_items is None else of_items, seed)
    result = {}
    for number, (metric, frame) in enumerate(rows.items()):
        frame = frame.loc[steps]
        value_W, stderr_W = frame.value.to_numpy(float), frame.stderr.to_numpy(float)
        draws_RW, source = None, "none"
        if paired is not None:
            mean_W, draws_RW = paired[metric]
            source = "paired items"
            if not np.allclose(mean_W, value_W, rtol=1e-5, atol=1e-6):
                name = " ".join([f"{monitor}/{metric}", *(f"{key}={value}" for key, value in tags.items())])
                run.warnings.append(f"{name}: the mean of the samples differs from the record's value")
        elif np.isfinite(stderr_W).all():
            noise_RW = np.random.default_rng([seed, number]).standard_normal((RESAMPLES, len(steps)))
            draws_RW, source = value_W + stderr_W * noise_RW, "standard errors"
        tokens_W, n = frame.tokens.to_numpy(float), int(frame.n.iloc[-1])
        result[metric] = Curve(monitor, metric, tags, tokens_W, value_W, stderr_W, draws_RW, source, n, rate)
    return result


class Named(NamedTuple):
    """The meaning of a name in a run: monitor, metric, the tags of its records, and those of its samples."""

    monitor: str
    metric: str
    tags: Mapping[str, Tag]
    of_items: Mapping[str, Tag]


def split_name(name: str) -> tuple[str, str]:
    """Split a name into the monitor and metric of records; a needle's prefix `sentence_` is removed."""
    monitor, _, metric = name.partition("/")
    return monitor, metric.removeprefix(OF_SENTENCE) if monitor == "needle" else metric


def resolve_name(run: RunData, name: str, tags: Mapping[str, Tag] | None = None) -> Named:
    """Resolve `monitor/metric` with these tags; without tags, its overall value.

    `needle/sentence_metric` refers to the full sentence. Default tags of a monitor (needles: the value's tokens, single
    needles) may be omitted. The probe is taken after its last fine-tuning step.
    """
    monitor, metric = split_name(name)
    asked = {**(run.sentence if f"{monitor}/{metric}" != name else {}), **(tags or {})}
    counted = run.counted(monitor)
    spans = {key: value for key, value in counted.items() if key == "span"}
    found = next((t for t in (asked, spans | asked, counted | asked) if len(run.select(monitor, metric, **t))), asked)
    if monitor != "probe" or not (last := probe_tags(run, metric, found)):
        return Named(monitor, metric, found, found)
    # Probe samples exist for each fine-tuning step; a record without the tag refers to the last step.
    of_items = last | found
    return Named(monitor, metric, found if len(run.select(monitor, metric, **found)) else of_items, of_items)


def probe_tags(run: RunData, metric: str, tags: Mapping[str, Tag] | None = None) -> dict[str, Tag]:
    """Return the tag of the probe's last fine-tuning step; {} if the run has no records by step with these tags."""
    rows = run.select("probe", metric, "sft_step", **(tags or {}))
    return {"sft_step": int(rows.sft_step.max())} if len(rows) else {}


def whole_curve(run: RunData, name: str) -> Curve | None:
    """Return the overall curve of `monitor/metric`; for the probe, after its last fine-tuning step."""
    monitor, metric, tags, of_items = resolve_name(run, name)
    return curves(run, monitor, (metric,), tags, of_items=of_items).get(metric)
