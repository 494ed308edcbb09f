"""The user's view of a run while it trains: the progress line and the loggers."""

import csv
import io
import time
from collections import deque
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lccp_sim.config import Config
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.files import write_atomic
from lccp_sim.progress import Tell

SPEED_OVER = 20  # steps
REFRESH = 0.25  # seconds


class ProgressLine(L.Callback):
    """A progress line with steps done and planned, the loss, and the speed of the last steps.

    It must precede the monitors in the list of callbacks, so that no window counts as training.
    """

    def __init__(self, tell: Tell, batch_tokens: int, steps: int):
        self.tell, self.batch_tokens, self.steps = tell, batch_tokens, steps
        self.busy: deque[float] = deque(maxlen=SPEED_OVER)
        self.began = self.told = time.monotonic()
        self.last = ("training", 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting the pace at the step from which the run continues."""
        self.last = ("training", trainer.global_step / self.steps)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """At a step's first micro-batch, show the training line again after a window."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.began = time.monotonic()
            self.tell(*self.last)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the line after a step, at most a few times per second."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        now, step = time.monotonic(), trainer.global_step
        self.busy.append(now - self.began)
        if now - self.told < REFRESH and step < self.steps:
            return
        self.told = now
        loss = float(getattr(pl_module, "loss_nats", float("nan")))
        speed = self.batch_tokens * len(self.busy) / max(sum(self.busy), 1e-9)
        self.last = (f"step {step:,} of {self.steps:,}, loss {loss:.3f}, {speed:,.0f} tokens/s", step / self.steps)
        self.tell(*self.last)


def loggers(config: Config, directory: Path, first: int) -> list[Logger]:
    """TensorBoard, CSV, and the loggers of `run.loggers` ({name: {class: dotted path, ...}}), from step `first` on.

    What a killed process wrote for that step and later ones is dropped; TensorBoard does so when it reads the new file.
    """
    _cut_csv(directory / "csv", first)
    purge = first * config.run.batch_tokens if config.run.tensorboard_axis == "tokens" else first
    out: list[Logger] = [
        TensorBoardLogger(directory, name="tensorboard", version="", purge_step=purge),
        CSVLogger(directory, name="csv", version=f"from_step_{first:08d}", flush_logs_every_n_steps=1),
    ]
    for name, settings in config.run.loggers.items():
        module, _, kind = settings["class"].rpartition(".")
        own = {key: value for key, value in settings.items() if key != "class"}
        try:
            found = getattr(__import__(module, fromlist=[kind]), kind)
            # A config may name a logger, and no other callable.
            is_logger = isinstance(found, type) and issubclass(found, Logger)
            refuse(not is_logger, f"run.loggers.{name}.class", settings["class"], "must be a Lightning logger")
            out.append(found(**own))
        except (ImportError, AttributeError, TypeError) as error:
            raise ConfigError(f"run.loggers.{name}: {error}") from error
    return out


def _cut_csv(folder: Path, first: int) -> None:
    """Drop the rows from `first` on from the CSVs of earlier starts. (Lightning empties a CSV that it reopens.)"""
    for path in sorted(folder.glob("from_step_*/metrics.csv")):
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            rows = list(csv.DictReader(file))
        # A kill may have truncated the last row, which then lacks columns. Drop damaged rows: records.jsonl has all.
        steps = (str(row.get("step")) for row in rows)
        whole = [row for row, step in zip(rows, steps, strict=True) if step.isdecimal() and int(step) < first]
        keep = [row for row in whole if None not in row.values() and None not in row]
        if not keep:
            path.unlink()
            continue
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0].keys())
        writer.writeheader()
        writer.writerows(keep)
        write_atomic(path, text.getvalue())
