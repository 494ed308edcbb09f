"""The first screen: one sentence (train on, or stop?), a row per signal, and the findings in words.

A claim is made only if the entire 95 % interval is on one side. Deceptive saturation is claimed if the rule calls the
hit saturated and the answer NLL improving. The rule uses the predicted gain of the next doubling of tokens, not t95,
which exists even for a curve that keeps improving.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import floor, isfinite, log10

from lccp_sim.analysis.areas import rate_of
from lccp_sim.analysis.findings import Findings, examine_signals
from lccp_sim.analysis.format import SPANS, judged, number, percent, tokens
from lccp_sim.analysis.metrics import Metric, shown
from lccp_sim.analysis.report.precondition import Check, precondition, unmet
from lccp_sim.analysis.report.statements import beyond, change, not_shown, reached, statements
from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.curve import Estimate
from lccp_sim.analysis.stats.equivalence import Equivalence
from lccp_sim.analysis.stats.laws import LAW_WINDOWS
from lccp_sim.analysis.stats.pairs import HIT, NLL
from lccp_sim.analysis.stats.rule import VERDICTS, Decision, decided
from lccp_sim.analysis.stats.saturation import Progress
from lccp_sim.records import SENTENCE

LEVELLED, IMPROVING, UNDECIDED = "levelled", "still improving", "undecided"
FEW, WORSE = "too few points", "worse"
STATUS = dict(zip(VERDICTS, (LEVELLED, IMPROVING, UNDECIDED, FEW), strict=True))
LEAST_SHOWN = 0.001  # smaller improvements are shown as 0
COLUMNS = ("signal", "first to last", "status", "next doubling", "threshold", "levelled at")


@dataclass(frozen=True)
class Signal:
    """A row of the first screen. `first`, `last`: the metric's values at its first and last window, in `unit`.

    `status`: LEVELLED, IMPROVING, UNDECIDED or FEW by the rule (for the probe also by its stability test), or WORSE if
    the metric got worse beyond noise. `next_doubling`: the predicted improvement by as many tokens again, positive for
    better. `threshold`: the value that its upper limit must be below. `since_tokens`: where it levelled. `by_source`:
    the status of each source of text, if there are several.
    """

    metric: str
    name: str
    unit: str
    first: float
    last: float
    status: str
    next_doubling: Estimate | None
    threshold: float | None
    since_tokens: int | None
    by_source: dict[str, str] = field(default_factory=dict)

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells of COLUMNS, with at most three digits per number."""
        gain, buys = self.next_doubling, ""
        ends = [] if gain is None or gain.low is None or gain.high is None else [gain.low, gain.high]
        value = [] if gain is None else [gain.value]
        size = max(map(abs, (*value, *ends, self.threshold or 0, LEAST_SHOWN)))
        digits = max(0, 1 - floor(log10(size)))  # two of the largest
        if value:
            buys = f"{round(value[0], digits) + 0.0:+.{digits}f}"
            buys += f" [{', '.join(f'{round(end, digits) + 0.0:.{digits}f}' for end in ends)}]" if ends else ""
        below = "" if self.threshold is None else f"{self.threshold:.{digits}f}"
        since = "" if self.since_tokens is None else tokens(self.since_tokens)
        others = "; ".join(f"{name}: {status}" for name, status in self.by_source.items() if status != self.status)
        said = self.status + (f" ({others})" if others else " in each source" if self.by_source else "")
        return (self.name, f"{number(self.first)} to {number(self.last)}", said, buys, below, since)


@dataclass(frozen=True)
class Verdict:
    """The verdict on a run. `headline`: train on, or stop? `signals`: the table under it.

    `summary`: three paragraphs with the numbers. `caution`: the conditions that are not met, or "". `rate`: the
    schedule of a learning rate that is not constant, or "". `statements`: (topic, sentence). `not_shown`: what a reader
    may expect but this run does not show.
    """

    summary: tuple[str, str, str]
    caution: str
    statements: list[tuple[str, str]]
    not_shown: list[str]
    precondition: list[Check]
    headline: str = ""
    signals: list[Signal] = field(default_factory=list)
    rate: str = ""


def verdict(found: Findings) -> Verdict:
    """Compute the verdict on a run; parts whose metrics are absent say so."""
    hit, nll = found.row("needle", "hit_frac"), found.row("needle", "answer_nll_nats")
    summary = (_moved(found, hit, nll), _rule(found), _others(found))
    checks = precondition(found.run)
    failed = unmet(checks)
    caution = f"The precondition is not met, so interpret the rest with care. {failed}." if failed else ""
    rows = signals(found)
    said = statements(found)
    return Verdict(summary, caution, said, not_shown(found), checks, headline(found, rows), rows, _rate(found.run))


def _rate(run: RunData) -> str:
    rate = rate_of(run)
    return rate.said() if rate else ""


def first_screen(run: RunData) -> Verdict:
    """Compute only the headline, the table and the precondition, without the parts that take tens of seconds."""
    rows = signals(found := examine_signals(run))
    return Verdict(("", "", ""), "", [], [], precondition(run), headline(found, rows), rows, _rate(run))


def signals(found: Findings) -> list[Signal]:
    """Return one row for each signal of the catalogue that the run recorded."""
    return [row for each in shown("signal") if (row := _signal(found, each)) is not None]


def _signal(found: Findings, of: Metric) -> Signal | None:
    row, decision = found.row(of.monitor, of.name), found.decision(of.monitor, of.name)
    if row is None or decision is None:
        return None
    status, since = STATUS[decision.verdict], decision.since_tokens
    if of.monitor == "probe" and status == FEW and found.stays is not None and found.stays.holds:
        status, since = LEVELLED, found.stays.before_tokens
    status = _worse(row, status)
    gain = decision.gain if decision.gain is not None and isfinite(decision.gain.value) else None
    threshold = found.eps * decision.gain_so_far if gain is not None and decision.gain_so_far > 0 else None
    since = since if status == LEVELLED else None
    sources = _by_source(found, of)
    return Signal(of.key, of.label, of.unit, row.first, row.last, status, gain, threshold, since, sources)


def _worse(row: Progress, status: str) -> str:
    return WORSE if row.windows > 1 and row.improvement.below(0) else status


def _by_source(found: Findings, of: Metric) -> dict[str, str]:
    """Return the status of each source of a metric with several sources: one may rise while their mean falls."""
    rows = [row for row in found.parts() if (row.monitor, row.metric) == (of.monitor, of.name)]
    said = {}
    for row in rows:
        decision = found.decision(of.monitor, of.name, **row.tags)
        if set(row.tags) == {"source"} and decision is not None:
            said[str(row.tags["source"])] = _worse(row, STATUS[decision.verdict])
    return said if len(said) > 1 else {}


def headline(found: Findings, rows: Sequence[Signal]) -> str:
    """Write one sentence: train on, stop, or undecided, and the signals that decide.

    Needles, probe and heads decide. Held-out text improves in almost every run and is only mentioned.
    """
    status = {row.metric: row.status for row in rows}
    hit, nll = status.get(HIT), status.get(NLL)
    if hit is None or nll is None:
        return "Undecided: there are no needle records, so no hit and no answer NLL to judge by."
    judged_by = [row for row in rows if not row.metric.startswith("perplexity/")]
    named = {word: [_short(row) for row in judged_by if row.status == word] for word in STATUS.values()}
    rising, levelled, worse = named[IMPROVING], named[LEVELLED], _got_worse(rows)
    aside = [_short(row) for row in rows if row not in judged_by and row.status == IMPROVING]
    forgets = f"; {_listed(worse)} got worse" if worse else ""
    if hit == LEVELLED and nll == IMPROVING:
        where = next(row.since_tokens for row in rows if row.metric == HIT)
        claim = f"the hit levelled at {tokens(where or 0)} tokens, but {_listed(rising)} still improve"
        return f"Train on: {claim}{'s' * (len(rising) == 1)} (deceptive saturation){forgets}."
    if rising:
        return f"Train on: {_listed(rising)} still improve{'s' * (len(rising) == 1)}{forgets}."
    if hit == nll == LEVELLED:
        if found.stays is None or found.stays.holds:
            beside = f"; {_listed(aside)} still improve{'s' * (len(aside) == 1)}" if aside else ""
            return f"Stop: {_listed(levelled)} have levelled{beside}{forgets}."
        return f"Undecided: {_listed(levelled)} have levelled, but the probe is not shown to be stable{forgets}."
    if hit == nll == FEW:
        return f"Too early to tell: the rule needs at least {LAW_WINDOWS} windows{forgets}."
    unsure = named[UNDECIDED] + named[FEW]
    if not unsure:
        return f"Undecided{forgets.replace(';', ':', 1)}."
    return f"Undecided: whether {_listed(unsure)} {'has' if len(unsure) == 1 else 'have'} levelled is open{forgets}."


def _got_worse(rows: Sequence[Signal]) -> list[str]:
    """List the signals that got worse beyond noise, or sources of a signal whose mean did not."""
    worse = []
    for row in rows:
        sources = [name for name, status in row.by_source.items() if status == WORSE]
        if row.status == WORSE:
            worse.append(_short(row))
        elif sources:
            worse.append(f"{_short(row)} of {_listed(sources)}")
    return worse


def _short(row: Signal) -> str:
    return row.name.partition(" (")[0].partition(",")[0].replace("needle ", "")


def _listed(names: Sequence[str]) -> str:
    """Join names for a sentence: "hit, probe and heads"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "nothing"


def verdict_text(said: Verdict) -> str:
    """Format the first screen for a terminal: the headline, and the table in columns."""
    table = [COLUMNS, *(row.cells for row in said.signals)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([said.headline, *(lines if said.signals else ()), *notes(said)])


def verdict_markdown(said: Verdict) -> str:
    """Format the first screen in Markdown, for TensorBoard's text tab and report.md."""
    table = [COLUMNS, ["---"] * len(COLUMNS), *(row.cells for row in said.signals)]
    lines = [f"| {' | '.join(row)} |" for row in table] if said.signals else []
    return "\n".join([f"**{said.headline}**", "", *lines, "", *notes(said)])


def notes(said: Verdict) -> list[str]:
    """Return a line each for a learning rate that is not constant, and for the precondition, if any."""
    of_rate = f"{said.rate[:1].upper()}{said.rate[1:]}. The next doubling is a run twice as long, scheduled alike."
    lines = [of_rate] if said.rate else []
    if not said.precondition:
        return lines
    failed = [check for check in said.precondition if check.met is False]
    unknown = [check for check in said.precondition if check.met is None]
    state = f"{len(failed)} of {len(said.precondition)} conditions not met" if failed else "met"
    return [*lines, f"Precondition: {state}{f' ({len(unknown)} not recorded)' if unknown else ''}."]


def deceptive_here(hit: Decision | None, nll: Decision | None, stays: Equivalence | None) -> str:
    """Combine two verdicts and the probe into a claim, or give the reason why there is none."""
    if hit is None or nll is None:
        return "Deceptive saturation cannot be judged, because hit or answer NLL was not recorded"
    if "not enough points" in (hit.verdict, nll.verdict):
        return "Deceptive saturation cannot be judged: too few points"
    if hit.verdict == "saturated":
        both = {
            "improving": "the hit has levelled while the answer NLL still improves (deceptive saturation, in this run)"
        }
        levelled = "the hit and the answer NLL have both levelled"
        both["saturated"] = f"{levelled} (intrinsic saturation, in this run)"
        if stays is not None and not stays.holds:
            both["saturated"] = f"{levelled}, but intrinsic saturation also requires a stable probe: {stays.said()}"
        return both.get(nll.verdict, "the hit has levelled, and whether the answer NLL still improves is undecided")
    if hit.verdict == "improving":
        return "the hit has not levelled, so there is no deceptive saturation"
    return "whether the hit has levelled is undecided, and so is deceptive saturation"


def _moved(found: Findings, hit: Progress | None, nll: Progress | None) -> str:
    run = found.run
    planned = run.setting("run.tokens", run.tokens)
    state = "" if run.finished else f"The run is unfinished ({tokens(run.tokens)} of {tokens(planned)} tokens). "
    if hit is None or nll is None:
        return f"{state}There are no needle records, so nothing can be said about hit and answer NLL."
    text = f"The needle hit goes {change(hit)} and {reached(hit)}. "
    return f"{state}{text}The answer NLL goes {change(nll, ' nats')} and {reached(nll)}. {_span(found)}"


def _span(found: Findings) -> str:
    """Name the tokens of the headline, with the numbers for the full sentence."""
    run = found.run
    whole = [found.row("needle", metric, **run.sentence) for metric in ("hit_frac", "answer_nll_nats")]
    if not run.sentence:
        return f"Both refer to {judged(run)} (records of an earlier version)."
    if whole[0] is None or whole[1] is None:
        return f"Both refer to {judged(run)}."
    beside = f"the hit goes {change(whole[0])} and the NLL {change(whole[1], ' nats')}"
    return f"Both refer to {judged(run)}. On {SPANS[SENTENCE]} {beside}."


def _rule(found: Findings) -> str:
    """Write the second paragraph: both verdicts of the rule, and their combination."""
    hit, nll = found.decision("needle", "hit_frac"), found.decision("needle", "answer_nll_nats")
    said = deceptive_here(hit, nll, found.stays)
    if hit is None or nll is None or "not enough points" in (hit.verdict, nll.verdict):
        return f"{said}."
    text = (
        "The rule compares the predicted gain of the next doubling of tokens with a threshold, "
        f"{percent(found.eps)} of the gain so far. The hit is {decided(hit, found.eps)}. The answer NLL is "
        f"{decided(nll, found.eps)}, in nats. "
    )
    return f"{text}{said[:1].upper()}{said[1:]}."


def _others(found: Findings) -> str:
    parts = []
    count, mean = found.row("heads", "retrieval_heads_count"), found.row("heads", "initial_heads_mean_frac")
    if count and mean:
        parts.append(f"the number of retrieval heads goes {change(count)}")
        parts.append(f"the mean score of the initial heads goes {change(mean)}")
    exact = found.row("probe", "exact_match_frac")
    if exact:
        parts.append(f"exact match of the fine-tuned probe goes {change(exact)}{beyond(exact)}")
    short = found.row("perplexity", "short_nll_nats")
    if short:
        parts.append(f"the short-context NLL goes {change(short, ' nats')}{beyond(short)}")
    if not parts:
        return "There are no heads, probe or short-context records."
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."
