"""Two runs, or two checkpoints of a run, metric by metric: which differ, and how many items would resolve the rest.

Both become one series of two windows, so that a difference is taken item by item, exactly like a change within a run.
Design note: metrics of different items are listed as left out and never compared as if unpaired, because another set of
lengths or texts changes a mean by more than a model does.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import pandas as pd
from scipy.stats import norm

from lccp_sim.analysis.format import interval, number, tokens
from lccp_sim.analysis.judge.intervals import FEWEST_ITEMS, Z, item_curve, names_of
from lccp_sim.analysis.judge.items import unlike_items
from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.curve import LEVEL, Estimate, split_name, to_json
from lccp_sim.errors import ConfigError

POWER = 0.8
UNLIKE = {"train", "stopping", "precondition"}  # they describe the mixture, the rule and the base, not the model
OF_TEXTS = ("answer_tokens_count", "key_tokens_count", "initial_heads_mean_frac")  # texts, or the run's own heads
SAME = 1e-9
WORTH_NAMING = 1000  # largest multiple of the items that is reported as needed


@dataclass(frozen=True)
class Difference:
    """A metric in A and B and `difference`, B minus A, with its 95 % interval; `items` is None for summaries of heads.

    `told`: whether the interval excludes 0. `few`: whether there are too few items to say. `paired`: whether it is
    taken item by item; else it comes from standard errors and is too wide. `detectable`: the least difference that
    these items detect with 80 % power. `needed`: the number of items that would detect this difference.
    """

    metric: str
    a: float
    b: float
    a_tokens: int
    b_tokens: int
    difference: Estimate
    items: int | None
    paired: bool
    few: bool
    told: bool
    detectable: float | None
    needed: int | None

    @property
    def answer(self) -> str:
        """The result in a few words."""
        if self.difference.low is None:
            return "equal" if abs(self.difference.value) <= SAME else "no interval"
        if self.few:
            return "too few items"
        return ("B higher" if self.difference.value > 0 else "B lower") if self.told else "undecided"

    def row(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return to_json(self) | {"answer": self.answer}


@dataclass(frozen=True)
class Compared:
    """Two runs compared: their differences, and the metrics that were left out, with reasons."""

    a: RunData
    b: RunData
    rows: list[Difference]
    left_out: dict[str, str]

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "a": {"run": self.a.name, "path": str(self.a.path)},
            "b": {"run": self.b.name, "path": str(self.b.path)},
            "method": {"interval_level": LEVEL, "power": POWER, "fewest_items": FEWEST_ITEMS},
            "rows": [row.row() for row in self.rows],
            "left_out": self.left_out,
            "warnings": [f"{run.name}: {line}" for run in (self.a, self.b) for line in dict.fromkeys(run.warnings)],
        }

    def table(self) -> list[list[str]]:
        """Return one row per metric for display: metric, A, B, B - A, answer, items, items needed."""
        rows = []
        for row in self.rows:
            needed = "" if row.needed is None else f"{row.needed:,}"
            if row.needed is not None and row.items and row.needed > WORTH_NAMING * row.items:
                needed = f"over {WORTH_NAMING * row.items:,}"
            answer = row.answer if row.paired or row.difference.low is None else f"{row.answer} (unpaired)"
            items = "" if row.items is None else f"{row.items:,}"
            rows.append([row.metric, number(row.a), number(row.b), interval(row.difference), answer, items, needed])
        return rows

    def head(self) -> list[str]:
        """Describe A and B, and the monitors whose last window is earlier than the last of the run."""
        lines = []
        for side, run in (("a", self.a), ("b", self.b)):
            counts = {row.metric: getattr(row, f"{side}_tokens") for row in self.rows}
            last = max(counts.values())
            lines.append(f"{side.upper()}: {run.name} at {tokens(last)} tokens")
            early = dict.fromkeys((name.partition("/")[0], count) for name, count in counts.items() if count < last)
            lines += [f"   {monitor}: last measured at {tokens(count)} tokens" for monitor, count in early]
        return lines

    def foot(self) -> list[str]:
        """Describe the metrics that were left out, with reasons, and count those that differ."""
        grouped = Counter((reason, name.partition("/")[0]) for name, reason in self.left_out.items())
        lines = [
            f"left out: {n} metrics of {monitor}, of different items: {why}" for (why, monitor), n in grouped.items()
        ]
        if any(not row.paired and row.difference.low is not None for row in self.rows):
            lines.append("unpaired: no samples, so the interval comes from two standard errors and is too wide")
        if any(row.few for row in self.rows):
            lines.append(f"too few items: fewer than {FEWEST_ITEMS}, so a difference is shown but not judged")
        told = sum(row.told for row in self.rows)
        return [
            *lines,
            f"{told} of {len(self.rows)} metrics differ; between equal models, expect about one in 20",
            f"items needed: to detect this difference with {POWER:.0%} power",
        ]


def compare_runs(a: RunData, b: RunData, at: Sequence[int] = ()) -> Compared:
    """Compare the overall values that both have, at their last windows or at the last windows up to `at` tokens.

    `at`: one count for both, or one each. Raises ConfigError if a count is outside a run, if both are the same window,
    or if nothing can be compared.
    """
    limits = [at[0], at[-1]] if at else [a.tokens, b.tokens]
    for run, limit in zip((a, b), limits, strict=True):
        first = int(run.records.tokens.min())
        if not first <= limit <= run.tokens:
            raise ConfigError(f"--tokens {limit}: {run.name} has records from {first} to {run.tokens} tokens")
    if a.path.resolve() == b.path.resolve() and limits[0] == limits[1]:
        raise ConfigError(f"{a.path}: given twice at the same tokens; give two runs, or two windows: --tokens A B")
    rows, left_out = [], {}
    theirs = names_of(b)
    for name in names_of(a):
        monitor, metric = split_name(name)
        if name not in theirs or monitor in UNLIKE or metric in OF_TEXTS:
            continue
        if reason := unlike_items(a, b, monitor, metric):
            left_out[name] = reason
        elif found := _difference(a, b, name, limits):
            rows.append(found)
    if not rows:
        reason = next((f"{name}: {reason}" for name, reason in left_out.items()), "they share no metric")
        raise ConfigError(
            f"{a.name} and {b.name} cannot be compared: {reason}; measure both alike (lccp measure A B key=value)"
        )
    return Compared(a, b, rows, left_out)


def _difference(a: RunData, b: RunData, name: str, limits: Sequence[int]) -> Difference | None:
    """Compute one row from the two windows as one series; None if a run has no window of the metric by then."""
    parts = [_window(run, *split_name(name), limit) for run, limit in zip((a, b), limits, strict=True)]
    if any(part is None for part in parts):
        return None
    windows = [part for part in parts if part is not None]
    records, samples = (
        pd.concat([frame.assign(step=place) for place, frame in enumerate(frames)], ignore_index=True)
        for frames in zip(*windows, strict=True)
    )
    pair = replace(a, records=records, samples=samples, warnings=[])
    found = item_curve(pair, name)
    if found is None or len(found.curve.value_W) < 2:
        return None
    curve, difference = found.curve, found.estimate(1, "change")
    items = found.items
    told = not found.few and bool(difference.above(SAME) or difference.below(-SAME))
    detectable = needed = None
    if difference.low is not None and difference.high is not None:
        spread = (difference.high - difference.low) / 2 / Z
        detectable = (Z + float(norm.ppf(POWER))) * spread
        if items and not told and abs(difference.value) > SAME:
            needed = max(FEWEST_ITEMS, ceil(items * max(1.0, (detectable / abs(difference.value)) ** 2)))
    (first, last), (before, after) = curve.value_W, curve.tokens_W
    return Difference(
        metric=name,
        a=float(first),
        b=float(last),
        a_tokens=int(before),
        b_tokens=int(after),
        difference=difference,
        items=items,
        paired=found.paired,
        few=found.few,
        told=told,
        detectable=detectable,
        needed=needed,
    )


def _window(run: RunData, monitor: str, metric: str, limit: int) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Return records and samples of a monitor at the last window with the metric, up to `limit` tokens.

    Needles include the heads scored on them: resampling heads means resampling their texts.
    """
    rows = run.records[(run.records.monitor == monitor) & (run.records.tokens <= limit)]
    steps = rows[rows.metric == metric].step
    if steps.empty:
        return None
    with_needles = [monitor, "needle"] if monitor == "heads" else [monitor]
    samples = run.samples[run.samples.monitor.isin(with_needles) & (run.samples.step == steps.max())]
    return rows[rows.step == steps.max()], samples
