"""Kill runs at random moments until they are finished, and compare them with runs that nobody killed.

    python -m bench.kill_farm DIR --kills 200               # goes on where it stopped
    python -m bench.kill_farm DIR --kills 20 --cases ddp folders   # two ranks alone

A trial is a case (one or two commands) in an empty folder with an empty cache. Each command is started, killed with
SIGKILL, and started again, up to 16 times, until it has ended by itself. The moments are uniform over the length of the
case and come in order, so that 16 kills cost 16 starts and little more than one run. Some are moved:
into the first second, or to the n-th write after the moment and at most 30 ms more. Then everything is compared with
the unkilled reference: config, records, samples, decisions, reference texts, and weights, optimizer and schedule of
each window's checkpoint; and no partial file may be left in a run directory.

A finished trial is one line of `farm.jsonl` in DIR (or of --out): its kills, what each one hit, and the differences. A
trial that was itself interrupted leaves no line and is done again with the same moments. Each command is a process of
its own: a fork of this one, which has imported the package. Seconds are those of the processor, so that a busy
machine shifts no moment; of two ranks, those of the first.
"""

import argparse
import importlib
import json
import os
import random
import select
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tests.golden import Commands, Failed, Found, Hook, free_port

OFTEN = ["run.log_every_steps=1", "run.checkpoint_every_steps=2"]
STUDY = ["train", "run=smoke_study", *OFTEN]
FROM_STUDY = ["run.init_from=runs/smoke_study-s0-*", "run.precondition=false"]
LONGER = [*STUDY, "run.name=longer", *FROM_STUDY, "run.context_tokens=512", "data.old_context_tokens=256"]
CASES: dict[str, tuple[int, list[list[str]]]] = {
    "smoke": (1, [["train", "run=smoke"]]),
    "chained": (1, [STUDY, LONGER]),
    "post": (1, [STUDY, ["chain", "smoke_sft", "smoke_rl", *OFTEN, *FROM_STUDY]]),
    "background": (1, [[*STUDY, "run.checkpoints=background"]]),
    "ddp": (2, [STUDY]),
    "folders": (2, [[*STUDY, "run.shard=true"]]),
}
SHARES = {
    "smoke": 1,
    "chained": 6,
    "post": 2,
    "background": 4,
    "ddp": 2,
    "folders": 2,
}  # of the kills; smoke costs the most
KINDS = ("start", "corpus", "window", "checkpoint")
MOST_KILLS = 16  # of a command; then it may end
MOST_WRITES = 6  # to wait for, after a moment
DELAY = 0.03  # seconds at most from a write to the kill
NEAR = 0.05  # seconds from a write within which a kill fell on what it belongs to
TICK = 0.01  # seconds in which the system counts a process's time
START = 0.2  # of the length of a run: what a start costs however far the run is
WRITES = {"open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir"}


class Moment(NamedTuple):
    """When to kill: `seconds` after the start, or, with `writes`, `delay` seconds after so many more writes."""

    seconds: float
    writes: int = 0
    delay: float = 0.0


class Ended(NamedTuple):
    """How an attempt ended: killed or not, its seconds, the kinds of its writes in order, those since the last."""

    killed: bool
    seconds: float
    writes: list[str]
    still: float


class Length(NamedTuple):
    """What an unkilled command took: seconds, optimizer steps, and the number of writes of each kind."""

    seconds: float
    steps: int
    writes: dict[str, int]


def kind_of(path: str) -> str:
    """What a file that is written belongs to."""
    if "checkpoints/" in path or path.endswith(".ckpt"):
        return "checkpoint"
    if path.startswith("cache") or "/cache/" in path:
        return "corpus"
    window = ("records", "samples", "timing", "decisions", "reference", "csv", "tensorboard", "events.out")
    return "window" if any(name in path for name in window) else "start"


def teller(pipe: int) -> Hook:
    """An audit hook that sends the kind of each write below the working directory through a pipe, a byte each."""

    def hear(event: str, values: tuple) -> None:
        if event not in WRITES or not isinstance(values[0], str | bytes | os.PathLike):
            return
        if event == "open" and not values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        path = os.path.relpath(os.fsdecode(values[0]))
        if not path.startswith(("..", "logs")):
            os.write(pipe, bytes([KINDS.index(kind_of(path))]))

    return hear


def attempt(lccp: Commands, words: Sequence[str], ranks: int, moment: Moment | None, rng: random.Random) -> Ended:
    """Start a command and kill it at `moment`; one rank first, the others soon after. Raises Failed where it fails."""
    lccp.count += 1
    logs = [lccp.root / "logs" / f"{lccp.count:03}-{rank}.txt" for rank in range(ranks)]
    logs[0].parent.mkdir(exist_ok=True)
    port, (out, into) = free_port(), os.pipe()
    sys.stdout.flush(), sys.stderr.flush()
    hooks = [teller(into), *[None] * (ranks - 1)]
    children = [lccp.start(words, log, rank, ranks, port, hooks[rank]) for rank, log in enumerate(logs)]
    os.close(into)
    writes: list[str] = []
    process = psutil.Process(children[0])

    def busy() -> float:
        used = process.cpu_times()
        return used.user + used.system

    due, awaited, delay = (moment.seconds, moment.writes, moment.delay) if moment else (None, 0, 0.0)
    counted, last, killed = None, 0.0, False
    while not killed:
        if due is not None and busy() >= due:
            killed = not awaited
            due, counted = None, len(writes) + awaited
            continue
        wait = None if due is None else max(TICK, due - busy())
        if select.select([out], [], [], wait)[0]:
            data = os.read(out, 65536)
            if not data:  # the first rank is gone by itself
                break
            writes, last = writes + [KINDS[byte] for byte in data], busy()
            if counted is not None and len(writes) >= counted:
                time.sleep(delay)
                killed = True
    seconds = busy()
    if killed:
        for child in rng.sample(children, len(children)):
            os.kill(child, signal.SIGKILL)
            time.sleep(rng.random() * 0.2 if ranks > 1 else 0)
    states = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    while data := os.read(out, 65536):  # what was written before the signal came
        writes, last = writes + [KINDS[byte] for byte in data], seconds
    os.close(out)
    finished = not any(states)
    # A rank that lost another ends with an error; one alone, or none killed, must not.
    if not finished and (not killed or ranks == 1 and states != [-signal.SIGKILL]):
        said = logs[0].read_text()[-2000:]
        raise Failed(f"lccp {' '.join(words)}: ended with {states}:\n{said}\n({logs[0]})")
    return Ended(killed and not finished, seconds, writes, seconds - last)


def drawn(rng: random.Random, length: Length, done: int, kills: int) -> Moment:
    """The first of `kills` moments that are uniform over the rest of a command whose step `done` is on disk."""
    if rng.random() < 0.1:
        return Moment(rng.random())
    rest = length.seconds * (1 - (1 - START) * min(1.0, done / length.steps))
    seconds = rest * (1 - rng.random() ** (1 / kills))
    if rng.random() < 0.4:
        return Moment(seconds)
    return Moment(seconds, rng.randint(1, MOST_WRITES), rng.random() ** 2 * DELAY)


def steps_done(root: Path) -> int:
    """The last step on disk of the run in `root` that was written to last."""
    runs = sorted((root / "runs").glob("*"), key=lambda run: run.stat().st_mtime_ns)
    found = [int(path.stem[-8:]) for path in runs[-1].glob("checkpoints/*-????????.ckpt")] if runs else []
    return max(found, default=0)


def partial_files(folder: Path) -> dict[Path, int]:
    """Files and folders that were being written (lccp_sim/files.py), and when they were written to last."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob(".*.tmp")}


def hit(ended: Ended, inside: set[str]) -> str:
    """What a kill hit. `inside`: the kinds of the files that it left in part."""
    if inside:
        return f"inside a write: {next(kind for kind in reversed(KINDS) if kind in inside)}"
    if not ended.writes:
        return "before the first write"
    return f"{'at a write' if ended.still < NEAR else 'computing, after a write'}: {ended.writes[-1]}"


def hashes(root: Path) -> dict[str, str]:
    """The hashes of what the runs in `root` left. Rows of csv/ and `last-` checkpoints depend on the starts."""
    found = Found()
    for run in sorted((root / "runs").iterdir()):
        found.run(run.name.split("-")[0], run)
    return {name: value for name, value in found.numbers.items() if "/csv/" not in name and "/last-" not in name}


class Patient(Commands):
    """Commands that may wait for a processor: a farm runs at low priority, for days. They spend no time on imports."""

    seconds, imports = 6 * 3600, False

    def __init__(self, package: Path, root: Path):
        super().__init__(package, root)
        importlib.import_module("lccp_sim.train.series")


class Farm:
    """The trials of one folder. `lengths` and `wanted` have what each case's commands took and left, unkilled."""

    def __init__(self, root: Path, out: Path, seed: int = 0):
        self.root, self.out, self.seed = root.resolve(), out, seed
        self.package = Path(__file__).parents[1]
        self.lengths: dict[str, list[Length]] = {}
        self.wanted: dict[str, dict[str, str]] = {}

    def reference(self, case: str) -> None:
        """Run a case without a kill, once."""
        folder, kept = self.root / f"{case}-reference", self.root / f"{case}-reference.json"
        ranks, commands = CASES[case]
        if not kept.exists():
            shutil.rmtree(folder, ignore_errors=True)
            lccp = Patient(self.package, folder)
            took = []
            for words in commands:
                ended = attempt(lccp, words, ranks, None, random.Random(0))
                took.append(Length(ended.seconds, steps_done(folder), dict(Counter(ended.writes))))
            kept.write_text(json.dumps({"took": took, "hashes": hashes(folder)}))
            shutil.rmtree(folder)
        content = json.loads(kept.read_text())
        self.lengths[case] = [Length(*each) for each in content["took"]]
        self.wanted[case] = content["hashes"]

    def trial(self, case: str, number: int, most: int = MOST_KILLS) -> dict[str, Any]:
        """The line of a trial: kills of each command until it ends by itself, and what differs then."""
        rng = random.Random(f"{self.seed} {case} {number}")
        folder, (ranks, commands) = self.root / f"{case}-{number}", CASES[case]
        shutil.rmtree(folder, ignore_errors=True)
        lccp, kills = Patient(self.package, folder), []
        line: dict[str, Any] = {"case": case, "number": number, "ranks": ranks, "seed": self.seed}
        try:
            for index, words in enumerate(commands):
                for left in range(most, -1, -1):
                    length, done = self.lengths[case][index], steps_done(folder) if left < most else 0
                    moment = drawn(rng, length, done, left) if left else None
                    before = partial_files(folder)
                    ended = attempt(lccp, words, ranks, moment, rng)
                    if not ended.killed:
                        break
                    parts = {path for path, _ in partial_files(folder).items() - before.items()}
                    inside = {kind_of(str(path.relative_to(folder))) for path in parts}
                    kills.append({"command": index, "hit": hit(ended, inside), "seconds": round(ended.seconds, 3),
                                  "step": done, "writes": len(ended.writes), "moment": moment})  # fmt: skip
            found = hashes(folder)
            wanted = self.wanted[case]
            names = sorted(found.keys() | wanted.keys())
            differences = [name for name in names if found.get(name) != wanted.get(name)]
            differences += [f"left in part: {path.name}" for path in partial_files(folder / "runs")]
        except Failed as error:
            differences = [f"failed: {error}"]
        line |= {"kills": kills, "compared": len(self.wanted[case]), "differences": differences}
        if not differences:
            shutil.rmtree(folder)
        return line

    def lines(self) -> list[dict[str, Any]]:
        """The trials that are done."""
        return [json.loads(line) for line in self.out.read_text().splitlines()] if self.out.exists() else []

    def work(self, cases: Sequence[str], kills: int) -> Iterator[dict[str, Any]]:
        """The lines of new trials, each on disk when it is given, until there are `kills` kills in all."""
        for case in cases:
            self.reference(case)
        done = self.lines()
        while sum(len(line["kills"]) for line in done) < kills:
            counts, kills_of = Counter(line["case"] for line in done), by_case(done)
            case = min(cases, key=lambda name: kills_of[name] / SHARES.get(name, 1))
            done.append(line := self.trial(case, counts[case]))
            with open(self.out, "a") as file:
                file.write(json.dumps(line) + "\n")
            yield line


def by_case(lines: Sequence[dict[str, Any]]) -> Counter[str]:
    """The kills of each case."""
    return Counter(line["case"] for line in lines for _ in line["kills"])


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all trials: kills, by case and by what they hit, and differences."""
    kills = [kill for line in lines for kill in line["kills"]]
    return {
        "trials": len(lines),
        "kills": len(kills),
        "kills_by_case": dict(by_case(lines)),
        "kills_by_ranks": dict(Counter(line["ranks"] for line in lines for _ in line["kills"])),
        "kills_by_hit": dict(Counter(kill["hit"] for kill in kills).most_common()),
        "kills_in_the_first_second": sum(kill["seconds"] < 1 for kill in kills),
        "differences": sum(len(line["differences"]) for line in lines),
    }


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """The table of docs/reliability.md."""
    found = summary(lines)
    head = f"{found['kills']} kills in {found['trials']} trials; {found['differences']} differences."
    rows = [(f"case `{name}`", count) for name, count in found["kills_by_case"].items()]
    rows += [(f"ranks: {name}", count) for name, count in found["kills_by_ranks"].items()]
    rows += [*found["kills_by_hit"].items(), ("in the first second", found["kills_in_the_first_second"])]
    return "\n".join([head, "", "| of them | kills |", "|---|---|", *(f"| {name} | {count} |" for name, count in rows)])


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a trial differed."""
    parser = argparse.ArgumentParser(prog="python -m bench.kill_farm", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="a folder for references and trials")
    parser.add_argument("--kills", type=int, default=200, help="how many there are to be in --out")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, help="default: farm.jsonl in the folder")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    asked.root.mkdir(parents=True, exist_ok=True)
    farm = Farm(asked.root, asked.out or asked.root / "farm.jsonl", asked.seed)
    for line in farm.work(asked.cases, asked.kills):
        said = f"{len(line['kills'])} kills, differences: {line['differences'] or 'none'}"
        print(f"{line['case']} {line['number']}: {said}", flush=True)
    print(markdown(farm.lines()))
    return int(summary(farm.lines())["differences"] > 0)


if __name__ == "__main__":
    sys.exit(main())
