"""Tokens a second of one process against two, on the CPU: the same tiny run, by `lccp train` alone and under torchrun.

Layouts take turns, so that a busy machine slows all of them; each figure is a run's training time without its monitors,
read from timing.jsonl. Processes have one thread each, or one process has two.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from step_cpu import machine

SETTINGS = (
    "run=tiny_lccp run.init_from=null run.precondition=false run.stopping=null monitors=base run.batch_tokens=4096 "
    "run.loggers={} monitors.needle=null monitors.induction=null"
).split()
LAYOUTS: dict[str, tuple[int, int, list[str]]] = {  # processes, threads of each, keys
    "one process": (1, 1, []),
    "one process, two threads": (1, 2, []),
    "two processes, DDP": (2, 1, []),
    "two processes, FSDP2": (2, 1, ["run.shard=true"]),
    "two processes, experts apart": (2, 1, ["run.shard=true", "run.ep=2"]),
    "two processes, rows apart": (2, 1, ["run.shard=true", "run.cp=2"]),
}


def trained(layout: str, extra: list[str], root: str) -> Path:
    """The directory, in `root`, of a run at a layout."""
    processes, threads, keys = LAYOUTS[layout]
    head = [sys.executable, "-m"]
    if processes > 1:
        head += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    words = [*SETTINGS, *keys, *extra, f"run.threads={threads}", f"run.root={root}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [*head, "lccp_sim.cli", "train", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{layout}, {extra}: {done.stderr[-2000:]}")
    return next(Path(root).glob("*/config.yaml")).parent


def tokens_a_second(layout: str, steps: int, extra: list[str]) -> float:
    """Training tokens a second of one run of `steps` steps."""
    with tempfile.TemporaryDirectory() as root:
        timing = trained(layout, [*extra, f"run.tokens={4096 * steps}"], root) / "timing.jsonl"
        rows = [json.loads(line) for line in timing.read_text().splitlines()]
    train = [row for row in rows if row["what"] == "train"]
    return sum(row["forward_tokens"] for row in train) / sum(row["seconds"] for row in train)


def main() -> None:
    """Runs every layout in turn, a few times, and writes the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "processes_cpu.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("extra", nargs="*", metavar="key=value")
    options = parser.parse_args()
    rounds = []
    for _ in range(options.rounds):
        rounds.append({layout: tokens_a_second(layout, options.steps, options.extra) for layout in LAYOUTS})
        print({layout: round(speed) for layout, speed in rounds[-1].items()}, flush=True)
    ratios = {name: statistics.median(each[name] / each["one process"] for each in rounds) for name in LAYOUTS}
    settings = [*SETTINGS, *options.extra]
    out = {"machine": machine(), "settings": settings, "steps": options.steps, "tokens_a_second": rounds}
    options.out.write_text(json.dumps(out | {"median_ratio_to_one_process": ratios}, indent=1) + "\n")
    print(ratios)


if __name__ == "__main__":
    main()
