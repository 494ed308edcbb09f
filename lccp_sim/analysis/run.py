"""A run directory as tables, and the records of several runs as one.

Records become one row each with their tags unpacked into columns; a row's tag *names* are kept beside them, because a
row with fewer tags is an average over the missing ones, not a part of the same series. A run that is still going
reads like a finished one, and so does what `lccp measure` wrote.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pandas as pd
import yaml

from lccp_sim.analysis.overall import SPANNED, VARIANT, with_overall
from lccp_sim.analysis.reading import FIELDS, records_frame, samples_frame, side_file, timing_frame
from lccp_sim.config import ConfigError
from lccp_sim.records import HEADLINE, SENTENCE, Tag

__all__ = ["FIELDS", "RunData", "differing", "load_run", "matching", "tidy", "unlike"]
MEASURED = "measured.yaml"  # what `lccp measure` writes where a run has config.yaml
PLACES = {"run.root", "run.name", "run.init_from", "data.cache", "data.mirror"}  # where things lie, not what they are


@dataclass(frozen=True)
class RunData:
    """What a run directory holds, read once.

    `records`: FIELDS, `names` (the sorted tag names, comma-separated) and a column for each tag. `samples`: step,
    monitor, metric, item_id, tags (JSON), value and a column for each tag. `timing`: step, tokens, what, seconds,
    forward_tokens. `corpus`: one row a source. Tables are empty, with their columns, where the run did not write
    them. `measured`: whether these are checkpoints measured after the fact, not a run. `spans`: by monitor, which span
    of the answer its rows without the tag `span` are of; HEADLINE where it is not named.
    """

    path: Path
    records: pd.DataFrame
    samples: pd.DataFrame
    timing: pd.DataFrame
    config: dict[str, Any]
    corpus: pd.DataFrame
    warnings: list[str]
    finished: bool
    measured: bool = False
    spans: Mapping[str, str] = field(default_factory=dict)

    def select(self, monitor: str, metric: str, *names: str, **tags: Tag) -> pd.DataFrame:
        """The records of a metric whose tags are exactly `names` (any value) and `tags` (this value), by step."""
        place = self._places.get((monitor, metric, ",".join(sorted({*names, *tags}))))
        rows = self.records.iloc[:0] if place is None else self.records.take(place)
        return matching(rows, tags)

    def items(self, monitor: str, metric: str) -> pd.DataFrame:
        """The samples of a metric, whatever their tags."""
        place = self._sample_places.get((monitor, metric))
        return self.samples.iloc[:0] if place is None else self.samples.take(place)

    def span(self, monitor: str = "needle") -> str:
        """The span of the answer that a monitor is judged by."""
        return self.spans.get(monitor, HEADLINE)

    @property
    def sentence(self) -> dict[str, Tag]:
        """The tags of the overall needle records of the whole sentence; {} where that is the headline itself."""
        return {} if self.span() == SENTENCE else {"span": SENTENCE}

    def counted(self, monitor: str) -> dict[str, Tag]:
        """The tags of the items that a record without them averages over, where these are not all."""
        span: dict[str, Tag] = {"span": self.span(monitor)} if monitor in SPANNED else {}
        return span | ({"variant": VARIANT} if monitor == "needle" else {})

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

    @property
    def name(self) -> str:
        """The directory's name; with its parent's, where it is one that every measured run has."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}" if path.name.startswith("measured") else path.name

    @cached_property
    def _places(self) -> Mapping[Any, npt.NDArray[Any]]:
        return self.records.groupby(["monitor", "metric", "names"], observed=True).indices

    @cached_property
    def _sample_places(self) -> Mapping[Any, npt.NDArray[Any]]:
        return self.samples.groupby(["monitor", "metric"], observed=True).indices


def matching(rows: pd.DataFrame, tags: Mapping[str, Tag]) -> pd.DataFrame:
    """The rows that carry every tag of `tags` with its value, by step."""
    for name, value in tags.items():
        rows = rows[rows[name] == value] if name in rows else rows.iloc[:0]
    return rows.sort_values("step", kind="stable")


def load_run(path: str | Path) -> RunData:
    """The run at `path`; works while it is still being written, and for what `lccp measure` wrote.

    Raises ConfigError, in one line, where `path` is no run directory or one of its files cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise ConfigError(f"{path}: no such directory; give a run directory, such as runs/NAME-s0-1a2b3c4d")
    if not (path / "records.jsonl").is_file():
        raise ConfigError(f"{path}: holds no records.jsonl, so it is no run directory (or its training never started)")
    warnings: list[str] = []
    records, spans = with_overall(records_frame(path / "records.jsonl", warnings), warnings)
    measured = (path / MEASURED).is_file() and not (path / "config.yaml").is_file()
    name = MEASURED if measured else "config.yaml"
    config = side_file(path / name, yaml.safe_load, warnings, "the config is not shown")
    unsaid: list[str] = []  # measured checkpoints have no corpus of their own
    corpus = side_file(path / "corpus.json", json.loads, unsaid, "the corpus is not shown")
    warnings += [] if measured else unsaid
    warnings += [f"corpus: {warning}" for warning in corpus.get("warnings", [])] if isinstance(corpus, dict) else []
    samples = samples_frame(path / "samples", set(records.step))
    if samples.empty:
        warnings.append(
            f"{path / 'samples'}: no samples; intervals come from a parametric bootstrap of the standard errors, "
            "where there are any"
        )
    timing = timing_frame(path / "timing.jsonl", warnings)
    finished = measured or (path / "DONE").exists()
    return RunData(path, records, samples, timing, config, _corpus(corpus), warnings, finished, measured, spans)


def unlike(runs: list[RunData]) -> list[str]:
    """A warning for each monitor that is judged by the value's tokens in some runs and by the sentence in others."""
    lines = []
    for monitor in SPANNED:
        whole = [run.name for run in runs if run.spans.get(monitor) == SENTENCE]
        if whole and any(run.spans.get(monitor) == HEADLINE for run in runs):
            said = f"of the whole answer sentence in {', '.join(whole)}, of the value's tokens elsewhere"
            lines.append(f"{monitor}: {said}; do not compare them")
    return lines


def differing(runs: list[RunData]) -> pd.DataFrame:
    """One row a run, one column a config key (dotted) that not all runs share; lists and the like as JSON."""
    settings = [_flat(run.config) for run in runs]
    names = sorted(set().union(*settings))
    kept = [name for name in names if len({str(flat.get(name)) for flat in settings}) > 1 and name not in PLACES]
    rows = [{name: flat.get(name) for name in kept} for flat in settings]
    return pd.DataFrame(rows, index=pd.Index([run.name for run in runs], name="run"))


def tidy(runs: list[RunData]) -> pd.DataFrame:
    """The records of all runs as one table: run, the config keys that differ between them, FIELDS, and the tags.

    A key whose name a field or tag has, too, is written `config.KEY`.
    """
    keys = differing(runs)
    frames = []
    for (_, settings), run in zip(keys.iterrows(), runs, strict=True):
        added = {f"config.{key}" if key in run.records else str(key): value for key, value in settings.items()}
        frame = run.records.drop(columns="names").assign(**added)
        frame.insert(0, "run", run.name)
        frames.append(frame)
    table = pd.concat(frames, ignore_index=True)
    for name in filter(lambda name: pd.api.types.is_object_dtype(table[name]), table.columns):
        if table[name].dropna().map(type).nunique() > 1:  # Parquet columns have one type
            table[name] = table[name].map(lambda value: value if pd.isna(value) else str(value))
    return table


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Tag | None]:
    """The leaves of nested dictionaries by dotted key."""
    flat: dict[str, Tag | None] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list | dict) else value
    return flat


def _corpus(table: Any) -> pd.DataFrame:
    """One row a source, from a list of rows, {"sources": rows} or {source: row}."""
    if isinstance(table, dict) and "sources" in table:
        table = table["sources"]
    if isinstance(table, dict):
        table = [{"source": name} | row for name, row in table.items() if isinstance(row, dict)]
    return pd.DataFrame(table)
