"""What a run makes of a machine that fails: full disks, lost folders, wrong clocks, and files that rot.

    python -m bench.faults DIR                      # all; one line a fault in DIR/faults.jsonl, and a table at the end
    python -m bench.faults DIR --only flips --places 200
    python -m bench.faults DIR --only disk --every 10   # each tenth write call; --every 1, the default: each in turn

`flips` and `cuts` damage one file at a time, one bit or from one byte on, at random places, and have it read by the
code that reads it in use. `disk` lets the n-th write call of a run, and all after it, find no room; `pages` mounts,
where root may, a disk of n pages of 4 KiB. The others are scenes: a folder that is read-only or vanishes, a clock that
jumps, two processes at once, text that changes.

An outcome is `refused` (one line for the user, status 1), `recovered` (the end is the same to the byte), `unharmed`
(what was read is the same), or a failure: `wrong` (another number, and nobody is told) or `traceback`. A file that a
user wrote may be read as what it now says: there only a traceback is a failure, and `read` counts what was accepted.
Everything happens to the tiny run of the tests, in forks of this process.
"""

import argparse
import builtins
import errno
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from lccp_sim import cli
from lccp_sim.analysis.run import load_run
from lccp_sim.configure.compose import check
from lccp_sim.data.pools import open_corpus
from lccp_sim.errors import is_message
from lccp_sim.train.loop.progress import loggers
from lccp_sim.train.saved.checkpoint import newest, read_checkpoint, weights_hash
from lccp_sim.train.saved.foreign import read_foreign
from lccp_sim.train.saved.run_directory import finished_tokens, read_config
from lccp_sim.train.saved.weights_file import read_weights_file
from tests import home

Read = Callable[[Path], str]
FAILURES = ("wrong", "traceback")
PARTS = ("scenes", "disk", "pages", "flips", "cuts")
FEW = [f"monitors.{name}=null" for name in ("probe", "heads", "intervention", "routing")]
FEW += ["model.router.bias_update_rate=0"]  # a bias of selection cannot be exported
# Four steps, three windows, three checkpoints: a disk is filled hundreds of times.
BRIEF = ["run.tokens=1024", "run.checkpoint_every_steps=2", "model.num_layers=1"]
BRIEF += ["monitors.needle=null", "monitors.induction=null"]
PAGE = 4096


class Ended(NamedTuple):
    """The exit status of a command and what it said on stderr."""

    status: int
    said: str


class Bench:
    """A folder with a finished run, its exports, texts and cache, and a place to spoil copies in."""

    def __init__(self, root: Path):
        self.root, self.home = root, root / "home"
        # What is read must not depend on who reads it.
        os.environ.pop("LCCP_CACHE", None)
        if not (root / "ready").exists():
            shutil.rmtree(self.home, ignore_errors=True)
            home.build(self.home)
            first = self.lccp("train", *self.words())
            assert first.status == 0, first.said
            for name in ("folder", "weights.safetensors"):
                made = self.lccp("export", str(self.run()), str(self.home / name))
                assert made.status == 0, made.said
            texts = [path.read_text() for path in sorted((self.home / "texts").glob("*.txt"))]
            (self.home / "parquet").mkdir()
            pd.DataFrame({"text": texts}).to_parquet(self.home / "parquet" / "texts.parquet")
            (root / "ready").touch()

    def words(self, *more: str, runs: str = "runs") -> list[str]:
        """The command line of the run."""
        place = [f"run.root={self.home / runs}", "--config-dir", str(self.home / "configs")]
        return ["run=tiny", *FEW, *more, *place]

    def run(self, runs: str = "runs") -> Path:
        """The run directory."""
        [found] = (self.home / runs).glob("tiny-s0-*")
        return found

    def lccp(self, *words: str, before: Callable[[], None] = lambda: None) -> Ended:
        """Run a command in a fork of this process; `before` prepares the fork."""
        return ended(start(self.root, words, before))

    @contextmanager
    def copy(self, source: Path) -> Iterator[Path]:
        """A copy of a folder, under its own name, that goes at the end."""
        place = self.root / "spoilt"
        shutil.rmtree(place, ignore_errors=True)
        yield Path(shutil.copytree(source, place / source.name, symlinks=True))
        shutil.rmtree(place, ignore_errors=True)


class Child(NamedTuple):
    """A command in a fork, and where its stderr goes."""

    pid: int
    log: Path


def start(root: Path, words: Sequence[str], before: Callable[[], None] = lambda: None) -> Child:
    """Start a command in a fork."""
    sys.stdout.flush(), sys.stderr.flush()
    log = root / f"said-{time.monotonic_ns()}.txt"
    pid = os.fork()
    if pid:
        return Child(pid, log)
    status = 99
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1), os.dup2(out, 2)
        sys.stderr = os.fdopen(os.dup(out), "w", buffering=1)  # a test runner may have put its own there
        before()
        status = cli.main(list(words)) or 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def ended(child: Child) -> Ended:
    """Wait for a command."""
    status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
    said = child.log.read_text(errors="replace")
    child.log.unlink()
    return Ended(status, said)


def outcome_of(found: Ended) -> str:
    """What a command made of a fault: refused in one line, done, or a failure."""
    lines = [line for line in found.said.splitlines() if line.startswith("lccp: ")]
    if found.status == 1 and len(lines) == 1 and "Traceback" not in found.said:
        return "refused"
    return "done" if found.status == 0 else "traceback"


def left_by(run: Path) -> dict[str, str]:
    """What must be the same: hashes of records, samples, reference texts, and of the weights at each window."""
    if not (run / "DONE").exists():
        return {"unfinished": run.name}
    files = [run / "records.jsonl", *sorted(run.glob("samples/*.parquet")), *sorted(run.glob("reference/*"))]
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    windows = sorted(run.glob("checkpoints/window-*.ckpt"))
    return found | {path.name: weights_hash(read_checkpoint(path)) for path in windows}


# Files that rot


def frame_hash(frame: pd.DataFrame) -> str:
    return hashlib.sha256(frame.to_json().encode()).hexdigest()


def of_run(path: Path) -> str:
    """All that a report takes from a run directory."""
    run = load_run(
        path.parents[1] if path.parent.name in ("samples", "reference", "csv", "checkpoints") else path.parent
    )
    parts = [frame_hash(each) for each in (run.records, run.samples, run.timing, run.corpus)]
    return json.dumps([*parts, run.config, run.finished], sort_keys=True, default=str)


def of_newest(path: Path) -> str:
    """The weights that a run goes on from: any of its checkpoints is right."""
    found, _ = newest(path.parents[1])
    return "none" if found is None else f"{found.name} {weights_hash(read_checkpoint(found))}"


def of_checkpoint(path: Path) -> str:
    content = read_checkpoint(path, mapped=False)
    return weights_hash(content) + repr(content["lccp"]) + repr(content["global_step"])


def of_cache(path: Path) -> str:
    """The rows that training reads."""
    corpus = cached(path.parents[1])
    return hashlib.sha256(b"".join(np.asarray(pool.rows_ids).tobytes() for pool in corpus.pools)).hexdigest()


def cached(cache: Path, *changes: str) -> Any:
    """The corpus of the run, by this cache."""
    root = cache.parent
    config = check(["run=tiny", f"data.cache={cache}", *changes], root / "configs")
    return open_corpus(config.data, config.run.context_tokens, config.seed)


def of_texts(path: Path) -> str:
    """The corpus's hash, which a run that began with other text refuses."""
    root = path.parents[1]
    shutil.rmtree(root / "cache", ignore_errors=True)
    return cached(root / "cache", f"data.sources.prose.paths=[{path.parent}]").hash


def of_foreign(path: Path) -> str:
    content = read_foreign(path.parent)
    return weights_hash(content) + repr(content["lccp"]["config"]) + content["tokenizer.json"]


def of_weights(path: Path) -> str:
    content = read_weights_file(path)
    return weights_hash(content) + repr(content["lccp"])


def of_config(path: Path) -> str:
    return repr(read_config(path.parent))


def of_tokenizer(path: Path) -> str:
    read_config(path.parent)  # measuring reads it first, and compares the tokenizer, too
    return path.read_text()


def of_done(path: Path) -> str:
    return repr(finished_tokens(path.parent))


def of_csv(path: Path) -> str:
    """The table is a view that a resumed run cuts; its rows are read nowhere else."""
    loggers(read_config(path.parents[2]), path.parents[2], 4)
    return ""


def of_user(path: Path) -> str:
    check(["run=tiny"], path.parents[1])
    return "read"


KINDS: dict[
    str, tuple[str, str, Read, bool]
] = {  # folder to copy, glob below it, how it is read, whether a user wrote it
    "checkpoint": ("run", "checkpoints/window-00000012.ckpt", of_checkpoint, False),
    "manifest": ("run", "checkpoints/window-00000012.json", of_newest, False),
    "records": ("run", "records.jsonl", of_run, False),
    "samples (Parquet)": ("run", "samples/00000012.parquet", of_run, False),
    "timing": ("run", "timing.jsonl", of_run, False),
    "corpus table": ("run", "corpus.json", of_run, False),
    "table of hashes": ("run", "sums.json", of_run, False),
    "reference (npz)": ("run", "reference/*", of_run, False),
    "config.yaml": ("run", "config.yaml", of_config, False),
    "tokenizer": ("run", "tokenizer.json", of_tokenizer, False),
    "DONE": ("run", "DONE", of_done, False),
    "csv": ("run", "csv/*/metrics.csv", of_csv, False),
    "weights (safetensors)": ("home", "weights.safetensors", of_weights, False),
    "exported folder (safetensors)": ("folder", "*.safetensors", of_foreign, False),
    "exported folder (config)": ("folder", "config.json", of_foreign, False),
    "exported folder (tokenizer)": ("folder", "tokenizer.json", of_foreign, False),
    "cache (rows)": ("texts", "cache/pool-*/ids.npy", of_cache, False),
    "cache (tokens)": ("texts", "cache/tokens-*/ids.npy", of_cache, False),
    "text": ("texts", "texts/00.txt", of_texts, False),
    "source (Parquet)": ("texts", "parquet/texts.parquet", of_texts, False),
    "YAML of a user": ("configs", "run/tiny.yaml", of_user, True),
}


def flip(path: Path, rng: random.Random) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    """Keep the first bytes alone."""
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def rotten(bench: Bench, kind: str, damage: Callable[[Path, random.Random], None], places: int) -> dict[str, Any]:
    """Outcomes of one kind of damage to one kind of file, at random places."""
    folder, glob, read, by_user = KINDS[kind]
    source = {"run": bench.run(), "home": bench.home, "folder": bench.home / "folder", "texts": bench.home,
              "configs": bench.home / "configs"}[folder]  # fmt: skip
    counts, failures = Counter[str](), []
    with bench.copy(source) as copied:
        path = min(copied.glob(glob), default=None)
        if path is None:
            return {"file": kind, "fault": damage.__name__, "skipped": f"there is no {glob}"}
        # A reader may change what it reads (a cache is built again, a table cut): each place begins with the same.
        whole, entry = path.read_bytes(), path.parent
        right = {read(path)}
        path.write_bytes(whole)
        if read is of_newest:
            right |= {
                f"{each.name} {weights_hash(read_checkpoint(each))}" for each in copied.glob("checkpoints/*.ckpt")
            }
        for place in range(places):
            rng = random.Random(f"{kind} {damage.__name__} {place}")
            entry.mkdir(exist_ok=True)
            path.write_bytes(whole)
            damage(path, rng)
            changed = path.read_bytes() != whole
            try:
                found = read(path)
                if by_user and changed:
                    outcome = "read"
                elif not changed or found in right:
                    outcome = "recovered" if read is of_cache and changed else "unharmed"
                elif read is of_texts:
                    outcome = "refused"  # by a run that began before; a new run takes the text that is there
                else:
                    outcome = "wrong"
            except Exception as error:
                outcome = "refused" if is_message(error) and "\n" not in str(error).strip() else "traceback"
                if is_message(error) and outcome == "traceback" and by_user:
                    outcome = "refused"  # a line for each wrong key
                if outcome == "traceback":
                    failures.append(f"place {place}: {type(error).__name__}: {str(error)[:200]}")
            counts[outcome] += 1
            failures += [f"place {place}: {outcome}"] if outcome == "wrong" else []
    return {
        "file": kind,
        "fault": damage.__name__,
        "places": places,
        "outcomes": dict(counts),
        "failures": failures[:5],
    }


# A disk that is full


class Full:
    """A file whose `write` fails once `left` calls were made on all such files together."""

    left: int | None = None
    calls = 0

    def __init__(self, file: Any):
        self.file = file

    def write(self, data: Any) -> int:
        """Write, or find no room."""
        Full.calls += 1
        if Full.left is not None and Full.calls > Full.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(getattr(self.file, "name", "")))
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *rest: object) -> None:
        self.file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.file)


def fill(below: Path, left: int | None, told: Path | None = None) -> None:
    """Let files below a folder find no room after `left` more writes; the count of writes goes to `told` at the end."""
    plain = builtins.open

    def opened(name: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file = plain(name, mode, *rest, **more)
        inside = not isinstance(name, int) and Path(os.fsdecode(name)).absolute().is_relative_to(below)
        return Full(file) if inside and set(mode) & set("wax+") else file

    Full.left, Full.calls = left, 0
    builtins.open = io.open = opened  # type: ignore[assignment]
    if told is not None:
        exit_now = os._exit

        def exiting(status: int) -> None:
            with plain(told, "w") as file:
                file.write(str(Full.calls))
            exit_now(status)

        os._exit = exiting  # type: ignore[assignment]


class Tight:
    """The brief run in a folder that finds no room, again and again; `right` is what it leaves where there is room."""

    def __init__(self, bench: Bench):
        self.bench, self.place = bench, bench.home / "full"
        self.words, told = bench.words(*BRIEF, runs="full"), bench.root / "writes.txt"
        shutil.rmtree(self.place, ignore_errors=True)
        plain = bench.lccp("train", *self.words, before=lambda: fill(self.place, None, told))
        assert plain.status == 0, plain.said
        self.right, self.writes = left_by(bench.run("full")), int(told.read_text())
        self.pages = sum(-(-path.stat().st_size // PAGE) + 1 for path in self.place.rglob("*"))
        self.outcomes, self.failures = Counter[str](), list[str]()
        shutil.rmtree(self.place)

    def run(self, before: Callable[[], None] = lambda: None) -> Ended:
        """Run the command with what room there is."""
        return self.bench.lccp("train", *self.words, before=before)

    def go_on(self, first: Ended, room: int) -> None:
        """Run the command again, with room enough, after a first time with so much of it."""
        again = self.run()
        same = again.status == 0 and left_by(self.bench.run("full")) == self.right
        outcome = outcome_of(first)
        if outcome == "done":  # what could not be written was no part of the run
            outcome = "unharmed"
        if outcome != "traceback" and not same:
            outcome = "wrong"
        self.outcomes[outcome] += 1
        if outcome in FAILURES:
            self.failures.append(f"{room}: {outcome}: {(first if outcome == 'traceback' else again).said[-300:]}")

    def line(self, fault: str, **more: int) -> dict[str, Any]:
        """The line of all that was tried."""
        counts = {"tried": self.outcomes.total(), "outcomes": dict(self.outcomes)}
        return {"fault": fault, **more, **counts, "failures": self.failures[:5]}


def disk(bench: Bench, every: int) -> dict[str, Any]:
    """The line of a run whose n-th write call, and all after it, find no room."""
    tight = Tight(bench)
    for left in range(0, tight.writes, every):
        tight.go_on(tight.run(before=lambda n=left: fill(tight.place, n)), left)  # type: ignore[misc]
        shutil.rmtree(tight.place)
    return tight.line("no room from a write call on", writes=tight.writes)


def pages(bench: Bench, every: int) -> dict[str, Any]:
    """The line of a run on a disk of n pages, which root may mount."""
    tight, fault = Tight(bench), "a disk of a few pages"
    for size in range(1, tight.pages, every):
        if not mounted(tight.place, size):
            return {"fault": fault, "skipped": "mounting a disk needs root"}
        try:
            first = tight.run()
            mounted(tight.place, 0)
            tight.go_on(first, size)
        finally:
            subprocess.run(["umount", tight.place], check=True)
    return tight.line(fault, pages=tight.pages)


def mounted(place: Path, pages: int) -> bool:
    """Whether a disk of so many pages is mounted there now; 0: the one that is there has no limit any more."""
    place.mkdir(exist_ok=True)
    words = ["-t", "tmpfs", "-o", f"size={pages * PAGE}"] if pages else ["-o", "remount,size=1g"]
    return subprocess.run(["mount", *words, "tmpfs", place], capture_output=True).returncode == 0


# Scenes


def refusing(below: Path, number: int, after: int = 0) -> None:
    """Let every change below a folder fail with this error, from the `after`-th on."""
    seen = [0]

    def hear(event: str, values: tuple) -> None:
        writes = event == "open" and isinstance(values[2], int) and values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not writes and event not in ("os.mkdir", "os.rename", "os.remove", "os.truncate", "os.rmdir"):
            return
        if isinstance(values[0], str | bytes | os.PathLike) and Path(os.fsdecode(values[0])).is_relative_to(below):
            seen[0] += 1
            if seen[0] > after:
                raise OSError(number, os.strerror(number), os.fsdecode(values[0]))

    sys.addaudithook(hear)


def vanishing(folder: Path, after: int) -> None:
    """Rename a folder away at its `after`-th change."""
    seen = [0]

    def hear(event: str, values: tuple) -> None:
        if event == "os.rename" and folder in Path(os.fsdecode(values[1])).parents:
            seen[0] += 1
            if seen[0] == after:
                os.rename(folder, folder.with_name("gone"))

    sys.addaudithook(hear)


def jumping(seconds: float, after: int) -> None:
    """Let the clock jump after so many questions for the time."""
    plain, asked = time.time, [0]

    def now() -> float:
        asked[0] += 1
        return plain() + (seconds if asked[0] > after else 0)

    time.time = now


def scenes(bench: Bench) -> Iterator[dict[str, Any]]:
    """A line for each scene."""
    right = left_by(bench.run())

    def fresh(name: str) -> list[str]:
        shutil.rmtree(bench.home / name, ignore_errors=True)
        return bench.words(runs=name)

    def then(name: str, first: Ended, fault: str) -> dict[str, Any]:
        """The line of a run that a fault met, once the same command has gone on without it."""
        outcome = outcome_of(first)
        again = bench.lccp("train", *bench.words(runs=name))
        same = again.status == 0 and left_by(bench.run(name)) == right
        outcome = "wrong" if not same else "recovered" if outcome == "done" else outcome
        failures = [f"{first.said[-300:]} / {again.said[-300:]}"] if outcome in FAILURES else []
        return {"fault": fault, "places": 1, "outcomes": {outcome: 1}, "failures": failures}

    readonly = bench.home / "readonly"
    for after in (0, 5, 20, 60):
        words = fresh("readonly")
        first = bench.lccp("train", *words, before=lambda n=after: refusing(readonly, errno.EROFS, n))  # type: ignore[misc]
        yield then("readonly", first, f"the folder of runs is read-only after {after} changes")
    cache = bench.home / "cache-readonly"
    shutil.rmtree(cache, ignore_errors=True)
    words = [*fresh("readonly"), f"data.cache={cache}"]
    first = bench.lccp("train", *words, before=lambda: refusing(cache, errno.EROFS))
    yield then("readonly", first, "the cache is read-only")
    for after in (6, 14, 25):
        words, folder = fresh("vanishing"), bench.run().name
        place = bench.home / "vanishing" / folder
        first = bench.lccp("train", *words, before=lambda p=place, n=after: vanishing(p, n))  # type: ignore[misc]
        gone = place.with_name("gone")
        if gone.exists():
            shutil.rmtree(place, ignore_errors=True)  # what was written under the old name since
            gone.rename(place)
        yield then("vanishing", first, f"the run directory vanishes at change {after}, and comes back")
    for seconds in (-7200.0, 86400.0):
        words = fresh("clock")
        first = bench.lccp("train", *words, before=lambda s=seconds: jumping(s, 30))  # type: ignore[misc]
        yield then("clock", first, f"the clock jumps by {seconds:+,.0f} s")
    words = fresh("twice")
    children = [start(bench.root, ["train", *words]) for _ in range(2)]
    both = sorted((ended(child) for child in children), key=lambda found: found.status)
    line = then("twice", both[1], "two processes on one run")
    other = "unharmed" if outcome_of(both[0]) == "done" else outcome_of(both[0])
    yield line | {"places": 2, "outcomes": dict(Counter([other, *line["outcomes"]]))}
    shutil.rmtree(cache, ignore_errors=True)
    pair = [[*fresh(f"cache-{i}"), f"data.cache={cache}"] for i in range(2)]
    children = [start(bench.root, ["train", *each]) for each in pair]
    both = [ended(child) for child in children]
    for i, found in enumerate(both):
        yield then(f"cache-{i}", found, f"two processes build one cache ({i + 1})")
    words = fresh("changed")
    text = next(iter(sorted((bench.home / "texts").glob("*.txt"))))
    before = text.read_text()
    bench.lccp("train", *words, before=lambda: refusing(bench.home / "changed", errno.ENOSPC, 60))
    try:
        text.write_text(before.replace("the", "teh", 1))
        first = bench.lccp("train", *words)
    finally:
        text.write_text(before)
    yield then("changed", first, "a text of the corpus changes between two starts")
    for name in ("readonly", "vanishing", "clock", "twice", "cache-0", "cache-1", "changed", "full"):
        shutil.rmtree(bench.home / name, ignore_errors=True)


def lines_of(bench: Bench, only: Sequence[str], places: int, every: int, kinds: Sequence[str]) -> Iterator[dict]:
    """A line for each fault."""
    if "scenes" in only:
        yield from scenes(bench)
    if "disk" in only:
        yield disk(bench, every)
    if "pages" in only:
        yield pages(bench, every)
    for name, damage in (("flips", flip), ("cuts", cut)):
        for kind in kinds if name in only else ():
            yield rotten(bench, kind, damage, places)


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """The table of docs/reliability.md; a fault that was tried again counts as it ended the last time."""
    columns = ["refused", "recovered", "unharmed", "read", *FAILURES]
    rows = []
    for name, line in {f"{line['fault']} {line.get('file', '')}".strip(): line for line in lines}.items():
        counts = line.get("outcomes", {})
        what = {"flip": "a bit flipped: ", "cut": "truncated: "}.get(line["fault"], "")
        rows.append([what + line["file"] if what else name, *(str(counts.get(column, 0) or "") for column in columns)])
    head = ["fault", *columns]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 where something failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="a folder to work in")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--places", type=int, default=200, help="of each kind of file")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--every", type=int, default=1, help="try each n-th write call, and each n-th size of a disk")
    parser.add_argument("--out", type=Path, help="default: faults.jsonl in the folder")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    asked.root.mkdir(parents=True, exist_ok=True)
    bench, failed, out = Bench(asked.root.resolve()), 0, asked.out or asked.root / "faults.jsonl"
    for line in lines_of(bench, asked.only, asked.places, asked.every, asked.kinds):
        with open(out, "a") as file:
            file.write(json.dumps(line) + "\n")
        failed += sum(line.get("outcomes", {}).get(name, 0) for name in FAILURES)
        print(json.dumps(line), flush=True)
    print(markdown([json.loads(line) for line in out.read_text().splitlines()]))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
