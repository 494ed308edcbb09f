"""Records that hold cells alone still report: averaged over the cells, and said."""

import json

import numpy as np

from lccp_sim.analysis.report.run_page import write_report
from lccp_sim.analysis.run import load_run


def test_records_without_overall_rows_are_averaged_over_cells_and_said(make_run):
    path, world = make_run(samples=False)
    whole = load_run(path).select("needle", "answer_nll_nats")
    kept = []
    for line in (path / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["monitor"] == "needle":
            if not record.get("tags") or set(record["tags"]) <= {"depth", "span"}:
                continue
        kept.append(line + "\n")
    (path / "records.jsonl").write_text("".join(kept))
    run = load_run(path)
    rows = run.select("needle", "answer_nll_nats")
    assert len(rows) == world.windows
    cells = run.select("needle", "answer_nll_nats", "length", span="value", variant="single")
    for step, value in zip(rows.step, rows.value, strict=True):
        at = cells[cells.step == step]
        assert np.isclose(value, np.average(at.value, weights=at.n))
    assert np.allclose(rows.value, whole.value)
    said = [line for line in run.warnings if "no overall records of needle/hit_frac (by length, span" in line]
    assert len(said) == 1 and "averaged over its cells" in said[0]
    page = write_report(path)
    assert "no overall records of" in page.read_text()
    table = json.loads((path / "report" / "report.json").read_text())["saturation"]
    assert any(row["metric"] == "answer_nll_nats" and row["monitor"] == "needle" and not row["tags"] for row in table)


def test_records_with_overall_rows_are_left_as_they_are(make_run):
    path, _ = make_run()
    assert load_run(path).warnings == []
