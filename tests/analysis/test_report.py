"""The report: self-contained, its numbers the computed ones, and there for runs with little in them."""

import html
import json
import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest

from lccp_sim.analysis.findings import examine
from lccp_sim.analysis.format import interval, number, tokens
from lccp_sim.analysis.report.compare_page import write_comparison
from lccp_sim.analysis.report.run_page import write_report
from lccp_sim.analysis.report.verdict import verdict
from lccp_sim.analysis.run import load_run
from lccp_sim.analysis.stats.rule import decided
from lccp_sim.errors import ConfigError

NAMES = set(
    "tiers needle_by_length variants depths needle_maps text positions heads intervention induction head_map probe "
    "load_map".split()
)


class Tags(HTMLParser):
    """The start tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def report(planted):
    path, world = planted
    page = write_report(path)
    return page, html.unescape(page.read_text()), json.loads((page.parent / "report.json").read_text()), world


def test_the_page_is_self_contained(report):
    page, text, _, _ = report
    assert not re.search(r"https?://|@import|url\(", text)
    tags = Tags(text).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object"}
    images = [attrs for tag, attrs in tags if tag == "img"]
    assert len(images) == len(NAMES)
    assert all(image["src"].startswith("data:image/png;base64,") and len(image["alt"]) > 20 for image in images)
    assert {file.stem for file in page.parent.glob("*.png")} == NAMES
    assert all(f"]({name}.png)" in (page.parent / "report.md").read_text() for name in NAMES)
    links = {attrs["href"][1:] for tag, attrs in tags if tag == "a"}
    assert links and links <= {attrs.get("id") for _, attrs in tags}


def test_report_json_has_one_row_a_metric(report):
    _, _, data, world = report
    wanted = (
        "run finished tokens method verdict saturation after_hit correlations comparisons probe_stays heads forecast "
    )
    wanted += "deceptive_index needle_span turning warnings"
    assert set(wanted.split()) == set(data)
    contract = set("monitor metric tags t50 t90 t95 law laws gain_per_doubling verdict".split())
    for row in data["saturation"]:
        assert contract <= set(row)
        assert (row["t95"] is None) == isinstance(row["reason"], str)
        assert row["verdict"] in ("saturated", "improving", "not told apart", "not enough points")
        assert all(set(law) == {"name", "aicc", "tail_error"} for law in row["laws"])
        assert (row["gain_per_doubling"] is None) == (row["verdict"] == "not enough points")
        for name in ("t50", "t90", "t95"):
            if row[name]:
                assert set(row[name]) == {"tokens", "low", "high"}
                assert 0 < row[name]["tokens"] <= row["run_tokens"]
    whole = {(row["monitor"], row["metric"]) for row in data["saturation"] if row["tags"] == {}}
    assert {("probe", "exact_match_frac"), ("heads", "initial_heads_mean_frac"), ("needle", "answer_ppl")} <= whole
    (hit,) = [row for row in data["saturation"] if row["metric"] == "hit_frac" and row["tags"] == {}]
    assert hit["law"] == min(hit["laws"], key=lambda law: law["aicc"])["name"]
    assert hit["t95"]["low"] <= world.hit_t95 <= hit["t95"]["high"]
    (gap,) = [row for row in data["after_hit"] if row["tags"] == {}]
    assert set(gap) == {"tags", "factor", "nats", "same_shape", "index", "index_log"}


def test_the_words_carry_the_computed_numbers(report):
    page, text, data, _ = report
    found = examine(load_run(page.parents[1]))
    rule = {name: found.decision("needle", name) for name in ("hit_frac", "answer_nll_nats")}
    hit, nll, gap = found.row("needle", "hit_frac"), found.row("needle", "answer_nll_nats"), found.lag()
    summary = " ".join(data["verdict"]["summary"])
    for phrase in (
        f"hit goes from {number(hit.first)} to {number(hit.last)}",
        f"t95 = {interval(hit.t95, tokens)}, of the run's {tokens(hit.run_tokens)} tokens",
        f"t95 = {interval(nll.t95, tokens)}, of the run's",
        f"The hit is {decided(rule['hit_frac'], found.eps)}",
        f"The answer NLL is {decided(rule['answer_nll_nats'], found.eps)}, in nats",
    ):
        assert phrase in summary and phrase in text
    for phrase in (f"falls by a factor of {interval(gap.factor)}", f"t95(NLL) / t95(hit) is {interval(gap.index)}"):
        assert phrase in text
    stated = {float(n) for n in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*[MkB])", summary)}
    bounds = [found.eps * decision.gain_so_far for decision in rule.values()]
    computed = [*_numbers(data), *bounds]
    known = {round(abs(v), 12) for v in computed} | {abs(float(number(v))) for v in computed}
    assert stated <= known, "a number in the summary that was not computed"


def _numbers(node):
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        return [value for item in node for value in _numbers(item)]
    return [node] if isinstance(node, int | float) else []


def test_the_same_records_give_the_same_bytes(report, tmp_path):
    page = report[0]
    again = write_report(page.parents[1], tmp_path / "elsewhere")
    assert len(list(again.parent.iterdir())) == len(NAMES) + 4
    for file in page.parent.iterdir():
        assert file.read_bytes() == (again.parent / file.name).read_bytes(), file.name


def test_what_does_not_show_is_said(make_run):
    path, _ = make_run(hit=(0.3, 0.3), nll=(2.0, 2.0))
    said = verdict(examine(load_run(path)))
    assert "hit is undecided" in said.summary[1]
    assert any(line.startswith("No t95 of the hit: no improvement") for line in said.not_shown)
    assert "deceptive saturation, in this run" not in " ".join(said.summary)


def test_the_precondition_is_read_at_step_0(make_run):
    path, _ = make_run()
    said = verdict(examine(load_run(path)))
    assert [check.met for check in said.precondition] == [True, True, False, False]
    assert [check.answer for check in said.precondition][:2] == [
        "0.9 at 128 tokens (full sentence 0.3)",
        "0.1 at 128 tokens",
    ]
    assert said.caution.startswith("The precondition is not met") and "Short retrieval survives" in said.caution
    config = (path / "config.yaml").read_text().replace("context_tokens: 1024", "context_tokens: 128")
    (path / "config.yaml").write_text(config)
    said = verdict(examine(load_run(path)))
    assert (said.precondition, said.caution) == ([], ""), "a base has no longer context to learn"


@pytest.mark.parametrize(
    "changes",
    [
        {"without": ("probe", "heads")},
        {"without": ("needle",)},
        {"without": ("perplexity", "routing", "heads", "probe", "precondition")},
        {"windows": 2},
        {"windows": 1},
        {"samples": False, "done": False},
    ],
    ids=str,
)
def test_runs_with_little_in_them_still_have_a_report(make_run, changes):
    path, world = make_run(**changes)
    text = write_report(path).read_text()
    data = json.loads((path / "report" / "report.json").read_text())
    for monitor in world.without:
        if monitor not in ("routing", "precondition"):
            assert f"No {monitor} records" in text
    if world.windows < 6:
        assert all("not enough points" in row["reason"] for row in data["saturation"])
        assert {row["verdict"] for row in data["saturation"]} == {"not enough points"}
        assert "needle" in world.without or "cannot be judged: too few points" in text
    assert ("The run is unfinished" in text) != world.done
    assert ("parametric bootstrap of the standard errors" in text) != world.samples
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower()


def test_windows_that_lack_a_metric_are_left_out_of_its_curve_only(make_run):
    path, world = make_run(without=("heads", "probe", "perplexity"))
    lines = [json.loads(line) for line in (path / "records.jsonl").read_text().split("\n") if line]
    gone = sorted({row["step"] for row in lines})[3:5]
    kept = [row for row in lines if row["metric"] != "control_nll_nats" or row["step"] not in gone]
    constant = [row | {"metric": "first_copy_nll_nats", "value": 9.5} for row in lines if row["monitor"] == "induction"]
    rows = {(row["step"], row["metric"], str(row["tags"])): row for row in [*kept, *constant]}
    (path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    found = examine(load_run(path))
    write_report(path)
    assert len(found.curve("needle", "hit_frac").tokens_W) == world.windows
    assert len(found.curve("needle", "control_nll_nats").tokens_W) == world.windows - 2
    row = found.row("induction", "first_copy_nll_nats")
    assert row.t95 is None and (row.reason.code, row.reason.detail[:3]) == ("constant", "9.5")


def test_deceptive_saturation_is_claimed_where_it_was_planted_and_only_there(planted, make_run):
    claim = "(deceptive saturation, in this run)"
    assert claim in verdict(examine(load_run(planted[0]))).summary[1]
    path, _ = make_run(hit_scale=3_000_000.0)  # the hit is still rising when the run ends
    said = verdict(examine(load_run(path)))
    assert claim not in said.summary[1]
    assert any(line.startswith("A hit that has levelled") for line in said.not_shown)


def test_runs_are_compared_on_one_page(planted, make_run, tmp_path):
    path, _ = make_run(seed=7, hit=(0.2, 0.7), without=("routing",))
    config = (path / "config.yaml").read_text().replace("batch_tokens: 2048", "batch_tokens: 4096")
    (path / "config.yaml").write_text(config)
    page = write_comparison([planted[0], path], tmp_path / "both")
    text = html.unescape(page.read_text())
    assert not re.search(r"https?://|@import|url\(", text)
    assert "run.batch_tokens" in text and "run-7" in text
    data = json.loads((page.parent / "report.json").read_text())
    assert [run["run"] for run in data["runs"]] == ["run", "run-7"]
    table = pd.read_parquet(page.parent / "records.parquet")
    assert dict(table.groupby("run")["run.batch_tokens"].first()) == {"run": 2048, "run-7": 4096}
    assert not {"run.context_tokens", "names"} & set(table), "keys that the runs share are left out"
    with pytest.raises(ConfigError, match="given twice"):
        write_comparison([path, path], tmp_path / "twice")


def test_the_paper_stands_beside_the_run(report):
    _, text, _, _ = report
    for value in ("24 of 30", "0.7316", "29 of 30", "0.9238", "0.8808", "79.44", "-0.82"):
        assert value in text
    assert "REFERENCES" not in text and "arXiv 2604.02650" in text


def test_what_lccp_measure_wrote_is_reported(make_run):
    path, _ = make_run(done=False)
    (path / "config.yaml").rename(path / "measured.yaml")
    (path / "corpus.json").unlink()
    text = write_report(path).read_text()
    assert "measured after the fact" in text and "The run is unfinished" not in text and "corpus.json" not in text


def test_hostile_names_and_texts_stay_text(planted, tmp_path):
    """Whoever made the run chose its names; the page shows them, and runs nothing of them."""
    evil = "<img src=x onerror=alert(1)>"
    run = shutil.copytree(planted[0], tmp_path / evil, ignore=shutil.ignore_patterns("report"))
    (run / "config.yaml").write_text(f"run: {{name: '{evil}', tokens: 1000}}\nnote: '{{{{ 7 * 191 }}}}'\n")
    said = {"warnings": [evil, "{{ 7 * 191 }}"], "sources": [{"source": evil, "share": 1.0}]}
    (run / "corpus.json").write_text(json.dumps(said))
    page = write_report(run).read_text()
    assert html.escape(evil, quote=False).split("=x")[0] in page and "{{ 7 * 191 }}" in page and "1337" not in page
    tags = Tags(page).tags
    assert not any(name.startswith("on") for _, attrs in tags for name in attrs)
    assert all(attrs["src"].startswith("data:image/png;base64,") for tag, attrs in tags if tag == "img")
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object"}
