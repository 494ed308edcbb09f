"""The one callback: at each window it lets the monitors look, writes what they saw, and saves the moment.

Records are written before the checkpoint that knows their length, so a kill at any point loses at most what follows
the last checkpoint, and the resumed run writes the same bytes again.
"""

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from lccp_sim.monitors.values import Moment
from lccp_sim.records import Record
from lccp_sim.train.images import window_images
from lccp_sim.train.journal import Journal
from lccp_sim.train.module import LccpModule
from lccp_sim.train.watch import HeadHistory, Watch


class Observe(L.Callback):
    """Runs `watch` at its windows during training, logs the loss every `log_every` steps, saves on a signal.

    `say(line)` prints a line for a person.
    """

    def __init__(self, watch: Watch, journal: Journal, batch_tokens: int, log_every: int, say: Callable[[str], None]):
        self.watch, self.journal, self.batch_tokens = watch, journal, batch_tokens
        self.log_every, self.say = log_every, say
        self.history = HeadHistory([], watch.windows)
        self.seen_step = -1
        self.signalled: int | None = None
        self.clock = (0, time.perf_counter())

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: how long the files are at this moment."""
        return {"lengths": self.journal.lengths(), "seen_step": self.seen_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Cuts the files back to the moment of the checkpoint; loggers are cut by the step (`train/progress.py`)."""
        self.seen_step = state_dict["seen_step"]
        self.journal.truncate(state_dict["lengths"], self.seen_step)
        self.history = HeadHistory(self.journal.records(), self.watch.windows)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The window at step 0; SIGTERM and SIGUSR1 from now on end the run after the step at hand."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        if trainer.global_step == 0 and self.seen_step < 0:
            self._window(trainer, pl_module)
        self.clock = (trainer.global_step, time.perf_counter())

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """What the loggers hold back goes to disk, so that a kill loses nothing of before the checkpoint."""
        for logger in trainer.loggers:
            logger.save()

    def _on_signal(self, number: int, frame: Any) -> None:
        self.signalled = number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: router bias, training records, the window, and a stop where one was asked for."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        assert isinstance(pl_module, LccpModule)
        pl_module.update_router_bias()
        step = trainer.global_step
        records = self._training(trainer, pl_module) if step % self.log_every == 0 else []
        if step in self.watch.windows:
            self._log_time(trainer)
            self._window(trainer, pl_module, records)
            self.clock = (step, time.perf_counter())
        elif records:
            self._write(trainer, records)
        if self.signalled is not None and step < trainer.max_steps:
            trainer.save_checkpoint(self._path(f"last-{step:08d}"))
            self.say(f"{signal.Signals(self.signalled).name}: saved step {step}; the same command goes on from here")
            trainer.should_stop = True

    def _path(self, name: str) -> Any:
        return self.journal.directory / "checkpoints" / f"{name}.ckpt"

    def _training(self, trainer: L.Trainer, module: LccpModule) -> list[Record]:
        """The records of the step that just ended."""
        optim, last = module.config.optim, trainer.global_step - 1
        numbers = {
            "loss_nats": float(trainer.strategy.reduce(module.step_loss.clone(), reduce_op="sum")),
            "aux_loss": float(trainer.strategy.reduce(module.step_aux.clone(), reduce_op="sum")),
            "lr": optim.lr * optim.factor(last, module.config.run.steps),
            "grad_norm": float(module.grad_norm),
        }
        moment = Moment(trainer.global_step, trainer.global_step * self.batch_tokens)
        return [Record(*moment, "training", "train", metric, value, 1) for metric, value in numbers.items()]

    def _log_time(self, trainer: L.Trainer) -> None:
        step, (since, clock) = trainer.global_step, self.clock
        seconds = round(time.perf_counter() - clock, 4)
        tokens = (step - since) * self.batch_tokens
        row = {"step": step, "tokens": step * self.batch_tokens, "what": "train", "seconds": seconds}
        self.journal.write_timing([row | {"forward_tokens": tokens}])

    def _window(self, trainer: L.Trainer, module: Any, training: Sequence[Record] = ()) -> None:
        """Look, write (the step's training records, too), say one line, save."""
        step = trainer.global_step
        moment = Moment(step, step * self.batch_tokens)
        seen = self.watch.look(module.model, moment, self.history)
        self._write(trainer, [*training, *seen.records])
        if seen.values:
            self.journal.write_samples(step, seen.values)
        self.journal.write_timing(seen.timing)
        log_images(trainer.loggers, seen.records, step)
        self.seen_step = step
        self.say(headline(moment, seen.records, sum(row["seconds"] for row in seen.timing)))
        trainer.save_checkpoint(self._path(f"window-{step:08d}"))

    def _write(self, trainer: L.Trainer, records: list[Record]) -> None:
        """Records to the journal; whole-monitor ones to every logger as `monitor/metric`, once a step."""
        self.journal.write(records)
        log_scalars(trainer.loggers, records, Moment(trainer.global_step, trainer.global_step * self.batch_tokens))


def log_scalars(loggers: Sequence[Logger], records: list[Record], moment: Moment) -> None:
    """None; whole-monitor records go to every logger as `monitor/metric`."""
    scalars = {f"{r.monitor}/{r.metric}": r.value for r in records if is_scalar(r)}
    for logger in loggers:
        logger.log_metrics(scalars | {"tokens": float(moment.tokens)}, step=moment.step)


def log_images(loggers: Sequence[Logger], records: list[Record], step: int) -> None:
    """None; the maps of a window go to TensorBoard."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for name, image in window_images(records).items():
                logger.experiment.add_image(name, image, step, dataformats="HWC")


def is_scalar(record: Record) -> bool:
    """Whether a record is one of the few that loggers show: it stands for a whole monitor."""
    return not record.tags


def headline(moment: Moment, records: list[Record], seconds: float) -> str:
    """One line about a window for a person."""
    value = {f"{r.monitor}/{r.metric}": r.value for r in records if not r.tags}
    parts = [f"step {moment.step:>6}", f"{moment.tokens:>11,} tokens"]
    shown = (
        ("needle/hit_frac", "hit {:.2f}"),
        ("needle/answer_nll_nats", "answer NLL {:.3f}"),
        ("heads/retrieval_heads_count", "heads {:.0f}"),
        ("heads/initial_heads_mean_frac", "initial heads {:.2f}"),
        ("induction/second_copy_nll_nats", "2nd copy {:.2f}"),
        ("perplexity/nll_nats", "NLL {:.3f}"),
        ("perplexity/short_nll_nats", "short {:.3f}"),
    )
    parts += [text.format(value[name]) for name, text in shown if name in value]
    tuned = [r for r in records if r.monitor == "probe" and r.metric == "exact_match_frac" and len(r.tags) == 1]
    if tuned:
        parts.append(f"probe {max(tuned, key=lambda r: r.tags['sft_step']).value:.2f}")
    return " | ".join([*parts, f"{seconds:.1f} s"])
