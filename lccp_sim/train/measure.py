"""The same monitors, after the fact: `lccp measure RUN` looks at every checkpoint that the run kept at its windows.

It writes records and samples beside the run's own, and with `check` holds the two against each other: they must be
equal, value by value.
"""

from pathlib import Path

from rich.console import Console

from lccp_sim.config import ConfigError
from lccp_sim.data.pools import open_corpus
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors.values import Moment
from lccp_sim.records import Record
from lccp_sim.train.checkpoint import read_checkpoint, windows
from lccp_sim.train.directory import CONFIG, claim, read_config
from lccp_sim.train.journal import RECORDS, Journal
from lccp_sim.train.load import load_config, windows_of
from lccp_sim.train.observe import headline
from lccp_sim.train.start import Start, load_weights
from lccp_sim.train.threads import set_threads
from lccp_sim.train.watch import HeadHistory, Watch


def measure(run: Path, out: Path | None, check: bool, console: Console) -> int:
    """The exit status: 0, or 1 where `check` found a difference. Writes `<run>/measured/` or `out`, made anew.

    Raises ConfigError where the directory is no run or holds no whole checkpoint, or where `out` is a run itself.
    """
    config = read_config(run)
    out = out or run / "measured"
    if (out / CONFIG).exists():
        raise ConfigError(f"--out {out}: is a run directory, whose records would be lost; name another one")
    paths = windows(run)
    if not paths:
        raise ConfigError(f"{run}: no checkpoints of windows in {run / 'checkpoints'}")
    own = Journal(run).records() if check else []
    set_threads(config)
    corpus = open_corpus(config.data, config.run.context_tokens, config.seed, run / "tokenizer.json")
    watch = Watch(config.monitors.watch, corpus, windows_of(config))
    model = Transformer(config.model, corpus.vocab_size)
    history, records = HeadHistory([], watch.windows), []
    with claim(out):
        journal = Journal(out)
        journal.truncate({}, -1)
        for path in paths:
            content = read_checkpoint(path)
            load_weights(model, Start(path, content))
            # The end of a run that was extended later was a window, too: the grid is the one of that time.
            watch.windows = windows_of(load_config(content["lccp"]["config"]))
            moment = Moment(content["lccp"]["step"], content["lccp"]["tokens"])
            seen = watch.look(model, moment, history)
            journal.write(seen.records)
            if seen.values:
                journal.write_samples(moment.step, seen.values)
            journal.write_timing(seen.timing)
            records += seen.records
            console.print(headline(moment, seen.records, sum(row["seconds"] for row in seen.timing)))
        console.print(f"{len(records):,} records in {journal.directory / RECORDS}")
    return _compare(own, records, console) if check else 0


def _compare(own: list[Record], measured: list[Record], console: Console) -> int:
    """0 where both hold the same records of what was measured, 1 where one lacks a record or a value differs."""
    now = {record.key: record for record in measured}
    looked = {(record.step, record.monitor) for record in measured}
    then = {r.key: r for r in own if (r.step, r.monitor) in looked}
    differ = []
    for key in now | then:
        new, old = now.get(key), then.get(key)
        if new is None or old is None or new.line() != old.line():
            values = [repr(record.value) if record else "missing" for record in (new, old)]
            differ.append(f"{key[1]}/{key[2]} {key[3]} at step {key[0]}: {values[0]} now, {values[1]} in the run")
    for line in differ[:5]:
        console.print(f"differs: {line}", markup=False)
    console.print(f"check: {len(now | then) - len(differ):,} of {len(now | then):,} records equal")
    return 1 if differ else 0
