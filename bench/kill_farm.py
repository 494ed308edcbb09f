"""Kill runs at random moments until they are finished, and compare them with runs that nobody killed.

    python -m bench.kill_farm DIR --kills 200               # goes on where it stopped
    python -m bench.kill_farm DIR --kills 20 --cases ddp folders   # two ranks

A trial is a case (one or two commands) in an empty folder with an empty cache. Each command is started, killed with
SIGKILL, and started again until it has ended by itself. A moment is drawn in one of three ways: a time in the first
second; a time within the length of the case; or a delay of at most 30 ms after the n-th write to a file of one kind
(corpus, checkpoint, window, start). Then everything is compared with the unkilled reference: config, records, samples,
decisions, reference texts, and weights, optimizer and schedule of each window's checkpoint.

A finished trial is one line of `farm.jsonl` in DIR (or of --out): its kills, where each fell, and the differences. A
trial that was itself interrupted leaves no line and is done again with the same moments. Each command runs in a fork
of this process, which has imported the libraries.
"""

import argparse
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
KINDS = ("start", "corpus", "checkpoint", "window")
ANY = "any"
MOST_KILLS = 12  # of a command; then it may end
DELAY = 0.03  # seconds at most from a write to the kill
WRITES = {"open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir"}


class Moment(NamedTuple):
    """When to kill: after `seconds`, from the start or from the `count`-th write of a `kind`, or of any kind (ANY)."""

    seconds: float
    kind: str = ""
    count: int = 0


class Ended(NamedTuple):
    """How an attempt ended: killed or not, its seconds, and the kinds of its writes in order."""

    killed: bool
    seconds: float
    writes: list[str]


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
    began = time.monotonic()
    hooks = [teller(into), *[None] * (ranks - 1)]
    children = [lccp.start(words, log, rank, ranks, port, hooks[rank]) for rank, log in enumerate(logs)]
    os.close(into)
    writes: list[str] = []
    due = began + moment.seconds if moment and not moment.kind else None
    killed = False
    while True:
        wait = None if due is None else max(0.0, due - time.monotonic())
        if not select.select([out], [], [], wait)[0]:
            killed = True
            break
        data = os.read(out, 65536)
        if not data:  # the first rank is gone by itself
            break
        writes += [KINDS[byte] for byte in data]
        count = len(writes) if moment and moment.kind == ANY else writes.count(moment.kind) if moment else 0
        if moment and moment.kind and due is None and count >= moment.count:
            due = time.monotonic() + moment.seconds
    seconds = time.monotonic() - began
    if killed:
        for child in rng.sample(children, len(children)):
            os.kill(child, signal.SIGKILL)
            time.sleep(rng.random() * 0.2 if ranks > 1 else 0)
    states = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    os.close(out)
    finished = not any(states)
    # A rank that lost another ends with an error; one alone, or none killed, must not.
    if not finished and (not killed or ranks == 1 and states != [-signal.SIGKILL]):
        said = logs[0].read_text()[-2000:]
        raise Failed(f"lccp {' '.join(words)}: ended with {states}:\n{said}\n({logs[0]})")
    return Ended(killed and not finished, seconds, writes)


def drawn(rng: random.Random, reference: Ended) -> Moment:
    """A random moment within the length of an unkilled command."""
    way = rng.random()
    if way < 0.15:
        return Moment(rng.random())
    if way < 0.45:
        return Moment(rng.random() * reference.seconds)
    counts = Counter(reference.writes)
    kind = rng.choice([kind for kind in KINDS if counts[kind]])
    return Moment(rng.random() * DELAY, kind, rng.randint(1, counts[kind]))


def hashes(root: Path) -> dict[str, str]:
    """The hashes of what the runs in `root` left. Rows of csv/ and `last-` checkpoints depend on the starts."""
    found = Found()
    for run in sorted((root / "runs").iterdir()):
        found.run(run.name.split("-")[0], run)
    return {name: value for name, value in found.numbers.items() if "/csv/" not in name and "/last-" not in name}


class Patient(Commands):
    """Commands that may wait for a processor: a farm runs at low priority, for days."""

    seconds = 6 * 3600


class Farm:
    """The trials of one folder. `lengths` has the unkilled attempts of each case's commands."""

    def __init__(self, root: Path, out: Path, seed: int = 0):
        self.root, self.out, self.seed = root.resolve(), out, seed
        self.package = Path(__file__).parents[1]
        self.lengths: dict[str, list[Ended]] = {}
        self.wanted: dict[str, dict[str, str]] = {}

    def reference(self, case: str) -> None:
        """Run a case without a kill, once."""
        folder, kept = self.root / f"{case}-reference", self.root / f"{case}-reference.json"
        ranks, commands = CASES[case]
        if not kept.exists():
            shutil.rmtree(folder, ignore_errors=True)
            lccp = Patient(self.package, folder)
            ended = [attempt(lccp, words, ranks, None, random.Random(0)) for words in commands]
            kept.write_text(json.dumps({"ended": ended, "hashes": hashes(folder)}))
        content = json.loads(kept.read_text())
        self.lengths[case] = [Ended(*each) for each in content["ended"]]
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
                for turn in range(most + 1):
                    moment = drawn(rng, self.lengths[case][index]) if turn < most else None
                    ended = attempt(lccp, words, ranks, moment, rng)
                    if not ended.killed:
                        break
                    last = ended.writes[-1] if ended.writes else "before the first write"
                    kills.append({"command": index, "seconds": round(ended.seconds, 3), "last_write": last,
                                  "writes": len(ended.writes), "moment": moment})  # fmt: skip
            found = hashes(folder)
            wanted = self.wanted[case]
            names = sorted(found.keys() | wanted.keys())
            differences = [name for name in names if found.get(name) != wanted.get(name)]
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
            counts = Counter(line["case"] for line in done)
            case = min(cases, key=lambda name: counts[name])
            done.append(line := self.trial(case, counts[case]))
            with open(self.out, "a") as file:
                file.write(json.dumps(line) + "\n")
            yield line


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all trials: kills, by case and by the last write before each, and differences."""
    places = Counter(kill["last_write"] for line in lines for kill in line["kills"])
    cases = Counter({line["case"]: 0 for line in lines})
    for line in lines:
        cases[line["case"]] += len(line["kills"])
    return {
        "trials": len(lines),
        "kills": cases.total(),
        "kills_by_case": dict(cases),
        "kills_by_last_write": dict(places.most_common()),
        "kills_in_the_first_second": sum(kill["seconds"] < 1 for line in lines for kill in line["kills"]),
        "differences": sum(len(line["differences"]) for line in lines),
    }


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """The table of docs/reliability.md."""
    found = summary(lines)
    head = f"{found['kills']} kills in {found['trials']} trials; {found['differences']} differences."
    names = [f"{name} (case)" for name in found["kills_by_case"]]
    names += [f"after a write: {name}" for name in found["kills_by_last_write"]] + ["in the first second"]
    counts = [*found["kills_by_case"].values(), *found["kills_by_last_write"].values()]
    counts.append(found["kills_in_the_first_second"])
    rows = [f"| {name} | {count} |" for name, count in zip(names, counts, strict=True)]
    return "\n".join([head, "", "| of them | kills |", "|---|---|", *rows])


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a trial differed."""
    parser = argparse.ArgumentParser(prog="python -m bench.kill_farm", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="a folder for references and trials")
    parser.add_argument("--kills", type=int, default=200, help="how many there are to be in --out")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["smoke", "chained", "post", "background"])
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
