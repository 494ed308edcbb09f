"""How long a report takes on many records: a made run of a large model, most of whose records are scores of heads.

    python bench/report_speed.py 100000 1000000

writes bench/results/report_speed.json: seconds to read, seconds to report, the largest memory, by number of records.
The values follow laws with noise; there are no samples, so that intervals come from standard errors.
"""

import json
import math
import platform
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lccp_sim.analysis.report.run_page import write_report
from lccp_sim.analysis.run import load_run
from lccp_sim.files import append_lines, write_atomic
from lccp_sim.records import HEADLINE, Record

ROOT = Path(__file__).parents[1]
WINDOWS, LAYERS, HEADS = 16, 32, 128
LENGTHS = (4096, 8192, 16384, 32768, 65536)
SCORES = ("copy_hard_frac", "copy_null_frac", "copy_soft_frac", "needle_mass_frac", "sink_mass_frac")


def window(step: int, count: int) -> Iterator[Record]:
    """The records of one window, `count` of them: first those of whole monitors and lengths, then those of heads."""
    tokens, random_ = step * 2048, random.Random(step)
    fall = math.log1p(step / 10)

    def record(monitor: str, metric: str, value: float, **tags: Any) -> Record:
        noisy = value + 0.01 * random_.gauss(0, 1)
        return Record(step, tokens, "mechanistic", monitor, metric, noisy, 40, 0.01, tags)

    made = []
    for tags in ({}, *({"length": length, "variant": "single"} for length in LENGTHS)):
        tags |= {"span": HEADLINE}
        made += [record("needle", "hit_frac", min(0.95, 0.1 * fall), **tags)]
        made += [record("needle", "answer_nll_nats", 4 - 0.4 * fall, **tags)]
    made += [record("perplexity", metric, 3 - 0.1 * fall) for metric in ("nll_nats", "short_nll_nats")]
    yield from made
    for number in range(count - len(made)):
        kind, place = number % len(SCORES), number // len(SCORES)
        tags = {"head": place % HEADS, "layer": place // HEADS % LAYERS}
        if place >= LAYERS * HEADS:
            tags["probe"] = place // (LAYERS * HEADS)  # more records than a model has heads: a tag of somebody else's
        yield Record(step, tokens, "mechanistic", "heads", SCORES[kind], random_.random() ** 8, 40, 0.01, tags)


def main(counts: list[int]) -> None:
    """Writes the JSON."""
    results = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(WINDOWS):
                step = 0 if number == 0 else round(8 * 2 ** (number / 2))
                lines = [record.line() for record in window(step, count // WINDOWS)]
                append_lines(Path(folder) / "records.jsonl", lines)
            start = time.perf_counter()
            records = len(load_run(folder).records)
            read = time.perf_counter() - start
            start = time.perf_counter()
            write_report(folder)
            whole = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        results.append({"records": records, "read_seconds": read, "report_seconds": whole, "peak_gib": peak})
        print(results[-1], flush=True)
    made = {"machine": f"{platform.machine()}, one thread", "windows": WINDOWS, "results": results}
    write_atomic(ROOT / "bench" / "results" / "report_speed.json", json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [100_000, 1_000_000])
