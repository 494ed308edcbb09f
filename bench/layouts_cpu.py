"""How far the training records of several processes are from those of one, in fp32 and in bf16, layout by layout.

Each is `lccp train` at the settings of bench/processes_cpu.py with short rows, under torchrun over gloo. What differs
is the order of sums; in bf16 every product is rounded, too.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from processes_cpu import LAYOUTS, SETTINGS, trained
from step_cpu import machine

from lccp_sim.records import read_records

ROWS = "run.context_tokens=256 run.batch_tokens=1024 run.log_every_steps=1".split()


def recorded(layout: str, precision: str, steps: int) -> dict[tuple[int, str], float]:
    """The training records of one run by step and metric."""
    with tempfile.TemporaryDirectory() as root:
        keys = [*ROWS, f"run.precision={precision}", f"run.tokens={1024 * steps}"]
        records = read_records(trained(layout, keys, root) / "records.jsonl")[0]
    return {(r.step, r.metric): r.value for r in records if r.monitor == "train"}


def main() -> None:
    """Prints the largest relative difference of each metric, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "layouts_cpu.json")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    out: dict[str, Any] = {"machine": machine(), "settings": [*SETTINGS, *ROWS], "steps": options.steps, "largest": {}}
    for precision in ("fp32", "bf16"):
        one = recorded("one process", precision, options.steps)
        for layout in LAYOUTS:
            if LAYOUTS[layout][0] == 1:
                continue
            several = recorded(layout, precision, options.steps)
            assert several.keys() == one.keys()
            gaps: dict[str, float] = {}
            for (step, metric), value in one.items():
                gap = abs(several[step, metric] - value) / max(abs(value), 1e-12)
                gaps[metric] = max(gaps.get(metric, 0.0), gap)
            out["largest"][f"{layout}, {precision}"] = gaps
            print(f"{layout}, {precision}:", {name: f"{gap:.1e}" for name, gap in gaps.items()}, flush=True)
            options.out.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
