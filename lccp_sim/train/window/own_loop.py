"""The monitors in a loop that is not ours: `suite.measure(model, step, tokens)` wherever its owner likes.

A window is due at steps, at token counts, or when its owner asks. Such a loop keeps its own checkpoints, which know
nothing of our files. So the resume rule depends on the step: complete windows up to it stay, later ones are dropped.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lccp_sim.analysis.run import MEASURED
from lccp_sim.config import Config
from lccp_sim.configure.load import plain_config
from lccp_sim.data.beyond import check_ids, check_rows
from lccp_sim.data.pools import Corpus, open_corpus
from lccp_sim.data.tokenizer import parse_tokenizer, read_tokenizer
from lccp_sim.errors import ConfigError
from lccp_sim.files import write_atomic
from lccp_sim.models.foreign.adapter import adapted
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.values import Moment
from lccp_sim.progress import Tell, silent
from lccp_sim.records import Record
from lccp_sim.train.parallel.foreign import ranks_here, unwrapped
from lccp_sim.train.saved.foreign import read_vocabulary
from lccp_sim.train.saved.journal import REFERENCE, Journal
from lccp_sim.train.saved.run_directory import CONFIG
from lccp_sim.train.window.suite import NO_HEADS, HeadHistory, MonitorSuite
from lccp_sim.train.window.window_files import WindowFiles

ALL_STEPS = range(sys.maxsize)  # in an external loop each measured step is a window
BEFORE = Moment(-1, -1)


@dataclass(frozen=True)
class Windows:
    """When to measure: at `steps`, or at the first step that has trained on a count of `tokens`; else when asked."""

    steps: Sequence[int] = ()
    tokens: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.steps and self.tokens:
            raise ConfigError("windows: steps and tokens are both given; name one of them")
        for name, marks in (("steps", self.steps), ("tokens", self.tokens)):
            if any(isinstance(mark, bool) or not isinstance(mark, int) or mark < 0 for mark in marks):
                raise ConfigError(f"windows: {name}={list(marks)!r} must be integers >= 0")

    def reached(self, moment: Moment) -> int:
        """How many windows lie at or before a moment."""
        at_steps = sum(mark <= moment.step for mark in set(self.steps))
        return at_steps + sum(mark <= moment.tokens for mark in set(self.tokens))

    @property
    def count(self) -> int:
        """How many there are."""
        return len({*self.steps}) + len({*self.tokens})


def vocabulary_of(tokenizer: Any, bos_token: str | None = None) -> tuple[str, str | None]:
    """The text of a tokenizer.json and the name of its BOS token.

    `tokenizer` is a tokenizer.json, a folder that holds one, or a fast tokenizer of `transformers`. Raises ConfigError
    where it is none of these.
    """
    if isinstance(tokenizer, str | Path):
        path = Path(tokenizer)
        if path.is_dir():
            found = read_vocabulary(path)
            return found.text, bos_token or found.bos
        return read_tokenizer(path).to_str(), bos_token
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        what = "none was given" if tokenizer is None else f"a {type(tokenizer).__name__} has no tokenizer.json form"
        raise ConfigError(f"tokenizer: {what}; name a tokenizer.json, or a folder that holds one")
    return backend.to_str(), bos_token or tokenizer.bos_token


def corpus_for(config: Config, text: str | Path, bos: str | None, tell: Tell = silent) -> Corpus:
    """The held-out text of a config in the tokens of a tokenizer.json, whose BOS holds unless the config names one."""
    tokenizer = text if isinstance(text, Path) else parse_tokenizer(text)
    data = config.data
    if bos and not data.tokenizer.bos_token:
        data = replace(data, tokenizer=replace(data.tokenizer, bos_token=bos))
    return open_corpus(data, config.run.context_tokens, config.seed, tokenizer, tell)


def write_measured(directory: Path, config: Config, corpus: Corpus) -> None:
    """Write what records were measured with: measured.yaml (the config) and tokenizer.json."""
    plain = yaml.safe_dump(plain_config(config), sort_keys=False, allow_unicode=True)
    write_atomic(directory / MEASURED, plain)
    write_atomic(directory / "tokenizer.json", corpus.tokenizer.to_str())


class LoopSuite:
    """All monitors of a config, for a loop that is not ours; make it on every rank.

    `config` is `lccp_sim.cli.check(["run=measure", ...])`. Everything goes to `directory`, which `lccp report` reads.
    `tokenizer`: see `vocabulary_of`. Rank 0 prepares, measures and writes; the others wait for it. Raises ConfigError
    where the text does not suffice or the tokenizer is unfit.
    """

    def __init__(
        self,
        config: Config,
        directory: str | Path,
        tokenizer: Any,
        windows: Windows | None = None,
        bos_token: str | None = None,
        say: Callable[[str], None] = print,
    ):
        self.directory, self.windows, self.say = Path(directory), windows or Windows(), say
        self.config, self.ranks, self.last = config, ranks_here(), BEFORE
        self.history = HeadHistory([], ALL_STEPS)
        self._suite: MonitorSuite | None = None  # of rank 0
        self._files: WindowFiles | None = None  # from the first window on
        self.ranks.first(lambda: self._prepare(tokenizer, bos_token))

    def _prepare(self, tokenizer: Any, bos_token: str | None) -> None:
        if (self.directory / CONFIG).exists():
            raise ConfigError(f"{self.directory}: is a run of lccp-sim, whose records would be lost; name another one")
        self.corpus = corpus_for(self.config, *vocabulary_of(tokenizer, bos_token))
        store, bf16 = self.directory / REFERENCE, self.config.watched_in_bf16
        self._suite = MonitorSuite(self.config.monitors.watch, self.corpus, [], store, bf16=bf16)
        for note in self._suite.notes:
            self.say(f"warning: {note}")

    def due(self, step: int, tokens: int) -> bool:
        """Whether a window of `windows` has been reached since the last measurement."""
        return self.windows.reached(Moment(step, tokens)) > self.windows.reached(self.last)

    def resume(self, step: int) -> None:
        """Go on from a checkpoint of `step`: complete windows up to it stay, and later ones are dropped.

        Step 0 is a fresh start, at which records of another run are refused, not dropped.
        """
        records = self.ranks.first(lambda: self._keep(step)) if step else []
        self.history = HeadHistory(records, ALL_STEPS)
        self.last = Moment(records[-1].step, records[-1].tokens) if records else BEFORE

    def _keep(self, step: int) -> list[Record]:
        assert self._suite is not None
        records = Journal(self.directory).keep(step)
        if records:
            self._suite.recall(self.directory / REFERENCE)
            last = Moment(records[-1].step, records[-1].tokens)
            self._files = WindowFiles(self.directory, self.config.run.tensorboard_axis, last)
        return records

    def measure(self, model: Any, step: int, tokens: int) -> list[Record]:
        """The records of this moment, written; every monitor measures, or in a window of `windows` those that are due.

        `model` is a LanguageModel or a causal LM of `transformers`, bare or inside DDP or torch.compile. It and the
        random state are left as they were. A step that is recorded already gives no records. Raises ConfigError
        where weights are sharded, where steps or tokens do not grow, and where the directory holds the records of
        another run.
        """
        moment = Moment(step, tokens)
        if step == self.last.step:
            return []
        if step < self.last.step or tokens <= self.last.tokens:
            known = f"step {self.last.step} with {self.last.tokens:,} tokens"
            remedy = "both must grow; after a restart call resume(step) first"
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
        due = list(suite.monitors)
        if self.due(*moment):
            reached = self.windows.reached(moment)
            due = suite.due_at(reached - 1, reached == self.windows.count)
        seen = suite.measure(model, moment, self.history, due=due)
        self.say(self._files.write(seen, moment))
        return seen.records

    def _begin(self, model: LanguageModel) -> None:
        if Journal(self.directory).records():
            raise ConfigError(
                f"{self.directory}: holds records already; call resume(step) to go on, or name another directory"
            )
        name = self.corpus.tokenizer.id_to_token(self.corpus.bos)
        note = check_rows(self.corpus.tokenizer, model.vocab_size, name, "the model")
        check_ids(self.corpus.largest, model.vocab_size)
        for line in [*([note] if note else []), *([] if model.num_heads else [NO_HEADS])]:
            self.say(line)
        write_measured(self.directory, self.config, self.corpus)
        self._files = WindowFiles(self.directory, self.config.run.tensorboard_axis)

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._files is not None:
            self._files.close()
