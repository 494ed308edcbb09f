"""The report of a run: one page that needs nothing else, the same in Markdown, the figures, and every number as JSON.

It reads records and samples only, so it also works on a live run and on another machine, and it holds no clock time:
the same records give the same bytes.
"""

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import yaml

from lccp_sim.analysis.bootstrap import RESAMPLES
from lccp_sim.analysis.curves import LEVEL, Estimate
from lccp_sim.analysis.figures import draw
from lccp_sim.analysis.findings import Findings, examine
from lccp_sim.analysis.saturation import FRAC
from lccp_sim.analysis.sections import tables
from lccp_sim.analysis.table import load_run
from lccp_sim.analysis.verdict import Verdict, verdict
from lccp_sim.analysis.words import tokens
from lccp_sim.records import write_atomic


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """The path of `index.html`, once it, report.md, report.json and the figures are in `out` (default: RUN/report).

    The page comes last, so that it never names a figure that is not there. Raises ConfigError where `run_dir` is no
    run.
    """
    run = load_run(run_dir)
    folder = Path(out) if out is not None else run.path / "report"
    found = examine(run)
    said = verdict(found)
    drawings = draw(found)
    for drawing in drawings:
        write_atomic(folder / f"{drawing.name}.png", drawing.png)
    write_atomic(folder / "report.json", json.dumps(numbers(found, said), indent=1, allow_nan=False) + "\n")
    planned = run.setting("run.tokens", run.tokens)
    page = {
        "name": run.path.resolve().name,
        "state": "finished" if run.finished else "still running, or stopped before its end",
        "length": f"{tokens(run.tokens)} of {tokens(planned)} training tokens",
        "context": _context(found),
        "verdict": said,
        "drawings": [(drawing, base64.b64encode(drawing.png).decode()) for drawing in drawings],
        "tables": tables(found),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
        "warnings": list(dict.fromkeys(run.warnings)),
    }
    write_atomic(folder / "report.md", _template("report.md.j2", autoescape=False).render(page))
    write_atomic(folder / "index.html", _template("report.html.j2", autoescape=True).render(page))
    return folder / "index.html"


def numbers(found: Findings, said: Verdict) -> dict[str, Any]:
    """Everything in the report as JSON values: `saturation` has one row a metric, `after_hit` one a set of needles."""
    rows = []
    for row in found.rows.values():
        plain = {
            name: value for name, value in vars(row).items() if name not in ("improvement", "last_doubling", "t95")
        }
        estimates = {name: _estimate(getattr(row, name)) for name in ("improvement", "last_doubling", "t95")}
        rows.append(plain | {"tags": dict(row.tags)} | estimates)
    lags = [
        {"tags": dict(tags)} | {name: _estimate(value) for name, value in vars(gap).items()}
        for (_, _, tags), gap in found.lags.items()
        if gap is not None
    ]
    return {
        "run": found.run.path.resolve().name,
        "finished": found.run.finished,
        "tokens": found.run.tokens,
        "method": {"improvement_frac": FRAC, "interval_level": LEVEL, "resamples": RESAMPLES},
        "verdict": asdict(said),
        "saturation": rows,
        "after_hit": lags,
        "warnings": list(dict.fromkeys(found.run.warnings)),
    }


def _estimate(estimate: Estimate | None) -> dict[str, float | None] | None:
    return None if estimate is None else {name: getattr(estimate, name) for name in ("value", "low", "high")}


def _context(found: Findings) -> str:
    old, new = found.run.setting("data.old_context_tokens"), found.run.setting("run.context_tokens")
    return f"context {old} to {new} tokens" if old and new and old != new else f"context {new} tokens" if new else ""


def _template(name: str, autoescape: bool) -> jinja2.Template:
    loader = jinja2.PackageLoader("lccp_sim.analysis", ".")
    environment = jinja2.Environment(loader=loader, autoescape=autoescape, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(name)
