"""The monitors in another project's loop: call `suite.measure(model, step, tokens)` anywhere.

A window is due at steps, at token counts, or on request. Such a loop keeps its own checkpoints, which do not refer to
our files. So the resume rule depends on the step: complete windows up to it stay, later ones are dropped. Only the
owner of the loop knows when training has ended, and marks it by `close()`.
"""

import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lccp_sim.config import Config
from lccp_sim.data.beyond import check_ids, check_rows
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.models.foreign.adapter import adapted
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.values import Moment
from lccp_sim.records import Record
from lccp_sim.train.parallel.foreign import ranks_here, unwrapped
from lccp_sim.train.saved.journal import REFERENCE, Journal
from lccp_sim.train.saved.run_directory import CONFIG, DONE, write_done
from lccp_sim.train.window.measured import check_measured, corpus_for, vocabulary_of, write_measured
from lccp_sim.train.window.suite import NO_HEADS, HeadHistory, MonitorSuite
from lccp_sim.train.window.window_files import WindowFiles

ALL_STEPS = range(sys.maxsize)  # in an external loop each measured step is a window
BEFORE = Moment(-1, -1)


@dataclass(frozen=True)
class Windows:
    """When to measure: at `steps`, at the first step that reaches each count in `tokens`, or otherwise on request."""

    steps: Sequence[int] = ()
    tokens: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.steps and self.tokens:
            raise ConfigError("windows: steps and tokens are both given; name one of them")
        for name, marks in (("steps", self.steps), ("tokens", self.tokens)):
            if any(isinstance(mark, bool) or not isinstance(mark, int) or mark < 0 for mark in marks):
                raise ConfigError(f"windows: {name}={list(marks)!r} must be integers >= 0")

    def reached(self, moment: Moment) -> int:
        """The number of windows at or before a moment."""
        steps, tokens = self._sorted
        return bisect_right(steps, moment.step) + bisect_right(tokens, moment.tokens)

    @property
    def count(self) -> int:
        """The number of windows."""
        return sum(map(len, self._sorted))

    @cached_property
    def _sorted(self) -> tuple[list[int], list[int]]:
        return sorted({*self.steps}), sorted({*self.tokens})


class LoopSuite:
    """All monitors of a config, for another project's loop. Create it on every rank.

    `config` is `lccp_sim.cli.check(["run=measure", ...])`. Everything goes to `directory`, which `lccp report` reads.
    `tokenizer`: see `vocabulary_of`. `start`: 0 (records in `directory` are then refused), or the step of the
    checkpoint to continue from: complete windows up to it stay, and later ones are dropped. Rank 0 prepares, measures
    and writes; the others wait for it. Raises ConfigError if there is too little text, the tokenizer is unsuitable, or
    `directory` was begun with another config or belongs to another run.
    """

    def __init__(
        self,
        config: Config,
        directory: str | Path,
        tokenizer: Any,
        windows: Windows | None = None,
        bos_token: str | None = None,
        say: Callable[[str], None] = print,
        start: int = 0,
    ):
        refuse(start < 0, "start", start, "must be the step of the checkpoint to go on from, or 0")
        self.directory, self.windows, self.say = Path(directory), windows or Windows(), say
        self.config, self.ranks = config, ranks_here()
        self._suite: MonitorSuite | None = None  # of rank 0
        self._files: WindowFiles | None = None  # from the first window on
        records = self.ranks.first(lambda: self._prepare(tokenizer, bos_token, start))
        self.history = HeadHistory(records, ALL_STEPS)
        self.last = Moment(records[-1].step, records[-1].tokens) if records else BEFORE

    def _prepare(self, tokenizer: Any, bos_token: str | None, start: int) -> list[Record]:
        """The records up to `start`, after the monitors are ready."""
        if (self.directory / CONFIG).exists():
            raise ConfigError(f"{self.directory}: is a run of lccp-sim, whose records would be lost; name another one")
        if Journal(self.directory).records():
            if not start:
                raise ConfigError(
                    f"{self.directory}: holds records already; give the step to go on from (start=STEP), or name "
                    "another directory"
                )
            check_measured(self.directory, self.config)
        self.corpus = corpus_for(self.config, *vocabulary_of(tokenizer, bos_token))
        store, bf16 = self.directory / REFERENCE, self.config.watched_in_bf16
        self._suite = MonitorSuite(self.config.monitors.watch, self.corpus, [], store, bf16=bf16)
        for note in self._suite.notes:
            self.say(f"warning: {note}")
        (self.directory / DONE).unlink(missing_ok=True)
        records = Journal(self.directory).keep(start) if start else []
        if records:
            self._suite.recall(self.directory / REFERENCE)
            last = Moment(records[-1].step, records[-1].tokens)
            self._files = WindowFiles(self.directory, self.config.run.tensorboard_axis, last)
        return records

    def due(self, step: int, tokens: int) -> bool:
        """Whether a window of `windows` has been reached since the last measurement.

        Raises ConfigError if the tokens do not match the step.
        """
        moment = self._moment(step, tokens)
        return self.windows.reached(moment) > self.windows.reached(self.last)

    def _moment(self, step: int, tokens: int) -> Moment:
        rule = f"must be the tokens of all {step} steps so far, over all ranks"
        refuse(tokens < step, "tokens", tokens, rule)
        if step == self.last.step and tokens != self.last.tokens:
            raise ConfigError(
                f"tokens={tokens}: {self.directory} has {self.last.tokens} at step {step}; was it begun with other "
                "tokens per step? Give the same, or name another directory"
            )
        return Moment(step, tokens)

    def measure(self, model: Any, step: int, tokens: int) -> list[Record]:
        """Measure, write and return the records. In a window of `windows`, only the due monitors measure, else all.

        `model` is a LanguageModel or a causal LM of `transformers`, bare or inside DDP or torch.compile. It and the
        random state are unchanged afterwards. A step that is already recorded gives no records. Raises ConfigError if
        weights are sharded, or if steps or tokens do not grow.
        """
        moment = self._moment(step, tokens)
        if step == self.last.step:
            return []
        if step < self.last.step or tokens <= self.last.tokens:
            known = f"step {self.last.step} with {self.last.tokens:,} tokens"
            remedy = "both must grow; after a restart give LoopSuite the step to go on from (start=STEP)"
            raise ConfigError(f"measure(step={step}, tokens={tokens}): comes after {known}; {remedy}")
        bare = unwrapped(model)  # refused on every rank, not on one alone
        records = self.ranks.first(lambda: self._measure(adapted(bare), moment))
        self.last = moment
        return records

    def _measure(self, model: LanguageModel, moment: Moment) -> list[Record]:
        suite = self._suite
        assert suite is not None
        if self._files is None:
            self._begin(model)
        assert self._files is not None
        due, reached = list(suite.monitors), self.windows.reached(moment)
        if reached > self.windows.reached(self.last):
            due = suite.due_at(reached - 1, reached == self.windows.count)
        seen = suite.measure(model, moment, self.history, due=due)
        self.say(self._files.write(seen, moment))
        return seen.records

    def _begin(self, model: LanguageModel) -> None:
        name = self.corpus.tokenizer.id_to_token(self.corpus.bos)
        note = check_rows(self.corpus.tokenizer, model.vocab_size, name, "the model")
        check_ids(self.corpus.largest, model.vocab_size)
        for line in [*([note] if note else []), *([] if model.num_heads else [NO_HEADS])]:
            self.say(line)
        write_measured(self.directory, self.config, self.corpus)
        self._files = WindowFiles(self.directory, self.config.run.tensorboard_axis)

    def close(self) -> None:
        """Mark the end of training, which `lccp gate` requires, and close TensorBoard's file."""
        if self._files is not None:
            self._files.close()
            write_done(self.directory, self.last.tokens)
