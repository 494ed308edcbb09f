"""One number of a metric, at a window or between two windows, with its 95 % interval.

A judgement may rest on few items, for which bootstrap intervals are too short. So means of items, their changes and
their factors have intervals of Student's t. The variance comes from the scatter within each grid cell, with
Satterthwaite's degrees of freedom. Shares of 0/1 items have special intervals, because items that all agree vary
nowhere: 40 hits of 40 do not show a hit rate of 1. Metrics are requested by name; the error for an unknown name
suggests the nearest one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, norm
from scipy.stats import t as student

from lccp_sim.analysis.metrics import metric_of
from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.seeds import over
from lccp_sim.analysis.stats.curve import LEVEL, Curve, Estimate, curves, resolve_name, split_name
from lccp_sim.analysis.stats.estimate import RESAMPLES, Array, item_values
from lccp_sim.errors import ConfigError, nearest, refuse
from lccp_sim.records import OF_SENTENCE, SENTENCE, Tag

Of = Literal["value", "change", "factor"]
Z = float(norm.ppf((1 + LEVEL) / 2))
FEWEST_ITEMS = 6  # of five, all differ in the same direction by chance once in 16 times, more often than 5 %


@dataclass(frozen=True)
class Scatter:
    """How the means of two windows vary: covariances [H, 2, 2], one per cell, and their degrees of freedom [H].

    Cells are independent, and their covariances add up to that of the means.
    """

    cov_H22: Array
    df_H: Array

    @classmethod
    def of_items(cls, item_I2: Array, stratum_I: npt.NDArray[Any]) -> "Scatter":
        """The scatter of the mean of items within strata; if a stratum has one item, all strata are merged."""
        _, stratum_I, sizes_H = np.unique(stratum_I, return_inverse=True, return_counts=True)
        if sizes_H.min() < 2:
            stratum_I, sizes_H = np.zeros_like(stratum_I), np.array([len(stratum_I)])
        if len(item_I2) < 2:
            return cls(np.zeros((1, 2, 2)), np.ones(1))
        mean_H2, cov_H22 = np.zeros((len(sizes_H), 2)), np.zeros((len(sizes_H), 2, 2))
        np.add.at(mean_H2, stratum_I, item_I2 / sizes_H[stratum_I, None])
        off_I2 = item_I2 - mean_H2[stratum_I]
        np.add.at(cov_H22, stratum_I, off_I2[:, :, None] * off_I2[:, None, :])
        share_H = sizes_H / len(item_I2)
        return cls(cov_H22 * (share_H**2 / (sizes_H * (sizes_H - 1)))[:, None, None], (sizes_H - 1).astype(np.float64))

    @classmethod
    def of_errors(cls, stderr_2: Array, n: int) -> "Scatter":
        """The scatter of two independent means with standard errors, each over n items."""
        cov_H22 = np.zeros((2, 2, 2))
        cov_H22[[0, 1], [0, 1], [0, 1]] = stderr_2**2
        return cls(cov_H22, np.array([n - 1.0, n - 1.0]))

    def quantile(self, contrast_2: Array) -> float:
        """The quantile of Student's t for a sum of the two means with these weights.

        Degrees of freedom: Satterthwaite 1946 (Biometrics Bull. 2), eq. 17; infinite if nothing varies.
        """
        var_H = np.einsum("i,hij,j->h", contrast_2, self.cov_H22, contrast_2)
        total = float(var_H.sum())
        df = total**2 / float((var_H**2 / self.df_H).sum()) if total > 0 else np.inf
        return float(student.ppf((1 + LEVEL) / 2, df))

    def interval(self, mean_2: Array, contrast_2: Array) -> tuple[float, float]:
        """The interval of a sum of the two means with these weights."""
        error = np.sqrt(max(0.0, float(contrast_2 @ self.cov_H22.sum(0) @ contrast_2)))
        middle, half = float(contrast_2 @ mean_2), self.quantile(contrast_2) * error
        return middle - half, middle + half

    def ratio(self, mean_2: Array) -> tuple[float, float] | None:
        """The interval of second mean / first mean; None if it is unbounded, because the first may be 0.

        It contains every r for which `second - r first` cannot be distinguished from 0. Source: Fieller 1954 (J. R.
        Stat. Soc. B 16).
        """
        first, second = mean_2
        cov_22 = self.cov_H22.sum(0) * self.quantile(np.array([-second / first, 1.0])) ** 2
        a, b, c = first**2 - cov_22[0, 0], first * second - cov_22[0, 1], second**2 - cov_22[1, 1]
        if a <= 0:
            return None
        root = np.sqrt(max(0.0, b**2 - a * c))
        return float((b - root) / a), float((b + root) / a)


@dataclass(frozen=True)
class ItemCurve:
    """A curve with the data of its intervals.

    `item_IW`: its items at every window, and `stratum_I`: their cells of the grid; None without samples. `texts`: the
    number of independent texts behind a value.
    """

    curve: Curve
    item_IW: Array | None
    stratum_I: npt.NDArray[Any] | None = None
    texts: int = 0

    @property
    def paired(self) -> bool:
        """Whether windows are compared item by item."""
        return self.curve.source == "paired items"

    @property
    def items(self) -> int | None:
        """The number of items averaged; None for summaries of heads, which are not means over items."""
        return None if self._of_heads else self.texts

    @property
    def few(self) -> bool:
        """Whether an interval exists that rests on too few texts to judge by."""
        return self.curve.draws_RW is not None and self.texts < FEWEST_ITEMS

    @property
    def _of_heads(self) -> bool:
        of_heads = self.curve.monitor == "heads" and metric_of("heads", self.curve.metric).group != "answer"
        return of_heads and self.item_IW is None

    def estimate(self, at: int, of: Of = "value") -> Estimate:
        """Estimate the value at the window with index `at`, its change since the first window, or its ratio to it.

        There is no interval if the records have neither samples nor standard errors, if nothing varies, or for a ratio
        whose first value may be 0.
        """
        first, last = (float(self.curve.value_W[i]) for i in (0, at))
        if of == "factor" and first <= 0:
            return Estimate(float("nan"))
        value = {"value": last, "change": last - first, "factor": last / first if first else 0.0}[of]
        draws_RW = self.curve.draws_RW
        if draws_RW is None:
            return Estimate(value)
        draws_R = draws_RW[:, at]
        if of == "change":
            draws_R = draws_R - draws_RW[:, 0]
        if of == "factor":
            draws_R = draws_R / np.where(draws_RW[:, 0] > 0, draws_RW[:, 0], np.nan)
        ends = self._ends(at, of) if self.item_IW is not None or not self.paired else self._widened(value, draws_R)
        low, high = ends or (None, None)
        return _varied(Estimate(value, low, high, draws_R))

    def _ends(self, at: int, of: Of) -> tuple[float, float] | None:
        """The ends of an interval from items, or else from standard errors."""
        mean_2 = self.curve.value_W[[0, at]]
        if of == "value" and (counted := self._share(at)):
            return share(*counted)
        if of == "change" and (before := self._share(0)) and (after := self._share(at)):
            if self.item_IW is not None:
                return change_of_shares(self.item_IW[:, 0], self.item_IW[:, at])
            return difference_of_shares(before, after)
        if self.item_IW is not None and self.stratum_I is not None:
            scatter = Scatter.of_items(self.item_IW[:, [0, at]], self.stratum_I)
        else:
            scatter = Scatter.of_errors(self.curve.stderr_W[[0, at]], max(self.texts, 2))
        if of == "factor":
            return scatter.ratio(mean_2)
        return scatter.interval(mean_2, np.array([0.0 if of == "value" else -1.0, 1.0]))

    def _widened(self, value: float, draws_R: Array) -> tuple[float, float] | None:
        """The ends from resamples of a summary of heads, which have a normal's tails, with the tails of Student's t."""
        found = Estimate.of(value, draws_R)
        if found.low is None or found.high is None:
            return None
        wider = float(student.ppf((1 + LEVEL) / 2, max(1, self.texts - 1))) / Z
        low, high = value - wider * (value - found.low), value + wider * (found.high - value)
        return min(low, found.low), max(high, found.high)

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
    if curve.source != "paired items":
        return ItemCurve(curve, None, None, curve.n)
    found = item_values(run, monitor, [metric], steps, of_items)
    if found is None:  # a summary of heads, from the texts on which heads are scored
        return ItemCurve(curve, None, None, run.items(monitor, "copy_hard_frac").item_id.nunique())
    values, stratum_I = found
    return ItemCurve(curve, values[metric], stratum_I, len(stratum_I))


def share(hits: int, items: int) -> tuple[float, float]:
    """Compute the exact 95 % interval of `hits` of `items`. Source: Clopper and Pearson 1934 (Biometrika 26)."""
    low, high = binomtest(hits, items).proportion_ci(LEVEL, method="exact")
    return float(low), float(high)


def change_of_shares(before_I: Array, after_I: Array) -> tuple[float, float]:
    """Compute the 95 % interval of the change of a share, from the same 0/1 items before and after.

    Half an item is added to each of the four cells of the paired table, so that items that all agree also have an
    interval. Source: Agresti and Min 2005 (Stat. Med. 24), adjusted Wald, here with Student's t: with the normal's
    quantile, up to 7 % of equal shares of 10 items are found different.
    """
    gained, lost = float((after_I > before_I).sum()) + 0.5, float((after_I < before_I).sum()) + 0.5
    n = len(before_I) + 2
    change = (gained - lost) / n
    wide = float(student.ppf((1 + LEVEL) / 2, max(1, len(before_I) - 1)))
    half = wide * np.sqrt((gained + lost) / n - change**2) / np.sqrt(n)
    return max(-1.0, change - half), min(1.0, change + half)


def difference_of_shares(before: tuple[int, int], after: tuple[int, int]) -> tuple[float, float]:
    """Compute the 95 % interval of a difference of two independent shares, each (hits, items).

    Source: Newcombe 1998 (Stat. Med. 17), method 10, from the intervals of Wilson 1927 (J. Am. Stat. Assoc. 22).
    """
    (p, (low_p, high_p)), (q, (low_q, high_q)) = (
        (hits / items, binomtest(hits, items).proportion_ci(LEVEL, method="wilson")) for hits, items in (before, after)
    )
    below, above = np.hypot(q - low_q, high_p - p), np.hypot(high_q - q, p - low_p)
    return float(q - p - below), float(q - p + above)


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


def parse_tokens(text: str | float, where: str) -> int:
    """Parse a count of tokens, a number or text such as 940, 31k, 1.25M, 200B. Raises ConfigError for other text."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", str(text).replace("_", ""))
    size = float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[found[2]] if found else 0.0
    count = round(size) if found and (found[2] or size.is_integer()) else 0
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
    if not best:
        return f"no record of {monitor}/{metric} has tags; leave them out"
    written = "{" + ", ".join(f"{name}: {value}" for name, value in best) + "}"
    return f"no record of {monitor}/{metric} has these tags; did you mean {written}?"


def _tag(value: Any) -> Tag:
    """Convert a tag to its YAML form: integers in a column with gaps are stored as floats."""
    return int(value) if isinstance(value, (float, np.floating)) and float(value).is_integer() else value
