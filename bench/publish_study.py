"""Keeps the runs of a study in the repository, and makes its page from them.

    python -m bench.publish_study pack replicate runs   # runs/studies/replicate and its runs -> docs/studies/data/
    python -m bench.publish_study page replicate        # docs/studies/data/replicate.tar.xz -> the page and its figure

A packed study holds what the analysis reads of each run: config, records, samples, times, decisions. `page` analyses
them again with the present code and writes the results below the line RESULTS of docs/studies/NAME.md, the figure
beside it, and the raw figures into bench/results/study_NAME.json. What stands above that line is left alone.
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lccp_sim.analysis.report.study_page import write_study
from lccp_sim.analysis.run import load_run
from lccp_sim.files import write_atomic

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "studies"
KEPT = ("config.yaml", "corpus.json", "records.jsonl", "samples", "timing.jsonl", "decisions.jsonl", "DONE")
RESULTS = "## Results"


def pack(name: str, root: Path, out: Path) -> Path:
    """The path of the archive of a study's runs and of what its report was asked for."""
    report = json.loads((root / "studies" / name / "report.json").read_text(encoding="utf-8"))
    orders = [report["runs"], *report["again"]]
    asked = {key: report[key] for key in ("study", "texts", "reference", "metrics", "failed", "paper")}
    target = out / f"{name}.tar.xz"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, tarfile.open(target, "w:xz") as archive:
        study = Path(made) / "study.json"
        study.write_text(json.dumps(asked | {"orders": orders}, indent=1))
        archive.add(study, "study.json", filter=_plain)
        for run in sorted({run for order in orders for seeds in order.values() for run in seeds.values()}):
            for kept in KEPT:
                if kept == "config.yaml":  # where the runs lay is nobody's business
                    config = yaml.safe_load((root / run / kept).read_text(encoding="utf-8"))
                    config["run"]["root"] = "runs"
                    place = Path(made) / kept
                    place.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
                    archive.add(place, f"{run}/{kept}", filter=_plain)
                elif (root / run / kept).exists():
                    archive.add(root / run / kept, f"{run}/{kept}", filter=_plain)
    return target


def page(name: str, data: Path, pages: Path, results: Path) -> Path:
    """The path of the page, once the packed runs were analysed again and its results were written."""
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        with tarfile.open(data / f"{name}.tar.xz") as archive:
            archive.extractall(home, filter="data")
        asked = json.loads((home / "study.json").read_text())
        runs, *again = (
            {arm: {int(seed): load_run(home / run) for seed, run in seeds.items()} for arm, seeds in order.items()}
            for order in asked["orders"]
        )
        folder = home / "page"
        texts, metrics = asked["texts"], asked["metrics"]
        write_study(name, texts, asked["reference"], metrics, runs, folder, asked["failed"], asked["paper"], again)
        made_page = (folder / "report.md").read_text(encoding="utf-8").replace("arms.png", f"{name}.png")
        body = made_page.split("\n", 1)[1].strip().replace("\n### ", "\n#### ").replace("\n## ", "\n### ")
        path = pages / f"{name}.md"
        above = path.read_text(encoding="utf-8").split(f"\n{RESULTS}\n")[0].rstrip()
        parts = [above, "", RESULTS, "", body, "", "### How it was run", "", *_cost(home, asked["orders"])]
        write_atomic(path, "\n".join(parts) + "\n")
        write_atomic(pages / f"{name}.png", (folder / "arms.png").read_bytes())
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        write_atomic(results / f"study_{name}.json", json.dumps(report, indent=1) + "\n")
    return path


def _cost(home: Path, orders: list[dict[str, dict[str, str]]]) -> list[str]:
    """One row a run: its text, its start, and the seconds that training and monitors took."""
    lines = [
        "| arm | seed | order | run | from | corpus | training, s | monitors, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, order in enumerate(orders):
        for arm, seeds in order.items():
            for seed, run in seeds.items():
                config = yaml.safe_load((home / run / "config.yaml").read_text(encoding="utf-8"))
                corpus = json.loads((home / run / "corpus.json").read_text(encoding="utf-8"))["hash"][:12]
                seconds = pd.read_json(home / run / "timing.jsonl", lines=True).groupby("what")["seconds"].sum()
                train, start = seconds["train"], Path(str(config["run"]["init_from"])).name
                cells = [arm, seed, number, run, start, corpus, f"{train:.0f}", f"{seconds.sum() - train:.0f}"]
                lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, "", "One torch thread a run, two runs at once on a shared machine: times are not to be compared."]


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same entry without owner and date, so that the same runs give the same archive."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    return entry


def main(words: list[str]) -> None:
    verb, name, *rest = words
    made: Any = (
        pack(name, Path(*rest), PAGES / "data")
        if verb == "pack"
        else page(name, PAGES / "data", PAGES, ROOT / "bench" / "results")
    )
    print(made)


if __name__ == "__main__":
    main(sys.argv[1:])
