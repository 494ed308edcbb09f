"""Sweeps: one run for each combination of comma-separated values, on Hydra's launchers.

Every config is checked before the first run starts. Each run's outcome is in its own file. So a sweep that is started
again skips finished runs, resumes killed ones, and leaves failed ones alone unless told to retry. Design note: Hydra
gets the numbers of the runs, not their overrides, so that a study may pass any list of runs, not only a grid.
"""

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lccp_sim.configure.compose import compose, explain
from lccp_sim.errors import ConfigError, nearest, one_line
from lccp_sim.files import write_atomic
from lccp_sim.progress import clock

if TYPE_CHECKING:
    from rich.console import Console

    from lccp_sim.config import Config

JOBS, OUTCOME = "jobs.json", "outcome.json"
LAUNCHERS = {"sequential": "basic", "joblib": "joblib", "submitit_slurm": "submitit_slurm", "ray": "ray"}
QUIET = ("hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.job.chdir=False")


@dataclass(frozen=True)
class RunOutcome:
    """The outcome of one run: `state` is finished, unfinished or failed.

    `directory`: None if the run failed before it had one. `reason`: the message of the failure. `trained`: this sweep
    trained it, without a failure.
    """

    job: list[str]
    state: str
    directory: str | None = None
    reason: str | None = None
    trained: bool = field(default=False, compare=False)


@dataclass
class Schedule:
    """The runs of one or several sweeps: `runs` and their training `flops`, since `began` (seconds).

    `ended` runs and `done` FLOPs are over; `trained` FLOPs of these were computed since then, the rest before.
    """

    runs: int
    flops: float
    began: float
    ended: int = 0
    done: float = 0.0
    trained: float = 0.0

    def over(self, flops: float, trained: bool) -> None:
        """Count one more run as over."""
        self.ended, self.done, self.trained = self.ended + 1, self.done + flops, self.trained + flops * trained

    def line(self, number: int, now: float) -> str:
        """The progress at the start of run `number`, and the remaining time at the speed so far."""
        left = max(0.0, self.flops - self.done) * (now - self.began) / self.trained if self.trained else None
        rest = "" if left is None else f", about {clock(left)} left"
        return f"run {number} of {self.runs}: {self.ended} ended{rest}"


def jobs_of(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each run, the last axis fastest. Raises ConfigError if an axis is empty or repeats a value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    axes = []
    for text in overrides:
        try:
            (parsed,) = OverridesParser.create().parse_overrides([text])
        except HydraException as error:
            raise ConfigError(explain(error)) from None
        values = list(parsed.sweep_string_iterator()) if parsed.is_sweep_override() else None
        if values is not None and len(set(values)) < max(1, len(values)):
            raise ConfigError(f"{text}: {'names a value twice' if values else 'is an axis without values'}")
        axes.append([text] if values is None else [f"{parsed.get_key_element()}={value}" for value in values])
    return [list(job) for job in itertools.product(*axes)]


def launching(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides of runs, and those of the launcher: `launcher=NAME` and `hydra.launcher.KEY=VALUE`."""
    ours = [word for word in words if not word.startswith(("launcher=", "hydra."))]
    theirs = []
    for word in words:
        name = word.removeprefix("launcher=")
        if name != word:
            if name not in LAUNCHERS:
                raise ConfigError(f"{word}: one of {', '.join(LAUNCHERS)}{nearest(name, LAUNCHERS)}")
            theirs.append(f"hydra/launcher={LAUNCHERS[name]}")
    return ours, theirs + [word for word in words if word.startswith("hydra.")]


def sweep(
    jobs: Sequence[Sequence[str]],
    launcher: Sequence[str] = (),
    retry: bool = False,
    config_dir: Path | None = None,
    schedule: Schedule | None = None,
) -> list[RunOutcome]:
    """Run all jobs (each the overrides of one run); return their outcomes in order.

    `launcher`: overrides that choose and set Hydra's launcher; none: run jobs one after the other, in this process.
    `schedule`: the schedule of several sweeps that include this one. Raises ConfigError if a config is wrong or occurs
    twice, or the launcher is not installed.
    """
    from lccp_sim.config import short_hash
    from lccp_sim.configure.load import load_config
    from lccp_sim.train.loop.precision import bf16_is_native, settle
    from lccp_sim.train.saved.run_directory import run_directory

    seen: dict[Path, Sequence[str]] = {}
    plain = [compose(job, config_dir) for job in jobs]
    loaded = [load_config(each) for each in plain]
    configs = [settle(each, bf16_is_native(each.run.accelerator)) for each in loaded]
    for job, config in zip(jobs, configs, strict=True):
        name = run_directory(config, config.run.init_from)
        if name in seen:
            raise ConfigError(f"{' '.join(seen[name])} and {' '.join(job)} are one run; leave one out")
        seen[name] = job
    folder = Path(config.run.root).expanduser().resolve() / "sweeps" / short_hash([list(job) for job in jobs])
    flops = [work_of(config)[1] for config in configs]
    schedule = schedule or Schedule(len(jobs), sum(flops), time.time())
    settings = {"jobs": [list(job) for job in jobs], "configs": plain, "retry": retry}
    settings |= {"flops": flops, "schedule": asdict(schedule)}
    write_atomic(folder / JOBS, json.dumps(settings) + "\n")
    for old in folder.glob(f"*/{OUTCOME}"):
        old.unlink()
    print(expected_work(configs), flush=True)
    # If several run at once, start the longest first, so that none begins when the others are nearly done.
    order = sorted(range(len(jobs)), key=lambda number: -flops[number]) if launcher else range(len(jobs))
    numbers = ",".join(map(str, order))
    _launch([f"jobs={folder / JOBS}", f"job={numbers}", f"hydra.sweep.dir={folder}", *launcher])
    outcomes = [_outcome(folder / str(number) / OUTCOME, list(job)) for number, job in enumerate(jobs)]
    for outcome, work in zip(outcomes, flops, strict=True):
        schedule.over(work, outcome.trained)
    return outcomes


def _launch(overrides: Sequence[str]) -> None:
    """Let Hydra run `run_job` for each job, without the shell's arguments, which hydra.main would read."""
    import hydra
    from hydra.errors import HydraException

    main = hydra.main(version_base="1.3", config_path="pkg://lccp_sim.configs", config_name="sweep")(run_job)
    with _arguments(["lccp", "--multirun", *overrides, *QUIET]):
        try:
            main()
        except HydraException as error:
            raise ConfigError(_explain(" ".join(str(error).split()))) from None


def _explain(message: str) -> str:
    if "hydra/launcher" in message:
        return "launcher: it is not installed; install the extra: pip install 'lccp-sim[joblib]' (or submitit, ray)"
    return message


@contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    """Within the context, hydra.main reads these arguments, and raises instead of ending the process."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = words, "1"
    try:
        yield
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR") if full is None else os.environ.update(HYDRA_FULL_ERROR=full)


def expected_work(configs: Sequence["Config"]) -> str:
    """The runs' cost as text: their number, training tokens, and training FLOPs as `lccp plan` counts them."""
    tokens, flops = map(sum, zip(*map(work_of, configs), strict=True))
    return f"{len(configs)} runs, {tokens:,.0f} training tokens, {flops:.2e} FLOPs of training; monitors come on top"


def work_of(config: "Config") -> tuple[int, float]:
    """Training tokens of a run, and their FLOPs as `lccp plan` counts them."""
    from lccp_sim.plan.shapes import shape_of, sparse_frac, training_flops

    shape = shape_of(config.model, config.model.vocab_size or config.data.tokenizer.vocab_size)
    tokens = config.run.steps * config.run.batch_tokens
    return tokens, training_flops(shape, config.run.context_tokens, sparse_frac(config)) * tokens


def _progress(folder: Path, plan: dict[str, Any], number: int) -> str:
    """The progress of a sweep at the start of a run, as text. Other processes may work on the sweep, too."""
    schedule = Schedule(**plan["schedule"])
    before = schedule.ended
    for path in folder.glob(f"*/{OUTCOME}"):
        ended = int(path.parent.name)
        schedule.over(plan["flops"][ended], _outcome(path, plan["jobs"][ended]).trained)
    return schedule.line(before + number + 1, time.time())


def run_job(settings: Any) -> None:
    """Run one job and write its outcome to disk. Launchers call this, on this machine or another."""
    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from lccp_sim.configure.load import load_config

    plan = json.loads(Path(settings.jobs).read_text())
    job = plan["jobs"][settings.job]
    out = Path(settings.jobs).parent / str(settings.job) / OUTCOME
    launcher = HydraConfig.get().runtime.choices["hydra/launcher"]
    alone = launcher == LAUNCHERS["sequential"]
    # Several processes at once cannot share the last line of a terminal.
    console = Console(highlight=False, soft_wrap=True, force_interactive=None if alone else False)
    console.print(_progress(out.parents[1], plan, settings.job), style="bold")
    began, where = time.time(), None
    try:
        from lccp_sim.train.run import fit, prepare

        config = load_config(plan["configs"][settings.job])
        with _own_core() if launcher == LAUNCHERS["joblib"] and config.run.threads == 1 else nullcontext():
            prepared = prepare(config, console)
            where = str(prepared.directory)
            directory = fit(prepared, console, again=plan["retry"])
        done = directory / "DONE"
        trained = not done.exists() or done.stat().st_mtime >= began
        outcome = RunOutcome(job, "finished" if done.exists() else "unfinished", str(directory), trained=trained)
    except Exception as error:
        outcome = RunOutcome(job, "failed", where, one_line(error))
    write_atomic(out, json.dumps(asdict(outcome)) + "\n")
    if outcome.state == "unfinished":
        raise KeyboardInterrupt  # the signal that ended it is meant for the sweep, too


@contextmanager
def _own_core() -> Iterator[None]:
    """Within the context, pin this process to a core that no other run on this machine has taken, if one is left."""
    if not hasattr(os, "sched_setaffinity"):  # not Linux
        yield
        return
    import fcntl

    before = os.sched_getaffinity(0)
    with ExitStack() as held:
        for core in sorted(before):
            path = Path(tempfile.gettempdir()) / f"lccp-sim-{os.getuid()}-core-{core}.lock"
            lock = held.enter_context(open(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "r+"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            os.sched_setaffinity(0, {core})
            break
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def _outcome(path: Path, job: list[str]) -> RunOutcome:
    if not path.exists():
        return RunOutcome(job, "unfinished", None, "it was killed, or its machine was")
    return RunOutcome(**json.loads(path.read_text()))


def print_outcomes(outcomes: Sequence[RunOutcome], console: "Console") -> int:
    """Print a table of outcomes; return the exit status, 0 if all finished."""
    from rich.table import Table

    constant = set.intersection(*(set(each.job) for each in outcomes))
    table = Table("run")
    table.add_column("state", no_wrap=True)
    table.add_column("directory or reason", overflow="fold")
    for each in outcomes:
        own = " ".join(word for word in each.job if word not in constant)
        why = each.directory if each.state == "finished" else " ".join(filter(None, (each.directory, each.reason)))
        table.add_row(own or " ".join(each.job), each.state, why)
    console.print(table)
    return int(any(each.state != "finished" for each in outcomes))
