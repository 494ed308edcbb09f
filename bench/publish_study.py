"""Keeps the runs of a study in the repository, and makes its page from them.

    python -m bench.publish_study pack replicate runs   # runs/studies/replicate and its runs -> docs/studies/data/
    python -m bench.publish_study page replicate        # docs/studies/data/replicate.tar.xz -> the page and its figure

A packed study holds what the analysis reads of each run: config, records, samples, times, decisions. Where arms leave
one run at several windows, it holds that run and every later phase, too. `page` analyses them again with the present
code and writes the results below the line RESULTS of docs/studies/NAME.md, the figure beside it, and the raw figures
into bench/results/study_NAME.json. What stands above that line is left alone.
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lccp_sim.analysis.chain import CHECKPOINT, phases_of
from lccp_sim.analysis.forks import forks
from lccp_sim.analysis.report.study_page import write_study
from lccp_sim.analysis.run import RunData, load_run
from lccp_sim.files import write_atomic

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "studies"
KEPT = ("config.yaml", "corpus.json", "records.jsonl", "samples", "timing.jsonl", "decisions.jsonl", "DONE")
ASKED = ("study", "texts", "reference", "metrics", "failed", "paper", "trained", "controls")
RESULTS = "## Results"
LEFT_OUT = {"Runs", "Warnings"}  # the table of how it was run, and what does not follow, stand beside them
LONG = 400  # characters of a paragraph that is a list
MANY = 12  # runs whose rows are one table
ANSWERED = {"Results", "Saturation by arm"}  # where the study's own questions are answered one by one
OWN = {"attention"}  # by a script of its own, above the results
REPEATED = {"The effect of data order"}  # only where every arm is repeated; other pages say what repeats reach
Orders = list[dict[str, dict[str, str]]]  # of each data order the names of runs by arm and seed


def pack(name: str, root: Path, out: Path) -> Path:
    """The path of the archive of a study's runs and of what its report was asked for."""
    report = json.loads((root / "studies" / name / "report.json").read_text(encoding="utf-8"))
    orders: Orders = [report["runs"], *report["again"]]
    target = out / f"{name}.tar.xz"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, tarfile.open(target, "w:xz") as archive:
        study = Path(made) / "study.json"
        study.write_text(
            json.dumps({key: report[key] for key in ASKED if key in report} | {"orders": orders}, indent=1)
        )
        archive.add(study, "study.json", filter=_plain)
        for run in _read(root, orders):
            for kept in KEPT:
                if kept == "config.yaml":  # where the runs lay is nobody's business
                    config = yaml.safe_load((run / kept).read_text(encoding="utf-8"))
                    config["run"] |= {"root": "runs", "init_from": _nearby(config["run"]["init_from"])}
                    place = Path(made) / kept
                    place.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
                    archive.add(place, f"{run.name}/{kept}", filter=_plain)
                elif (run / kept).exists():
                    archive.add(run / kept, f"{run.name}/{kept}", filter=_plain)
    return target


def _read(root: Path, orders: Orders) -> list[Path]:
    """The directories of the runs that a report reads, by name."""
    runs, *again = loaded(root, orders)
    last = [run for each in (runs, *again) for seeds in each.values() for run in seeds.values()]
    chained = forks(runs, again) is not None
    found = {phase.run.path.name: phase.run.path for run in last for phase in (phases_of(run) if chained else [])}
    return [path for _, path in sorted((found | {run.path.name: run.path for run in last}).items())]


def loaded(root: Path, orders: Orders) -> list[dict[str, dict[int, RunData]]]:
    """The runs of each data order, by arm and seed."""
    return [
        {arm: {int(seed): load_run(root / run) for seed, run in seeds.items()} for arm, seeds in order.items()}
        for order in orders
    ]


def _nearby(start: str | None) -> str | None:
    """What a run starts from, without the place where that lay."""
    if start is None or start.startswith("bundled:"):
        return start
    folder = Path(at[1] if (at := CHECKPOINT.fullmatch(start)) else start)
    return str("runs" / Path(start).relative_to(folder.parent))


def page(name: str, data: Path, pages: Path, results: Path) -> Path:
    """The path of the page, once the packed runs were analysed again and its results were written."""
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        with tarfile.open(data / f"{name}.tar.xz") as archive:
            archive.extractall(home, filter="data")
        asked = json.loads((home / "study.json").read_text())
        runs, *again = loaded(home, asked["orders"])
        folder = home / "page"
        texts, metrics = asked["texts"], asked["metrics"]
        judged = asked.get("trained", []), asked.get("controls", {})
        write_study(
            asked["study"],
            texts,
            asked["reference"],
            metrics,
            runs,
            folder,
            asked["failed"],
            asked["paper"],
            again,
            *judged,
        )
        made_page = (folder / "report.md").read_text(encoding="utf-8").replace("arms.png", f"{name}.png")
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        # Questions of its own, answered in tables.
        asks = name in OWN or report["paper"] or report["after"] or report["controls"]
        answered = (ANSWERED if asks else set()) | (set() if report["paper"] else REPEATED)
        body = _brief(made_page.split("\n", 1)[1].strip(), answered)
        path = pages / f"{name}.md"
        above = path.read_text(encoding="utf-8").split(f"\n{RESULTS}\n")[0].rstrip()
        parts = [above, "", RESULTS, "", body, "", "### How it was run", "", *_cost(home, asked["orders"])]
        write_atomic(path, "\n".join(parts) + "\n")
        write_atomic(pages / f"{name}.png", (folder / "arms.png").read_bytes())
        write_atomic(results / f"study_{name}.json", json.dumps(report, indent=1) + "\n")
    return path


def _brief(made: str, answered: set[str]) -> str:
    """The parts of a report that a reader of the page needs, one level lower: no long list, no table said elsewhere."""
    first, *sections = made.split("\n## ")
    said = "\n\n".join(part for part in first.strip().split("\n\n") if len(part) < LONG)
    kept = [section for section in sections if section.partition("\n")[0] not in LEFT_OUT | answered]
    return "\n### ".join([said + "\n", *(section.replace("\n### ", "\n#### ") for section in kept)]).strip()


def _cost(home: Path, orders: Orders) -> list[str]:
    """The runs, their starts and texts, and the seconds of training and monitors: a row a run, or a phase if many."""
    last = [(arm, number, run) for number, order in enumerate(orders) for arm in order for run in order[arm].values()]
    known = {run for _, _, run in last}
    before = [("before", "", path.name) for path in sorted(home.glob("*-s*")) if path.name not in known]
    rows = []
    for arm, number, run in [*last, *before]:
        config = yaml.safe_load((home / run / "config.yaml").read_text(encoding="utf-8"))
        corpus = json.loads((home / run / "corpus.json").read_text(encoding="utf-8"))["hash"][:12]
        seconds = pd.read_json(home / run / "timing.jsonl", lines=True).groupby("what")["seconds"].sum()
        train, start, named = seconds["train"], str(config["run"]["init_from"]), config["run"]["name"]
        found = CHECKPOINT.fullmatch(start)
        at = f"{Path(found[1]).name}, step {int(found[2])}" if found else Path(start).name
        rows.append([named, arm, config["seed"], number, run, at, corpus, train, seconds.sum() - train])
    names = ["phase", "arm", "seed", "order", "run", "from", "corpus", "training, s", "monitors, s"]
    table = pd.DataFrame(rows, columns=names)
    if len(table) > MANY:
        table = table.groupby("phase", sort=False).agg({"run": "size", **dict.fromkeys(names[-2:], "median")})
        table = table.reset_index().rename(columns={"run": "runs"})
    else:
        table = table.drop(columns="phase")
    shown = table.round(0).astype({name: int for name in names[-2:]}).astype(str)
    cells = [list(shown.columns), ["---"] * len(shown.columns), *shown.values.tolist()]
    lines = [f"| {' | '.join(row)} |".replace("| --- ", "|---").replace("--- |", "---|") for row in cells]
    note = "Medians of the runs of a phase. " if len(rows) > MANY else ""
    note += "One torch thread a run, two runs at once on a shared machine: times are not to be compared."
    return [*lines, "", note]


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
