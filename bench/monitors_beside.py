"""What the monitors of a run cost beside its training, in this tree and in another checkout, in turn.

    python -m bench.monitors_beside ../old --tokens 22528 --pairs 2

Each trains the first windows of run=tiny_lccp in one thread. `seconds` are those of timing.jsonl; a pair that is in
--out already is kept. `share` is that of a whole run of tiny_lccp, 2.1M tokens: what a window of each monitor took
times its windows there, over the seconds of training that many tokens. Run it where nothing else runs: it reads the
clock.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from lccp_sim.files import write_atomic

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "monitors_beside.json"
TOKENS = 2_097_152
WINDOWS = json.loads((ROOT / "bench" / "results" / "monitor_shares.json").read_text())["tiny_lccp"]["monitors"]


def trained(tree: Path, tokens: int) -> dict[str, Any]:
    """Seconds and windows of each monitor, and the seconds of training."""
    with tempfile.TemporaryDirectory() as root:
        words = ["train", "run=tiny_lccp", f"run.tokens={tokens}", "run.threads=1", f"run.root={root}"]
        env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "lccp_sim", *words], cwd=tree, env=env, check=True, stdout=sys.stderr)
        (file,) = Path(root).glob("*/timing.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    seconds: Counter[str] = Counter()
    for row in rows:
        seconds[row["what"].removeprefix("monitor:")] += row["seconds"]
    windows = Counter(row["what"].removeprefix("monitor:") for row in rows)
    train = seconds.pop("train")
    return {"train": train, "monitors": dict(seconds), "windows": {name: windows[name] for name in seconds}}


def shares(found: dict[str, Any], tokens: int) -> dict[str, float]:
    """Seconds of each monitor over a whole run, over those of its training."""
    whole = found["train"] * TOKENS / tokens
    return {
        name: seconds / found["windows"][name] * WINDOWS[name]["looks"] / whole
        for name, seconds in found["monitors"].items()
    }


def main() -> None:
    """Print each pair, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("--tokens", type=int, default=22528)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    trees = {"before": given.before.resolve(), "now": ROOT}
    pairs = json.loads(given.out.read_text())["pairs"] if given.out.exists() else []
    while len(pairs) < given.pairs:
        order = list(trees)[:: 1 if len(pairs) % 2 == 0 else -1]
        pairs.append({name: trained(trees[name], given.tokens) for name in order})
        share = {
            name: {
                monitor: statistics.median(shares(pair[name], given.tokens)[monitor] for pair in pairs)
                for monitor in pairs[0][name]["monitors"]
            }
            for name in trees
        }
        whole = {name: sum(each.values()) for name, each in share.items()}
        result = {"tokens": given.tokens, "share": share, "all": whole, "pairs": pairs}
        write_atomic(given.out, json.dumps(result, indent=1) + "\n")
        print(json.dumps({"share": share, "all": whole}), flush=True)


if __name__ == "__main__":
    main()
