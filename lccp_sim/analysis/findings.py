"""Everything that is computed from a run, once: how each metric moved, what the answer NLL gains after the hit's t95.

Words, tables and figures only read this, so that a number cannot differ between them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lccp_sim.analysis.curves import Curve, curves
from lccp_sim.analysis.saturation import Lag, Progress, lag, progress
from lccp_sim.analysis.table import RunData
from lccp_sim.records import Tag

Key = tuple[str, str, tuple[tuple[str, Tag], ...]]
ANSWER, CONTROL = ("hit_frac", "answer_nll_nats"), ("control_nll_nats", "gain_nats")  # the same items within each
PERPLEXITY = ("nll_nats", "short_nll_nats", "long_short_gain_nats", "longppl_nats")
HEADS = ("retrieval_heads_count", "initial_heads_mean_frac")
COPYING = ("first_copy_nll_nats", "second_copy_nll_nats", "second_copy_hit_frac")
PROBE = ("exact_match_frac", "canonical_pass_at_1_frac", "canonical_pass_at_3_frac", "answer_nll_nats")


@dataclass
class Findings:
    """Curves, Progress, Lag by (monitor, metric, tags). `steps_sft`: the fine-tuning steps that the probe recorded."""

    run: RunData
    curves: dict[Key, Curve] = field(default_factory=dict)
    rows: dict[Key, Progress] = field(default_factory=dict)
    lags: dict[Key, Lag | None] = field(default_factory=dict)
    steps_sft: list[int] = field(default_factory=list)

    def curve(self, monitor: str, metric: str, **tags: Tag) -> Curve | None:
        """The curve of a metric, or None where the run has none."""
        return self.curves.get(key(monitor, metric, tags))

    def row(self, monitor: str, metric: str, **tags: Tag) -> Progress | None:
        """How a metric moved, or None where the run does not have it."""
        return self.rows.get(key(monitor, metric, tags))

    def lag(self, **tags: Tag) -> Lag | None:
        """What the answer NLL gains after the hit's t95, for needles with these tags."""
        return self.lags.get(key("needle", "answer_nll_nats", tags))

    def by_length(self, variant: str, span: str) -> list[Progress]:
        """How the hit moved at each length of needle, the shortest first."""
        wanted = {"variant": variant, "span": span}.items()
        rows = [row for row in self.rows.values() if row.metric == "hit_frac" and wanted <= row.tags.items()]
        return sorted(rows, key=lambda row: row.tags["length"])

    def probe(self, metric: str) -> Progress | None:
        """The probe's metric after its last fine-tuning step."""
        return self.row("probe", metric, sft_step=self.steps_sft[-1]) if self.steps_sft else None

    def add(self, monitor: str, metrics: tuple[str, ...], **tags: Tag) -> None:
        """None, after the metrics with these tags were resampled together and entered."""
        for metric, curve in curves(self.run, monitor, metrics, tags).items():
            self.curves[key(monitor, metric, tags)] = curve
            self.rows[key(monitor, metric, tags)] = progress(curve)


def key(monitor: str, metric: str, tags: Mapping[str, Tag]) -> Key:
    """What names a curve: the monitor, the metric and the sorted tags."""
    return monitor, metric, tuple(sorted(tags.items()))


def examine(run: RunData) -> Findings:
    """All curves of a run, each metric whole and in its parts; what the run did not record is simply absent."""
    found = Findings(run)
    needle_tags: list[dict[str, Tag]] = [{}]
    for variant, length, span in _values(run, "needle", "answer_nll_nats", "variant", "length", "span"):
        needle_tags.append({"variant": str(variant), "length": int(length), "span": str(span)})
    for tags in needle_tags:
        found.add("needle", ANSWER, **tags)
        found.add("needle", CONTROL, **tags)
        hit, nll = found.curve("needle", "hit_frac", **tags), found.curve("needle", "answer_nll_nats", **tags)
        if hit and nll:
            found.lags[key("needle", "answer_nll_nats", tags)] = lag(hit, nll)
    for metric in PERPLEXITY:
        found.add("perplexity", (metric,))
        for (source,) in _values(run, "perplexity", metric, "source"):
            found.add("perplexity", (metric,), source=str(source))
    found.add("heads", HEADS)
    found.add("heads", ("induction_frac",))
    for metric in COPYING:
        found.add("induction", (metric,))
    found.steps_sft = sorted({int(step) for metric in PROBE for (step,) in _values(run, "probe", metric, "sft_step")})
    for sft_step in found.steps_sft:
        for metric in PROBE:
            found.add("probe", (metric,), sft_step=sft_step)
    return found


def _values(run: RunData, monitor: str, metric: str, *names: str) -> list[tuple[Tag, ...]]:
    """The combinations of tag values that a metric was recorded with, sorted."""
    rows = run.select(monitor, metric, *names)
    if rows.empty:
        return []
    return sorted(rows[list(names)].drop_duplicates().itertuples(index=False, name=None))
