"""A gate: criteria that were fixed before a run, each answered pass, fail, or cannot be told, with the numbers.

Design note: an interval that contains the bound gives a separate answer, "cannot be told", and never a pass. A window
is judged by the available items and runs; more of them may decide later what cannot be told now.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from lccp_sim.analysis.format import interval, number_apart, tokens
from lccp_sim.analysis.judge.criteria import Criterion, Gate, Outcome, read_gate
from lccp_sim.analysis.judge.intervals import (
    FEWEST_ITEMS,
    ItemCurve,
    item_curve,
    mean_over_seeds,
    parse_tokens,
    refuse_missing,
)
from lccp_sim.analysis.judge.items import unlike_items
from lccp_sim.analysis.run import MEASURED, RunData, differing
from lccp_sim.analysis.stats.curve import LEVEL, Estimate, split_name
from lccp_sim.errors import ConfigError

EXIT_STATUS: dict[Outcome, int] = {"pass": 0, "fail": 1, "cannot be told": 2}
SEEDS = {"seed", "data.order_seed"}  # keys in which runs of one gate may differ
RUN = ("context_tokens", "batch_tokens", "tokens", "precision", "init_optimizer", "stopping")  # keys of `run.` compared


@dataclass(frozen=True)
class Evidence:
    """The evidence of one run for a criterion; `why`: what it lacks; `few`: its items are too few for an interval."""

    run: str
    tokens: int | None
    items: int | None
    estimate: Estimate | None
    why: str = ""
    few: bool = False


@dataclass(frozen=True)
class CriterionAnswer:
    """The answer to a criterion: each run's estimate, that over seeds (or of the only run), and a reason.

    `estimate` is None if several runs are judged separately.
    """

    name: str
    criterion: Criterion
    over: str
    outcome: Outcome
    estimate: Estimate | None
    evidence: list[Evidence]
    reason: str

    def row(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        evidence = [asdict(each) | {"estimate": _plain(each.estimate)} for each in self.evidence]
        return asdict(self) | {"estimate": _plain(self.estimate), "evidence": evidence, "rule": self.criterion.rule}


@dataclass(frozen=True)
class GateAnswer:
    """The answer of a gate: fail if a criterion fails, else cannot be told if one cannot, else pass."""

    path: Path
    gate: Gate
    sha256: str
    modified: str
    runs: list[str]
    answers: list[CriterionAnswer]
    notes: list[str]

    @property
    def outcome(self) -> Outcome:
        """The worst answer of all criteria."""
        return _worst(answer.outcome for answer in self.answers)

    @property
    def status(self) -> int:
        """The exit status: 0 pass, 1 fail, 2 cannot be told."""
        return EXIT_STATUS[self.outcome]

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "outcome": self.outcome,
            "status": self.status,
            "question": self.gate.question,
            "criteria_file": {
                "path": str(self.path),
                "sha256": self.sha256,
                "written": self.gate.written.isoformat(),
                "modified": self.modified,
            },
            "runs": self.runs,
            "seeds_needed": self.gate.seeds,
            "interval_level": LEVEL,
            "fewest_items": FEWEST_ITEMS,
            "answers": [answer.row() for answer in self.answers],
            "notes": self.notes,
        }

    def rows(self) -> list[list[str]]:
        """Return one row per criterion for display: name, answer, requirement, measurement, and a reason."""
        return [[each.name, each.outcome, each.criterion.rule, _measured(each), each.reason] for each in self.answers]

    def markdown(self) -> str:
        """Format the answer as a comment on a pull request."""
        count = sum(answer.outcome == "pass" for answer in self.answers)
        lines = [f"**Gate: {self.outcome}** ({count} of {len(self.answers)} criteria pass)", ""]
        lines += [self.gate.question, ""] if self.gate.question else []
        lines += ["| criterion | answer | asked | measured (95 % interval) | why |", "|---|---|---|---|---|"]
        for row in self.rows():
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |")
        runs = ", ".join(f"`{name}`" for name in self.runs)
        lines += [
            "",
            f"Runs: {runs} (needed: {self.gate.seeds}). Criteria: `{self.path.name}`, {self.provenance}.",
        ]
        return "\n".join([*lines, *(f"\nNote: {note}." for note in self.notes)]) + "\n"

    @property
    def provenance(self) -> str:
        """The file's date and hash, for display."""
        return f"written {self.gate.written}, SHA-256 {self.sha256}"


def answer_gate(path: Path, runs: Sequence[RunData], today: date | None = None) -> GateAnswer:
    """Answer the criteria of a file with runs that differ only in their seed.

    Raises ConfigError for an invalid file, runs that differ otherwise or are given twice, and criteria without records.
    """
    gate, criteria = read_gate(path)
    _check_runs(runs)
    answers = [
        _answer(gate, name, each, runs, _find(runs, each, f"{path}: criteria.{name}"))
        for name, each in criteria.items()
    ]
    changed = path.stat().st_mtime
    modified = datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    notes = _notes(path, gate.written, runs, today or date.today())
    return GateAnswer(path, gate, digest, modified, [run.name for run in runs], answers, notes)


def _notes(path: Path, written: date, runs: Sequence[RunData], today: date) -> list[str]:
    """List the weaknesses of an answer: a file that is newer than a run's first window, by its time or its date."""
    begun, notes = {run.name: _begun(run) for run in runs}, []
    said = "its date does not show that it was fixed before the run"
    if late := [name for name, first in begun.items() if first < path.stat().st_mtime]:
        notes.append(f"{path.name} was changed after the first window of {', '.join(late)}: {said}")
    if written > today:
        notes.append(f"{path.name} was written on {written}, which is in the future: {said}")
    elif late := [name for name, first in begun.items() if date.fromtimestamp(first) < written]:
        notes.append(f"{path.name} was written on {written}, after the first window of {', '.join(late)}")
    return notes


def _begun(run: RunData) -> float:
    """The time of the first window: that of its samples, or else of the oldest file about the run."""
    samples = [*(run.path / "samples").glob("*")]
    files = samples or [run.path / name for name in ("config.yaml", MEASURED, "records.jsonl")]
    return min(file.stat().st_mtime for file in files if file.exists())


def _check_runs(runs: Sequence[RunData]) -> None:
    """Raise ConfigError for a run that is given twice, and for runs that differ in more than their seed."""
    seen: dict[str, RunData] = {}
    for run in runs:
        digest = hashlib.sha256((run.path / "records.jsonl").read_bytes()).hexdigest()
        if digest in seen:
            raise ConfigError(f"{run.path}: same records as {seen[digest].path}; a gate counts each run once")
        seen[digest] = run
    settings = differing(list(runs))
    counts = [key for key in settings if key not in SEEDS and not (key.startswith("run.") and key[4:] not in RUN)]
    if counts and all(run.config for run in runs):
        key, more = counts[0], f" and {len(counts) - 1} more keys" if counts[1:] else ""
        values = ", ".join(f"{value} in {name}" for name, value in settings[key].items())
        raise ConfigError(
            f"runs of one gate may differ only in their seed, but {key} is {values}{more}; give one arm's runs"
        )


def _find(runs: Sequence[RunData], criterion: Criterion, where: str) -> list[ItemCurve | None]:
    """Find the curve of each run. Raises ConfigError if none has it, or if the runs measured different items."""
    found = [item_curve(run, criterion.metric, criterion.tags) for run in runs]
    if not any(found):
        refuse_missing(runs, criterion.metric, criterion.tags, where)
    for run in runs[1:]:
        if reason := unlike_items(runs[0], run, *split_name(criterion.metric), criterion.tags):
            raise ConfigError(f"{where}: the runs measured different items: {reason}")
    return found


def _answer(
    gate: Gate, name: str, criterion: Criterion, runs: Sequence[RunData], found: Sequence[ItemCurve | None]
) -> CriterionAnswer:
    over = criterion.over or ("seeds" if gate.seeds > 1 else "items")
    evidence = [_evidence(run, criterion, each) for run, each in zip(runs, found, strict=True)]
    estimates = [each.estimate for each in evidence if each.estimate is not None]
    why = "; ".join(f"{each.run}: {each.why}" if runs[1:] else each.why for each in evidence if each.why)
    seeds: dict[str, list[Estimate]] = defaultdict(list)
    for run, each in zip(runs, evidence, strict=True):
        if each.estimate is not None:
            seeds[_seed(run)].append(each.estimate)
    together = mean_over_seeds(list(seeds.values())) if over == "seeds" and len(seeds) > 1 else None
    together = estimates[0] if len(estimates) == 1 else together

    def told(outcome: Outcome, reason: str, estimate: Estimate | None = together) -> CriterionAnswer:
        return CriterionAnswer(name, criterion, over, outcome, estimate, evidence, reason)

    if why:
        return told("cannot be told", why)
    if len(seeds) < gate.seeds:
        return told("cannot be told", f"{len(seeds)} of {gate.seeds} seed{'s' * (gate.seeds != 1)} needed")
    if over == "seeds" and len(seeds) < 2:
        return told("cannot be told", "an interval over seeds needs two seeds or more")
    few = [each for each in evidence if each.few]
    if few and over == "items" and criterion.by != "value":
        return told("cannot be told", f"an interval needs {FEWEST_ITEMS} items or more; `by: value` judges the number")
    deciding = [together] if over == "seeds" and together is not None else estimates
    worst = _worst(criterion.outcome(each) for each in deciding)
    if worst != "cannot be told":
        return told(worst, "")
    if not all(isfinite(each.value) for each in deciding):
        return told(worst, "its first value is not above 0, so there is no factor")
    if any(each.low is None for each in deciding):
        lacks = "all its items agree"
        if all(each.draws is None for each in deciding):
            lacks = "its records have no interval"
        elif criterion.of == "factor":
            lacks = "its first value is not told from 0, so the factor has no interval"
        return told(worst, f"{lacks}; `by: value` judges the number alone")
    return told(worst, "the interval contains the bound")


def _seed(run: RunData) -> str:
    """Return the seed of a run as a key; a run without a recorded seed gets its own key."""
    known = run.config and not run.measured
    return f"seed {run.setting('seed')}" if known else str(run.path.resolve())


def _worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the worst outcome: fail, then cannot be told, then pass."""
    there = set(outcomes)
    return "fail" if "fail" in there else "cannot be told" if "cannot be told" in there else "pass"


def _evidence(run: RunData, criterion: Criterion, found: ItemCurve | None) -> Evidence:
    """Collect a run's evidence at the window of a criterion."""
    if found is None:
        return Evidence(run.name, None, None, None, "no record of it yet")
    unplanned = run.measured or not run.config  # how long it trains is known at its end alone
    planned = run.tokens if unplanned else int(run.setting("run.tokens", run.tokens))
    limit, why = run.tokens, ""
    if not run.ended and (criterion.at == "end" or (criterion.share and unplanned)):
        why = f"the run has not ended, it is at {tokens(run.tokens)} of {tokens(planned)} tokens"
        if unplanned:
            why = f"no end is marked after the last window, at {tokens(run.tokens)} tokens; `at: last` judges that"
    elif criterion.at not in ("end", "last"):
        limit = round(criterion.share * planned) if criterion.share else parse_tokens(criterion.at, "at")
        if run.tokens < limit:
            why = f"the run {'ended' if run.ended else 'is'} at {tokens(run.tokens)} tokens, before {tokens(limit)}"
    there = np.flatnonzero(found.curve.tokens_W <= limit)
    if not len(there):
        first = tokens(float(found.curve.tokens_W[0]))
        return Evidence(run.name, None, None, None, f"its first window is at {first} tokens, after {tokens(limit)}")
    at = int(there[-1])
    if criterion.of != "value" and at == 0:
        why = why or "there is no window after the first"
    estimate = found.estimate(at, criterion.of)
    return Evidence(run.name, int(found.curve.tokens_W[at]), found.items, estimate, why, found.few)


def _plain(estimate: Estimate | None) -> dict[str, float | None] | None:
    if estimate is None or not isfinite(estimate.value):
        return None
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _measured(answer: CriterionAnswer) -> str:
    """Format the numbers behind an answer, with digits that tell them from the bound: one estimate, or one per run."""
    form = partial(number_apart, bound=answer.criterion.bound)
    if answer.over == "seeds" and answer.estimate is not None and answer.evidence[1:]:
        return f"{interval(answer.estimate, form)} over {len(answer.evidence)} runs, {_where(answer.evidence)}"
    parts = [f"{interval(each.estimate, form)}" for each in answer.evidence if each.estimate is not None]
    return f"{'; '.join(parts)}, {_where(answer.evidence)}" if parts else "nothing"


def _where(evidence: Sequence[Evidence]) -> str:
    """Describe the windows and the number of items behind the numbers."""
    at = " and ".join(dict.fromkeys(tokens(each.tokens) for each in evidence if each.tokens is not None))
    items = {each.items for each in evidence if each.items}
    return f"at {at} tokens" + (f", {min(items):,} items" if items else "")
