"""One run, from a checked config to a finished directory: train, resume, extend, or say that it is done."""

import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from lccp_sim.config import Config
from lccp_sim.data.batch import Feed
from lccp_sim.data.pools import Corpus, open_corpus
from lccp_sim.data.tokenizer import tokenizer_hash
from lccp_sim.models.transformer import Transformer, initialise
from lccp_sim.records import write_atomic
from lccp_sim.train.checkpoint import VerifiedIO, newest
from lccp_sim.train.directory import DONE, check_same, claim, run_directory, write_config
from lccp_sim.train.feed import LccpData
from lccp_sim.train.journal import Journal
from lccp_sim.train.load import plain_config, windows_of
from lccp_sim.train.module import LccpModule, NotFinite
from lccp_sim.train.observe import Observe
from lccp_sim.train.precondition import check_precondition
from lccp_sim.train.progress import Progress, loggers, print_corpus
from lccp_sim.train.start import Start, load_weights, tokenizer_for
from lccp_sim.train.threads import set_threads
from lccp_sim.train.watch import Watch


def train(config: Config, console: Console) -> Path:
    """The run directory, finished; or saved and unfinished after a signal. Raises ConfigError and NotFinite."""
    set_threads(config)
    start = Start.of(config)
    directory = run_directory(config, start.hash)
    lock = claim(directory)
    try:
        return _train(config, start, directory, console)
    finally:
        lock.release()


def _train(config: Config, start: Start, directory: Path, console: Console) -> Path:
    check_same(directory, config)
    last = finished_tokens(directory)
    if last is not None and config.run.tokens <= last:
        console.print(f"{directory}: done ({last:,} tokens); a larger run.tokens extends it")
        return directory
    checkpoint, problems = newest(directory)
    for problem in problems:
        console.print(f"[yellow]{problem}; going on from {checkpoint.name if checkpoint else 'the start'}[/]")
    corpus = open_corpus(config.data, config.run.context_tokens, config.seed, tokenizer_for(config, start, directory))
    start.check_tokenizer(corpus)
    print_corpus(console, corpus, config)
    model = Transformer(config.model, corpus.vocab_size)
    if start.content is not None:
        load_weights(model, start)
    else:
        initialise(model, config.seed)
    watch = Watch(config.monitors.watch, corpus, windows_of(config))
    _write_facts(directory, config, start, corpus)
    journal = Journal(directory)
    console.print(f"{directory}: {'resuming ' + checkpoint.name if checkpoint else 'starting'}, {config.run.steps:,} steps")
    if checkpoint is None:
        journal.truncate({}, -1)
        if config.run.precondition:
            journal.write(check_precondition(model, corpus, watch, start, console))
    facts = {
        "config": plain_config(config),
        "vocab_size": corpus.vocab_size,
        "tokenizer": tokenizer_hash(corpus.tokenizer),
        "tokens_before": start.tokens,
    }
    module = LccpModule(config, model, facts)
    observe = Observe(watch, journal, config.run.batch_tokens, config.run.log_every_steps, console.print)
    began = time.perf_counter()
    _fit(config, module, observe, directory, _feed(corpus, config), checkpoint, console)
    if observe.signalled is None:
        write_atomic(directory / DONE, json.dumps({"tokens": config.run.steps * config.run.batch_tokens}) + "\n")
        console.print(f"{directory}: finished in {time.perf_counter() - began:.0f} s")
    return directory


def _fit(
    config: Config, module: LccpModule, observe: Observe, directory: Path, feed: Feed, checkpoint: Path | None, console: Console
) -> None:
    r = config.run
    micro = r.batch_tokens // (r.micro_batch_tokens or r.batch_tokens)
    step = int(checkpoint.stem.split("-")[1]) if checkpoint else 0
    periodic = ModelCheckpoint(
        directory / "checkpoints", "last-{step:08d}", monitor="step", mode="max", save_top_k=2,
        every_n_train_steps=r.checkpoint_every_steps, auto_insert_metric_name=False,
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    trainer = L.Trainer(
        accelerator=r.accelerator, devices=1, max_steps=r.steps, max_epochs=-1, accumulate_grad_batches=micro,
        gradient_clip_val=config.optim.clip_norm, precision="bf16-mixed" if r.precision == "bf16" else "32-true",
        deterministic=r.deterministic, logger=loggers(config, directory, step), plugins=[VerifiedIO()],
        callbacks=[observe, Progress(r.batch_tokens, r.steps), periodic], enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=directory, log_every_n_steps=r.log_every_steps,
    )  # fmt: skip
    try:
        trainer.fit(module, LccpData(feed, micro, r.steps), ckpt_path=checkpoint, weights_only=True)
    except NotFinite as error:
        good, _ = newest(directory)
        raise NotFinite(f"{error}; the last good checkpoint is {good}; lower optim.lr or look at these documents") from None


def _feed(corpus: Corpus, config: Config) -> Feed:
    rows, d = config.run.batch_tokens // config.run.context_tokens, config.data
    return Feed(corpus, config.run.context_tokens, rows, config.seed, d.document_mask, d.reset_positions)


def finished_tokens(directory: Path) -> int | None:
    """The tokens of a finished run, or None."""
    path = directory / DONE
    return json.loads(path.read_text())["tokens"] if path.exists() else None


def show_data(config: Config, console: Console) -> None:
    """None; prepares the corpus of a run and prints it, its warnings and an example row, without training."""
    start = Start.of(config)
    corpus = open_corpus(config.data, config.run.context_tokens, config.seed, tokenizer_for(config, start, None))
    start.check_tokenizer(corpus)
    print_corpus(console, corpus, config)
    batch = _feed(corpus, config).batch(0)
    console.print(f"documents of batch 0: {', '.join(batch.names)}")
    console.print(corpus.tokenizer.decode(batch.tokens_BT[0].tolist())[:600], markup=False)


def _write_facts(directory: Path, config: Config, start: Start, corpus: Corpus) -> None:
    """What must be on disk before step 1: config, tokenizer, corpus table."""
    write_config(directory, config, start.tokens)
    write_atomic(directory / "tokenizer.json", corpus.tokenizer.to_str())
    facts: dict[str, Any] = {"hash": corpus.hash, "warnings": corpus.warnings, "sources": corpus.table}
    write_atomic(directory / "corpus.json", json.dumps(facts, indent=1, default=float) + "\n")
