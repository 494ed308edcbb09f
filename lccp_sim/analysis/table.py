"""A run directory as tables.

Records become one row each with their tags unpacked into columns; a row's tag *names* are kept beside them, because a
row with fewer tags is an average over the missing ones, not a part of the same series. A run that is still going
reads like a finished one.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lccp_sim.config import ConfigError
from lccp_sim.records import Tag, read_records

FIELDS = ["step", "tokens", "tier", "monitor", "metric", "value", "n", "stderr"]


@dataclass(frozen=True)
class RunData:
    """What a run directory holds, read once.

    `records`: FIELDS, `names` (the sorted tag names, comma-separated) and a column for each tag. `samples`: step,
    monitor, metric, item_id, tags (JSON), value and a column for each tag. `timing`: step, tokens, what, seconds,
    forward_tokens. `corpus`: one row a source. Tables are empty, with their columns, where the run did not write
    them.
    """

    path: Path
    records: pd.DataFrame
    samples: pd.DataFrame
    timing: pd.DataFrame
    config: dict[str, Any]
    corpus: pd.DataFrame
    warnings: list[str]
    finished: bool

    def select(self, monitor: str, metric: str, *names: str, **tags: Tag) -> pd.DataFrame:
        """The records of a metric whose tags are exactly `names` (any value) and `tags` (this value), by step."""
        rows = self.records
        wanted = ",".join(sorted({*names, *tags}))
        return matching(rows[(rows.monitor == monitor) & (rows.metric == metric) & (rows.names == wanted)], tags)

    def setting(self, dotted: str, default: Any = None) -> Any:
        """The value of the resolved config at `dotted`, e.g. "run.tokens", or `default` where there is none."""
        value: Any = self.config
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value

    @property
    def tokens(self) -> int:
        """Training tokens at the last record."""
        return int(self.records.tokens.max())


def matching(rows: pd.DataFrame, tags: dict[str, Tag]) -> pd.DataFrame:
    """The rows that carry every tag of `tags` with its value, by step."""
    for name, value in tags.items():
        rows = rows[rows[name] == value] if name in rows else rows.iloc[:0]
    return rows.sort_values("step", kind="stable")


def load_run(path: str | Path) -> RunData:
    """The run at `path`; works while it is still being written.

    Raises ConfigError, in one line, where `path` is no run directory or one of its files cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise ConfigError(f"{path}: no such directory; give a run directory, such as runs/NAME-s0-1a2b3c4d")
    if not (path / "records.jsonl").is_file():
        raise ConfigError(f"{path}: holds no records.jsonl, so it is no run directory (or its training never started)")
    warnings: list[str] = []
    records = _records(path / "records.jsonl", warnings)
    config = _parsed(path / "config.yaml", yaml.safe_load, warnings, "the config is not shown")
    corpus = _parsed(path / "corpus.json", json.loads, warnings, "the corpus is not shown")
    warnings += [f"corpus: {warning}" for warning in corpus.get("warnings", [])] if isinstance(corpus, dict) else []
    samples = _samples(path / "samples", set(records.step))
    if samples.empty:
        warnings.append(f"{path / 'samples'}: no samples; intervals come from standard errors, where there are any")
    timing = _timing(path / "timing.jsonl", warnings)
    return RunData(path, records, samples, timing, config, _corpus(corpus), warnings, (path / "DONE").exists())


def _records(path: Path, warnings: list[str]) -> pd.DataFrame:
    try:
        records, warning = read_records(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if warning:
        warnings.append(warning)
    if not records:
        raise ConfigError(f"{path}: holds no record yet; the first window, at step 0, writes some")
    unique = {record.key: record for record in records}
    if len(unique) < len(records):
        warnings.append(f"{path}: {len(records) - len(unique)} records are there twice; the later one is used")
    rows = [
        {name: getattr(record, name) for name in FIELDS} | {"names": ",".join(sorted(record.tags))} | dict(record.tags)
        for record in unique.values()
    ]
    return pd.DataFrame(rows).astype({"stderr": float})


def _samples(folder: Path, steps: set[int]) -> pd.DataFrame:
    """Samples of the steps that also have records: a window in the middle of its writing is left out."""
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
        unpacked.append({"tags": tags, "stratum": stratum} | cell)
    return samples.merge(pd.DataFrame(unpacked), on="tags", how="left")


def _timing(path: Path, warnings: list[str]) -> pd.DataFrame:
    columns = ["step", "tokens", "what", "seconds", "forward_tokens"]
    if not path.is_file():
        warnings.append(f"{path}: missing; what the monitors cost is not shown")
        return pd.DataFrame(columns=columns)
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline was cut off
    try:
        return pd.DataFrame([json.loads(line) for line in lines], columns=columns)
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read ({error}); remove it and go on without") from error


def _parsed(path: Path, parse: Any, warnings: list[str], without: str) -> Any:
    """The parsed file; {} and a warning where there is none. A file that is there and broken is refused."""
    if not path.is_file():
        warnings.append(f"{path}: missing; {without}")
        return {}
    try:
        return parse(path.read_text(encoding="utf-8")) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def _corpus(table: Any) -> pd.DataFrame:
    """One row a source, from a list of rows, {"sources": rows} or {source: row}."""
    if isinstance(table, dict) and "sources" in table:
        table = table["sources"]
    if isinstance(table, dict):
        table = [{"source": name} | row for name, row in table.items() if isinstance(row, dict)]
    return pd.DataFrame(table)
