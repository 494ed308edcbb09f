"""The headline of needles is the value's tokens wherever a report reads it; earlier records keep their meaning."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from lccp_sim.analysis.findings import examine
from lccp_sim.analysis.format import number
from lccp_sim.analysis.report.compare_page import write_comparison
from lccp_sim.analysis.report.paper import claims_table
from lccp_sim.analysis.report.precondition import BASE_HIT, SHORT_HIT, precondition
from lccp_sim.analysis.report.run_page import write_report
from lccp_sim.analysis.report.statements import change
from lccp_sim.analysis.report.tables import windows_table
from lccp_sim.analysis.report.verdict import verdict
from lccp_sim.analysis.run import load_run, unlike
from lccp_sim.analysis.seeds import pooled_over_seeds
from lccp_sim.analysis.stats.arms import curves_of, results
from lccp_sim.analysis.stats.curve import curves, whole_curve

FEW = {"without": ("heads", "probe", "perplexity", "routing", "induction"), "windows": 8, "hit": (0.7, 0.95)}
HIT, NLL = "needle/hit_frac", "needle/answer_nll_nats"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "records.jsonl").read_text().splitlines()]


def recorded(path: Path, metric: str, span: str) -> list[float]:
    """The overall needle records of a span, window by window."""
    tags = {"span": span}
    return [r["value"] for r in lines(path) if (r["monitor"], r["metric"], r["tags"]) == ("needle", metric, tags)]


def as_earlier(path: Path, before: int) -> None:
    """Rewrites the records of steps below `before` as the version before spans wrote them; those by length had one."""
    kept = []
    for row in lines(path):
        tags = row["tags"]
        if row["step"] < before and "length" not in tags and tags.get("span") == "value":
            continue
        if row["step"] < before and "length" not in tags:
            tags.pop("span", None)
        kept.append(row)
    (path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))


def test_every_reader_follows_the_value_and_shows_the_sentence_beside_it(make_run: Callable) -> None:
    path, _ = make_run(**FEW)
    hits, sentences = recorded(path, "hit_frac", "value"), recorded(path, "hit_frac", "full")
    assert min(hits) > 0.6 and max(sentences) < 0.25
    run = load_run(path)
    found = examine(run)
    assert run.warnings == [] and run.span() == run.span("intervention") == "value"
    value, whole = found.row("needle", "hit_frac"), found.row("needle", "hit_frac", span="full")
    assert (value.first, value.last) == pytest.approx((hits[0], hits[-1]))
    assert (whole.first, whole.last) == pytest.approx((sentences[0], sentences[-1]))
    summary = verdict(found).summary[0]
    assert summary.startswith(f"The needle hit goes {change(value)}")
    assert f"Both refer to the value's tokens. On the full answer sentence the hit goes {change(whole)} and" in summary
    (score,) = [row[-1] for row in claims_table(found).rows if row[1] == "needle score"]
    assert score.startswith(change(value)) and score.endswith(f"; full sentence {change(whole)}")
    table = windows_table(found)
    shown = [dict(zip(table.head, row, strict=True)) for row in table.rows]
    assert shown[-1]["needle hit, fraction of items"].startswith(number(hits[-1]))
    assert shown[-1]["needle hit, fraction of items (whole sentence)"].startswith(number(sentences[-1]))
    names = [HIT, "needle/sentence_hit_frac", NLL]
    of_study = {row.metric: row.mean for row in results(curves_of({"a": {0: run}}, names), "a")}
    assert of_study == pytest.approx(
        {HIT: hits[-1], names[1]: sentences[-1], NLL: recorded(path, "answer_nll_nats", "value")[-1]}
    )
    assert curves(run, "needle", ("hit_frac",), {})["hit_frac"].source == "paired items"
    effect = found.curve("intervention", "causal_nll_nats")
    assert effect.value_W == pytest.approx(np.full(8, 1.5)) and found.curve("intervention", "hit_frac", arm="none")


def test_a_base_that_hits_the_value_and_not_the_sentence_retrieves(make_run: Callable) -> None:
    path, _ = make_run(**FEW)
    base, _, short, _ = precondition(load_run(path))
    assert base.question == "The base retrieves at its own context (hit on the value's tokens at least 0.8)"
    assert (base.met, base.answer) == (True, "0.9 at 128 tokens (whole sentence 0.3)") and short.met


def test_forty_needles_tell_a_base_that_retrieves_from_one_that_does_not() -> None:
    """The figures of docs/monitors.md."""
    passes = {found: binom.sf(BASE_HIT * 40 - 1, 40, found) for found in (0.95, 0.6)}
    assert (round(passes[0.95], 4), round(passes[0.6], 3)) == (0.9999, 0.006)
    trials = json.loads((Path(__file__).parents[2] / "bench" / "results" / "rope_change.json").read_text())
    kept, lost = ([r["value"] for r in trials[name]["rows"] if r["factor"] > 1 and r["length"] == 256
                   and (r["metric"], r["variant"], r["span"]) == ("hit_frac", "single", "value")]
                  for name in ("full_10m", "half_100k"))  # fmt: skip
    assert min(kept) == 1.0 and (round(min(lost), 2), round(max(lost), 2)) == (0.25, 0.38)
    assert max(lost) < SHORT_HIT < min(kept)


def test_records_without_spans_are_of_the_sentence_and_the_report_says_so(make_run: Callable) -> None:
    path, _ = make_run(**FEW, earlier=True)
    run = load_run(path)
    said = "the records are of an earlier version, without the value's tokens at every window"
    assert [w for w in run.warnings if said in w] == run.warnings and run.warnings[0].startswith("needle, intervention")
    assert {run.span(monitor) for monitor in ("needle", "intervention", "precondition")} == {"full"}
    rows = {(r["step"], r["metric"]): r["value"] for r in lines(path) if r["monitor"] == "needle" and not r["tags"]}
    hit = whole_curve(run, HIT)
    assert hit.value_W == pytest.approx([value for (_, metric), value in rows.items() if metric == "hit_frac"])
    assert hit.source == "paired items"
    assert whole_curve(run, "needle/sentence_hit_frac").value_W == pytest.approx(hit.value_W)
    assert "hit on the full answer sentence at least 0.8" in precondition(run)[0].question
    page = write_report(path)
    assert "Both refer to the full answer sentence (records of an earlier version)." in page.read_text()
    data = json.loads((page.parent / "report.json").read_text())
    assert data["needle_span"] == "full" and not [row for row in data["saturation"] if row["tags"] == {"span": "full"}]


@pytest.mark.parametrize("which", ["all windows", "the first half"])
def test_earlier_records_with_the_value_by_length_are_averaged_over_lengths(make_run: Callable, which: str) -> None:
    path, world = make_run(**FEW)
    wanted = load_run(path)
    sentences = recorded(path, "hit_frac", "full")
    as_earlier(path, world.run_tokens if which == "all windows" else world.run_tokens // 2048 // 4)
    run = load_run(path)
    assert run.span() == "value" and run.span("intervention") == "full"
    for metric in ("hit_frac", "answer_nll_nats", "answer_ppl", "control_nll_nats", "gain_nats"):
        got, want = (each.select("needle", metric) for each in (run, wanted))
        assert list(got.step) == list(want.step)
        assert list(got.value) == pytest.approx(list(want.value)) and list(got.n) == list(want.n)
    got, want = (each.select("needle", "answer_ppl", "depth").sort_values(["step", "depth"]) for each in (run, wanted))
    assert list(got.value) == pytest.approx(list(want.value)) and list(got.depth) == list(want.depth)
    assert whole_curve(run, "needle/sentence_hit_frac").value_W == pytest.approx(sentences)
    assert whole_curve(run, NLL).source == "paired items"
    effect = run.select("intervention", "causal_nll_nats")
    assert list(effect.value) == pytest.approx([3.0] * 8), "the sentence's, at all windows"
    (mean,) = [w for w in run.warnings if w.startswith("no overall records of needle/hit_frac (by length, span, ")]
    (earlier,) = [w for w in run.warnings if w.startswith("needle: records of an earlier version")]
    assert "each is averaged over its cells" in mean and "here refer to the value's tokens" in earlier


def test_runs_of_different_spans_are_not_averaged_and_said(make_run: Callable) -> None:
    new, _ = make_run(**FEW | {"windows": 2})
    old, _ = make_run(**FEW | {"windows": 2, "seed": 1}, earlier=True)
    runs = [load_run(path) for path in (new, old)]
    line = "needle: the metrics refer to the full answer sentence in run-1, to the value's tokens in the other runs; "
    line += "do not compare them"
    assert unlike(runs)[0] == line and unlike(runs[:1]) == []
    assert pooled_over_seeds([examine(run) for run in runs]).row("needle", "hit_frac") is None
    assert line.replace("'", "&#39;") in write_comparison([new, old]).read_text()
