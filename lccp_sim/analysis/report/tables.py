"""The tables of a report, as strings, so that the page and the Markdown show the same.

Parts of a metric (a length, a source, an arm) have a separate table at the end, because a screen full of intervals
hides the few that matter. The paper's kind of correlation comes first, as the baseline for the kinds that depend less
on the shared trend.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from lccp_sim.analysis.findings import Findings, tag_values
from lccp_sim.analysis.format import interval, judged, measured, number, percent, tagged, tokens
from lccp_sim.analysis.metrics import METRICS, shown
from lccp_sim.analysis.report.statements import change
from lccp_sim.analysis.stats.correlation import Coefficient, Comparison, Correlation
from lccp_sim.analysis.stats.forecast import GAIN
from lccp_sim.analysis.stats.laws import LAWS
from lccp_sim.analysis.stats.pairs import PAIR_KINDS
from lccp_sim.analysis.stats.prediction import Prediction
from lccp_sim.analysis.stats.rule import VERDICT_WORDS
from lccp_sim.analysis.stats.saturation import Progress
from lccp_sim.records import SENTENCE, Tag

MORE: dict[str, tuple[str, dict[str, Tag]]] = {  # second column of a metric in the table of windows: label and tags
    "needle/hit_frac": ("full sentence", {"span": SENTENCE}),
    "needle/answer_nll_nats": ("full sentence", {"span": SENTENCE}),
    "heads/initial_heads_mean_frac": ("LongBio", {"samples": "longbio"}),
}
MONITOR_ORDER = tuple(dict.fromkeys(each.monitor for each in METRICS))


@dataclass(frozen=True)
class Table:
    """A table of strings. `note`: how to read it. `words`: whether it holds words rather than numbers."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""
    words: bool = False


def overall_table(found: Findings) -> Table:
    """Tabulate overall metrics, one per row: change, predicted gain of the next doubling, and the rule."""
    note = (
        "t50, t90, t95: tokens to that share of the metric's own improvement in this run of "
        f"{tokens(found.run.tokens)} tokens, from an isotonic fit; not a point of saturation. Law: the law with the "
        "lowest AICc. Next doubling: the predicted improvement from the run's end to twice its tokens, averaged over "
        f"the laws by their Akaike weights. Saturated: its upper limit is below {percent(found.eps)} of the gain so "
        "far at two consecutive windows. Kneedle: the knee according to a knee finder; a warning, because it finds "
        "one even on a curve that never levels. In parentheses: 95 % intervals over items and the scatter of windows; "
        "they do not cover another training seed. *: from standard errors with independent windows, so too wide. "
        f"Needle metrics refer to {judged(found.run)}; with span=full, to the full answer sentence, as in "
        "arXiv 2604.02650."
    )
    rows = [_moved(found, row) for row in _ordered(found.whole())]
    return Table("Metric by metric", [*_MOVED, "Kneedle"], rows, note)


def parts_table(found: Findings) -> Table:
    """Tabulate the same for parts: lengths, sources, arms, tasks, texts."""
    rows = [_moved(found, row) for row in _ordered(found.parts())]
    note = "As above, for parts of metrics; laws and verdicts use fewer resamples."
    return Table("Part by part", [*_MOVED, "Kneedle"], rows, note)


def probe_table(found: Findings) -> Table:
    """Tabulate exact match at the first and last window, by task (rows) and length (columns), and overall."""
    last: dict[str, Tag] = {"sft_step": found.steps_sft[-1]} if found.steps_sft else {}
    run, metric = found.run, "exact_match_frac"
    lengths = sorted({int(length) for (length,) in tag_values(run, "probe", metric, "length", **last)})
    tasks = sorted({str(task) for (task,) in tag_values(run, "probe", metric, "task", **last)})

    def cell(tags: Mapping[str, Tag]) -> str:
        rows = run.select("probe", metric, **tags)
        if rows.empty:
            return ""
        ends = [measured(rows.value.iloc[i], rows.stderr.iloc[i]) for i in (0, -1)]
        return f"{' to '.join(ends if len(rows) > 1 else ends[:1])} ({rows.n.iloc[-1]})"

    rows = []
    for own in [*({"task": task} for task in tasks), {}] if lengths else []:
        by_length: list[dict[str, Tag]] = [last | own | {"length": length} for length in lengths]
        rows.append([str(own.get("task", "all")), *map(cell, by_length), cell(last | own)])
    note = (
        "Exact match after fine-tuning, at the first and the last window, ± one standard error over questions; in "
        "parentheses the number of questions. A column holds questions of at most so many tokens and more than half "
        "as many."
    )
    return Table("Probe by task and length", ["task", *(f"{length} tokens" for length in lengths), "all"], rows, note)


def laws_table(found: Findings) -> Table:
    """Tabulate headline metrics (rows) by law (columns): AICc above the best law, and the error on the last windows."""
    rows = []
    for each in shown("forecast"):
        fits = {fit.law: fit for fit in found.fits.get((each.monitor, each.name, ()), [])}
        if not fits:
            continue
        best = min(fit.aicc for fit in fits.values())
        cells = []
        for law in LAWS:
            fit = fits.get(law)
            error = "" if fit is None or fit.tail_error is None else f" ({number(fit.tail_error)})"
            cells.append("" if fit is None else f"{number(fit.aicc - best)}{error}")
        rows.append([tagged(each.monitor, each.name, {}), *cells])
    head = ["metric", *(law.replace("_", " ") for law in LAWS)]
    note = (
        "AICc minus that of the best law: 0 is the best, and 2 is hardly worse. In parentheses: root mean square "
        "error of the predictions for the last quarter of the windows, by the law fitted without them; in logits for "
        "shares of items. If the learning rate is not constant, laws use its forward area and an annealing term."
    )
    return Table("Laws", head, rows, note)


def deceptive_table(found: Findings) -> Table:
    """Tabulate late metrics: the index, the effect of thresholding alone, and whether the index exceeds it."""
    rows = []
    for index in found.deceptive.runs[0].indices if found.deceptive else ():
        told = "" if index.exceeds is None else "yes" if index.exceeds else "no"
        p_values = ["" if p is None else number(p) for p in (index.p, index.p_own)]
        known = [interval(each) if each else "" for each in (index.index, index.null, index.null_own, index.excess)]
        known[1 if index.index else 0] = f"none: {index.reason}" if index.reason else known[1 if index.index else 0]
        rows.append([index.late, *known[:3], *p_values, told, known[3]])
    head = ["late metric", "t95 / t95(hit)", "with hits derived from the NLL", "the same, by item", "p", "p, by item"]
    head += ["exceeds both", "excess"]
    note = (
        "Any high threshold on a falling NLL gives an index above 1. So the index is compared with that of hits "
        "derived from the items' own NLL, by one decreasing function for all items, and by item. p: the share of the "
        "derived indices that reach the observed one."
    )
    return Table("Deceptive index, compared with the effect of a threshold alone", head, rows, note)


def ceilings_table(found: Findings) -> Table:
    """Tabulate the rules for "the hit is complete": where, and the factor of the NLL's fall after it."""
    rows = []
    for each in found.deceptive.runs[0].ceilings if found.deceptive else ():
        where = "none" if each.tokens is None else tokens(each.tokens)
        where += f": {each.reason}" if each.reason else ""
        rows.append([each.rule, where, *(interval(e) if e else "" for e in (each.fold, each.nats))])
    note = (
        "Complete: the mean hit, or the lower bound of its Wilson interval, is at least 0.95. Intervals treat this "
        "window as given."
    )
    head = ["hit complete by", "at tokens", "NLL there / NLL at the end", "difference in nats"]
    return Table("After the hit is complete", head, rows, note)


def forecasts_table(found: Findings) -> Table:
    """Tabulate predicted and measured values by metric and share of windows."""
    rows = []
    for f in found.forecasts:
        came = "" if f.came is None else number(f.came)
        held = "" if f.held is None else "yes" if f.held else "no"
        cells = [tagged(f.monitor, f.metric, f.tags), f"{f.windows}, to {tokens(f.tokens)}", tokens(f.end)]
        cells += [interval(f.final), came, held, number(f.last_seen)]
        rows.append([*cells, interval(f.reach, tokens) if f.reach else "", tokens(f.reached) if f.reached else ""])
    head = ["metric", "from windows", "for tokens", "predicted", "measured", "interval held", "last seen"]
    head += [f"tokens to {percent(GAIN)} of the gain, predicted", "the same, measured"]
    note = (
        "Predictions from the first half and the first two thirds of the windows, and from the first third if it has "
        "six. On a log grid half of the windows is a small part of the tokens. Last seen: the naive forecast of no "
        "further change. Never: not within ten times the run. The gain is the improvement over the entire run."
    )
    return Table("Forecasts and measurements", head, rows, note)


def heads_table(found: Findings) -> Table:
    """Tabulate windows and sets of texts: heads above 0.1, also by chance, and the survival of the initial heads."""
    rows = []
    for texts, moved in found.heads.items():
        for i, count in enumerate(moved.tokens_W):
            null = "" if moved.null_W is None or len(moved.null_W) <= i else number(moved.null_W[i])
            stage = moved.stages[i - 1] if i else None
            pair = ["", ""]
            if stage is not None:
                rank = "" if stage.spearman is None else number(stage.spearman)
                pair = [f"{stage.shared} of {moved.k}", rank]
            left = [percent(share[i]) for share in (moved.surviving_W, moved.kept_W, moved.final_W)]
            rows.append([texts, tokens(count), number(moved.count_W[i]), null, *left, *pair])
    head = ["texts", "tokens", "heads > 0.1", "by chance", "initial heads > 0.1", "initial heads among the strongest"]
    head += ["final strongest heads, already strongest", "shared with the previous window", "Spearman"]
    notes = []
    for texts, moved in found.heads.items():
        halves = "" if moved.halves is None else f", two halves of the last window's items {percent(moved.halves)}"
        notes.append(
            f"{texts}: top {moved.k} of {moved.heads} heads; unrelated rankings share {percent(moved.chance)}{halves}; "
            f"the last window's set is complete from {tokens(moved.fixed_at)} tokens on"
        )
    return Table("Heads, window by window", head, rows, ". ".join(notes) + "." if notes else "")


def windows_table(found: Findings) -> Table:
    """Tabulate every monitor's main metrics with their standard errors, one window per row."""
    columns, head = [], ["tokens"]
    wanted = [(each, *more) for each in shown("windows") for more in (("", {}), MORE.get(each.key, ("", None)))]
    for each, of, tags in wanted:
        curve = None if tags is None else found.curve(each.monitor, each.name, **tags)
        if curve is not None:
            columns.append(
                {t: measured(v, e) for t, v, e in zip(curve.tokens_W, curve.value_W, curve.stderr_W, strict=True)}
            )
            head.append(f"{each.title} ({of})" if of else each.title)
    grid = sorted(set().union(*columns))
    rows = [[tokens(t), *(column.get(t, "") for column in columns)] for t in grid]
    note = "± one standard error over items. Empty cells: not measured at that window. "
    note += f"Needle metrics refer to {judged(found.run)} unless the column says otherwise."
    return Table("Windows", head, rows, note)


def attention_table(found: Findings) -> Table:
    """Tabulate windows that were also measured with the training attention: each metric's value with both kinds."""
    columns, head = [], ["tokens"]
    for each in shown("beside"):
        span = {} if each.monitor != "needle" else {"span": found.run.span()}
        dense = found.run.select(each.monitor, each.name)
        trained = found.run.select(each.monitor, each.name, attention="training", **span)
        values_of_dense = dict(zip(dense.tokens, dense.value, strict=True))
        pairs = zip(trained.tokens, trained.value, strict=True)
        column = {t: f"{number(values_of_dense[t])} / {number(v)}" for t, v in pairs if t in values_of_dense}
        columns += [column] if column else []
        head += [each.title] if column else []
    grid = sorted(set().union(*columns))
    rows = [[tokens(t), *(column.get(t, "") for column in columns)] for t in grid]
    note = (
        "Values with dense attention / with the training attention. The training attention also uses later tokens to "
        "choose what it attends to. The switch to dense attention has to close the gap between the two."
    )
    return Table("Dense attention and training attention", head, rows, note)


def by_length_table(found: Findings) -> Table:
    """Tabulate needles by variant, span and length: hit, perplexity and answer NLL, first and last, t95, verdicts."""
    rows = []
    for row in found.rows.values():
        if row.monitor != "needle" or row.metric != "hit_frac" or "length" not in row.tags:
            continue
        cells = [str(row.tags["variant"]), str(row.tags["span"]), f"{row.tags['length']:.0f}"]
        for metric in ("hit_frac", "answer_ppl", "answer_nll_nats"):
            moved = found.row("needle", metric, **row.tags)
            cells.append(f"{number(moved.first)} to {number(moved.last)}" if moved else "")
            if moved and metric != "answer_ppl":
                decision = found.decision("needle", metric, **row.tags)
                cells.append(interval(moved.t95, tokens) if moved.t95 else "none")
                cells.append(VERDICT_WORDS[decision.verdict] if decision else "")
            elif metric != "answer_ppl":
                cells += ["", ""]
        gap = found.lag(**row.tags)
        rows.append([*cells, interval(gap.index) if gap and gap.index else ""])
    head = ["needle", "span", "length", "hit", "t95", "rule", "perplexity", "NLL", "t95", "rule", "t95(NLL) / t95(hit)"]
    note = "First to last window. Hit in fractions, NLL in nats per token, t95 in tokens of this run."
    return Table("Needles by length", head, rows, note)


_MOVED = ["metric", "rule", "first to last", "next doubling", "t50", "t90", "t95", "law"]


def _moved(found: Findings, row: Progress) -> list[str]:
    decision = found.decision(row.monitor, row.metric, **row.tags)
    knee = found.knees.get((row.monitor, row.metric, tuple(sorted(row.tags.items()))))
    source = " *" if row.interval == "standard errors" else ""
    gain = decision.gain if decision and decision.gain and decision.gain.value == decision.gain.value else None
    cells = [tagged(row.monitor, row.metric, row.tags) + source, VERDICT_WORDS[decision.verdict] if decision else ""]
    cells += [change(row).removeprefix("from "), interval(gain) if gain else ""]
    cells += [tokens(estimate.value) if estimate else "" for estimate in (row.t50, row.t90)]
    why = row.reason.code if row.reason else ""
    none = "none" if decision and why == decision.verdict else f"none: {why}"
    cells.append(interval(row.t95, tokens) if row.t95 else none)
    cells.append((decision.law or "").replace("_", " ") if decision else "")
    return [*cells, tokens(knee) if knee is not None else ""]


def _ordered(rows: Iterable[Progress]) -> list[Progress]:
    """Sort rows by monitor in the order of the report, and within a monitor in order of entry."""
    return sorted(rows, key=lambda row: MONITOR_ORDER.index(row.monitor))


COLUMN_NAMES = {"long_token_frac": "tokens in long documents", "held_out_frac": "held out"}


def corpus_table(found: Findings) -> Table:
    """Tabulate the corpus of the run."""
    frame = found.run.corpus
    frame = frame[[name for name in frame if not frame[name].map(lambda value: isinstance(value, dict | list)).any()]]
    head = [COLUMN_NAMES.get(str(name), str(name).replace("_", " ")) for name in frame.columns]
    rows = [[_cell(str(name), value) for name, value in row.items()] for _, row in frame.iterrows()]
    note = "Long documents are longer than the old context." if "long_token_frac" in frame else ""
    return Table("Corpus", head, rows, note)


def costs_table(found: Findings) -> Table:
    """Tabulate time and tokens of every monitor, as shares of training; the sum leaves out the probe, which trains.

    A token of the probe's fine-tuning counts as three, a training token as one.
    """
    timing = found.run.timing
    seconds = timing.groupby("what").seconds.sum() if len(timing) else pd.Series(dtype=float)
    train = float(seconds.get("train", 0.0))
    if not train:
        return Table("Cost", [], [])
    monitors = seconds[[str(what).startswith("monitor:") for what in seconds.index]].sort_values(ascending=False)
    forward = timing.groupby("what").forward_tokens.sum()

    def row(name: str, value: float, sent: float) -> list[str]:
        shares = percent(value / train, 1), percent(sent / forward["train"], 1)
        return [name, f"{value:.1f}", shares[0], tokens(sent), shares[1]]

    rows = [["training", f"{train:.0f}", "", tokens(forward["train"]), ""]]
    rows += [row(str(what).removeprefix("monitor:"), value, forward[what]) for what, value in monitors.items()]
    rest = monitors.drop("monitor:probe", errors="ignore")
    rows.append(row("all monitors except the probe", rest.sum(), forward[rest.index].sum()))
    columns = ["part", "seconds", "share of training time", "forward tokens", "share of training tokens"]
    return Table("Cost", columns, rows)


def _cell(name: str, value: object) -> str:
    if isinstance(value, float) and name.endswith(("_frac", "share")):
        return percent(value, 1)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}" if float(value).is_integer() else number(float(value))
    return str(value)


SAID = {"level": "values", "differences": "slopes between windows", "partial": "values given log tokens",
        "after_hit": "values after the hit"}  # fmt: skip


def coefficients_table(found: Sequence[Correlation]) -> Table:
    """Tabulate probe metrics and monitors by kind: Pearson's r, its bootstrap interval, and the number of points."""
    rows = []
    for target, monitor in dict.fromkeys((each.target, each.monitor) for each in found):
        by_kind = {e.kind: e for e in found if (e.target, e.monitor, e.task) == (target, monitor, None)}
        rows.append([target, monitor, *(_pearson(by_kind[kind]) if kind in by_kind else "" for kind in PAIR_KINDS)])
    resampled = sorted({each.interval for each in found if each.pearson and each.task is None})
    note = (
        "Pearson's r within runs, with its 95 % bootstrap interval and the number of points. Two series that both "
        "improve correlate whatever else they share, so a large r of values says little; slopes and values given log "
        f"tokens say more. Resampled: {'; '.join(resampled) or 'nothing'}. Intervals from one run are too narrow if "
        "its windows are dependent. Spearman's r, p values and Fisher's intervals are in report.json."
    )
    return Table("Correlation of monitors with the probe", ["probe", "monitor", *SAID.values()], rows, note)


def by_task_table(found: Sequence[Correlation]) -> Table:
    """Tabulate probe metrics by task and monitor: r of values and of slopes, with p adjusted over the tasks."""
    rows = []
    for target, task, monitor in dict.fromkeys((e.target, e.task, e.monitor) for e in found if e.task is not None):
        kinds = {e.kind: e for e in found if (e.target, e.task, e.monitor) == (target, task, monitor)}
        cells = [_adjusted(kinds[kind].pearson) if kind in kinds else "" for kind in ("level", "differences")]
        if any(cells):
            rows.append([target, str(task), monitor, *cells])
    note = (
        "In parentheses: p of the t-test, adjusted by Holm over the tasks. It assumes independent windows, and for "
        "values it is meaningless if both series have a trend."
    )
    head = ["probe", "task", "monitor", "values", "slopes between windows"]
    return Table("Correlation of monitors with each task", head, rows, note)


def comparisons_table(found: Sequence[Comparison]) -> Table:
    """Tabulate Williams's test against the hit, by probe metric, monitor and kind."""
    rows = []
    for c in found:
        if c.task is None and c.p is not None:
            r = [f"{value:.2f}" for value in (c.r, c.r_against, c.r_between) if value is not None]
            rows.append([c.target, c.monitor, SAID[c.kind], *r, str(c.n), number(c.p)])
    note = (
        "Williams's test of two correlations that share the probe; signs are chosen so that up is better. n: the "
        "number of independent points that it assumes. A p value above 0.05 is not evidence that the two correlate "
        "equally well with the probe."
    )
    head = ["probe", "monitor", "kind", "r", "r of the hit", "r of monitor and hit", "n", "p"]
    return Table("Does the monitor correlate better with the probe than the hit does?", head, rows, note)


def predictions_table(found: Sequence[Prediction]) -> Table:
    """Tabulate the error in left-out runs by probe metric and monitor, with the monitor and with tokens alone."""
    rows = []
    for p in found:
        if p.task is None and p.mae is not None and p.mae_tokens is not None:
            ratio = "" if p.ratio is None else number(p.ratio)
            cells = [number(p.mae), number(p.mae_tokens), ratio, f"{p.wins} of {p.runs}", str(p.windows)]
            rows.append([p.target, p.monitor, "after the hit" if p.after_hit else "all", *cells])
    note = (
        "A line from monitor to probe, fitted on the other runs and judged by its mean absolute error in the left-out "
        "run. A ratio below 1 in most runs means that the monitor predicts the probe better than the token count "
        "does. No interval: too few runs to support one."
    )
    head = ["probe", "monitor", "windows", "error", "with log tokens alone", "ratio", "runs in which it wins", "points"]
    return Table("Prediction of the probe in left-out runs", head, rows, note)


def _pearson(row: Correlation) -> str:
    if row.pearson is None:
        return f"none: {row.reason.beside(row.monitor) if row.reason else ''}"
    p = row.pearson
    between = "" if p.low is None or p.high is None else f" ({p.low:.2f} to {p.high:.2f})"
    return f"{p.value:.2f}{between}, {row.points}"


def _adjusted(coefficient: Coefficient | None) -> str:
    if coefficient is None:
        return ""
    p = "" if coefficient.p_holm is None else f" ({number(coefficient.p_holm)})"
    return f"{coefficient.value:.2f}{p}"
