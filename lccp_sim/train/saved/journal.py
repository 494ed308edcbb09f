"""The growing files of a run directory: records, samples, times, decisions.

A checkpoint stores their byte lengths, and a resumed run truncates them to these lengths. Everything that a killed
process wrote after its last checkpoint is dropped, like the weights that it described.
"""

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lccp_sim.errors import ConfigError
from lccp_sim.files import append_lines, write_atomic
from lccp_sim.monitors.values import Value
from lccp_sim.records import Record, read_records
from lccp_sim.sums import change_sums, check_sums, read_sums

RECORDS, TIMING, DECISIONS, REFERENCE = "records.jsonl", "timing.jsonl", "decisions.jsonl", "reference"


class Journal:
    """The writer of one directory's growing files. A `silent` journal, for ranks other than 0, changes nothing."""

    def __init__(self, directory: Path, silent: bool = False):
        self.directory, self.silent = directory, silent

    def write(self, records: Sequence[Record]) -> None:
        """Append the records to disk."""
        self._append(RECORDS, (record.line() for record in records))

    def write_samples(self, step: int, values: Sequence[Value]) -> None:
        """Write `samples/<step>.parquet` with one row per value."""
        if self.silent:
            return
        columns = {
            "monitor": [v.monitor for v in values],
            "metric": [v.metric for v in values],
            "item_id": [v.item for v in values],
            "tags": [json.dumps(v.tags, sort_keys=True) for v in values],
            "value": pa.array([v.value for v in values], pa.float64()),
        }
        file = io.BytesIO()
        pq.write_table(pa.table(columns), file)
        write_atomic(self.directory / "samples" / f"{step:08d}.parquet", file.getvalue())

    def write_timing(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append the rows {step, tokens, what, seconds, forward_tokens}."""
        self._append(TIMING, (json.dumps(row) + "\n" for row in rows))

    def write_decisions(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append the rows {step, tokens, `watch`, verdict, reasons, action, ...}."""
        self._append(DECISIONS, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def write_window(
        self, step: int, records: Sequence[Record], values: Sequence[Value], timing: Iterable[dict[str, Any]]
    ) -> None:
        """Write the results of one window, times last: a window without times is incomplete."""
        self.write(records)
        if values:
            self.write_samples(step, values)
        self.write_timing(timing)

    def keep(self, step: int) -> list[Record]:
        """Reduce the files to the complete windows up to `step`, and return the records of these.

        For checkpoints of other trainers, which do not store byte lengths. Raises ConfigError if a file differs from
        its entry in the sums.
        """
        check_sums(self.directory)
        path = self.directory / TIMING
        rows = [] if not path.exists() else [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        kept = {row["step"] for row in rows if row["step"] <= step}
        records = [record for record in self.records() if record.step in kept]
        samples = [path for path in (self.directory / "samples").glob("*.parquet") if int(path.stem) not in kept]
        self._unseal(samples, restart=not records)
        for name, lines in (
            (TIMING, [json.dumps(row) + "\n" for row in rows if row["step"] in kept]),
            (RECORDS, [record.line() for record in records]),
        ):
            file, text = self.directory / name, "".join(lines).encode()
            if file.exists() and file.read_bytes() != text:
                write_atomic(file, text)
        for path in samples:
            path.unlink()
        change_sums(self.directory, known={path.name: None for path in self._growing()})
        return records

    def records(self) -> list[Record]:
        """All records so far. Raises DamagedRecords if a line is not a record."""
        path = self.directory / RECORDS
        return read_records(path)[0] if path.exists() else []

    def lengths(self) -> dict[str, int]:
        """Byte lengths of the growing files, for a checkpoint."""
        return {path.name: path.stat().st_size for path in self._growing()}

    def truncate(self, lengths: dict[str, int], step: int) -> None:
        """Remove everything that was written after the last window, at `step`, and beyond `lengths`.

        Raises ConfigError if earlier records are missing, or a file differs from what was written.
        """
        if self.silent:
            return
        path, known = self.directory / RECORDS, lengths.get(RECORDS, 0)
        size = path.stat().st_size if path.exists() else 0
        if size < known:
            raise ConfigError(f"{path}: has {size} bytes, but the checkpoint knows {known}; restore the lost records")
        check_sums(self.directory)
        samples = [path for path in (self.directory / "samples").glob("*.parquet") if int(path.stem) > step]
        self._unseal(samples, step < 0, lengths)
        for path in self._growing():
            if path.stat().st_size > lengths.get(path.name, 0):
                os.truncate(path, lengths.get(path.name, 0))
        for path in samples:
            path.unlink()

    def seal(self) -> None:
        """Write the sums of all files so far to disk."""
        if self.silent:
            return
        known, named = read_sums(self.directory), {path.name: None for path in self._growing()}
        for folder in ("samples", REFERENCE):
            files = (f"{folder}/{path.name}" for path in (self.directory / folder).glob("[!.]*"))
            named |= {name: None for name in files if name not in known}
        change_sums(self.directory, known=named)

    def _unseal(self, samples: Sequence[Path], restart: bool, lengths: Mapping[str, int] | None = None) -> None:
        """Drop the sums of data that is about to be removed, except those of `lengths` bytes of growing files.

        Sums go first: after a kill in between they cover less than there is. `restart`: no window stays, and the first
        one writes its reference again.
        """
        names = [path.name for path in self._growing()]
        gone = [*names, *(f"samples/{path.name}" for path in samples)]
        if restart:
            gone += [f"{REFERENCE}/{path.name}" for path in (self.directory / REFERENCE).glob("*")]
        known = {name: size for name in names if (size := (lengths or {}).get(name))}
        change_sums(self.directory, gone, known)

    def _append(self, name: str, lines: Iterable[str]) -> None:
        if not self.silent:
            append_lines(self.directory / name, lines)

    def _growing(self) -> list[Path]:
        return [path for name in (RECORDS, TIMING, DECISIONS) if (path := self.directory / name).exists()]
