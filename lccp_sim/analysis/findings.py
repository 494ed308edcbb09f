"""Everything computed from a run, once: the change of each metric, its law and verdict, and forecasts.

Sentences, tables and figures only read it, so a number cannot differ between them. Design note: parts of a metric (a
length, a source, an arm) get intervals and verdicts from a quarter of the resamples, because there are many of them.
Overall metrics use all resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lccp_sim.analysis.metrics import SIGNED, groups, shown
from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.correlation import Comparison, Correlation, comparisons, correlations
from lccp_sim.analysis.stats.cpt_law import Turning, turning
from lccp_sim.analysis.stats.curve import Curve, curves
from lccp_sim.analysis.stats.deceptive import Deceptive, deceptive
from lccp_sim.analysis.stats.dynamics import SETS, Dynamics, dynamics
from lccp_sim.analysis.stats.equivalence import Equivalence, probe_stays
from lccp_sim.analysis.stats.forecast import Forecast, forecasts
from lccp_sim.analysis.stats.laws import LAW_WINDOWS, Fit, laws_of
from lccp_sim.analysis.stats.pairs import gather
from lccp_sim.analysis.stats.rule import EPS, Decision, decide, kneedle
from lccp_sim.analysis.stats.saturation import Lag, Progress, lag, progress
from lccp_sim.records import Tag

Key = tuple[str, str, tuple[tuple[str, Tag], ...]]
_WHOLE = ("needle", "perplexity", "heads", "induction", "intervention")  # in order of computation
_ANSWER, _HEADS = ("hit_frac", "answer_nll_nats"), ("retrieval_heads_count", "initial_heads_mean_frac")
PROBE = tuple(each.name for each in shown("page", "probe") if each.scale != SIGNED)
PROBE_GAINS = tuple(each.name for each in shown("page", "probe") if each.scale == SIGNED)
PART_DRAWS = 250


@dataclass
class Findings:
    """Curves, Progress, laws, Decision and Lag by (monitor, metric, tags); forecasts; heads by set of texts.

    Overall metrics have no tags; for the probe these are its values after the last fine-tuning step. `steps_sft`: the
    fine-tuning steps that the probe recorded. `stays`: whether the probe has stopped moving. `knees`: the knee
    according to Kneedle, shown as a caution. `turning`: when the short-context loss returns to its value at step 0.
    """

    run: RunData
    curves: dict[Key, Curve] = field(default_factory=dict)
    rows: dict[Key, Progress] = field(default_factory=dict)
    fits: dict[Key, list[Fit]] = field(default_factory=dict)
    decisions: dict[Key, Decision] = field(default_factory=dict)
    knees: dict[Key, int | None] = field(default_factory=dict)
    lags: dict[Key, Lag | None] = field(default_factory=dict)
    forecasts: list[Forecast] = field(default_factory=list)
    heads: dict[str, Dynamics] = field(default_factory=dict)
    correlations: list[Correlation] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    deceptive: Deceptive | None = None
    steps_sft: list[int] = field(default_factory=list)
    stays: Equivalence | None = None
    turning: Turning | None = None
    eps: float = EPS

    def curve(self, monitor: str, metric: str, **tags: Tag) -> Curve | None:
        """Return the curve of a metric, or None if the run has none."""
        return self.curves.get(key(monitor, metric, tags))

    def row(self, monitor: str, metric: str, **tags: Tag) -> Progress | None:
        """Return how a metric changed, or None if the run does not have it."""
        return self.rows.get(key(monitor, metric, tags))

    def decision(self, monitor: str, metric: str, **tags: Tag) -> Decision | None:
        """Return the rule's decision about a metric, or None if the run does not have it."""
        return self.decisions.get(key(monitor, metric, tags))

    def lag(self, **tags: Tag) -> Lag | None:
        """Return the gain of the answer NLL after the hit's t95, for needles with these tags."""
        return self.lags.get(key("needle", "answer_nll_nats", tags))

    def whole(self) -> list[Progress]:
        """Return the overall metrics in the order of the report; for needles also those of the full answer sentence."""
        return [row for row in self.rows.values() if row.tags in ({}, self.run.sentence)]

    def parts(self) -> list[Progress]:
        """Return all other metrics: those of a length, a source or an arm."""
        return [row for row in self.rows.values() if row.tags not in ({}, self.run.sentence)]

    def by_length(self, variant: str) -> list[Progress]:
        """Return how the hit of the headline span changed at each needle length, shortest first."""
        wanted = {"variant": variant, "span": self.run.span()}.items()
        rows = [row for row in self.rows.values() if row.metric == "hit_frac" and wanted <= row.tags.items()]
        return sorted(rows, key=lambda row: row.tags["length"])

    def add(
        self, monitor: str, metrics: tuple[str, ...], tags: Mapping[str, Tag], of: Mapping[str, Tag] | None = None
    ) -> None:
        """Resample the metrics with these tags together, and enter their curves.

        `of`: tags that select records and samples in addition, but are left out of the entered key.
        """
        for curve in curves(self.run, monitor, metrics, tags if of is None else of).values():
            self.enter(replace(curve, tags=tags))

    def enter(self, curve: Curve) -> None:
        """Compute and enter everything about a curve."""
        if curve.tags and curve.draws_RW is not None:
            curve = replace(curve, draws_RW=curve.draws_RW[:PART_DRAWS])
        name = key(curve.monitor, curve.metric, curve.tags)
        self.curves[name], self.rows[name] = curve, progress(curve)
        self.knees[name] = kneedle(curve)
        self.fits[name] = laws_of(curve) if len(curve.tokens_W) >= LAW_WINDOWS else []
        self.decisions[name] = decide(curve, self.eps)


def key(monitor: str, metric: str, tags: Mapping[str, Tag]) -> Key:
    """Return the key of a curve: the monitor, the metric and the sorted tags."""
    return monitor, metric, tuple(sorted(tags.items()))


def examine(run: RunData) -> Findings:
    """Compute all curves of a run, each metric overall and in its parts. Unrecorded metrics are absent."""
    found = Findings(run)
    for monitor in _WHOLE:
        for metrics in groups("page", monitor):
            found.add(monitor, metrics, {})
    _probe(found)
    lengths: list[dict[str, Tag]] = [
        {"variant": str(variant), "length": int(length), "span": str(span)}
        for variant, length, span in tag_values(run, "needle", "answer_nll_nats", "variant", "length", "span")
    ]
    for tags in lengths:
        for metrics in groups("page", "needle"):
            found.add("needle", metrics, tags)
    sentence = [run.sentence] if run.sentence else []
    for tags in sentence:
        found.add("needle", _ANSWER, tags)
        found.add("needle", ("answer_ppl",), tags)
    whole: dict[str, Tag] = {}
    for tags in (whole, *sentence, *lengths):
        hit, nll = found.curve("needle", "hit_frac", **tags), found.curve("needle", "answer_nll_nats", **tags)
        if hit and nll:
            found.lags[key("needle", "answer_nll_nats", tags)] = lag(hit, nll)
    for (metric,) in groups("page", "perplexity"):
        for (source,) in tag_values(run, "perplexity", metric, "source"):
            found.add("perplexity", (metric,), {"source": source})
    for metrics in (_HEADS, _ANSWER):
        found.add("heads", metrics, {"samples": "longbio"})
    for (arm,) in tag_values(run, "intervention", "hit_frac", "arm"):
        found.add("intervention", _ANSWER, {"arm": arm})
    found.heads = {texts: moved for texts in SETS if (moved := dynamics(run, texts))}
    planned = int(run.setting("run.tokens", run.tokens)) if not run.finished else run.tokens
    for each in shown("forecast"):
        if curve := found.curve(each.monitor, each.name):
            found.forecasts += forecasts(curve, planned)
    panels = gather([run])
    found.correlations, found.comparisons, found.deceptive = correlations(panels), comparisons(panels), deceptive(run)
    found.stays = probe_stays(run)
    short, long = (found.curve("perplexity", metric) for metric in ("short_nll_nats", "nll_nats"))
    found.turning = turning(short, long) if short and long else None
    return found


def examine_signals(run: RunData) -> Findings:
    """Compute only what the first screen needs, as `examine` does, in a tenth of the time."""
    found = Findings(run)
    for monitor in _WHOLE:
        for metrics in groups("signal", monitor):
            found.add(monitor, metrics, {})
    for (metric,) in groups("signal", "perplexity"):
        for (source,) in tag_values(run, "perplexity", metric, "source"):
            found.add("perplexity", (metric,), {"source": source})
    found.steps_sft = _tuning_steps(run)
    for metrics in groups("signal", "probe") if found.steps_sft else ():
        found.add("probe", metrics, {}, of={"sft_step": found.steps_sft[-1]})
    found.stays = probe_stays(run)
    return found


def tag_values(run: RunData, monitor: str, metric: str, *names: str, **tags: Tag) -> list[tuple[Tag, ...]]:
    """Return the combinations of values of the tags `names` with which a metric was recorded (given `tags`), sorted."""
    rows = run.select(monitor, metric, *names, **tags)
    if rows.empty:
        return []
    return sorted(rows[list(names)].drop_duplicates().itertuples(index=False, name=None))


def _probe(found: Findings) -> None:
    """Enter the probe: overall (after its last fine-tuning step), before fine-tuning, its gains, and by task."""
    run = found.run
    found.steps_sft = _tuning_steps(run)
    if not found.steps_sft:
        return
    last: dict[str, Tag] = {"sft_step": found.steps_sft[-1]}
    for metric in PROBE:
        found.add("probe", (metric,), {}, of=last)
        for step in found.steps_sft:
            found.add("probe", (metric,), {"sft_step": step})
    for metric in PROBE_GAINS:
        found.add("probe", (metric,), {})
    for metric in ("exact_match_frac", "answer_nll_nats"):
        for (task,) in tag_values(run, "probe", metric, "task", **last):
            found.add("probe", (metric,), last | {"task": task})


def _tuning_steps(run: RunData) -> list[int]:
    return sorted({int(step) for metric in PROBE for (step,) in tag_values(run, "probe", metric, "sft_step")})
