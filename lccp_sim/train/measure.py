"""The same monitors, after the fact: `lccp measure RUN` looks at every checkpoint that the run kept at its windows.

It writes records and samples beside the run's own, and with `check` holds the two against each other: they must be
equal, value by value.
"""

from pathlib import Path

import yaml
from rich.console import Console

from lccp_sim.config import ConfigError
from lccp_sim.data.pools import open_corpus
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors.values import Moment
from lccp_sim.records import Record, read_records
from lccp_sim.train.checkpoint import read_checkpoint, windows
from lccp_sim.train.directory import CONFIG
from lccp_sim.train.journal import RECORDS, Journal
from lccp_sim.train.load import load_config, windows_of
from lccp_sim.train.observe import headline
from lccp_sim.train.start import Start, load_weights
from lccp_sim.train.threads import set_threads
from lccp_sim.train.watch import HeadHistory, Watch


def measure(run: Path, out: Path | None, check: bool, console: Console) -> int:
    """The exit status: 0, or 1 where `check` found a difference. Writes `<run>/measured/` or `out`, made anew.

    Raises ConfigError where the directory is no run or holds no whole checkpoint.
    """
    if not (run / CONFIG).exists():
        raise ConfigError(f"{run}: no run directory (it has no {CONFIG})")
    plain = yaml.safe_load((run / CONFIG).read_text())
    plain["run"].pop("tokens_before", None)
    config = load_config(plain)
    paths = windows(run)
    if not paths:
        raise ConfigError(f"{run}: no checkpoints of windows in {run / 'checkpoints'}")
    set_threads(config)
    corpus = open_corpus(config.data, config.run.context_tokens, config.seed, run / "tokenizer.json")
    watch = Watch(config.monitors.watch, corpus, windows_of(config))
    journal = Journal(out or run / "measured")
    journal.truncate({}, -1)
    history = HeadHistory([])
    model = Transformer(config.model, corpus.vocab_size)
    records: list[Record] = []
    for path in paths:
        content = read_checkpoint(path)
        load_weights(model, Start(path, content))
        moment = Moment(content["lccp"]["step"], content["lccp"]["tokens"])
        seen = watch.look(model, moment, history)
        journal.write(seen.records)
        if seen.values:
            journal.write_samples(moment.step, seen.values)
        journal.write_timing(seen.timing)
        records += seen.records
        console.print(headline(moment, seen.records, sum(row["seconds"] for row in seen.timing)))
    console.print(f"{len(records):,} records in {journal.directory / RECORDS}")
    return _compare(run, records, console) if check else 0


def _compare(run: Path, measured: list[Record], console: Console) -> int:
    own = {record.key: record for record in read_records(run / RECORDS)[0]}
    ours = [(record, own.get(record.key)) for record in measured]
    differ = [(m, o) for m, o in ours if o is None or o.line() != m.line()]
    for m, o in differ[:5]:
        there = "missing" if o is None else repr(o.value)
        console.print(f"differs: {m.monitor}/{m.metric} {dict(m.tags)} at step {m.step}: {m.value!r} now, {there} in the run")
    console.print(f"check: {len(measured) - len(differ):,} of {len(measured):,} records equal")
    return 1 if differ else 0
