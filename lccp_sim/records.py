"""A record, which is one number of a run, and the file that holds all records.

`records.jsonl` is the primary source, and every logger is a view of it. It contains no wall-clock time, so that two
runs of the same config write the same bytes. Times go to `timing.jsonl`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lccp_sim.errors import DamagedRecords, NotFinite

TIERS = ("training", "behavioural", "probabilistic", "mechanistic")
Tag = str | int | float
ANSWER = ("hit_frac", "answer_nll_nats", "answer_ppl")  # metrics of a needle's answer
HEADLINE, SENTENCE = "value", "full"  # the tag `span` of needles: the value's tokens, the whole answer sentence
OF_SENTENCE = "sentence_"  # begins the name of an overall number that is the whole sentence's


@dataclass(frozen=True)
class Record:
    """One number, with what was measured (tier, monitor, metric, tags), when (step, tokens), and on how many items.

    `tokens` are training tokens of this run over all ranks; `stderr` is the standard error over the `n` items, or None.
    The unit is the suffix of `metric`. Raises NotFinite if the value is not finite, ValueError if the tier is unknown.
    """

    step: int
    tokens: int
    tier: str
    monitor: str
    metric: str
    value: float
    n: int
    stderr: float | None = None
    tags: Mapping[str, Tag] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"{self.monitor}/{self.metric} {dict(self.tags)} at step {self.step}"
        if self.tier not in TIERS:
            raise ValueError(f"{where}: tier {self.tier!r} is none of {', '.join(TIERS)}")
        if not math.isfinite(self.value) or (self.stderr is not None and not math.isfinite(self.stderr)):
            raise NotFinite(f"{where}: the value {self.value} (stderr {self.stderr}) is not finite; the model diverged")

    @property
    def key(self) -> tuple[int, str, str, str]:
        """The unique key within a file: step, monitor, metric and the sorted tags."""
        return self.step, self.monitor, self.metric, json.dumps(dict(self.tags), sort_keys=True)

    def line(self) -> str:
        """The record as one line of JSON, keys in the order of the fields, tags sorted."""
        return json.dumps(asdict(self) | {"tags": dict(sorted(self.tags.items()))}, ensure_ascii=False) + "\n"


def overall_name(record: Record) -> str | None:
    """`monitor/metric` of a record that is a monitor's overall value; None for a part, such as a length or a head.

    For needles, the number covers the headline span; that of the full sentence is `monitor/sentence_metric`.
    """
    if record.tags.keys() - {"span"}:
        return None
    prefix = OF_SENTENCE if record.tags.get("span", HEADLINE) == SENTENCE else ""
    return f"{record.monitor}/{prefix}{record.metric}"


def read_records(path: Path) -> tuple[list[Record], str | None]:
    """The records of a file, and a warning if a kill truncated its last line (that line is left out).

    Raises DamagedRecords, naming the line, if any other line is not a record.
    """
    lines = path.read_bytes().split(b"\n")
    warning = None
    if lines[-1]:
        warning = f"{path}: the last line is incomplete ({len(lines[-1])} bytes) and was left out"
    records = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            records.append(Record(**json.loads(line)))
        except (TypeError, ValueError, NotFinite) as error:
            raise DamagedRecords(f"{path}, line {number}: not a record ({error}); fix it or restore it") from error
    return records, warning
