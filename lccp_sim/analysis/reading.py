"""The files of a run directory as frames: records, samples, times, and the side files.

pyarrow reads records a hundred times faster than Python builds them, but says neither which line is broken nor takes a
tag that is a number here and a word there. So it goes first, and whatever it does not read to the letter is read again,
line by line, by `read_records`, whose message names the line. Tests hold the two to the same frame.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.json
import yaml

from lccp_sim.config import ConfigError
from lccp_sim.records import SENTENCE, TIERS, read_records

FIELDS = ["step", "tokens", "tier", "monitor", "metric", "value", "n", "stderr"]
TYPES = [pa.int64(), pa.int64(), pa.string(), pa.string(), pa.string(), pa.float64(), pa.int64(), pa.float64()]
WORDS = ["tier", "monitor", "metric", "names"]  # few different values: kept as categories
TIMES = ["step", "tokens", "what", "seconds", "forward_tokens"]


def records_frame(path: Path, warnings: list[str]) -> pd.DataFrame:
    """One row a record: FIELDS, `names` (its tag names, sorted, comma-separated) and a column for each tag.

    Of records that are there twice the later one counts. What looks like two runs in one file is said in `warnings`.
    Raises ConfigError, naming the line, where one is no record, and where there is none.
    """
    data = path.read_bytes()
    frame = parsed_at_once(data[: data.rfind(b"\n") + 1])
    if frame is None:
        frame = parsed_by_line(path, warnings)
    elif not data.endswith(b"\n") and data:
        rest = len(data) - data.rfind(b"\n") - 1
        warnings.append(f"{path}: the last line is incomplete ({rest} bytes) and was left out")
    if frame.empty:
        raise ConfigError(f"{path}: holds no record yet; the first window, at step 0, writes some")
    frame[WORDS] = frame[WORDS].astype("category")
    key = [name for name in frame.columns if name not in ("tokens", "tier", "value", "n", "stderr", "names")]
    twice = frame.duplicated(key, keep=False)
    if twice.any():
        again = frame[twice]
        cells = again.groupby(key, dropna=False, observed=True).value
        differ = int((cells.nunique() > 1).sum())
        dropped = frame.duplicated(key, keep="last")
        others = f", {differ} of them with different values: did two runs write here?" if differ else ""
        warnings.append(f"{path}: {dropped.sum()} records are there twice{others}; the later one is used")
        return frame[~dropped].reset_index(drop=True)
    warnings += _mixed(path, frame)
    return frame


def parsed_at_once(lines: bytes) -> pd.DataFrame | None:
    """The frame of whole lines, or None where pyarrow does not read every line as a record."""
    if not lines:
        return None
    options = pa.json.ParseOptions(pa.schema(zip(FIELDS, TYPES, strict=True)), unexpected_field_behavior="infer")
    try:
        table = pa.json.read_json(
            pa.BufferReader(lines), pa.json.ReadOptions(block_size=min(len(lines), 2**24)), options
        )
    except pa.ArrowException:
        return None
    if table.num_rows != lines.count(b"\n") or set(table.column_names) - {*FIELDS, "tags"}:
        return None
    tags = table.column("tags").combine_chunks() if "tags" in table.column_names else None
    columns: dict[str, Any] = {name: table.column(name).to_pandas() for name in FIELDS}
    named = dict(zip([f.name for f in tags.type], tags.flatten(), strict=True)) if tags is not None else {}
    if any(pa.types.is_nested(column.type) or name in {*FIELDS, "names"} for name, column in named.items()):
        return None
    needed = [name for name in FIELDS if name != "stderr"]
    stderr = columns["stderr"].to_numpy(float)
    if any(table.column(name).null_count for name in needed) or not np.isfinite(columns["value"]).all():
        return None
    if np.isinf(stderr).any() or not set(columns["tier"].unique()) <= set(TIERS) or len(named) > 62:
        return None
    pattern = np.zeros(table.num_rows, np.int64)
    for bit, column in enumerate(named.values()):
        pattern |= np.asarray(column.is_valid()).astype(np.int64) << bit
    kinds, which = np.unique(pattern, return_inverse=True)
    said = [",".join(sorted(name for bit, name in enumerate(named) if kind >> bit & 1)) for kind in kinds.tolist()]
    columns["names"] = pd.Categorical.from_codes(*_codes(said, which))
    columns |= {name: column.to_pandas() for name, column in named.items() if column.null_count < len(column)}
    return pd.DataFrame(columns)


def parsed_by_line(path: Path, warnings: list[str]) -> pd.DataFrame:
    """The same frame, record by record. Raises ConfigError, naming the line, where one is no record."""
    try:
        records, warning = read_records(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    warnings += [warning] if warning else []
    clash = sorted({name for record in records for name in record.tags} & {*FIELDS, "names"})
    if clash:
        raise ConfigError(f"{path}: a tag has the name of a field: {', '.join(clash)}; name it otherwise")
    rows = [
        {name: getattr(record, name) for name in FIELDS} | {"names": ",".join(sorted(record.tags))} | dict(record.tags)
        for record in records
    ]
    return pd.DataFrame(rows, columns=None if rows else [*FIELDS, "names"]).astype({"stderr": float})


def samples_frame(folder: Path, steps: set[int]) -> pd.DataFrame:
    """Samples of the steps that also have records: a window in the middle of its writing is left out.

    Interventions of an earlier version did not say the span of the answer: it was the whole sentence.
    """
    frames = []
    for file in sorted(folder.glob("[0-9]*.parquet")):
        if int(file.stem) in steps:
            try:
                frames.append(pd.read_parquet(file).assign(step=int(file.stem)))
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"{file}: not a readable Parquet file ({error}); remove it and go on without"
                ) from error
    if not frames:
        return pd.DataFrame(columns=["step", "monitor", "metric", "item_id", "tags", "stratum", "value"])
    samples = pd.concat(frames, ignore_index=True)
    unpacked = []
    for tags in samples.tags.unique():
        cell = json.loads(tags)
        stratum = json.dumps({name: value for name, value in cell.items() if name != "seed"})
        whole = {"span": SENTENCE} if "variant" in cell else {}
        unpacked.append({"tags": tags, "stratum": stratum} | whole | cell)
    return samples.merge(pd.DataFrame(unpacked), on="tags", how="left")


def timing_frame(path: Path, warnings: list[str]) -> pd.DataFrame:
    """Step, tokens, what, seconds and forward tokens, a row each; empty where the run wrote none."""
    if not path.is_file():
        warnings.append(f"{path}: missing; what the monitors cost is not shown")
        return pd.DataFrame(columns=TIMES)
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline was cut off
    try:
        return pd.DataFrame([json.loads(line) for line in lines], columns=TIMES)
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read ({error}); remove it and go on without") from error


def side_file(path: Path, parse: Callable[[str], Any], warnings: list[str], without: str) -> Any:
    """The parsed file; {} and a warning where there is none. A file that is there and broken is refused."""
    if not path.is_file():
        warnings.append(f"{path}: missing; {without}")
        return {}
    try:
        return parse(path.read_text(encoding="utf-8")) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def _codes(said: list[str], which: Any) -> tuple[Any, list[str]]:
    """Codes and categories, sorted, of words picked by `which`."""
    order = sorted(range(len(said)), key=said.__getitem__)
    return np.argsort(order)[which], [said[i] for i in order]


def _mixed(path: Path, frame: pd.DataFrame) -> list[str]:
    """What a file shows into which two runs wrote: steps that go back, one step with two counts of tokens."""
    step = frame.step.to_numpy()
    back = np.flatnonzero(np.diff(step) < 0)
    if back.size:
        at = int(back[0])
        return [
            f"{path}, line {at + 2}: the steps go back, from {step[at]} to {step[at + 1]}: it may hold the records of "
            "two runs; give each a directory of its own"
        ]
    counts = frame.drop_duplicates(["step", "tokens"])
    double = counts[counts.duplicated("step", keep=False)]
    if len(double):
        first = double[double.step == double.step.iloc[0]].tokens.tolist()
        return [f"{path}: step {double.step.iloc[0]} has {first[0]} and {first[1]} tokens: records of two runs?"]
    return []
