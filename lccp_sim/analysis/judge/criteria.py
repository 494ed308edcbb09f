"""A file of criteria: the questions of a gate, in YAML that a person writes before the run.

A first file can be made from the records of a run, as a start to be edited, not a judgement. Each bound lies two
half-widths of the interval on the lenient side of the run's final value, rounded to that side, so that the entire
interval of an equally good run passes in most cases.
"""

import re
from dataclasses import dataclass, field
from datetime import date
from math import ceil, floor, isfinite, log10
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from lccp_sim.analysis.format import interval, tokens
from lccp_sim.analysis.judge.intervals import Of, item_curve, parse_tokens
from lccp_sim.analysis.run import RunData, load_run
from lccp_sim.analysis.stats.curve import Estimate
from lccp_sim.configure.parse import parse
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.files import write_atomic
from lccp_sim.records import Tag

_Group = TypeVar("_Group")
Outcome = Literal["pass", "fail", "cannot be told"]
FIRST_ASKED: dict[str, tuple[str, Of, str]] = {
    "finds the needle": ("needle/hit_frac", "value", "at_least"),
    "is surer of the needle than at first": ("needle/answer_nll_nats", "factor", "at_most"),
    "answers after fine-tuning": ("probe/exact_match_frac", "value", "at_least"),
    "has heads that retrieve": ("heads/retrieval_heads_count", "value", "at_least"),
    "keeps held-out text": ("perplexity/nll_nats", "change", "at_most"),
    "keeps short context": ("perplexity/short_nll_nats", "change", "at_most"),
}


@dataclass(frozen=True)
class Criterion:
    """One criterion of a gate: a metric, the window to judge, and the bound to meet.

    `metric`: monitor/metric. `tags`: none for its overall value. `of`: the value, its change since the first window, or
    its ratio to the first. `at`: end, a count of tokens (1.5M) or a share of the run (50 %); the last window up to it
    is judged. `at: last`: the last window that exists, also if the run has not ended. `by`: both ends of the interval
    decide, or one of them (low, high), or the value. `over`: intervals over items, for each run alone, or over seeds,
    for their mean; unset: over seeds if the gate needs two or more.
    """

    metric: str
    tags: dict[str, Tag] = field(default_factory=dict)
    of: Of = "value"
    at_least: float | None = None
    at_most: float | None = None
    at: str | int | float = "end"
    by: Literal["interval", "low", "high", "value"] = "interval"
    over: Literal["items", "seeds"] | None = None

    def __post_init__(self) -> None:
        refuse(not all(self.metric.partition("/")), "metric", self.metric, "must be monitor/metric")
        both = {"at_least": self.at_least, "at_most": self.at_most}
        given = [value for value in both.values() if value is not None]
        refuse(len(given) != 1, "at_least, at_most", both, "give one of the two; a band is two criteria")
        refuse(not isfinite(given[0]), "at_least, at_most", given[0], "must be a finite number")
        if self.share is not None:
            refuse(not 0 < self.share <= 1, "at", self.at, "must be more than 0 % and at most 100 % of the run")
        elif self.at not in ("end", "last"):
            parse_tokens(self.at, "at")

    @property
    def share(self) -> float | None:
        """The share of the run at which it is judged, if `at` is a share."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", str(self.at))
        return float(found[1]) / 100 if found else None

    @property
    def rule(self) -> str:
        """The criterion in words: "needle/hit_frac (length=512) at least 0.9 at the end"."""
        tags = ", ".join(f"{name}={value}" for name, value in self.tags.items())
        of = {"value": "", "change": "change of ", "factor": "factor of "}[self.of]
        since = "" if self.of == "value" else " since the first window"
        bound = f"at least {self.at_least:.15g}" if self.at_least is not None else f"at most {self.at_most:.15g}"
        where = {"end": "at the end", "last": "at the last window"}.get(str(self.at))
        where = where or f"at {self.at}" + (" of the run" if self.share else " tokens")
        by = {"interval": "", "value": ", by the value"}.get(self.by, f", by the {self.by} end of the interval")
        return f"{of}{self.metric}{f' ({tags})' if tags else ''}{since} {bound} {where}{by}"

    @property
    def bound(self) -> float:
        """The bound."""
        return self.at_least if self.at_least is not None else self.at_most or 0.0

    def outcome(self, estimate: Estimate) -> Outcome:
        """Answer with an estimate. `by: interval` needs both ends on one side of the bound."""
        ends = {"interval": (estimate.low, estimate.high), "low": (estimate.low,), "high": (estimate.high,)}
        deciding = ends.get(self.by, (estimate.value,))
        if any(end is None or not isfinite(end) for end in deciding):
            return "cannot be told"
        kept = [self._kept(end) for end in deciding if end is not None]
        return "pass" if all(kept) else "cannot be told" if any(kept) else "fail"

    def _kept(self, value: float) -> bool:
        return value >= self.bound if self.at_least is not None else value <= self.bound


@dataclass(frozen=True)
class Gate:
    """A criteria file. `written`: the date on which it was fixed. `seeds`: the number of seeds that it needs."""

    written: date
    criteria: dict[str, Any]
    seeds: int = 1
    question: str = ""

    def __post_init__(self) -> None:
        refuse(not self.criteria, "criteria", {}, "is empty; name at least one criterion")
        refuse(self.seeds < 1, "seeds", self.seeds, "must be at least 1")


class _Once(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys: a criterion replaced by another of the same name would be ignored."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_timestamp(self, node: yaml.ScalarNode) -> Any:
        """Return a date; one that no calendar has stays text, so that its key is named when it is checked."""
        try:
            return super().construct_yaml_timestamp(node)
        except ValueError:
            return node.value


_Once.add_constructor("tag:yaml.org,2002:timestamp", _Once.construct_yaml_timestamp)


def read_gate(path: Path) -> tuple[Gate, dict[str, Criterion]]:
    """Read a criteria file; return the gate and its criteria by name. Raises ConfigError with one line per problem."""
    try:
        plain = yaml.load(path.read_text(encoding="utf-8"), _Once)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such criteria file; lccp gate --init RUN {path} writes a first one") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: bytes that are not text
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:200]})") from None
    wrong, criteria = [], {}
    try:
        gate = _parsed(Gate, plain, "gate")
        for name, each in gate.criteria.items():
            try:
                criteria[str(name)] = _parsed(Criterion, each, f"criteria.{name}")
            except ConfigError as error:
                wrong += str(error).splitlines()
    except ConfigError as error:
        wrong = str(error).splitlines()
    if wrong:
        raise ConfigError("\n".join(f"{path}: {line}" for line in wrong))
    return gate, criteria


def _parsed(cls: type[_Group], plain: object, where: str) -> _Group:
    """Parse a group of keys. Raises ConfigError also for a truth value, and in one line for an `at` of no kind."""
    for key, value in plain.items() if isinstance(plain, dict) else ():
        rule = "is read by YAML as true or false; write a number or quoted text"
        refuse(isinstance(value, bool), f"{where}.{key}", value, rule)
        rule = "must be end, last, a count of tokens (1.5M) or a share of the run (50 %)"
        refuse(key == "at" and not isinstance(value, str | int | float), f"{where}.at", value, rule)
    return parse(cls, plain, where)


def write_first(run_path: Path, path: Path, today: date) -> Path:
    """Write a new criteria file from the values of `run_path`, and return its path.

    A metric without an interval, or with one of too few items, is left out, and so is a share whose bound would require
    nothing. Raises ConfigError if the file exists, or if no criterion can be made.
    """
    refuse(path.exists(), "--init", str(path), "exists already; name another file, or remove it")
    run = load_run(run_path)
    blocks = [block for name, asked in FIRST_ASKED.items() if (block := _block(run, name, *asked))]
    if not blocks:
        raise ConfigError(f"{run.path}: no metric of a first gate has an interval; write {path} by hand")
    head = (
        f"# A start from the values of {run.name}. Set the bounds that the next run must keep before it begins.\n"
        f"# Keys: metric, tags, of, at_least or at_most, at, by, over; docs/gate.md describes them.\n"
        f"written: {today.isoformat()}\nseeds: 1\ncriteria:\n"
    )
    write_atomic(path, head + "".join(blocks))
    return path


def _block(run: RunData, name: str, metric: str, of: Of, side: str) -> str:
    """Write the lines of one criterion; "" if the run has no interval to judge it by."""
    found = item_curve(run, metric)
    if found is None or found.few:
        return ""
    last = len(found.curve.value_W) - 1
    of = of if last else "value"
    estimate = found.estimate(last, of)
    bound = _bound(estimate, side)
    if bound is None or (metric.endswith("_frac") and side == "at_least" and bound <= 0):
        return ""
    shown = f"{interval(estimate)} at {tokens(float(found.curve.tokens_W[-1]))} tokens"
    between = "" if of == "value" else f"    of: {of}\n"
    return f"  {name}:\n    metric: {metric}\n{between}    {side}: {bound:g}  # {run.name}: {shown}\n"


def _bound(estimate: Estimate, side: str) -> float | None:
    """Place the bound two half-widths from the value on the lenient side, rounded to that side; None if no interval."""
    if estimate.low is None or estimate.high is None or not isfinite(estimate.value):
        return None
    half = max(estimate.value - estimate.low, 1e-9) if side == "at_least" else max(estimate.high - estimate.value, 1e-9)
    place = floor(log10(half))
    bound = estimate.value - 2 * half if side == "at_least" else estimate.value + 2 * half
    rounded = (floor if side == "at_least" else ceil)(bound / 10**place)
    return round(rounded * 10**place, max(0, -place))
