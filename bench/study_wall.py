"""The wall time of a study's sweeps against the seconds of its runs divided by the processes that ran at once.

    python -m bench.study_wall runs --processes 2     # the sweeps below runs/sweeps, from the times of their files

A run begins with the first file of its directory and ends with its outcome, so the start of its process counts as idle.
Sweeps that were interrupted, or found most runs finished, are left out. Writes bench/results/study_wall.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from lccp_sim.files import write_atomic

RESULTS = Path(__file__).parent / "results" / "study_wall.json"
FEWEST = 3  # runs of a sweep


def measured(sweep: Path, processes: int) -> dict[str, Any] | None:
    """Seconds of one sweep: of the clock, of its runs, and the ratio to an even share; None if it is left out."""
    outcomes = {path: json.loads(path.read_text()) for path in sweep.glob("*/outcome.json")}
    trained = {path: each for path, each in outcomes.items() if each["trained"]}
    if len(trained) < FEWEST or len(outcomes) < len(json.loads((sweep / "jobs.json").read_text())["jobs"]):
        return None
    spans = [
        (min(file.stat().st_mtime for file in Path(each["directory"]).iterdir()), path.stat().st_mtime)
        for path, each in trained.items()
    ]
    began, ended = (sweep / "jobs.json").stat().st_mtime, max(end for _, end in spans)
    if any(start < began for start, _ in spans):
        return None  # a run began before this sweep: it was resumed
    seconds = sum(end - start for start, end in spans)
    wall = ended - began
    return {"runs": len(trained), "wall_s": wall, "runs_s": seconds, "ratio": wall / (seconds / processes)}


def main() -> None:
    """Print each sweep, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    found = [each for path in sorted((given.root / "sweeps").iterdir()) if (each := measured(path, given.processes))]
    print(*found, sep="\n")
    write_atomic(RESULTS, json.dumps({"processes": given.processes, "sweeps": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
