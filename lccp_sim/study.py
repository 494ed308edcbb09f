"""Studies: a question, one axis of arms, several seeds; trained as sweeps, compared in one report.

Every seed has a base of its own, which all arms of one model shape share: arms differ in the axis alone, and seeds in
everything. What a reader would question: runs keep the names of their configs, so that studies with an arm in common
train it once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lccp_sim.config import ConfigError, nearest, refuse
from lccp_sim.sweep import print_outcomes, sweep

if TYPE_CHECKING:
    from rich.console import Console

Job = list[str]
Places = dict[tuple[int, str], str]


@dataclass(frozen=True)
class Study:
    """One of configs/study/*.yaml. An arm, as all that is trained, is a list of overrides, as `lccp train` takes them.

    `run` is trained for each arm and seed, with `common` and the arm's overrides, from the last of the chain `base`
    (whose runs get the arm's model, but not its RoPE), and where `between` has the arm, through a run with these
    overrides first. `metrics` (monitor/metric) are what the results table shows. `smoke`: what takes the place of
    `common` in a smoke version, which has no bases. `note`: what does not follow from the study.
    """

    question: str
    run: str
    arms: dict[str, Job]
    reference: str
    metrics: list[str]
    base: list[str] = field(default_factory=list)
    between: dict[str, Job] = field(default_factory=dict)
    common: Job = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    smoke: Job = field(default_factory=list)
    note: str = ""

    def __post_init__(self) -> None:
        names = ", ".join(self.arms)
        refuse(not self.arms, "study.arms", {}, "is an empty axis; name at least one arm")
        refuse(self.reference not in self.arms, "study.reference", self.reference, f"must be one of the arms {names}")
        stray = [name for name in self.between if name not in self.arms]
        refuse(stray, "study.between", stray, f"must name arms, which are {names}")
        seeds = self.seeds
        refuse(not seeds or len(set(seeds)) < len(seeds), "study.seeds", seeds, "must be one or more different seeds")
        for metric in self.metrics:
            refuse(not all(metric.partition("/")[::2]), "study.metrics", metric, "must be monitor/metric")

    def small(self) -> "Study":
        """The smoke version: the same arms on the run `smoke_study`, without bases, for the first seed alone."""
        return replace(self, run="smoke_study", base=[], between={}, common=self.smoke, seeds=self.seeds[:1])


def studies(config_dir: Path | None = None) -> dict[str, Any]:
    """The study files by name: those of the package, and above them those of `config_dir`/study."""
    own = config_dir / "study" if config_dir else None
    folders: list[Any] = [files("lccp_sim.configs") / "study", *([own] if own and own.is_dir() else [])]
    found = [path for folder in folders for path in sorted(folder.iterdir(), key=lambda path: path.name)]
    return {path.name.removesuffix(".yaml"): path for path in found if path.name.endswith(".yaml")}


def read_study(name: str, config_dir: Path | None = None) -> Study:
    """The study of this name. Raises ConfigError where there is none, or its file is none."""
    import yaml

    from lccp_sim.parsing import parse

    known = studies(config_dir)
    if name not in known:
        raise ConfigError(f"study {name!r}: no such study; there are {', '.join(known)}{nearest(name, known)}")
    try:
        plain = yaml.safe_load(known[name].read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"study {name}: not YAML ({' '.join(str(error).split())})") from None
    return parse(Study, plain, "study")


class Trainer:
    """Trains the runs of a study, sweep after sweep, and prints what became of each run."""

    def __init__(
        self, root: str, launcher: Sequence[str], retry: bool, config_dir: Path | None, console: "Console"
    ) -> None:
        self.root, self.launcher, self.retry, self.config_dir, self.console = root, launcher, retry, config_dir, console

    def train(self, study: Study) -> dict[str, dict[int, Path]]:
        """The finished run of each arm and seed; an arm has only the seeds that finished. Bases go stage by stage."""
        start: Places = {}
        for stage in study.base:
            jobs = {name: [f"run={stage}", *shape_of(arm)] for name, arm in study.arms.items()}
            start = self.stage(study, jobs, start)
        if study.between:
            jobs = {name: [f"run={study.run}", *study.common, *job] for name, job in study.between.items()}
            start |= self.stage(study, jobs, start)
        jobs = {name: [f"run={study.run}", *study.common, *arm] for name, arm in study.arms.items()}
        done = self.stage(study, jobs, start)
        return {name: {s: Path(done[s, name]) for s in study.seeds if (s, name) in done} for name in study.arms}

    def stage(self, study: Study, jobs: dict[str, Job], start: Places) -> Places:
        """The directories of the finished runs by seed and arm; arms that ask for one run share it.

        `start`: what each goes on from. With an empty one all start anew; else those without an entry are left out.
        """
        wanted: dict[tuple[int, str], tuple[str, ...]] = {}
        for seed in study.seeds:
            for name, job in jobs.items():
                began = [f"run.init_from={start[seed, name]}"] if (seed, name) in start else []
                if began or not start:
                    wanted[seed, name] = (*job, f"seed={seed}", f"run.root={self.root}", *began)
        unique = list(dict.fromkeys(wanted.values()))
        if not unique:
            return {}
        outcomes = dict(zip(unique, sweep(unique, self.launcher, self.retry, self.config_dir), strict=True))
        print_outcomes(list(outcomes.values()), self.console)
        ends = {key: outcomes[job] for key, job in wanted.items()}
        return {key: each.directory for key, each in ends.items() if each.state == "finished" and each.directory}


def shape_of(arm: Sequence[str]) -> Job:
    """The overrides of an arm that its base must share: the shape of the model, not its RoPE."""
    return [word for word in arm if word.startswith("model") and not word.startswith("model.rope")]
