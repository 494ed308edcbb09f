"""A metric by its name: its curve with intervals, the names that there are, and the nearest one to a wrong name."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lccp_sim.analysis.judge.intervals import ItemCurve
from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.curve import curves, resolve, split_name
from lccp_sim.analysis.stats.estimate import item_values
from lccp_sim.errors import ConfigError, nearest, refuse
from lccp_sim.records import OF_SENTENCE, SENTENCE, Tag


def names_of(run: RunData) -> list[str]:
    """The metrics with an overall value, as `monitor/metric`; of a needle's full sentence, `needle/sentence_metric`."""
    pairs = run.records[["monitor", "metric", "names"]].drop_duplicates()
    whole = [f"{row.monitor}/{row.metric}" for row in pairs[pairs.names == ""].itertuples()]
    spanned = run.records[(run.records.monitor == "needle") & (run.records.names == "span")]
    for metric, span in spanned[["metric", "span"]].drop_duplicates().itertuples(index=False) if len(spanned) else ():
        whole.append(f"needle/{OF_SENTENCE if span == SENTENCE else ''}{metric}")
    return whole


def item_curve(run: RunData, name: str, tags: Mapping[str, Tag] | None = None) -> ItemCurve | None:
    """The curve of `monitor/metric` with these tags; without any, its overall value. None where there is none.

    `resolve` says what may be left out.
    """
    monitor, metric, tags, of_items = resolve(run, name, tags)
    curve = curves(run, monitor, (metric,), tags, of_items=of_items).get(metric)
    if curve is None:
        return None
    steps = sorted(set(run.select(monitor, metric, **tags).step))
    found = item_values(run, monitor, [metric], steps, of_items) if curve.source == "paired items" else None
    return ItemCurve(curve, None if found is None else found[0][metric])


def refuse_missing(runs: Sequence[RunData], name: str, tags: Mapping[str, Tag], where: str) -> None:
    """Raise ConfigError where no run has `name` with `tags`: the nearest metric that one has, or else the nearest tags.

    `where`: the place of the two in the file that names them.
    """
    pairs = (run.records[["monitor", "metric"]].drop_duplicates() for run in runs)
    known = {f"{monitor}/{metric}" for each in pairs for monitor, metric in each.itertuples(index=False)}
    known |= {each for run in runs for each in names_of(run)}
    refuse(name not in known, f"{where}.metric", name, f"no record of it{nearest(name, sorted(known))}")
    raise ConfigError(f"{where}.tags={dict(tags)!r}: {_nearest_tags(runs, *split_name(name), tags)}")


def _nearest_tags(runs: Sequence[RunData], monitor: str, metric: str, tags: Mapping[str, Tag]) -> str:
    """The nearest tags that are there: the end of a message."""
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
    """A tag as YAML writes it: whole numbers of a column with gaps are floats there."""
    return int(value) if isinstance(value, (float, np.floating)) and float(value).is_integer() else value
