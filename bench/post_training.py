"""What fine-tuning and RL did to sampled answers on held-out questions: first window against last, item by item.

    python -m bench.post_training RUN ... --out bench/results/post_training.json

The runs are whatever was trained; the result names each one's config. What `lccp measure` wrote into a run counts, too.
Differences are paired: the same questions and the same random numbers at both windows. Standard errors are over
questions, for this seed alone.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lccp_sim.files import write_atomic

KEPT = ("pass_at_1_frac", "pass_at_8_frac", "place_frac", "entropy_nats")
CONFIG = ("context_tokens", "batch_tokens", "tokens")


def samples(path: Path) -> pd.DataFrame:
    """The values of the monitor `answers` at a window: a row a question, a column a metric, and its task."""
    table = pd.read_parquet(path).query("monitor == 'answers'")
    wide = table.pivot(index="item_id", columns="metric", values="value")
    return wide.assign(
        task=table.drop_duplicates("item_id").set_index("item_id").tags.map(lambda x: json.loads(x)["task"])
    )


def summary(values: pd.Series) -> dict[str, float]:
    """Mean, standard error over questions, and their number."""
    return {"mean": values.mean(), "stderr": values.std(ddof=1) / len(values) ** 0.5, "n": len(values)}


def changed(first: pd.DataFrame, last: pd.DataFrame) -> dict[str, Any]:
    """Each metric at the first and the last window, and the paired difference."""
    return {
        name: {"first": summary(first[name]), "last": summary(last[name]), "change": summary(last[name] - first[name])}
        for name in KEPT
        if name in first
    }


def result(run: Path) -> dict[str, Any]:
    """What a run did, from its files alone."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    rows = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    windows = {int(path.stem): path for path in run.glob("**/samples/*.parquet")}
    first, last = samples(windows[min(windows)]), samples(windows[max(windows)])
    curves: dict[str, list[list[float]]] = {}
    for row in rows:
        if row["monitor"] == "train":
            curves.setdefault(row["metric"], []).append([row["step"], row["value"]])
    hits = {
        row["step"]: row["value"] for row in rows if row["metric"] == "hit_frac" and row["tags"] == {"span": "value"}
    }
    return {
        "run": run.name,
        "starts_from": Path(config["run"]["init_from"]).name,
        "config": {key: config["run"][key] for key in CONFIG}
        | {"optim": config["optim"], "objective": config.get("objective"), "answers": config["monitors"]["answers"]},
        "measured_steps": sorted(windows),
        "all": changed(first, last),
        **{task: changed(first[first.task == task], last[last.task == task]) for task in sorted(set(first.task))},
        "needle_hit_frac": hits,
        "training": curves,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench/results/post_training.json"))
    arguments = parser.parse_args()
    write_atomic(arguments.out, json.dumps([result(run) for run in arguments.runs], indent=1) + "\n")
