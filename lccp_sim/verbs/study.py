"""Studies: a question, one axis of arms, several seeds; trained as sweeps, compared in one report.

Every seed has its own base, which all arms of one model shape share: arms differ only in the axis, and seeds in
everything. Design note: runs keep the names of their configs, so that studies with a common arm train it once.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lccp_sim.configure.compose import check
from lccp_sim.errors import ConfigError, nearest, refuse
from lccp_sim.verbs import Verb, add_config_dir
from lccp_sim.verbs.sweep import Schedule, launching, print_outcomes, sweep, work_of

if TYPE_CHECKING:
    from rich.console import Console

LENGTH = "run.tokens"
SMOKE = {LENGTH: 6144, "model.attention.dense_from_tokens": 4096}  # the second where an arm has it
Job = list[str]
Places = dict[tuple[int, str], str]


@dataclass(frozen=True)
class Study:
    """One of configs/study/*.yaml. An arm, like every run, is a list of overrides as `lccp train` takes them.

    `run` is trained for each arm and seed from the last of the chain `base` (whose runs get the arm's model, but not
    its RoPE). If `between` has the arm, a run with these overrides comes first. `common` applies to all runs. `windows`
    (training tokens) lists the arms that start from an earlier window of that last run. `then` names further runs of
    each arm, with its overrides; results are those of the last one. `metrics` (monitor/metric): the columns of the
    results table. `note`: conclusions that the study does not support. `paper`: whether the reference arm answers the
    findings of arXiv 2604.02650. `trained`: metrics that some arm is trained on, so that they do not measure ability.
    `controls`: arms that are compared with an arm other than the reference. `repeats`: runs of each arm and seed that
    differ only in the order of their data, limited to the arms `repeated` if it names some. `smoke`: keys that replace
    these in the miniature.
    """

    question: str
    run: str
    arms: dict[str, Job]
    reference: str
    metrics: list[str]
    base: list[str] = field(default_factory=list)
    between: dict[str, Job] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)
    then: list[str] = field(default_factory=list)
    common: Job = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    note: str = ""
    paper: bool = False
    trained: list[str] = field(default_factory=list)
    controls: dict[str, str] = field(default_factory=dict)
    repeats: int = 1
    repeated: list[str] = field(default_factory=list)
    smoke: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ", ".join(self.arms)
        refuse(not self.arms, "study.arms", {}, "is an empty axis; name at least one arm")
        refuse(self.reference not in self.arms, "study.reference", self.reference, f"must be one of the arms {names}")
        arms: dict[str, Iterable[str]] = {
            "between": self.between,
            "windows": self.windows,
            "controls": {*self.controls, *self.controls.values()},
            "repeated": self.repeated,
        }
        for key, named in arms.items():
            stray = [name for name in named if name not in self.arms]
            refuse(stray, f"study.{key}", stray, f"must name arms, which are {names}")
        refuse(
            self.windows and not self.base, "study.windows", self.windows, "are those of a run; name it in study.base"
        )
        seeds = self.seeds
        refuse(not seeds or len(set(seeds)) < len(seeds), "study.seeds", seeds, "must be one or more different seeds")
        refuse(self.repeats < 1, "study.repeats", self.repeats, "must be at least 1: runs of each arm and seed")
        for metric in self.metrics:
            refuse(not all(metric.partition("/")[::2]), "study.metrics", metric, "must be monitor/metric")
        stray = [metric for metric in self.trained if metric not in self.metrics]
        refuse(stray, "study.trained", stray, "must be some of study.metrics")

    def repeats_of(self, arm: str) -> int:
        """The number of runs of an arm for each seed."""
        return self.repeats if arm in (self.repeated or self.arms) else 1

    def small(self) -> "Study":
        """The smoke version: the same arms on the run `smoke_study`, without bases, for the first seed only.

        Keys in `smoke` take precedence. Raises ConfigError if one of them is not a key.
        """
        from lccp_sim.configure.parse import parse

        arms, between = ({arm: _small(words) for arm, words in each.items()} for each in (self.arms, self.between))
        tiny = {"run": "smoke_study", "base": [], "common": [], "arms": arms, "between": between, "repeats": 1}
        return parse(Study, asdict(self) | tiny | {"seeds": self.seeds[:1], "smoke": {}} | self.smoke, "study.smoke")


def _small(words: Job) -> Job:
    """The overrides of an arm with the lengths of the smoke version."""
    given = {word.partition("=")[0] for word in words}
    return [*words, *(f"{key}={value}" for key, value in SMOKE.items() if key == LENGTH or key in given)]


def studies(config_dir: Path | None = None) -> dict[str, Any]:
    """The study files by name: those of the package, overridden by those of `config_dir`/study."""
    own = config_dir / "study" if config_dir else None
    folders: list[Any] = [files("lccp_sim.configs") / "study", *([own] if own and own.is_dir() else [])]
    found = [path for folder in folders for path in sorted(folder.iterdir(), key=lambda path: path.name)]
    return {path.name.removesuffix(".yaml"): path for path in found if path.name.endswith(".yaml")}


def read_study(name: str, config_dir: Path | None = None) -> Study:
    """The study of this name. Raises ConfigError if there is none, or its file is not a study."""
    import yaml

    from lccp_sim.configure.parse import parse

    known = studies(config_dir)
    if name not in known:
        raise ConfigError(f"study {name!r}: no such study; there are {', '.join(known)}{nearest(name, known)}")
    try:
        plain = yaml.safe_load(known[name].read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"study {name}: not YAML ({' '.join(str(error).split())})") from None
    return parse(Study, plain, "study")


def list_studies(config_dir: Path | None, console: "Console") -> int:
    """Print a table of all studies (their questions, arms, seeds and runs); return 0."""
    from rich.table import Table

    table = Table()
    table.add_column("study", no_wrap=True)
    table.add_column("question", ratio=2)
    table.add_column("arms, the reference first", ratio=1)
    table.add_column("seeds")
    for name in studies(config_dir):
        found = read_study(name, config_dir)
        arms = [found.reference, *(arm for arm in found.arms if arm != found.reference)]
        table.add_row(name, found.question, ", ".join(arms), str(len(found.seeds)))
    console.print(table)
    return 0


def study(
    name: str,
    root: Path,
    launcher: Sequence[str],
    smoke: bool,
    retry: bool,
    config_dir: Path | None,
    console: "Console",
    repeats: int | None = None,
) -> int:
    """Train a study and write its report to ROOT/studies/NAME; return 0, or 1 if some runs are not finished.

    Started again, it continues. `repeats` overrides the study's own. Raises ConfigError for errors in the study, before
    anything starts.
    """
    from lccp_sim.analysis.report.study_page import write_study
    from lccp_sim.analysis.run import RunData, load_run

    plan = read_study(name, config_dir)
    plan = plan.small() if smoke else plan
    plan = plan if repeats is None else replace(plan, repeats=repeats)
    stages = Stages(plan, root, launcher, retry, config_dir, console)

    def read(done: dict[str, dict[int, str]]) -> dict[str, dict[int, RunData]]:
        return {arm: {s: load_run(path) for s, path in seeds.items()} for arm, seeds in done.items() if seeds}

    runs, *again = map(read, stages.train())
    if not runs:
        raise ConfigError(f"study {name}: no run finished: {stages.failed[0] if stages.failed else 'none was begun'}")
    folder = root.expanduser() / "studies" / f"{name}{'-smoke' if smoke else ''}"
    texts, metrics = [plan.question, plan.note], plan.metrics
    page = write_study(
        name,
        texts,
        plan.reference,
        metrics,
        runs,
        folder,
        stages.failed,
        plan.paper,
        again,
        plan.trained,
        plan.controls,
    )
    console.print(str(page), markup=False)
    return int(bool(stages.failed))


@dataclass
class Stages:
    """Trains a study stage by stage: its bases, the runs in between, its arms, and their further runs.

    `failed`: a line for each run that is not finished. Arms with the same run share it.
    """

    study: Study
    root: Path
    launcher: Sequence[str]
    retry: bool
    config_dir: Path | None
    console: "Console"
    failed: list[str] = field(default_factory=list)
    schedule: Schedule | None = None

    def train(self) -> list[dict[str, dict[int, str]]]:
        """Train; return, per repeat, the directory of the finished run of each arm and seed, if the seed finished."""
        self.check()
        plan, start = self.study, Places()
        for base in plan.base:
            (start,) = self.stage(self.jobs(base, self.shapes), [start], from_scratch=not start)
            if not start:
                return [{}]
        start |= {
            (seed, arm): str(Path(where) / "checkpoints" / f"window-{self.window(arm):08d}.ckpt")
            for (seed, arm), where in start.items()
            if arm in plan.windows
        }
        if plan.between:
            (between,) = self.stage(self.jobs(plan.run, plan.between), [start], from_scratch=not plan.base)
            start |= between
        ended = self.stage(self.jobs(plan.run, plan.arms), [start] * plan.repeats, from_scratch=not plan.base)
        for run in plan.then:
            ended = self.stage(self.jobs(run, plan.arms), ended, from_scratch=False)
        return [
            {arm: {seed: done[seed, arm] for seed in plan.seeds if (seed, arm) in done} for arm in plan.arms}
            for done in ended
        ]

    def check(self) -> None:
        """Schedule all runs. Raise ConfigError if a run of any stage is wrong, before the first starts.

        It prints the total cost of all runs.
        """
        plan = self.study
        # Bases and what lies between are shared by arms of the same words, unless these begin at other windows.
        shared = [self.jobs(base, self.shapes) for base in plan.base] + [self.jobs(plan.run, plan.between)]
        times = {tuple(job): len(plan.seeds) for jobs in shared for job in jobs.values()}
        for run in (plan.run, *plan.then):
            jobs = {arm: tuple(job) for arm, job in self.jobs(run, plan.arms).items()}
            starts: dict[tuple[str, ...], dict[int | None, int]] = {job: {} for job in jobs.values()}
            for arm, job in jobs.items():
                at = plan.windows.get(arm)
                starts[job][at] = max(starts[job].get(at, 0), plan.repeats_of(arm))
            times |= {job: len(plan.seeds) * sum(repeats.values()) for job, repeats in starts.items()}
        works = {job: work_of(check(job, self.config_dir)) for job in times}
        for arm in plan.windows:
            self.window(arm)
        tokens, flops = (sum(times[job] * works[job][place] for job in times) for place in (0, 1))
        runs = sum(times.values())
        self.console.print(
            f"all stages: {runs} runs, {tokens:,.0f} training tokens, {flops:.2e} FLOPs of training; what is trained "
            "already is not trained again"
        )
        self.schedule = Schedule(runs, flops, time.time())

    def window(self, arm: str) -> int:
        """The step of the base's window that an arm starts from. Raises ConfigError if there is no such window."""
        from lccp_sim.configure.load import windows_of

        config = check(self.jobs(self.study.base[-1], self.shapes)[arm], self.config_dir)
        steps, wanted = windows_of(config), self.study.windows[arm]
        found = {step * config.run.batch_tokens: step for step in steps}
        rule = f"is no window of {config.run.name}, which has them at {', '.join(map(str, found))} tokens"
        refuse(wanted not in found, f"study.windows.{arm}", wanted, rule)
        return found[wanted]

    @property
    def shapes(self) -> dict[str, Job]:
        """The overrides of each arm's base."""
        return {arm: shape_of_study(words) for arm, words in self.study.arms.items()}

    def jobs(self, run: str, arms: dict[str, Job]) -> dict[str, Job]:
        """The overrides of a run for each arm, without seed and start."""
        return {arm: [f"run={run}", *self.study.common, *words] for arm, words in arms.items()}

    def stage(self, jobs: dict[str, Job], starts: Sequence[Places], from_scratch: bool) -> list[Places]:
        """For each repeat, the directories of the finished runs by seed and arm; all repeats are one sweep.

        `starts`: for each repeat, the starts of its runs. A run without an entry is left out, or starts `from_scratch`.
        """
        wanted = {
            (repeat, seed, arm): (*words, f"seed={seed}", *_order(repeat, seed), f"run.root={self.root}", *began)
            for repeat, start in enumerate(starts)
            for seed in self.study.seeds
            for arm, words in jobs.items()
            if repeat < self.study.repeats_of(arm)
            if (began := [f"run.init_from={start[seed, arm]}"] if (seed, arm) in start else []) or from_scratch
        }
        if not wanted:  # nothing of the stage before is finished
            return [Places() for _ in starts]
        unique = list(dict.fromkeys(wanted.values()))
        ended = sweep(unique, self.launcher, self.retry, self.config_dir, self.schedule)
        outcomes = dict(zip(unique, ended, strict=True))
        print_outcomes(list(outcomes.values()), self.console)
        lost = [each for each in outcomes.values() if each.state != "finished"]
        self.failed += [f"{' '.join(each.job)}: {each.state}, {each.reason}." for each in lost]
        done = {key: outcomes[job].directory for key, job in wanted.items() if outcomes[job].state == "finished"}
        return [
            {(seed, arm): where for (of, seed, arm), where in done.items() if of == repeat and where}
            for repeat in range(len(starts))
        ]


def _order(repeat: int, seed: int) -> Job:
    """The override of a repeat's data order. The first repeat keeps the seed's own, and so the run's directory."""
    return [f"data.order_seed={1000 * repeat + seed}"] if repeat else []


def shape_of_study(arm: Sequence[str]) -> Job:
    """The overrides of an arm that its base must share: the shape of the model, not its RoPE."""
    return [word for word in arm if word.startswith("model") and not word.startswith("model.rope")]


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="a study, then launcher=joblib and the like")
    parser.add_argument("--smoke", action="store_true", help="train a miniature run of each arm, as a test")
    parser.add_argument("--retry", action="store_true", help="also retry runs that failed before")
    parser.add_argument("--repeats", type=int, help="runs of each arm and seed, in different data orders")
    parser.add_argument("--root", default="runs", help="where runs and the study's report go (default: runs)")
    add_config_dir(parser, "study/, run/, ...")


def _run(arguments: Namespace, console: "Console") -> int:
    names, launcher = launching(arguments.names)
    if not names:
        return list_studies(arguments.config_dir, console)
    options = arguments.smoke, arguments.retry, arguments.config_dir
    return max(study(name, Path(arguments.root), launcher, *options, console, arguments.repeats) for name in names)


STUDY_VERB = Verb("train and compare the arms of a study; without a name, list the studies", _add_arguments, _run)
