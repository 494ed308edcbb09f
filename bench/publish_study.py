"""Puts the report of a study that was run into docs/studies: the page, its figure, and beside them what it took.

    python bench/publish_study.py replicate runs

reads runs/studies/replicate and the runs that it names, and writes docs/studies/replicate.md and .png, and
bench/results/study_replicate.json.
"""

import json
import sys
from pathlib import Path

import pandas as pd
import yaml

from lccp_sim.files import write_atomic

ROOT = Path(__file__).parents[1]


def facts(name: str, root: Path, report: dict) -> list[str]:
    """Lines on how the study was run: the command, the corpora, the bases and the cost of each run."""
    lines = [f"`lccp study {name}`, one torch thread a run. Raw figures: `bench/results/study_{name}.json`.", ""]
    lines += ["| arm | seed | run | from | corpus | training, s | monitors, s |", "|---|---|---|---|---|---|---|"]
    for arm, seeds in report["runs"].items():
        for seed, run in seeds.items():
            config = yaml.safe_load((root / run / "config.yaml").read_text())
            corpus = json.loads((root / run / "corpus.json").read_text())["hash"][:12]
            seconds = pd.read_json(root / run / "timing.jsonl", lines=True).groupby("what")["seconds"].sum()
            base = Path(str(config["run"]["init_from"])).name
            spent = seconds.drop("train").sum()
            lines.append(f"| {arm} | {seed} | {run} | {base} | {corpus} | {seconds['train']:.0f} | {spent:.0f} |")
    return [*lines, "", "Times are of a shared machine of two cores, two runs at once."]


def main(name: str, root: Path) -> None:
    """Writes the page, the figure and the raw figures."""
    folder, out = root / "studies" / name, ROOT / "docs" / "studies"
    report = json.loads((folder / "report.json").read_text())
    page = (folder / "report.md").read_text().replace("arms.png", f"{name}.png").rstrip()
    write_atomic(out / f"{name}.md", "\n".join([page, "", "## How it was run", "", *facts(name, root, report)]) + "\n")
    write_atomic(out / f"{name}.png", (folder / "arms.png").read_bytes())
    write_atomic(ROOT / "bench" / "results" / f"study_{name}.json", json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
