"""What trial bases retrieve while they are trained: the value hits and NLL of their own records, by length and variant.

    python bench/base_trials.py NAME=RUN ...

Adds the runs to bench/results/base_trials.json, and prints the last window of each.
"""

import json
import sys
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "base_trials.json"
KEYS = {"hit_frac": "hit", "answer_nll_nats": "nll"}


def windows(run: Path) -> list[dict[str, Any]]:
    """A row a window: tokens, and VARIANT/LENGTH/hit and /nll of the span `value`."""
    rows: dict[int, dict[str, Any]] = {}
    for line in (run / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        tags = record["tags"]
        if record["monitor"] != "needle" or record["metric"] not in KEYS or tags.get("span") != "value":
            continue
        if set(tags) == {"length", "span", "variant"}:
            row = rows.setdefault(record["tokens"], {"tokens": record["tokens"]})
            row[f"{tags['variant']}/{tags['length']}/{KEYS[record['metric']]}"] = round(record["value"], 3)
    return [rows[tokens] for tokens in sorted(rows)]


def main() -> None:
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, path in (each.split("=", 1) for each in sys.argv[1:]):
        found[name] = windows(Path(path))
        print(name, {key: value for key, value in found[name][-1].items() if key.endswith(("tokens", "hit"))})
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
