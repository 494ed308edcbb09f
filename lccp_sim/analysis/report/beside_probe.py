"""Tables of what goes with the fine-tuned probe: coefficients of four kinds, which is closer, what foretells it.

What a reader would question: the first column is the paper's kind of correlation, and stands first so that the others,
which take less of the shared trend along, are read against it.
"""

from collections.abc import Sequence

from lccp_sim.analysis.format import number
from lccp_sim.analysis.report.tables import Table
from lccp_sim.analysis.stats.correlation import Coefficient, Comparison, Correlation
from lccp_sim.analysis.stats.pairs import KINDS
from lccp_sim.analysis.stats.prediction import Prediction

SAID = {"level": "values", "differences": "slopes between windows", "partial": "values, given log tokens",
        "after_hit": "values after the hit"}  # fmt: skip


def coefficients_table(found: Sequence[Correlation]) -> Table:
    """One row a metric of the probe and monitor, one column a kind: Pearson's r, its bootstrap interval, the points."""
    rows = []
    for target, monitor in dict.fromkeys((each.target, each.monitor) for each in found):
        by_kind = {e.kind: e for e in found if (e.target, e.monitor, e.task) == (target, monitor, None)}
        rows.append([target, monitor, *(_pearson(by_kind[kind]) if kind in by_kind else "" for kind in KINDS)])
    resampled = sorted({each.interval for each in found if each.pearson and each.task is None})
    note = (
        "Pearson's r inside runs, with its 95 % bootstrap interval and the number of points. Two series that both "
        "improve go together whatever else they share, so a large r of values alone says little; slopes and what is "
        f"left given log tokens say more. Resampled: {'; '.join(resampled) or 'nothing'}. One run's intervals are too "
        "narrow where its windows go together. Spearman's r, p values and Fisher's intervals are in report.json."
    )
    return Table("Monitors with the probe", ["probe", "monitor", *SAID.values()], rows, note)


def by_task_table(found: Sequence[Correlation]) -> Table:
    """One row a metric of the probe, task and monitor: r of values and of slopes, with p adjusted over the tasks."""
    rows = []
    for target, task, monitor in dict.fromkeys((e.target, e.task, e.monitor) for e in found if e.task is not None):
        kinds = {e.kind: e for e in found if (e.target, e.task, e.monitor) == (target, task, monitor)}
        cells = [_adjusted(kinds[kind].pearson) if kind in kinds else "" for kind in ("level", "differences")]
        if any(cells):
            rows.append([target, str(task), monitor, *cells])
    note = (
        "In brackets: p of the t-test, adjusted by Holm over the tasks. It takes windows for independent points, and "
        "for values it means nothing where both series have a trend."
    )
    head = ["probe", "task", "monitor", "values", "slopes between windows"]
    return Table("Monitors with each task", head, rows, note)


def comparisons_table(found: Sequence[Comparison]) -> Table:
    """One row a metric of the probe, monitor and kind: Williams's test against the hit."""
    rows = []
    for c in found:
        if c.task is None and c.p is not None:
            r = [f"{value:.2f}" for value in (c.r, c.r_against, c.r_between) if value is not None]
            rows.append([c.target, c.monitor, SAID[c.kind], *r, str(c.n), number(c.p)])
    note = (
        "Williams's test of two correlations that share the probe; all series turned so that up is better. n: what it "
        "takes for independent points. A p value above 0.05 is no evidence that the two go equally well with the probe."
    )
    head = ["probe", "monitor", "of", "r", "r of the hit", "monitor with hit", "n", "p"]
    return Table("Closer to the probe than the hit is?", head, rows, note)


def predictions_table(found: Sequence[Prediction]) -> Table:
    """One row a metric of the probe and monitor: the error in runs left out, with the monitor and with tokens alone."""
    rows = []
    for p in found:
        if p.task is None and p.mae is not None and p.mae_tokens is not None:
            ratio = "" if p.ratio is None else number(p.ratio)
            cells = [number(p.mae), number(p.mae_tokens), ratio, f"{p.wins} of {p.runs}", str(p.windows)]
            rows.append([p.target, p.monitor, "after the hit" if p.after_hit else "all", *cells])
    note = (
        "A line from monitor to probe, fitted on the other runs, judged by its mean absolute error in the run left "
        "out. A ratio below 1 that most runs agree on says that the monitor knows more of the probe than the token "
        "count does; there is no interval on it, because few runs carry none."
    )
    head = ["probe", "monitor", "windows", "error", "with log tokens alone", "ratio", "runs in which it wins", "points"]
    return Table("The probe foretold in runs left out", head, rows, note)


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
