"""Run directories with planted items: what a gate or a comparison should say of them is known exactly."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from lccp_sim.files import append_lines
from lccp_sim.records import Record

NEEDLE = {"depth": 0.5, "length": 512, "span": "value", "variant": "single"}
CELLS: dict[str, dict[str, Any]] = {"needle": NEEDLE, "perplexity": {"source": "code"}}
WHOLE: dict[str, dict[str, Any]] = {"needle": {"span": "value"}}
CONFIG: dict[str, Any] = {
    "seed": 0,
    "run": {"tokens": 2000, "context_tokens": 64},
    "optim": {"lr": 1e-3},
    "monitors": {"needle": {"seed": 0, "lengths": [512]}, "perplexity": {"items": 40}},
}


def spread(mean: float, scale: float = 0.1, items: int = 40, seed: int = 0) -> np.ndarray:
    """Items [I] whose mean is exactly `mean`, and whose standard deviation is `scale`."""
    values = np.random.default_rng(seed).standard_normal(items)
    values -= values.mean()
    return mean + scale * values / values.std(ddof=1)


def hits(count: int, items: int = 40) -> np.ndarray:
    """Items [I] of which the first `count` are hit."""
    return (np.arange(items) < count).astype(float)


def plant(
    path: Path,
    metrics: Mapping[str, Sequence[np.ndarray]],
    tokens: Sequence[int] = (0, 1000, 2000),
    changed: Mapping[str, Any] | None = None,
    samples: bool = True,
    done: bool = True,
    extra: Sequence[Record] = (),
) -> Path:
    """The path of a run with the items of each metric (`monitor/metric`) at each window.

    `changed`: groups of the config that differ from CONFIG. `extra`: records without samples.
    """
    (path / "samples").mkdir(parents=True)
    records = list(extra)
    for step, count in enumerate(tokens):
        rows = []
        for name, windows in metrics.items():
            monitor, metric = name.split("/")
            values, cell = windows[step], CELLS[monitor]
            stderr = float(values.std(ddof=1) / len(values) ** 0.5)
            for tags in (WHOLE.get(monitor, {}), cell):
                mean = float(values.mean())
                records.append(Record(step, count, "probabilistic", monitor, metric, mean, len(values), stderr, tags))
            for i, value in enumerate(values):
                row = {"monitor": monitor, "metric": metric, "item_id": f"single-512-{i}", "value": float(value)}
                rows.append(row | {"tags": json.dumps(cell, sort_keys=True)})
        if samples:
            pd.DataFrame(rows).to_parquet(path / "samples" / f"{step:08d}.parquet")
    append_lines(path / "records.jsonl", [record.line() for record in records])
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG | dict(changed or {})))
    if done:
        (path / "DONE").write_text('{"tokens": 2000}')
    return path
