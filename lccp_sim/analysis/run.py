"""A run directory as tables, and the records of several runs as one table.

Each record becomes one row with its tags unpacked into columns. A row's tag *names* are kept as well, because a row
with fewer tags is an average over the missing ones, not part of the same series. A live run reads like a finished one,
and so does the output of `lccp measure`.

pyarrow reads records a hundred times faster than Python builds them. But it does not say which line is broken, and it
rejects a tag that is a number in one row and a word in another. So pyarrow is tried first. Whatever it does not read
exactly is read again, line by line, by `read_records`, whose message names the line. Tests check that both give the
same frame.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.json
import yaml

from lccp_sim.analysis.overall import SPANNED, VARIANT, with_overall
from lccp_sim.config import Effect, RunConfig, keys_with
from lccp_sim.errors import ConfigError, UserError
from lccp_sim.records import HEADLINE, SENTENCE, TIERS, Tag, read_records
from lccp_sim.sums import check_sums

FIELDS = ["step", "tokens", "tier", "monitor", "metric", "value", "n", "stderr"]
FIELD_TYPES = [pa.int64(), pa.int64(), pa.string(), pa.string(), pa.string(), pa.float64(), pa.int64(), pa.float64()]
WORDS = ["tier", "monitor", "metric", "names"]  # few different values: kept as categories
TIMES = ["step", "tokens", "what", "seconds", "forward_tokens"]


def records_frame(path: Path, warnings: list[str]) -> pd.DataFrame:
    """Read records, one per row: FIELDS, `names` (sorted tag names, comma-separated) and a column for each tag.

    Of duplicate records the later one counts. `warnings` report a file that seems to hold two runs. Raises ConfigError,
    naming the line, if a line is not a record, and if there is no record at all.
    """
    data = path.read_bytes()
    frame = parsed_at_once(data[: data.rfind(b"\n") + 1])
    if frame is None:
        frame = parsed_by_line(path, warnings)
    elif not data.endswith(b"\n") and data:
        rest = len(data) - data.rfind(b"\n") - 1
        warnings.append(f"{path}: the last line is incomplete ({rest} bytes) and is ignored")
    if frame.empty:
        raise ConfigError(f"{path}: holds no records yet; the first window, at step 0, writes some")
    frame[WORDS] = frame[WORDS].astype("category")
    key = [name for name in frame.columns if name not in ("tokens", "tier", "value", "n", "stderr", "names")]
    twice = frame.duplicated(key, keep=False)
    if twice.any():
        again = frame[twice]
        cells = again.groupby(key, dropna=False, observed=True).value
        differ = int((cells.nunique() > 1).sum())
        dropped = frame.duplicated(key, keep="last")
        others = f", {differ} of them with different values (did two runs write here?)" if differ else ""
        warnings.append(f"{path}: {dropped.sum()} records occur twice{others}; the later ones are used")
        return frame[~dropped].reset_index(drop=True)
    warnings += _mixed(path, frame)
    return frame


def parsed_at_once(lines: bytes) -> pd.DataFrame | None:
    """Parse complete lines into a frame, or return None if pyarrow does not read every line as a record."""
    if not lines:
        return None
    try:
        return _at_once(lines)
    except (pa.ArrowException, UnicodeDecodeError):  # also where the name of a tag is not UTF-8
        return None


def _at_once(lines: bytes) -> pd.DataFrame | None:
    options = pa.json.ParseOptions(pa.schema(zip(FIELDS, FIELD_TYPES, strict=True)), unexpected_field_behavior="infer")
    table = pa.json.read_json(pa.BufferReader(lines), pa.json.ReadOptions(block_size=min(len(lines), 2**24)), options)
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
    """Parse the same frame, record by record. Raises ConfigError, naming the line, if a line is not a record."""
    try:
        records, warning = read_records(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    warnings += [warning] if warning else []
    clash = sorted({name for record in records for name in record.tags} & {*FIELDS, "names"})
    if clash:
        raise ConfigError(f"{path}: a tag has the name of a field: {', '.join(clash)}; rename the tag")
    rows = [
        {name: getattr(record, name) for name in FIELDS} | {"names": ",".join(sorted(record.tags))} | dict(record.tags)
        for record in records
    ]
    return pd.DataFrame(rows, columns=None if rows else [*FIELDS, "names"]).astype({"stderr": float})


def samples_frame(folder: Path, steps: set[int]) -> pd.DataFrame:
    """Read the samples of steps that also have records; a window that is still being written is left out.

    Interventions of an earlier version did not name the answer span: it was the full sentence.
    """
    frames = []
    for file in sorted(folder.glob("[0-9]*.parquet")):
        if int(file.stem) in steps:
            try:
                frames.append(pd.read_parquet(file).assign(step=int(file.stem)))
            except (OSError, ValueError) as error:
                why = " ".join(str(error).split())
                raise ConfigError(
                    f"{file}: not a readable Parquet file ({why}); remove it to continue without these samples"
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
    """Read the columns step, tokens, what, seconds and forward tokens; empty if the run wrote none."""
    if not path.is_file():
        warnings.append(f"{path}: missing; the cost of the monitors is not shown")
        return pd.DataFrame(columns=TIMES)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # text after the last newline is incomplete
        return pd.DataFrame([json.loads(line) for line in lines], columns=TIMES)
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read ({error}); remove it to continue without it") from error


def side_file(path: Path, parse: Callable[[str], Any], warnings: list[str], without: str) -> Any:
    """Parse a file; return {} with a warning if it is missing. Raises ConfigError if it exists and is broken."""
    if not path.is_file():
        warnings.append(f"{path}: missing; {without}")
        return {}
    try:
        return parse(path.read_text(encoding="utf-8")) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def _codes(said: list[str], which: Any) -> tuple[Any, list[str]]:
    """Return codes and sorted categories of the words picked by `which`."""
    order = sorted(range(len(said)), key=said.__getitem__)
    return np.argsort(order)[which], [said[i] for i in order]


def _mixed(path: Path, frame: pd.DataFrame) -> list[str]:
    """Find signs that two runs wrote one file: steps that go back, one step with two counts of tokens."""
    step = frame.step.to_numpy()
    back = np.flatnonzero(np.diff(step) < 0)
    if back.size:
        at = int(back[0])
        return [
            f"{path}, line {at + 2}: the step decreases, from {step[at]} to {step[at + 1]}: the file may hold the "
            "records of two runs; give each its own directory"
        ]
    counts = frame.drop_duplicates(["step", "tokens"])
    double = counts[counts.duplicated("step", keep=False)]
    if len(double):
        first = double[double.step == double.step.iloc[0]].tokens.tolist()
        return [
            f"{path}: step {double.step.iloc[0]} has both {first[0]} and {first[1]} tokens: the file may hold the "
            "records of two runs"
        ]
    return []


__all__ = ["FIELDS", "RunData", "differing", "load_run", "matching", "tidy", "tokenizer_rules", "unlike"]
MEASURED = "measured.yaml"  # `lccp measure` and the monitors of other trainers write this instead of config.yaml
# Keys that are paths, not settings. Those of data are declared with its keys, which cannot be imported here.
PLACE_KEYS = keys_with(RunConfig, "run.", Effect.PLACE) | {"run.name", "data.cache", "data.mirror"}


@dataclass(frozen=True)
class RunData:
    """The contents of a run directory, read once.

    `records`: FIELDS, `names` (sorted tag names, comma-separated) and a column for each tag. `samples`: step, monitor,
    metric, item_id, tags (JSON), value and a column for each tag. `timing`: step, tokens, what, seconds,
    forward_tokens. `corpus`: one row per source. Tables that the run did not write are empty, with their columns.
    `finished`: whether nothing more is expected. `measured`: whether these are measured checkpoints, or a training of
    another trainer, not a run. `ended`: whether the end of the training or the measuring is marked. `spans`: the answer
    span of a monitor's rows without the tag `span`; HEADLINE for monitors that are not listed.
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
    ended: bool = False

    def select(self, monitor: str, metric: str, *names: str, **tags: Tag) -> pd.DataFrame:
        """Return a metric's records whose tags are exactly `names` (any value) and `tags` (this value), by step."""
        place = self._places.get((monitor, metric, ",".join(sorted({*names, *tags}))))
        rows = self.records.iloc[:0] if place is None else self.records.take(place)
        return matching(rows, tags)

    def items(self, monitor: str, metric: str) -> pd.DataFrame:
        """Return the samples of a metric with any tags."""
        place = self._sample_places.get((monitor, metric))
        return self.samples.iloc[:0] if place is None else self.samples.take(place)

    def span(self, monitor: str = "needle") -> str:
        """Return the answer span that a monitor is judged on."""
        return self.spans.get(monitor, HEADLINE)

    @property
    def sentence(self) -> dict[str, Tag]:
        """The tags of the overall needle records of the full sentence; {} if that is the headline itself."""
        return {} if self.span() == SENTENCE else {"span": SENTENCE}

    def counted(self, monitor: str) -> dict[str, Tag]:
        """Return the tags of the items that an untagged record averages over, if it does not average over all."""
        span: dict[str, Tag] = {"span": self.span(monitor)} if monitor in SPANNED else {}
        return span | ({"variant": VARIANT} if monitor == "needle" else {})

    def setting(self, dotted: str, default: Any = None) -> Any:
        """Return the value of the resolved config at `dotted`, e.g. "run.tokens", or `default` if there is none."""
        value: Any = self.config
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value

    @property
    def dense_from(self) -> int | None:
        """The training tokens from which on all training attention was dense; None if it did not change."""
        rows = self.select("train", "dense_attention_frac")
        later = rows[rows.value == 1]
        if later.empty or len(later) == len(rows):
            return None
        ended = later.iloc[0]  # the first dense step
        return int(ended.tokens - ended.tokens // ended.step)

    @property
    def tokens(self) -> int:
        """Training tokens at the last record."""
        return int(self.records.tokens.max())

    @property
    def name(self) -> str:
        """The directory's name; prefixed with its parent's, if every measured run has this name."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}" if path.name.startswith("measured") else path.name

    @cached_property
    def _places(self) -> Mapping[Any, npt.NDArray[Any]]:
        return self.records.groupby(["monitor", "metric", "names"], observed=True).indices

    @cached_property
    def _sample_places(self) -> Mapping[Any, npt.NDArray[Any]]:
        return self.samples.groupby(["monitor", "metric"], observed=True).indices


def matching(rows: pd.DataFrame, tags: Mapping[str, Tag]) -> pd.DataFrame:
    """Return the rows that have every tag of `tags` with its value, by step."""
    for name, value in tags.items():
        rows = rows[rows[name] == value] if name in rows else rows.iloc[:0]
    return rows.sort_values("step", kind="stable")


def load_run(path: str | Path) -> RunData:
    """Load the run at `path`, also while it is being written, or the output of `lccp measure`.

    Raises ConfigError, in one line, if `path` is not a run directory or one of its files cannot be read.
    """
    path = Path(path)
    try:
        return _load(path)
    except UserError:
        raise
    except Exception:
        check_sums(path)  # of damage that no parser names
        raise


def _load(path: Path) -> RunData:
    if not path.is_dir():
        raise ConfigError(f"{path}: no such directory; give a run directory, such as runs/NAME-s0-1a2b3c4d")
    if not (path / "records.jsonl").is_file():
        raise ConfigError(f"{path}: holds no records.jsonl: not a run directory, or its training never started")
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
            "if there are any"
        )
    timing = timing_frame(path / "timing.jsonl", warnings)
    check_sums(path)
    ended = (path / "DONE").exists()
    finished = measured or ended
    return RunData(path, records, samples, timing, config, _corpus(corpus), warnings, finished, measured, spans, ended)


def tokenizer_rules(text: str) -> Any:
    """Return the parts of a tokenizer.json that determine the ids of plain text, without templates and padding."""
    parts = json.loads(text)
    if not isinstance(parts, dict) or not isinstance(parts.get("model"), dict):
        return parts
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in parts["model"].get("merges", ())]
    return [parts["model"].get("vocab"), merges, parts.get("normalizer"), parts.get("pre_tokenizer")]


def unlike(runs: list[RunData]) -> list[str]:
    """Warn for each monitor that is judged by the value's tokens in some runs and by the sentence in others."""
    lines = []
    for monitor in SPANNED:
        whole = [run.name for run in runs if run.spans.get(monitor) == SENTENCE]
        if whole and any(run.spans.get(monitor) == HEADLINE for run in runs):
            said = f"the metrics refer to the full answer sentence in {', '.join(whole)}, to the value's tokens in the"
            lines.append(f"{monitor}: {said} other runs; do not compare them")
    return lines


def differing(runs: list[RunData]) -> pd.DataFrame:
    """Tabulate the config keys (dotted) in which runs differ, one row per run; lists and mappings as JSON."""
    settings = [_flat(run.config) for run in runs]
    names = sorted(set().union(*settings))
    kept = [name for name in names if len({str(flat.get(name)) for flat in settings}) > 1 and name not in PLACE_KEYS]
    rows = [{name: flat.get(name) for name in kept} for flat in settings]
    return pd.DataFrame(rows, index=pd.Index([run.name for run in runs], name="run"))


def tidy(runs: list[RunData]) -> pd.DataFrame:
    """Join the records of all runs into one table: run, the config keys that differ, FIELDS, and the tags.

    A key with the name of a field or tag is written `config.KEY`.
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
    """Flatten nested dictionaries to leaves by dotted key."""
    flat: dict[str, Tag | None] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list | dict) else value
    return flat


def _corpus(table: Any) -> pd.DataFrame:
    """Build a table of one row per source from a list of rows, {"sources": rows} or {source: row}."""
    if isinstance(table, dict) and "sources" in table:
        table = table["sources"]
    if isinstance(table, dict):
        table = [{"source": name} | row for name, row in table.items() if isinstance(row, dict)]
    return pd.DataFrame(table)
