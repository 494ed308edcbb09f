"""Collects the reports of finished runs of the tiny study into one page and one JSON, a column a seed.

    python bench/tiny_seeds.py runs/tiny_lccp-s0-* runs/tiny_lccp-s1-* runs/tiny_lccp-s2-*

writes docs/tiny_study.md and bench/results/tiny_seeds.json. Every number on the page comes from these reports.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lccp_sim.analysis.beside_probe import coefficients, foretold
from lccp_sim.analysis.correlation import correlations
from lccp_sim.analysis.panel import gather
from lccp_sim.analysis.prediction import predictions
from lccp_sim.analysis.report import write_report
from lccp_sim.analysis.table import load_run
from lccp_sim.analysis.tables import Table
from lccp_sim.records import HEADLINE, write_atomic

KEPT = ("tokens", "verdict", "saturation", "after_hit", "probe_stays", "forecast")
ROOT = Path(__file__).parents[1]
CURVES = (
    ("needle", "hit_frac", "needle hit (all lengths)"),
    ("needle", "answer_nll_nats", "needle answer NLL, nats"),
    ("needle", "gain_nats", "gain over the control without needle, nats"),
    ("heads", "initial_heads_mean_frac", "mean score of the initial heads"),
    ("heads", "retrieval_heads_count", "retrieval heads (score > 0.1)"),
    ("induction", "second_copy_nll_nats", "unmarked second copy, NLL, nats"),
    ("probe", "exact_match_frac", "probe after fine-tuning, exact match"),
    ("probe", "answer_nll_nats", "probe after fine-tuning, answer NLL, nats"),
    ("perplexity", "nll_nats", "held-out NLL, nats"),
    ("perplexity", "short_nll_nats", "held-out NLL in short windows, nats"),
)


AFTER = {
    "index": "t95(NLL) / t95(hit)",
    "factor": "fall of the NLL after t95(hit), factor",
    "same_shape": "the factor that a curve of the hit's own shape would show",
}
INTRODUCTION = """Made by `bench/tiny_seeds.py` from the reports of these runs; raw numbers in `bench/results/tiny_seeds.json`.
The settings (`configs/run/tiny_*.yaml`) were chosen on seed 0; the other seeds were run once, untouched, each with a base of its own.
A run is {tokens:.2f} M tokens long. t95 is the number of training tokens, in millions, to 95 % of a curve's own improvement in this
run, with a 95 % interval over items (not over seeds). It is not a point of saturation.

The runs had {threads} torch thread each (`run.threads`); another number of threads rounds otherwise and gives another trajectory.

The base starts with planted previous-token heads; they stand for what billions of tokens do in a real base."""  # noqa: E501


def collect(run: Path) -> dict[str, Any]:
    """What the page needs of one run: its settings, its report, and the share of time of its monitors."""
    write_report(run)
    report = json.loads((run / "report" / "report.json").read_text())
    report = {key: report[key] for key in KEPT}
    report["saturation"] = [row for row in report["saturation"] if row["tags"].keys() <= {"sft_step"}]
    config = yaml.safe_load((run / "config.yaml").read_text())
    seconds = pd.read_json(run / "timing.jsonl", lines=True).groupby("what")["seconds"].sum()
    watched = seconds[[name for name in seconds.index if name not in ("train", "monitor:probe")]].sum()
    shares = {"monitors": watched / seconds["train"], "probe": seconds.get("monitor:probe", 0.0) / seconds["train"]}
    corpus = json.loads((run / "corpus.json").read_text())["hash"]
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    last = [r for r in records if r["monitor"] == "intervention" and r["step"] == records[-1]["step"]]
    return {"run": run.name, "seed": config["seed"], "corpus": corpus, "threads": config["run"]["threads"],
            "time_over_training": shares, "intervention": last, "report": report}  # fmt: skip


def span(value: dict[str, float] | None, scale: float = 1.0, digits: int = 2) -> str:
    """`value (low to high)`, or a dash."""
    if not value:
        return "–"
    keys = ("tokens" if "tokens" in value else "value", "low", "high")
    numbers = [f"{value[key] / scale:.{digits}f}" if value[key] is not None else "–" for key in keys]
    return f"{numbers[0]} ({numbers[1]} to {numbers[2]})"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(cells) + " |" for cells in rows])


def page(runs: list[dict[str, Any]], together: list[Table]) -> str:
    """The page in Markdown; `together`: tables over all runs."""
    seeds = [f"seed {run['seed']}" for run in runs]
    parts = [
        "# The tiny study, seed by seed",
        INTRODUCTION.format(tokens=runs[0]["report"]["tokens"] / 1e6, threads=runs[0]["threads"]),
        "## Precondition\n\n" + table(["condition", *seeds], preconditions(runs)),
        "## First → last; t95 in M tokens; the rule's verdict\n\n" + table(["curve", *seeds], curves(runs)),
        "## After the hit's t95\n\n" + table(["single needles of trained templates", *seeds], after_hit(runs)),
        "## Heads masked, at the last window\n\n" + table(["arm and metric", *seeds], masked(runs)),
        *(f"## {each.title}\n\n{each.note}\n\n{table(each.head, each.rows)}" for each in together),
        "## Cost\n\n" + table(["time / training time", *seeds], costs(runs)),
    ]
    for run in runs:
        verdict = run["report"]["verdict"]
        parts += [f"## Verdict of seed {run['seed']}", *verdict["summary"]]
        if verdict["caution"]:
            parts.append(f"**{verdict['caution']}**")
        parts.append("What it does not show:\n\n" + "\n".join(f"- {line}" for line in verdict["not_shown"]))
    parts.append("Runs: " + ", ".join(f"`{run['run']}` (corpus {run['corpus'][:12]})" for run in runs) + ".")
    return "\n\n".join(parts) + "\n"


def preconditions(runs: list[dict[str, Any]]) -> list[list[str]]:
    """A row per condition: what was measured, and whether it is met."""
    columns = [run["report"]["verdict"]["precondition"] for run in runs]
    rows = zip(*columns, strict=True)
    return [[row[0]["question"], *(c["answer"] + ("" if c["met"] else " (**not met**)") for c in row)] for row in rows]


def curves(runs: list[dict[str, Any]]) -> list[list[str]]:
    """A row per curve: its first and last value and its t95."""
    rows = []
    for monitor, metric, words in CURVES:
        cells = []
        for run in runs:
            rows_of = run["report"]["saturation"]
            found = [r for r in rows_of if (r["monitor"], r["metric"]) == (monitor, metric)]
            if monitor == "probe":  # after its fine-tuning; step 0 is before it
                found = [r | {"tags": {}} for r in found if r["tags"].keys() == {"sft_step"} and r["tags"]["sft_step"]]
            r = next((r for r in found if not r["tags"]), None)
            cells.append(f"{r['first']:.3g} → {r['last']:.3g}; {span(r['t95'], 1e6)}; {r['verdict']}" if r else "–")
        rows.append([words, *cells])
    return rows


def after_hit(runs: list[dict[str, Any]]) -> list[list[str]]:
    """A row per length and quantity: the index, the factor, and the factor that the hit's own shape would give."""
    rows = []
    for first in runs[0]["report"]["after_hit"]:
        tags = first["tags"]
        if tags.get("variant", "single") != "single" or tags.get("span", HEADLINE) != HEADLINE or "depth" in tags:
            continue
        found = [next((a for a in run["report"]["after_hit"] if a["tags"] == tags), {}) for run in runs]
        name = f"{tags['length']} tokens" if "length" in tags else "all lengths"
        rows += [[f"{name}: {words}", *(span(f.get(key)) for f in found)] for key, words in AFTER.items()]
    return rows


def masked(runs: list[dict[str, Any]]) -> list[list[str]]:
    """A row per arm and metric: the value and its standard error over items."""
    rows = []
    for first in runs[0]["intervention"]:
        cells = []
        for run in runs:
            same = (r for r in run["intervention"] if (r["metric"], r["tags"]) == (first["metric"], first["tags"]))
            found = next(same, None)
            error = f" ± {found['stderr']:.2g}" if found and found["stderr"] else ""
            cells.append(f"{found['value']:.3g}{error}" if found else "–")
        tags = first["tags"]
        rows.append([" ".join([tags.get("arm", "all"), first["metric"], tags.get("span", "")]), *cells])
    return rows


def costs(runs: list[dict[str, Any]]) -> list[list[str]]:
    """Seconds of monitors over seconds of training."""
    names = {"monitors": "all monitors but the probe", "probe": "probe"}
    return [[words, *(f"{run['time_over_training'][key]:.2f}" for run in runs)] for key, words in names.items()]


def main(paths: list[str]) -> None:
    """Writes the page and the JSON."""
    runs = sorted((collect(Path(path)) for path in paths), key=lambda run: run["seed"])
    panels = gather([load_run(path) for path in paths])
    rows, ahead = correlations(panels), predictions(panels)
    data = {"runs": runs, "correlations": [row.row() for row in rows if row.task is None]}
    data["predictions"] = [row.row() for row in ahead if row.task is None]
    write_atomic(ROOT / "bench" / "results" / "tiny_seeds.json", json.dumps(data, indent=1) + "\n")
    write_atomic(ROOT / "docs" / "tiny_study.md", page(runs, [coefficients(rows), foretold(ahead)]))


if __name__ == "__main__":
    main(sys.argv[1:])
