"""Random configs and random records, by the thousand: accepted and of use, or refused line by line.

    python -m bench.random_inputs --examples 10000   # writes bench/results/random_inputs.json; 1 where one failed

What is drawn and what is asked of it is in tests/test_random.py, which tries a few dozen. A config changes one to three
keys of the tiny run of the tests. `refused`: one line a problem. `trained`: its model takes a forward pass on a packed
row, a backward pass and a step of AdamW, with a finite loss. `large`: accepted, but wider than 4,096 somewhere, so no
model was made. Records come back as they were written; with up to three bytes changed they are refused or are records.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st

from lccp_sim.records import read_records
from tests.test_random import CHANGES, RECORDS, damaged, tried, written

RESULT = Path(__file__).parent / "results" / "random_inputs.json"


def count(examples: int, drawn: Any, outcome: Callable[[Any], str]) -> dict[str, Any]:
    """The outcomes of so many examples, seconds, and each failure with its example."""
    outcomes, failures, began = Counter[str](), [], time.perf_counter()

    @hypothesis.settings(max_examples=examples, derandomize=True, deadline=None, database=None,
                         suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
    @hypothesis.given(drawn)
    def each(example: Any) -> None:
        try:
            outcomes[outcome(example)] += 1
        except Exception:  # the rest is worth knowing, too
            outcomes["failed"] += 1
            failures.append({"example": repr(example), "error": traceback.format_exc()[-600:]})

    each()
    seconds = round(time.perf_counter() - began, 1)
    return {"examples": outcomes.total(), "outcomes": dict(outcomes), "seconds": seconds, "failures": failures[:50]}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 where an example failed, or no config was accepted."""
    parser = argparse.ArgumentParser(prog="python -m bench.random_inputs", description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"

        def spoilt(example: Any) -> str:
            records, rng = example
            written(path, records)
            assert read_records(path) == (records, None)
            return damaged(path, rng)

        found = {
            "configs": count(asked.examples, CHANGES, tried),
            "records": count(
                asked.examples,
                st.tuples(st.lists(RECORDS, min_size=1, max_size=4), st.randoms(use_true_random=False)),
                spoilt,
            ),
        }
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    one_sided = not found["configs"]["outcomes"].get("trained")  # then it says nothing of those that are accepted
    return int(one_sided or any(each["failures"] for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())
