"""What a person sees of a run while it trains: the progress bar, the loggers."""

import csv
import io
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lccp_sim.config import Config, ConfigError
from lccp_sim.records import write_atomic


class Progress(RichProgressBar):
    """Lightning's rich bar with loss, tokens per second, and tokens done of planned."""

    def __init__(self, batch_tokens: int, steps: int):
        super().__init__(refresh_rate=5)
        self.batch_tokens, self.steps = batch_tokens, steps

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The columns at the right of the bar."""
        done = trainer.global_step * self.batch_tokens
        bar = self.train_progress_bar_id
        task = self.progress.tasks[bar] if self.progress and bar is not None else None
        speed = (task.speed or 0.0) * self.batch_tokens / trainer.accumulate_grad_batches if task else 0.0
        loss = float(getattr(pl_module, "loss_nats", float("nan")))
        total = self.steps * self.batch_tokens
        return {"loss": f"{loss:.3f}", "tok/s": f"{speed:,.0f}", "tokens": f"{done:,}/{total:,}"}


def loggers(config: Config, directory: Path, first: int) -> list[Logger]:
    """TensorBoard, CSV, and what `run.loggers` adds ({name: {class: dotted path, ...}}), to go on at step `first`.

    What a killed process wrote of that step and later ones is cut away: TensorBoard does so when it reads the new file.
    """
    _cut_csv(directory / "csv", first)
    out: list[Logger] = [
        TensorBoardLogger(directory, name="tensorboard", version="", purge_step=first),
        CSVLogger(directory, name="csv", version=f"from_step_{first:08d}", flush_logs_every_n_steps=1),
    ]
    for name, settings in config.run.loggers.items():
        module, _, kind = settings["class"].rpartition(".")
        own = {key: value for key, value in settings.items() if key != "class"}
        try:
            out.append(getattr(__import__(module, fromlist=[kind]), kind)(**own))
        except (ImportError, AttributeError, TypeError) as error:
            raise ConfigError(f"run.loggers.{name}: {error}") from error
    return out


def _cut_csv(folder: Path, first: int) -> None:
    """None; the CSVs of earlier starts lose their rows from `first` on. (Lightning empties one that it opens again.)"""
    for path in sorted(folder.glob("from_step_*/metrics.csv")):
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        # A kill may have cut the last row off; it lacks columns then.
        keep = [row for row in rows if None not in row.values() and int(row["step"]) < first]
        if not keep:
            path.unlink()
            continue
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0].keys())
        writer.writeheader()
        writer.writerows(keep)
        write_atomic(path, text.getvalue())
