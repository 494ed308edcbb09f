"""One number of a metric, at a window or between two windows, with its 95 % interval.

Means of many items are resampled, see `curves`. Shares of 0/1 items have special intervals, because a bootstrap of
items that all agree is a point: 40 hits of 40 do not show a hit rate of 1. Metrics are requested by name; the error for
an unknown name suggests the nearest one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest, norm

from lccp_sim.analysis.metrics import metric_of
from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.seeds import over
from lccp_sim.analysis.stats.curve import LEVEL, Curve, Estimate, curves, resolve_name, split_name
from lccp_sim.analysis.stats.estimate import RESAMPLES, Array, item_values
from lccp_sim.errors import ConfigError, nearest, refuse
from lccp_sim.records import OF_SENTENCE, SENTENCE, Tag

Of = Literal["value", "change", "factor"]
Z = float(norm.ppf((1 + LEVEL) / 2))
MOST_UNDEFINED = 0.05  # largest undefined share of the resamples of a factor


@dataclass(frozen=True)
class ItemCurve:
    """A curve with the data of its intervals: `item_IW`, its items at every window, None without samples."""

    curve: Curve
    item_IW: Array | None

    @property
    def paired(self) -> bool:
        """Whether windows are compared item by item."""
        return self.curve.source == "paired items"

    @property
    def items(self) -> int | None:
        """The number of items averaged; None for summaries of heads, which are not means over items."""
        if self.item_IW is not None:
            return len(self.item_IW)
        of_heads = self.curve.monitor == "heads" and metric_of("heads", self.curve.metric).group != "answer"
        return None if of_heads else self.curve.n

    def estimate(self, at: int, of: Of = "value") -> Estimate:
        """Estimate the value at the window with index `at`, its change since the first window, or its ratio to it.

        There is no interval if the records have neither samples nor standard errors, or if nothing varies.
        """
        value_W, draws_RW = self.curve.value_W, self.curve.draws_RW
        first, last = float(value_W[0]), float(value_W[at])
        binary = self.item_IW is not None and bool(np.isin(self.item_IW[:, [0, at]], (0, 1)).all())
        if of == "factor":
            if first <= 0:
                return Estimate(float("nan"))
            if draws_RW is None or (draws_RW[:, 0] <= 0).mean() > MOST_UNDEFINED:
                return Estimate(last / first)
            first_R = np.where(draws_RW[:, 0] > 0, draws_RW[:, 0], np.nan)
            return _varied(Estimate.of(last / first, draws_RW[:, at] / first_R))
        if of == "change":
            draws_R = None if draws_RW is None else draws_RW[:, at] - draws_RW[:, 0]
            if binary and self.item_IW is not None:
                low, high = change_of_shares(self.item_IW[:, 0], self.item_IW[:, at])
                return Estimate(last - first, low, high, draws_R)
            return _varied(Estimate.of(last - first, draws_R))
        draws_R = None if draws_RW is None else draws_RW[:, at]
        counted = self._share(at)
        if counted:
            low, high = share(*counted)
            return Estimate(last, low, high, draws_R)
        return _varied(Estimate.of(last, draws_R))

    def _share(self, at: int) -> tuple[int, int] | None:
        """Return hits and number of 0/1 items behind the value; None if the value is not such a share.

        Without samples the record decides: its standard error is that of zeros and ones.
        """
        if self.item_IW is not None:
            hit_I = self.item_IW[:, at]
            return (int(hit_I.sum()), len(hit_I)) if np.isin(hit_I, (0, 1)).all() else None
        value, stderr, n = self.curve.value_W[at], self.curve.stderr_W[at], self.curve.n
        alike = n > 1 and np.isclose(stderr**2 * (n - 1), value * (1 - value), rtol=1e-6, atol=1e-12)
        return (round(value * n), n) if self.curve.metric.endswith("_frac") and alike else None


def item_curve(run: RunData, name: str, tags: Mapping[str, Tag] | None = None) -> ItemCurve | None:
    """Return the curve of `monitor/metric` with these tags; without tags, its overall value. None if there is none.

    `resolve_name` says which tags may be omitted.
    """
    monitor, metric, tags, of_items = resolve_name(run, name, tags)
    curve = curves(run, monitor, (metric,), tags, of_items=of_items).get(metric)
    if curve is None:
        return None
    steps = sorted(set(run.select(monitor, metric, **tags).step))
    found = item_values(run, monitor, [metric], steps, of_items) if curve.source == "paired items" else None
    return ItemCurve(curve, None if found is None else found[0][metric])


def share(hits: int, items: int) -> tuple[float, float]:
    """Compute the exact 95 % interval of `hits` of `items`. Source: Clopper and Pearson 1934 (Biometrika 26)."""
    low, high = binomtest(hits, items).proportion_ci(LEVEL, method="exact")
    return float(low), float(high)


def change_of_shares(before_I: Array, after_I: Array) -> tuple[float, float]:
    """Compute the 95 % interval of the change of a share, from the same 0/1 items before and after.

    Half an item is added to each of the four cells of the paired table, so that items that all agree also have an
    interval. Source: Agresti and Min 2005 (Stat. Med. 24), adjusted Wald.
    """
    gained, lost = float((after_I > before_I).sum()) + 0.5, float((after_I < before_I).sum()) + 0.5
    n = len(before_I) + 2
    change = (gained - lost) / n
    half = Z * np.sqrt((gained + lost) / n - change**2) / np.sqrt(n)
    return max(-1.0, change - half), min(1.0, change + half)


def mean_over_seeds(estimates: Sequence[Sequence[Estimate]]) -> Estimate:
    """Average over seeds, each with the estimates of its runs, with an interval over seeds and over items within them.

    Runs of one seed, which differ in data order, count by their mean. A run without resamples is used as it is. If
    neither seeds nor items vary, the widest interval of a run is used.
    """
    values = [float(np.mean([each.value for each in own])) for own in estimates]
    draws = [
        np.mean([np.full(RESAMPLES, each.value) if each.draws is None else each.draws for each in own], axis=0)
        for own in estimates
    ]
    mean = _varied(over(values, draws))
    known = [each for own in estimates for each in own if each.low is not None and each.high is not None]
    if mean.low is None and known:
        widest = max(known, key=lambda each: (each.high or 0.0) - (each.low or 0.0))
        return replace(mean, low=widest.low, high=widest.high)
    return mean


def parse_tokens(text: str | int, where: str) -> int:
    """Parse a count of tokens, a number or text such as 940, 31k, 1.25M, 200B. Raises ConfigError for other text."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", str(text).replace("_", ""))
    count = round(float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[found[2]]) if found else 0
    refuse(count < 1 and text not in (0, "0"), where, text, "must be a count of tokens, such as 1500000 or 1.5M")
    return count


def _varied(estimate: Estimate) -> Estimate:
    """Remove an interval that is a point: resamples that all agree say nothing."""
    if estimate.low is None or estimate.high is None or estimate.high - estimate.low > 1e-12 * abs(estimate.value):
        return estimate
    return Estimate(estimate.value, draws=estimate.draws)


def names_of(run: RunData) -> list[str]:
    """List the metrics with an overall value, as `monitor/metric`; for the full sentence, `needle/sentence_metric`."""
    pairs = run.records[["monitor", "metric", "names"]].drop_duplicates()
    whole = [f"{row.monitor}/{row.metric}" for row in pairs[pairs.names == ""].itertuples()]
    spanned = run.records[(run.records.monitor == "needle") & (run.records.names == "span")]
    for metric, span in spanned[["metric", "span"]].drop_duplicates().itertuples(index=False) if len(spanned) else ():
        whole.append(f"needle/{OF_SENTENCE if span == SENTENCE else ''}{metric}")
    return whole


def refuse_missing(runs: Sequence[RunData], name: str, tags: Mapping[str, Tag], where: str) -> None:
    """Raise ConfigError if no run has `name` with `tags`; suggest the nearest metric, or else the nearest tags.

    `where`: the place of both in the file that names them.
    """
    pairs = (run.records[["monitor", "metric"]].drop_duplicates() for run in runs)
    known = {f"{monitor}/{metric}" for each in pairs for monitor, metric in each.itertuples(index=False)}
    known |= {each for run in runs for each in names_of(run)}
    refuse(name not in known, f"{where}.metric", name, f"no record of it{nearest(name, sorted(known))}")
    raise ConfigError(f"{where}.tags={dict(tags)!r}: {_nearest_tags(runs, *split_name(name), tags)}")


def _nearest_tags(runs: Sequence[RunData], monitor: str, metric: str, tags: Mapping[str, Tag]) -> str:
    """Return the end of a message, which suggests the nearest existing tags."""
    there = set()
    for run in runs:
        rows = run.records[(run.records.monitor == monitor) & (run.records.metric == metric)]
        for names, group in rows.groupby(rows.names.astype(str)):
            columns = [name for name in str(names).split(",") if name]
            for values in group[columns].drop_duplicates().itertuples(index=False):
                there.add(tuple((name, _tag(value)) for name, value in zip(columns, values, strict=True)))
    wanted = runs[0].counted(monitor) | dict(tags) if tags else {}

    def far(each: tuple[tuple[str, Tag], ...]) -> tuple[int, int, float, str]:
        other = [(value, wanted[name]) for name, value in each if name in wanted and value != wanted[name]]
        numbers = [(x, y) for x, y in other if not isinstance(x, str) and not isinstance(y, str)]
        return len(dict(each).keys() ^ wanted), len(other), sum(abs(x - y) for x, y in numbers), str(each)

    best = min(there, key=far)
    written = "{" + ", ".join(f"{name}: {value}" for name, value in best) + "}"
    return f"no record of {monitor}/{metric} has these tags; did you mean {written}?"


def _tag(value: Any) -> Tag:
    """Convert a tag to its YAML form: integers in a column with gaps are stored as floats."""
    return int(value) if isinstance(value, (float, np.floating)) and float(value).is_integer() else value
