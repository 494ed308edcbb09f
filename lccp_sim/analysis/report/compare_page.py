"""Several runs on one page: differences of their configs, changes of each metric, and their curves in one figure.

Runs are compared by eye and by interval. The interval of a run is over its items and does not cover variation between
training seeds. Pooled over runs are the means of runs that differ only in their seed, the correlations with the probe
and the deceptive index.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from lccp_sim.analysis.chain import chain_of
from lccp_sim.analysis.findings import Findings, examine
from lccp_sim.analysis.format import interval, number, setting, tagged, tokens
from lccp_sim.analysis.metrics import LOG, shown
from lccp_sim.analysis.report.chain import of_chain
from lccp_sim.analysis.report.plots import (
    COLOURS,
    STYLE,
    Drawing,
    line,
    log_values,
    panels,
    png,
    switch_note,
    switches,
    token_axis,
)
from lccp_sim.analysis.report.run_page import Section, numbers, saturation, write_page
from lccp_sim.analysis.report.statements import change
from lccp_sim.analysis.report.tables import (
    Table,
    by_task_table,
    coefficients_table,
    comparisons_table,
    overall_table,
    predictions_table,
)
from lccp_sim.analysis.report.verdict import verdict
from lccp_sim.analysis.run import RunData, differing, load_run, tidy, unlike
from lccp_sim.analysis.seeds import arms, pooled_over_seeds
from lccp_sim.analysis.stats.correlation import comparisons, correlations
from lccp_sim.analysis.stats.curve import to_json
from lccp_sim.analysis.stats.deceptive import deceptive
from lccp_sim.analysis.stats.pairs import gather
from lccp_sim.analysis.stats.prediction import Prediction, predictions
from lccp_sim.analysis.stats.rule import VERDICT_WORDS as SHOWN_VERDICTS
from lccp_sim.errors import ConfigError
from lccp_sim.records import SENTENCE, Tag

OVERLAID = tuple(shown("overlay"))


def write_comparison(
    run_dirs: Sequence[str | Path], out: str | Path | None = None, tell: Callable[[str], object] = lambda text: None
) -> Path:
    """Write index.html, its Markdown, report.json, records.parquet and the figure to `out`; return the page's path.

    `out` defaults to `compared`, in the first run's parent directory. `tell` receives each run's headline. Raises
    ConfigError if a directory is not a run, or two are the same.
    """
    runs = [load_run(path) for path in run_dirs]
    names = [run.name for run in runs]
    if len({run.path.resolve() for run in runs}) < len(runs) or len(set(names)) < len(names):
        raise ConfigError(
            f"report: a run is given twice, or two directories have the same name: {', '.join(sorted(names))}"
        )
    folder = Path(out) if out is not None else runs[0].path.resolve().parent / "compared"
    found = [examine(run) for run in runs]
    said = [verdict(each) for each in found]
    with matplotlib.rc_context(STYLE):
        overlay = overlaid_figure(found)
    over_runs, panels = deceptive(runs), gather(runs)
    groups = [(arm, pooled_over_seeds(arm)) for arm in arms(found) if len(arm) > 1]
    together, closer, ahead = correlations(panels), comparisons(panels), predictions(panels)
    chain = of_chain(chain_of(runs))
    made = [
        Section("The chain of runs", *chain),
        Section("Runs", [], [_runs(runs)]),
        Section("Metrics", [], [_metrics(found), _lags(found)]),
        Section("Over seeds", [], [_over_seeds(arm, over) for arm, over in groups]),
        Section("With the probe", [], [coefficients_table(together), predictions_table(ahead)]),
        Section("After the hit, between runs", [], [_predictions(over_runs.predictions)]),
        Section("Every correlation", [], [comparisons_table(closer), by_task_table(together)], folded=True),
    ]
    page: dict[str, Any] = {
        "name": f"{len(runs)} runs",
        "meta": [", ".join(names)],
        "summary": [f"{name}: {v.headline}" for name, v in zip(names, said, strict=True)],
        "caution": " ".join(f"{name}: {v.caution}" for name, v in zip(names, said, strict=True) if v.caution),
        "main": overlay,
        "sections": [replace(s, tables=kept) for s in made if (kept := [table for table in s.tables if table.rows])],
        "warnings": unlike(runs) + [f"{run.name}: {text}" for run in runs for text in dict.fromkeys(run.warnings)],
    }
    data = {
        "runs": [numbers(each, verdict_) for each, verdict_ in zip(found, said, strict=True)],
        "over_seeds": [
            {"runs": [each.run.name for each in arm], "saturation": saturation(over)} for arm, over in groups
        ],
        "correlations": to_json(together),
        "comparisons": to_json(closer),
        "predictions": to_json(ahead),
        "deceptive_index": to_json(over_runs),
    }
    tell("\n".join(page["summary"]))
    drawings = [*([overlay] if overlay else []), *chain[0]]
    return write_page(folder, page, drawings, data, tidy(runs))


def overlaid_figure(found: Sequence[Findings]) -> Drawing | None:
    """Draw each metric of OVERLAID in a panel, one line per run; None if no run has a curve of two windows."""
    drawn = [m for m in OVERLAID if any((c := each.curve(m.monitor, m.name)) and len(c.tokens_W) > 1 for each in found)]
    if not drawn:
        return None
    curves = [curve for each in found for m in drawn if (curve := each.curve(m.monitor, m.name))]
    grid_W = np.unique(np.concatenate([curve.tokens_W for curve in curves]))
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure, axes = panels(columns, height=2.5, width=3.2, rows=rows)
    flat = axes.ravel()
    for ax in flat[len(drawn) :]:
        ax.set_axis_off()
    for ax, of in zip(flat, drawn, strict=False):
        for place, each in enumerate(found):
            curve = each.curve(of.monitor, of.name)
            if curve is not None:
                colour = COLOURS[place % len(COLOURS)]
                style = "-" if place < len(COLOURS) else "--"
                line(ax, curve.tokens_W, curve.value_W, curve.stderr_W, grid_W, color=colour, linestyle=style)
        ax.set_title(of.title, fontsize=8.5, fontweight="normal")
        if of.scale == LOG and all((c.value_W > 0).all() for each in found if (c := each.curve(of.monitor, of.name))):
            log_values(ax)
        switches(ax, [each.run.dense_from for each in found], grid_W)
        token_axis(ax, grid_W, "training tokens, log scale", few=True)
    handles = [
        matplotlib.lines.Line2D([], [], color=COLOURS[i % len(COLOURS)], linestyle="-" if i < len(COLOURS) else "--")
        for i in range(len(found))
    ]
    names = [each.run.name for each in found]
    figure.legend(handles, names, loc="outside upper left", ncols=min(3, len(names)))
    caption = "Shaded: one standard error over items, which does not cover variation between training seeds."
    caption += switch_note(each.run.dense_from for each in found)
    alt = f"{len(drawn)} metrics against training tokens, a line for each of {', '.join(names)}"
    return Drawing("overlaid", "Curves of all runs", alt, caption, png(figure))


def _runs(runs: list[RunData]) -> Table:
    """Tabulate the runs: progress, and the config keys that not all share."""
    keys = differing(runs)
    rows = []
    for run, (_, settings) in zip(runs, keys.iterrows(), strict=True):
        state = "measured" if run.measured else "finished" if run.finished else "unfinished"
        windows = run.records[run.records.monitor != "train"].step.nunique()
        rows.append([run.name, state, tokens(run.tokens), str(windows), *map(setting, settings)])
    head = ["run", "state", "tokens", "windows", *map(str, keys.columns)]
    return Table("Differences between the runs", head, rows, "Config keys that all runs share are left out.")


def _metrics(found: Sequence[Findings]) -> Table:
    """Tabulate metrics, with three columns per run: change, t95, and the rule's verdict."""
    rows = []
    sentence: dict[str, Tag] = {"span": SENTENCE}
    for monitor, metric, tags in (
        *((each.monitor, each.name, {}) for each in OVERLAID),
        ("needle", "hit_frac", sentence),
    ):
        cells = []
        for each in found:
            row, decision = each.row(monitor, metric, **tags), each.decision(monitor, metric, **tags)
            if row is None or decision is None:
                cells += ["", "", ""]
                continue
            reached = f"{interval(row.t95, tokens)} of {tokens(row.run_tokens)}" if row.t95 else f"none: {row.reason}"
            cells += [change(row).removeprefix("from "), reached, SHOWN_VERDICTS[decision.verdict]]
        if any(cells):
            rows.append([tagged(monitor, metric, tags), *cells])
    head = ["metric", *(text for each in found for text in (each.run.name, "t95", "rule"))]
    note = (
        "t95: tokens to 95 % of a run's own improvement, with the run length; it depends on that length. span=full: "
        "the full answer sentence, not the value."
    )
    return Table("Change of each metric", head, rows, note)


def _over_seeds(arm: Sequence[Findings], over: Findings) -> Table:
    """Tabulate the means of runs that differ only in their seed, with the rule's verdicts."""
    names = ", ".join(each.run.name for each in arm)
    note = (
        f"Means of {names}. In parentheses: 95 % intervals over seeds, items within them, and the scatter of windows. "
        "With two or three seeds, no resampling can say how another seed would differ."
    )
    return replace(overall_table(over), title=f"Over {len(arm)} seeds", note=note)


def _lags(found: Sequence[Findings]) -> Table:
    """Tabulate the deceptive index of each run, and the gain of the NLL after the hit's t95."""
    rows = []
    for each in found:
        gap = each.lag()
        if gap is not None:
            cells = [interval(gap.index), interval(gap.factor), number(gap.same_shape.value)]
            rows.append([each.run.name, *cells])
    head = ["run", "t95(NLL) / t95(hit)", "NLL at the hit's t95 / NLL at the end", "with the hit's shape"]
    return Table("After the hit", head, rows)


def _predictions(found: Sequence[Prediction]) -> Table:
    """Tabulate, by target, whether the answer NLL after the hit predicts the probe in left-out runs."""
    rows = []
    for p in found:
        cells = [str(p.windows), str(p.runs)]
        cells += ["" if value is None else number(value) for value in (p.mae, p.mae_tokens, p.ratio)]
        cells[2] = f"none: {p.reason}" if p.reason else cells[2]
        rows.append([p.target, *cells])
    head = ["target", "windows", "runs", "error with the NLL", "with tokens alone", "ratio"]
    note = "Leave one run out: the probe predicted from the answer NLL at windows after the hit; below 1 the NLL helps."
    return Table("Does the NLL after the hit predict the probe?", head, rows, note)
