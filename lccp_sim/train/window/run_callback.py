"""The callback of our own runs: the monitors, the training records, the router bias, and saving.

Records are written before the checkpoint that knows their length. So a kill at any point loses at most what follows
the last checkpoint, and the resumed run writes the same bytes again.
"""

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L

from lccp_sim.monitors.values import Moment
from lccp_sim.records import Record
from lccp_sim.train.loop.module import LccpModule
from lccp_sim.train.saved.journal import Journal
from lccp_sim.train.window.callback import MonitorCallback
from lccp_sim.train.window.logs import log_scalars
from lccp_sim.train.window.suite import MonitorSuite


class RunCallback(MonitorCallback):
    """A callback that runs `suite` at its windows, logs the loss every `log_every` steps, and saves on a signal.

    `say(line)` prints a line for the user.
    """

    def __init__(
        self, suite: MonitorSuite, journal: Journal, batch_tokens: int, log_every: int, say: Callable[[str], None]
    ):
        super().__init__(suite, journal, batch_tokens, say=say)
        self.log_every = log_every
        self.signalled = 0
        self.clock = (0, time.perf_counter())

    @property
    def state_key(self) -> str:
        """The name of this state in checkpoints. It never changes, so that all can be resumed."""
        return "Observe"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure at step 0. From now on SIGTERM and SIGUSR1 end the run after the current step."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        if trainer.global_step == 0 and self.seen_step < 0:
            self._window(trainer, pl_module)
        self.clock = (trainer.global_step, time.perf_counter())

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Flush the loggers, so that a kill loses nothing from before the checkpoint."""
        for logger in trainer.loggers:
            logger.save()

    def _on_signal(self, number: int, frame: Any) -> None:
        self.signalled = number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: router bias, training records, the window, and a stop if a signal requested it."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        assert isinstance(pl_module, LccpModule)
        pl_module.update_router_bias()
        step = trainer.global_step
        records = self._training(trainer, pl_module) if step % self.log_every == 0 else []
        records += self._attention(pl_module, step)
        if step in self.suite.windows:
            self._log_time(trainer)
            self._window(trainer, pl_module, records)
            self.clock = (step, time.perf_counter())
        elif records:
            self.journal.write(records)
            log_scalars(trainer.loggers, records, Moment(step, step * self.tokens_per_step), self.axis)
        number = pl_module.ranks.agree(self.signalled) if step < trainer.max_steps else 0
        if number:
            trainer.save_checkpoint(self._path(f"last-{step:08d}"))
            self.say(f"{signal.Signals(number).name}: saved step {step}; the same command continues from here")
            trainer.should_stop = True

    def _path(self, name: str) -> Any:
        return self.journal.directory / "checkpoints" / f"{name}.ckpt"

    def _training(self, trainer: L.Trainer, module: LccpModule) -> list[Record]:
        """The records of the step that just ended."""
        numbers = {
            "loss_nats": float(trainer.strategy.reduce(module.step_loss.clone(), reduce_op="sum")),
            "aux_loss": float(trainer.strategy.reduce(module.step_aux.clone(), reduce_op="sum")),
            "lr": module.lr,
            "grad_norm": module.grad_norm,
            **(module.live.said if module.live is not None else {}),
        }
        moment = Moment(trainer.global_step, trainer.global_step * self.tokens_per_step)
        return [Record(*moment, "training", "train", metric, value, 1) for metric, value in numbers.items()]

    def _attention(self, module: LccpModule, step: int) -> list[Record]:
        """The share of layers with dense attention in the step that just ended, if it differs from the step before."""
        attention, layers = module.config.model.attention, module.config.model.num_layers
        if attention is None or (step > 1 and module.sparse(step - 2) == module.sparse(step - 1)):
            return []
        sparse = sum(attention.at(layer, layers) is not None for layer in range(layers)) * module.sparse(step - 1)
        moment = Moment(step, step * self.tokens_per_step)
        return [Record(*moment, "training", "train", "dense_attention_frac", 1 - sparse / layers, layers)]

    def _log_time(self, trainer: L.Trainer) -> None:
        step, (since, clock) = trainer.global_step, self.clock
        seconds = round(time.perf_counter() - clock, 4)
        tokens = (step - since) * self.tokens_per_step
        row = {"step": step, "tokens": step * self.tokens_per_step, "what": "train", "seconds": seconds}
        self.journal.write_timing([row | {"forward_tokens": tokens}])

    def _window(self, trainer: L.Trainer, module: Any, training: Sequence[Record] = ()) -> None:
        """Measure, write (the step's training records, too), save."""
        self.window(trainer, module, training)
        trainer.save_checkpoint(self._path(f"window-{trainer.global_step:08d}"))
