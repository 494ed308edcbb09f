"""What the monitors say of a checkpoint in bf16, beside what they say of it in fp32: every record, paired.

    PYTHONPATH=. python bench/monitor_precision.py RUN/checkpoints/window-*.ckpt

Both are `lccp measure` with `monitors.precision`, so weights, items and code are the same. The probe is left out: it
trains, and two trainings that round otherwise part.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lccp_sim.records import Record, overall_name, read_records

RESULT = Path(__file__).parent / "results" / "monitor_precision.json"
SHOWN = (
    ("needle", "answer_nll_nats"),
    ("needle", "answer_ppl"),
    ("needle", "hit_frac"),
    ("perplexity", "nll_nats"),
    ("induction", "second_copy_nll_nats"),
    ("heads", "retrieval_heads_count"),
    ("heads", "initial_heads_mean_frac"),
)


def seen(checkpoint: Path, precision: str, extra: list[str]) -> dict[tuple, Record]:
    """The records of a checkpoint, by key, as `lccp measure` writes them."""
    with tempfile.TemporaryDirectory() as out:
        keys = [f"monitors.precision={precision}", "monitors.probe=null", *extra]
        command = [sys.executable, "-m", "lccp_sim.cli", "measure", str(checkpoint), *keys, "--out", f"{out}/m"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return {record.key: record for record in read_records(Path(out) / "m" / "records.jsonl")[0]}


def compared(exact: dict[tuple, Record], half: dict[tuple, Record]) -> dict[str, Any]:
    """The headline records of both, and the largest and median difference of each metric over all its records."""
    assert exact.keys() == half.keys()
    headline = [
        {
            "metric": f"{monitor}/{metric}",
            "fp32": exact[key].value,
            "bf16": half[key].value,
            "stderr": exact[key].stderr,
        }
        for monitor, metric in SHOWN
        for key in exact
        if overall_name(exact[key]) == f"{monitor}/{metric}"
    ]
    by_metric: dict[str, list[float]] = {}
    for key, record in exact.items():
        by_metric.setdefault(f"{key[1]}/{key[2]}", []).append(abs(half[key].value - record.value))
    spread = {
        name: {"records": len(gaps), "median": statistics.median(gaps), "largest": float(np.max(gaps))}
        for name, gaps in by_metric.items()
    }
    return {"headline": headline, "differences": spread}


def main() -> None:
    """Prints the headline records of each checkpoint and writes everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--keys", nargs="*", default=[], metavar="monitors.KEY=VALUE")
    options = parser.parse_args()
    out = []
    for checkpoint in options.checkpoints:
        found = compared(*(seen(checkpoint, precision, options.keys) for precision in ("fp32", "bf16")))
        out.append({"checkpoint": checkpoint.name, "run": checkpoint.parent.parent.name, "keys": options.keys, **found})
        for line in found["headline"]:
            print(
                f"{checkpoint.name} {line['metric']}: {line['fp32']:.5g} in fp32, {line['bf16']:.5g} in bf16",
                flush=True,
            )
        options.out.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
