"""The monitors as a Lightning callback, for any Trainer and any LightningModule.

Users of another Trainer specify the language model, its tokenizer, and the number of training tokens per step. Windows
are steps, because only the owner of the data loader knows how many tokens a step contains. Our own runs use
run_callback.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

from lccp_sim.config import Config
from lccp_sim.data.pools import open_corpus
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.models.foreign.adapter import adapted
from lccp_sim.monitors.values import Moment
from lccp_sim.progress import Tell, silent
from lccp_sim.records import Record
from lccp_sim.train.parallel.foreign import unwrapped
from lccp_sim.train.saved.journal import REFERENCE, Journal
from lccp_sim.train.saved.run_directory import DONE, write_done
from lccp_sim.train.window.logs import log_images, log_scalars, window_line
from lccp_sim.train.window.measured import check_measured, write_measured
from lccp_sim.train.window.suite import NO_HEADS, HeadHistory, MonitorSuite, WindowResult


class MonitorCallback(L.Callback):
    """A callback that measures `model(pl_module)` by `suite` at its windows, for `journal` and every logger.

    `model` returns a LanguageModel or a causal LM of `transformers`. `tokens_per_step` counts all ranks. In a user's
    Trainer rank 0 measures and the others wait; in our own runs all ranks measure, see `MonitorSuite`. The callback's
    state is in every checkpoint, so a resumed run writes no record twice. The functions in `after_window` are called on
    rank 0 once a window is written, before it is logged and saved, and return the records that they wrote. `tell` gets
    the progress of a window. `axis`: see `run.tensorboard_axis`.
    """

    def __init__(
        self,
        suite: MonitorSuite,
        journal: Journal,
        tokens_per_step: int,
        model: Callable[[Any], nn.Module] = lambda module: module.model,
        say: Callable[[str], None] = print,
    ):
        self.suite, self.journal, self.tokens_per_step = suite, journal, tokens_per_step
        self.model, self.say = model, say
        self.history = HeadHistory([], suite.windows)
        self.after_window: list[Callable[[L.Trainer, Moment], Sequence[Record]]] = []
        self.seen_step = -1
        self.tell: Tell = silent
        self.axis: str | None = None
        self.config: Config | None = None  # in another's Trainer

    @classmethod
    def of(
        cls,
        config: Config,
        directory: str | Path,
        tokenizer: str | Path,
        windows: Sequence[int],
        tokens_per_step: int,
        model: Callable[[Any], nn.Module] = lambda module: module.model,
        bos_token: str | None = None,
        say: Callable[[str], None] = print,
        window_tokens: Sequence[int] = (),
    ) -> "MonitorCallback":
        """The callback with the monitors and held-out text of a config (`lccp_sim.cli.check(["run=measure", ...])`).

        It writes to `directory`, where `lccp report` reads. `windows`: optimizer steps, 0 for before training;
        `window_tokens`: token counts; each is measured at the first step that reaches it. Raises ConfigError if the
        text does not suffice, the tokenizer is unfit, or the tokens per step are unknown.
        """
        rule = "must be the tokens of an optimizer step over all ranks"
        refuse(tokens_per_step <= 0, "tokens_per_step", tokens_per_step, rule)
        data = replace(config.data, tokenizer=replace(config.data.tokenizer, bos_token=bos_token))
        corpus = open_corpus(data, config.run.context_tokens, config.seed, Path(tokenizer))
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        steps = sorted({*windows, *(-(-count // tokens_per_step) for count in window_tokens)})
        suite = MonitorSuite(config.monitors.watch, corpus, steps, folder / REFERENCE, bf16=config.watched_in_bf16)
        for note in suite.notes:
            say(f"warning: {note}")
        callback = cls(suite, Journal(folder), tokens_per_step, model, say)
        callback.axis, callback.config = config.run.tensorboard_axis, config
        return callback

    @property
    def state_key(self) -> str:
        """The name of this state in checkpoints. It never changes, so that all can be resumed."""
        return "Monitors"

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the current lengths of the files."""
        return {"lengths": self.journal.lengths(), "seen_step": self.seen_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Truncate the files to the moment of the checkpoint.

        Raises ConfigError if another's Trainer began them with other settings.
        """
        if self.config is not None:
            self._check_begun(self.config)
        self.seen_step = state_dict["seen_step"]
        self.journal.truncate(state_dict["lengths"], self.seen_step)
        self.suite.recall(self.journal.directory / REFERENCE)
        self.history = HeadHistory(self.journal.records(), self.suite.windows)

    def _check_begun(self, config: Config) -> None:
        where = self.journal.directory
        check_measured(where, config)
        for record in self.journal.records():
            if record.tokens != record.step * self.tokens_per_step:
                raise ConfigError(
                    f"tokens_per_step={self.tokens_per_step}: {where} was begun with others, {record.tokens} tokens at "
                    f"step {record.step}; give the same, or name another directory"
                )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure at step 0 if it is a window. Raises ConfigError if the records of another run would be lost."""
        where = self.journal.directory
        if self.seen_step < 0 and self.journal.records():
            raise ConfigError(f"{where}: holds records already; resume with ckpt_path, or name another directory")
        if self.config is not None and trainer.is_global_zero:
            (where / DONE).unlink(missing_ok=True)
            write_measured(where, self.config, self.suite.corpus)
        self._measure_if_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure at an optimizer step if it is a window, once."""
        self._measure_if_due(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark the end of another's training; our own runs mark theirs once all is saved."""
        if self.config is not None and trainer.is_global_zero:
            write_done(self.journal.directory, trainer.global_step * self.tokens_per_step)

    def _measure_if_due(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        if step > self.seen_step and step in self.suite.windows:
            unwrapped(self.model(pl_module))  # refuse sharded weights on every rank, not only on one
            if trainer.is_global_zero:
                self.window(trainer, pl_module)
            self.seen_step = step
            trainer.strategy.barrier("lccp monitors")

    def window(self, trainer: L.Trainer, module: Any, first: Sequence[Record] = ()) -> WindowResult:
        """Measure; write (after the records `first`), log and print the result, and return it."""
        step = trainer.global_step
        moment = Moment(step, step * self.tokens_per_step)
        model = adapted(self.model(module))
        if not model.num_heads and self.seen_step < 0:
            self.say(NO_HEADS)
        seen = self.suite.measure(model, moment, self.history, self.tell, f"window at step {step:,}, ")
        self.journal.write_window(step, [*first, *seen.records], seen.values, seen.timing)
        self.say(window_line(moment, seen.records, sum(row["seconds"] for row in seen.timing)))
        if trainer.is_global_zero:
            more = [record for follow in self.after_window for record in follow(trainer, moment)]
            self.journal.seal()
            log_scalars(trainer.loggers, [*first, *seen.records, *more], moment, self.axis)
            log_images(trainer.loggers, seen.records, moment, self.axis)
        self.seen_step = step
        return seen
