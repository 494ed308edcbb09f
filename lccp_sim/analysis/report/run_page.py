"""The report of a run: a self-contained page, the same in Markdown, the figures, and every number as JSON.

It reads records and samples only, so it also works on a live run and on another machine. It contains no clock time: the
same records give the same bytes. For the page of several runs see `compare_page`.
"""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from lccp_sim.analysis.chain import phases_of
from lccp_sim.analysis.findings import Findings, examine
from lccp_sim.analysis.format import tokens
from lccp_sim.analysis.report import paper, tables
from lccp_sim.analysis.report.chain import of_chain
from lccp_sim.analysis.report.figures import draw
from lccp_sim.analysis.report.plots import Drawing
from lccp_sim.analysis.report.tables import (
    Table,
    attention_table,
    by_task_table,
    coefficients_table,
    comparisons_table,
    corpus_table,
    costs_table,
)
from lccp_sim.analysis.report.verdict import (
    COLUMNS,
    Verdict,
    first_screen,
    notes,
    verdict,
    verdict_markdown,
    verdict_text,
)
from lccp_sim.analysis.run import load_run, tidy
from lccp_sim.analysis.stats.curve import LEVEL, Estimate, to_json
from lccp_sim.analysis.stats.dynamics import Dynamics
from lccp_sim.analysis.stats.estimate import RESAMPLES
from lccp_sim.analysis.stats.saturation import FRAC, Progress
from lccp_sim.files import write_atomic


def write_report(
    run_dir: str | Path, out: str | Path | None = None, tell: Callable[[str], object] = lambda text: None
) -> Path:
    """Write index.html, report.md, report.json, records.parquet and the figures to `out`.

    Returns the path of index.html. `out` defaults to RUN/report. `tell` receives the first screen as text. The page is
    written last, so that it never names a figure that does not exist. Raises ConfigError if `run_dir` is not a run.
    """
    run = load_run(run_dir)
    folder = Path(out) if out is not None else run.path / "report"
    found = examine(run)
    said = verdict(found)
    drawings = draw(found)
    chain = Section("The chain of runs", *of_chain(phases_of(run)))
    planned = run.setting("run.tokens", run.tokens)
    length = f"checkpoints up to {tokens(run.tokens)} training tokens"
    if not run.measured:
        length = f"{tokens(run.tokens)} of {tokens(planned)} training tokens"
    state = "finished" if run.finished else "still running, or stopped before its end"
    page = {
        "name": run.name,
        "meta": [length, "measured after the fact" if run.measured else state, _context(found)],
        "said": said,
        "columns": COLUMNS,
        "markdown": verdict_markdown(said),
        "notes": notes(said),
        "summary": said.summary,
        "main": drawings.get("tiers"),
        "shows": said.statements,
        "not_shown": said.not_shown,
        "precondition": said.precondition,
        "sections": [*([chain] if chain.tables else []), *sections(found, drawings)],
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
        "warnings": list(dict.fromkeys(run.warnings)),
    }
    pictures = [*drawings.values(), *chain.drawings]
    written = write_page(folder, page, pictures, numbers(found, said), tidy([run]))
    tell(verdict_text(said))
    return written


def brief_report(run_dir: str | Path) -> str:
    """Return the first screen of a run as text, without writing anything."""
    return verdict_text(first_screen(load_run(run_dir)))


def write_page(
    folder: Path, page: dict[str, Any], drawings: list[Drawing], data: dict[str, Any], records: pd.DataFrame
) -> Path:
    """Write the files of a report to `folder`; return the path of `index.html`."""
    for drawing in drawings:
        write_atomic(folder / f"{drawing.name}.png", drawing.png)
    buffer = io.BytesIO()
    records.to_parquet(buffer, index=False)
    write_atomic(folder / "records.parquet", buffer.getvalue())
    write_atomic(folder / "report.json", json.dumps(_finite(data), indent=1, allow_nan=False) + "\n")
    write_atomic(folder / "report.md", _template("report.md.j2", autoescape=False).render(page))
    write_atomic(folder / "index.html", _template("report.html.j2", autoescape=True).render(page))
    return folder / "index.html"


def numbers(found: Findings, said: Verdict) -> dict[str, Any]:
    """Return the report as JSON values: `saturation` has one row per metric, `after_hit` one per set of needles."""
    lags = [
        {"tags": dict(tags)} | {name: _estimate(value) for name, value in vars(gap).items()}
        for (_, _, tags), gap in found.lags.items()
        if gap is not None
    ]
    forecast = [
        vars(f) | {"tags": dict(f.tags), "final": _estimate(f.final), "reach": _estimate(f.reach), "held": f.held}
        for f in found.forecasts
    ]
    return {
        "run": found.run.name,
        "finished": found.run.finished,
        "tokens": found.run.tokens,
        "method": {"improvement_frac": FRAC, "interval_level": LEVEL, "resamples": RESAMPLES, "eps": found.eps},
        "needle_span": found.run.span(),
        "verdict": to_json(said),
        "saturation": saturation(found),
        "after_hit": lags,
        "correlations": to_json(found.correlations),
        "comparisons": to_json(found.comparisons),
        "probe_stays": to_json(found.stays),
        "heads": [_heads(moved) for moved in found.heads.values()],
        "forecast": forecast,
        "deceptive_index": to_json(found.deceptive),
        **({"turning": to_json(found.turning)} if found.turning else {}),
        "warnings": list(dict.fromkeys(found.run.warnings)),
    }


def saturation(found: Findings) -> list[dict[str, Any]]:
    """Return one row per metric and tags as JSON values, as listed in docs/analysis.md."""
    return [_saturation(found, name, row) for name, row in found.rows.items()]


def _saturation(found: Findings, name: Any, row: Progress) -> dict[str, Any]:
    decision, fits = found.decisions[name], found.fits[name]
    counts = {key: _estimate(getattr(row, key), "tokens") for key in ("t50", "t90", "t95")}
    plain = {key: value for key, value in vars(row).items() if key not in {*counts, "improvement", "last_doubling"}}
    return (
        plain
        | {"tags": dict(row.tags), "reason": to_json(row.reason)}
        | counts
        | {key: _estimate(getattr(row, key)) for key in ("improvement", "last_doubling")}
        | {
            "law": decision.law,
            "laws": [{"name": fit.law, "aicc": fit.aicc, "tail_error": fit.tail_error} for fit in fits],
            "gain_per_doubling": _estimate(decision.gain),
            "verdict": decision.verdict,
            "since_tokens": decision.since_tokens,
            "reasons": decision.reasons,
            "kneedle": found.knees[name],
        }
    )


def _heads(moved: Dynamics) -> dict[str, Any]:
    plain = {name: value for name, value in vars(moved).items() if not name.endswith("_W") and name != "stages"}
    arrays = {
        name[:-2]: value.tolist() for name, value in vars(moved).items() if name.endswith("_W") and value is not None
    }
    return plain | arrays | {"stages": to_json(moved.stages), "chance": moved.chance}


def _estimate(estimate: Estimate | None, value: str = "value") -> dict[str, float | None] | None:
    if estimate is None or estimate.value != estimate.value:
        return None
    return {value: estimate.value, "low": estimate.low, "high": estimate.high}


def _finite(node: Any) -> Any:
    """Prepare a tree for JSON: numbers that are not finite (a forecast of "never") become null."""
    if isinstance(node, dict):
        return {str(name): _finite(value) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    if isinstance(node, float) and node - node != 0:
        return None
    return node.item() if hasattr(node, "item") else node


def _context(found: Findings) -> str:
    old, new = found.run.setting("data.old_context_tokens"), found.run.setting("run.context_tokens")
    return f"context {old} to {new} tokens" if old and new and old != new else f"context {new} tokens" if new else ""


def _template(name: str, autoescape: bool) -> jinja2.Template:
    loader = jinja2.PackageLoader("lccp_sim.analysis.report", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=autoescape, trim_blocks=True, lstrip_blocks=True)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template(name)


@dataclass(frozen=True)
class Section:
    """A heading with its figures and tables. `folded`: collapsed at first."""

    title: str
    drawings: list[Drawing] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: bool = False

    @property
    def anchor(self) -> str:
        """The section's anchor in the page."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


def sections(found: Findings, drawings: dict[str, Drawing]) -> list[Section]:
    """Return all sections that are not empty."""

    def these(*names: str) -> list[Drawing]:
        return [drawings[name] for name in names if name in drawings]

    with_probe = [tables.probe_table(found), paper.correlations_table(found), coefficients_table(found.correlations)]
    made = [
        Section("Saturation", [], [tables.overall_table(found), tables.laws_table(found)]),
        Section("Deceptive saturation", [], [tables.deceptive_table(found), tables.ceilings_table(found)]),
        Section("Behavioural: the probe", these("probe"), with_probe),
        Section("Probabilistic: needles", these("needle_by_length", "variants", "depths", "needle_maps")),
        Section("Probabilistic: held-out text", these("text", "positions")),
        Section(
            "Mechanistic: heads", these("heads", "intervention", "induction", "head_map"), [paper.stages_table(found)]
        ),
        Section("The paper and this run", [], [paper.claims_table(found)]),
        Section("Forecasts", [], [tables.forecasts_table(found)]),
        Section("Training", these("load_map"), [attention_table(found), costs_table(found), corpus_table(found)]),
        Section("Every window", [], [tables.windows_table(found), tables.heads_table(found)]),
        Section("Every part", [], [tables.by_length_table(found), tables.parts_table(found)]),
        Section(
            "Every correlation",
            [],
            [comparisons_table(found.comparisons), by_task_table(found.correlations)],
        ),
    ]
    kept = [Section(one.title, one.drawings, [table for table in one.tables if table.rows], True) for one in made]
    return [section for section in kept if section.drawings or section.tables]
