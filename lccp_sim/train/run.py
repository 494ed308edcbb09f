"""One run, from a checked config to a finished directory: train, resume, extend, or report that it is done."""

import logging
import time
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from torch import Tensor

from lccp_sim.config import Config
from lccp_sim.configure.load import plain_config, windows_of
from lccp_sim.data.beyond import check_ids
from lccp_sim.data.pools import Corpus, open_corpus
from lccp_sim.data.tokenizer import tokenizer_hash
from lccp_sim.data.usage import repetition
from lccp_sim.errors import ConfigError, DamagedRecords, NotFinite, one_line, refuse
from lccp_sim.files import write_atomic
from lccp_sim.models.transformer import Transformer, fresh, initialise
from lccp_sim.plan.rope import warning as rope_warning
from lccp_sim.progress import shown_on
from lccp_sim.records import Record
from lccp_sim.train.corpus import print_corpus, usage_of
from lccp_sim.train.loop.loader import LccpData
from lccp_sim.train.loop.module import LccpModule
from lccp_sim.train.loop.precision import bf16_is_native, check_bf16, set_threads, settle
from lccp_sim.train.loop.progress import ProgressLine, loggers
from lccp_sim.train.memory import check_memory, device_of, enough_memory
from lccp_sim.train.objectives.objective import Rows
from lccp_sim.train.parallel.layout import micro_batches
from lccp_sim.train.parallel.meeting import place_here
from lccp_sim.train.parallel.ranks import Ranks, connected, joined
from lccp_sim.train.parallel.strategy import placement
from lccp_sim.train.saved.branch import branch
from lccp_sim.train.saved.checkpoint import VerifiedIO, checkpoints, newest, step_of
from lccp_sim.train.saved.init import Start, empty, tokenizer_for, transformer_of, weights_of
from lccp_sim.train.saved.journal import REFERENCE, Journal
from lccp_sim.train.saved.run_directory import (
    CONFIG,
    DONE,
    FAILED,
    check_same,
    claim,
    finished_tokens,
    run_directory,
    stopped_by,
    write_done,
    write_facts,
)
from lccp_sim.train.window.key_tokens import check_sources
from lccp_sim.train.window.precondition import check_load, check_precondition
from lccp_sim.train.window.run_callback import RunCallback
from lccp_sim.train.window.stopping import Stopping
from lccp_sim.train.window.suite import MonitorSuite
from lccp_sim.train.window.tensorboard import TRAIN, Board, keys_of, texts_of


class Prepared(NamedTuple):
    """A run that can begin: its config, completed by its start, that start, and its directory."""

    config: Config
    start: Start
    directory: Path


def train(config: Config, console: Console) -> Path:
    """Train and return the run directory: finished, or saved and unfinished after a signal. Raises UserError."""
    return fit(prepare(config, console), console)


def prepare(config: Config, console: Console) -> Prepared:
    """Find a run's directory and its start, before anything is written. Raises ConfigError."""
    gpu = config.run.accelerator == "gpu" and not torch.cuda.is_available()
    refuse(gpu, "run.accelerator", "gpu", "torch finds no usable GPU (see `lccp doctor`); use auto")
    config = settle(config, native := bf16_is_native(config.run.accelerator))
    check_bf16(config, native)
    set_threads(config)
    with shown_on(console if place_here().rank == 0 else Console(quiet=True)) as tell:
        start = Start.of(config, tell)
    config = start.complete(config)
    return Prepared(config, start, run_directory(config, start.hash))


def fit(prepared: Prepared, console: Console, again: bool = True) -> Path:
    """Train a prepared run and return its directory, as `train` does. Raises UserError.

    A failure in training writes its reason to FAILED. With `again` false, a run that has failed is refused.
    """
    config, start, directory = prepared
    failed = directory / FAILED

    def begin() -> None:
        held.enter_context(claim(directory))
        check_same(directory, config)
        if failed.exists() and not again:
            raise ConfigError(f"failed before ({failed.read_text().strip()}); --retry tries again")
        failed.unlink(missing_ok=True)

    # Release the directory last, after the ranks: none of them may still write.
    with ExitStack() as held, joined(config) as ranks:
        ranks.first(begin)
        try:
            with connected(config):
                return _train(config, start, directory, console if ranks.rank == 0 else Console(quiet=True), ranks)
        except Exception as error:
            # A refused run is unchanged, and would be refused again without any training.
            refused = isinstance(error, ConfigError | DamagedRecords)
            if ranks.rank == 0 and (directory / CONFIG).exists() and not refused:
                write_atomic(failed, f"{one_line(error)}\n")
            raise


def _train(config: Config, start: Start, directory: Path, console: Console, ranks: Ranks) -> Path:
    done = ranks.first(lambda: _done(config, directory))
    if done is not None:
        _say(console, f"{directory}: {done}")
        return directory
    ranks.first(lambda: branch(config, directory))
    checkpoint = ranks.first(lambda: _checkpoint(directory, console))
    corpus = _corpus(config, start, directory, console, ranks)
    rows, device = start.rows or config.model.vocabulary(corpus.vocab_size), device_of(config)
    check_ids(corpus.largest, rows)
    if note := ranks.first(lambda: check_memory(config, rows, ranks.world, device)):
        _warn(console, note)
    moments = start.moments(config)
    with enough_memory(config, rows, ranks.world, device):
        model, weights = _model(config, start, rows, cut := config.run.shard and ranks.world > 1)
    suite = _suite(config, corpus, directory, checkpoint, console, ranks)
    # Before a checkpoint is loaded: an objective compares with the weights that the run starts from.
    with shown_on(console) as tell:
        if config.objective.needs_weights:
            tell(f"preparing objective {config.objective.kind}", 0.0)
        batches = config.objective.rows(corpus, config, model)
    told = config.objective.notes(config, start.context_tokens)
    _warn(console, *told)
    begins = checkpoint is None and config.run.precondition

    def precondition() -> list[Record]:
        base = transformer_of(config.model, start) if cut and start.content is not None else model
        if not cut or start.content is not None:  # else this rank has no weights yet
            check_load(base, corpus, suite, start, config.run.context_tokens, console)
        return check_precondition(base, corpus, suite, start, console)

    first = ranks.first(precondition) if begins else []
    warned = [*corpus.warnings, *repetition(usage_of(corpus, config)), *suite.notes, *told]
    table = {"hash": corpus.hash, "warnings": warned, "sources": corpus.table}
    ranks.first(lambda: write_facts(directory, config, start.tokens, table, corpus.tokenizer.to_str()))
    ranks.first(lambda: (directory / DONE).unlink(missing_ok=True))
    journal = Journal(directory, silent=ranks.rank > 0)
    how = f"resuming {checkpoint.name}" if checkpoint else "starting"
    _say(console, f"{directory}: {how}, {config.run.steps:,} steps")
    if checkpoint is None:
        journal.truncate({}, -1)
        journal.write(first)
    facts = {
        "config": plain_config(config),
        "vocab_size": model.vocab_size,
        "tokenizer": tokenizer_hash(corpus.tokenizer),
        "tokens_before": start.tokens,
        **start.facts,
    }
    # When resuming, skip initialisation: the checkpoint overwrites every weight.
    first_state = (weights, moments) if checkpoint is None else ((), None)
    module = LccpModule(config, model, facts, ranks, *first_state, batches)
    monitors = RunCallback(
        suite, journal, config.run.batch_tokens, config.run.log_every_steps, lambda line: _say(console, line)
    )
    monitors.axis = config.run.tensorboard_axis
    with enough_memory(config, rows, ranks.world, device):
        _watched(config, module, monitors, texts_of(config, corpus), batches, checkpoint, console, ranks)
    return directory


def _corpus(config: Config, start: Start, directory: Path, console: Console, ranks: Ranks) -> Corpus:
    """Open the corpus, and print it with what start, attention and RoPE give reason to note."""
    tokenizer, context = tokenizer_for(config, start, directory), config.run.context_tokens
    with shown_on(console) as tell:
        corpus = ranks.in_turn(lambda: open_corpus(config.data, context, config.seed, tokenizer, tell))
    start.check_tokenizer(corpus)
    for said in start.notes:
        _say(console, f"note: {said}")
    print_corpus(console, corpus, config)
    of_attention = config.model.attention and config.model.attention.note
    of_rope = rope_warning(config.model.rope, config.model.d_head, context)
    _warn(console, *filter(None, (of_attention, of_rope)))
    return corpus


def _suite(
    config: Config, corpus: Corpus, directory: Path, checkpoint: Path | None, console: Console, ranks: Ranks
) -> MonitorSuite:
    """Make the monitors' items, or recall the reference of the run that is resumed. Raises ConfigError without it."""
    store, watched = directory / REFERENCE, config.monitors
    beside = config.model.attention if watched.attention == "both" else None
    with shown_on(console) as tell:
        suite = MonitorSuite(
            watched.watch, corpus, windows_of(config), store, ranks, config.watched_in_bf16, tell, beside
        )
    _warn(console, *suite.notes)
    if checkpoint is None:
        check_sources(watched.watch, suite.unreferenced)
        return suite
    suite.recall(store)
    what = f"missing, or made for different items ({', '.join(suite.unreferenced)}); only step 0 creates it"
    refuse(suite.unreferenced, "reference", str(store), f"{what}; restore it, or move the run directory away")
    return suite


def _watched(
    config: Config,
    module: LccpModule,
    monitors: RunCallback,
    texts: dict[str, str],
    batches: Rows,
    checkpoint: Path | None,
    console: Console,
    ranks: Ranks,
) -> None:
    """Train under the monitors, the stopping rule and the progress line; mark the run as finished if it is."""
    tokens, directory = config.run.batch_tokens, monitors.journal.directory
    stopping = None if config.run.stopping is None else Stopping(config.run.stopping, monitors)
    board = Board(monitors, texts, keys_of(config), TRAIN)
    monitors.after_window = [*([stopping.judge] if stopping else []), board.draw]
    began = time.perf_counter()
    with shown_on(console) as tell:
        monitors.tell = tell.beside()
        ours = [ProgressLine(tell, tokens, config.run.steps), monitors, *([stopping] if stopping else [])]
        _fit(config, module, ours, directory, batches, checkpoint, ranks)
    step = module.trainer.global_step
    early = stopping is not None and step == stopping.ends and step < config.run.steps
    if early or step == config.run.steps:
        by = stopping.settings.action if stopping is not None and early else None
        ranks.first(lambda: write_done(directory, step * tokens, by))
        _say(console, f"{directory}: finished in {time.perf_counter() - began:.0f} s")


def _model(config: Config, start: Start, rows: int, cut: bool) -> tuple[Transformer, Iterable[tuple[str, Tensor]]]:
    """The model with its initial weights; if it will be sharded (`cut`), one on the meta device, and the weights."""
    if start.content is not None:
        return (empty(config.model, start), weights_of(start)) if cut else (transformer_of(config.model, start), ())
    if not cut:
        return initialise(Transformer(config.model, rows), config.seed), ()
    with torch.device("meta"):
        model = Transformer(config.model, rows)
    return model, fresh(model, config.seed)


def _done(config: Config, directory: Path) -> str | None:
    """Why there is nothing to train, as text, or None. A run that run.stopping ended is finished while that is set."""
    last, by = finished_tokens(directory), stopped_by(directory)
    action = config.run.stopping and config.run.stopping.action
    if last is None:
        return None
    if by == "decay":
        remedy = "to train on, start another run.name with run.init_from=one of its windows from before the decay"
        return f"done: run.stopping took the learning rate to zero at {last:,} tokens; {remedy}"
    if by == action == "stop":
        return f"done: run.stopping stopped it at {last:,} tokens; run.stopping=null trains on to run.tokens"
    return f"done ({last:,} tokens); a larger run.tokens extends it" if config.run.tokens <= last else None


def _checkpoint(directory: Path, console: Console) -> Path | None:
    """The checkpoint to continue from, or None for a run that has not begun.

    Damaged newer checkpoints are reported and removed: the run will write them again. Raises ConfigError if a run that
    has begun has no checkpoint left: a restart would erase its measurements.
    """
    checkpoint, problems = newest(directory)
    steps = [record.step for record in Journal(directory).records()]
    if checkpoint is None:
        if problems or any(steps):
            why = "; ".join(problems) or f"it has none, but records up to step {max(steps)}"
            raise ConfigError(f"{directory}: no intact checkpoint to continue from ({why}); move it away to start over")
        return None
    for problem in problems:
        _say(console, f"{problem}; continuing from {checkpoint.name}", style="yellow")
    for path in reversed(checkpoints(directory)):
        if path == checkpoint:
            break
        VerifiedIO().remove_checkpoint(path)
    return checkpoint


def _say(console: Console, line: str, style: str | None = None) -> None:
    console.print(line, style=style, markup=False)


def _warn(console: Console, *notes: str) -> None:
    for note in notes:
        _say(console, f"warning: {note}", style="yellow")


def _fit(
    config: Config,
    module: LccpModule,
    ours: list[L.Callback],
    directory: Path,
    feed: Rows,
    checkpoint: Path | None,
    ranks: Ranks,
) -> None:
    r = config.run
    micro = micro_batches(config, ranks.world)
    first = step_of(checkpoint) + 1 if checkpoint else 0
    periodic = ModelCheckpoint(
        directory / "checkpoints", "last-{step:08d}", monitor="step", mode="max", save_top_k=2,
        every_n_train_steps=r.checkpoint_every_steps, auto_insert_metric_name=False, enable_version_counter=False,
    )  # fmt: skip
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    trainer = L.Trainer(
        **placement(config, ranks), accelerator=r.accelerator,
        max_steps=r.steps, max_epochs=-1, accumulate_grad_batches=micro,
        precision="bf16-mixed" if r.precision == "bf16" else "32-true", deterministic=r.deterministic,
        logger=ranks.in_turn(lambda: loggers(config, directory, first)),
        callbacks=[*ours, periodic], enable_model_summary=False, enable_progress_bar=False,
        use_distributed_sampler=False, default_root_dir=directory, log_every_n_steps=r.log_every_steps,
    )  # fmt: skip
    try:
        trainer.fit(module, LccpData(feed, micro, r.steps, r.cp), ckpt_path=checkpoint, weights_only=True)
    except NotFinite as error:
        good, _ = newest(directory)
        remedy = "lower optim.lr, or inspect these documents"
        raise NotFinite(f"{error}; the last good checkpoint is {good}; {remedy}") from None
