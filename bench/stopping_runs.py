"""What `run.stopping` decided in real runs: one that stopped, one that decayed, and the run that did neither.

    rule='watch: [needle/answer_nll_nats], probe_margin: null'
    lccp train run=tiny_lccp run.root=early "run.stopping={$rule, action: stop}"
    lccp train run=tiny_lccp run.root=early "run.stopping={$rule, action: decay, decay_tokens: 131072}"
    python -m bench.stopping_runs STOPPED DECAYED FULL

reads the run directories and writes bench/results/stopping_runs.json: every decision, and what each run ends with.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from lccp_sim.files import write_atomic
from lccp_sim.records import overall_name, read_records

RESULT = Path(__file__).parent / "results" / "stopping_runs.json"
SHOWN = ("needle/hit_frac", "needle/answer_nll_nats", "perplexity/nll_nats", "probe/exact_match_frac")
KEPT = ("step", "tokens", "watch", "windows", "verdict", "gain_so_far", "law", "gain", "action")


def ending(directory: Path) -> dict[str, Any]:
    """Name, settings, decisions and the last value of each metric of SHOWN, with its tokens."""
    path = directory / "decisions.jsonl"
    decisions = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    records, _ = read_records(directory / "records.jsonl")
    last = {
        name: {"tokens": each.tokens, "value": each.value} for each in records if (name := overall_name(each)) in SHOWN
    }
    config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    return {
        "run": directory.name,
        "stopping": config["run"]["stopping"],
        "done": json.loads((directory / "DONE").read_text()),
        "decisions": [{key: row.get(key) for key in KEPT} for row in decisions],
        "last": last,
    }


def main(directories: list[str]) -> None:
    """Writes and prints the result."""
    found = json.dumps([ending(Path(each)) for each in directories], indent=1) + "\n"
    write_atomic(RESULT, found)
    print(found)


if __name__ == "__main__":
    main(sys.argv[1:])
