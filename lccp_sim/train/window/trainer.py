"""The monitors as a callback of `transformers.Trainer` and of trainers built on it (TRL, axolotl, LLaMA-Factory).

It adds three things to `LoopSuite`: the end of a Trainer's step, its number of training tokens, and its loggers. It
measures after the optimizer step and before the Trainer logs, evaluates and saves, so that the records of a checkpoint
are on disk before it is.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lccp_sim.config import Config
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.monitors.values import Moment
from lccp_sim.train.window.logs import overall_values
from lccp_sim.train.window.own_loop import LoopSuite, Windows


class TrainerMonitors(TrainerCallback):
    """Measures the model of a Trainer at `windows`; `callbacks=[monitors]`, or `monitors.attach(trainer)`.

    `directory` is by default `lccp` in the Trainer's output directory, and `tokenizer` its `processing_class`.
    `tokens_per_step` counts all ranks and accumulated batches; without it the Trainer must count
    (`include_num_input_tokens_seen`). Attached, the overall values go to every logger of the Trainer, too.
    """

    def __init__(
        self,
        config: Config,
        windows: Windows,
        directory: str | Path | None = None,
        tokens_per_step: int | None = None,
        tokenizer: Any = None,
        bos_token: str | None = None,
        say: Callable[[str], None] = print,
    ):
        rule = "must be the tokens of an optimizer step over all ranks and accumulated batches"
        refuse(tokens_per_step is not None and tokens_per_step < 1, "tokens_per_step", tokens_per_step, rule)
        self.config, self.windows, self.directory = config, windows, directory
        self.tokens_per_step, self.tokenizer, self.bos_token, self.say = tokens_per_step, tokenizer, bos_token, say
        self.suite: LoopSuite | None = None
        self.asked = False
        self.log: Callable[[dict[str, float]], object] = lambda values: None

    def attach(self, trainer: Any) -> None:
        """Join a Trainer, and log where it logs."""

        def log(values: dict[str, float]) -> None:
            # Not `trainer.log`: it adds to the history, and subclasses empty their running means there.
            trainer.callback_handler.call_event("on_log", trainer.args, trainer.state, trainer.control, logs=values)

        self.log = log
        trainer.add_callback(self)

    def ask(self) -> None:
        """Measure at the end of the current step, window or not."""
        self.asked = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Prepare, drop windows after the step of the checkpoint, and measure the first window if it is due.

        Raises ConfigError if the records of another run would be lost, or were begun with other settings.
        """
        if self.tokens_per_step is None and args.include_num_input_tokens_seen == "no":
            raise ConfigError(
                "no tokens are known for a step: give tokens_per_step (over all ranks and accumulated batches), or set "
                "include_num_input_tokens_seen='all' in the training arguments"
            )
        tokenizer = given.get("processing_class") if self.tokenizer is None else self.tokenizer
        directory = Path(args.output_dir) / "lccp" if self.directory is None else self.directory
        start = state.global_step
        self.suite = LoopSuite(self.config, directory, tokenizer, self.windows, self.bos_token, self.say, start)
        last = self.suite.last
        if self.tokens_per_step is not None and last.step > 0 and last.tokens != last.step * self.tokens_per_step:
            raise ConfigError(
                f"tokens_per_step={self.tokens_per_step}: {directory} was begun with others, {last.tokens} tokens at "
                f"step {last.step}; give the same, or name another directory"
            )
        self._measure_if_due(state, given["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Measure after an optimizer step if a window is due or was requested."""
        self._measure_if_due(state, given["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Mark the end, and close TensorBoard's file."""
        if self.suite is not None:
            self.suite.close()

    def _measure_if_due(self, state: Any, model: Any) -> None:
        assert self.suite is not None
        step, counted = state.global_step, state.num_input_tokens_seen
        moment = Moment(step, counted if self.tokens_per_step is None else step * self.tokens_per_step)
        if not self.asked and not self.suite.due(*moment):
            return
        self.asked = False
        records = self.suite.measure(model, *moment)
        if records:
            self.log(overall_values(records) | {"tokens": float(moment.tokens)})
