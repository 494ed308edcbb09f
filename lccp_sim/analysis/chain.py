"""The chain of runs that led to a run, each up to the start of the next: base -> LCCP -> SFT -> RL.

Design note: a run stores the path of its start. A run of that name next to this run has priority, because all may have
been moved together; otherwise the path is used. A missing run ends the chain.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lccp_sim.analysis.run import RunData, load_run
from lccp_sim.errors import ConfigError

OBJECTIVE_WORDS = {
    "lm": "pre-training", "sft": "fine-tuning", "rl": "RL", "head_contrast": "contrast of heads",
    "head_score": "training of head scores",
}  # fmt: skip
CHECKPOINT = re.compile(r"(.+)/checkpoints/[^/]*?(\d+)\.(?:ckpt|safetensors)")


@dataclass(frozen=True)
class Phase:
    """A run as part of a chain: `tokens` of it count (up to the start of the next run), after `before`."""

    run: RunData
    tokens: int
    before: int = 0

    @cached_property
    def kind(self) -> str:
        """The objective: lm, sft, rl, ..."""
        return str(self.run.setting("objective.kind", "lm"))

    @property
    def label(self) -> str:
        """The same in words; LCCP is pre-training whose rows are longer than before."""
        before = self.run.setting("data.old_context_tokens", np.inf)
        longer = self.kind == "lm" and self.run.setting("run.context_tokens", 0) > before
        return "LCCP" if longer else OBJECTIVE_WORDS.get(self.kind, self.kind)


def phases_of(run: RunData) -> list[Phase]:
    """The phases of the chain that ends with `run`, first to last; only `run` itself if its start is unknown."""
    found = [Phase(run, run.tokens)]
    while (before := _start(found[0].run)) is not None and before.run.path.resolve() not in _paths(found):
        found.insert(0, before)
    ends = np.cumsum([0, *(phase.tokens for phase in found)])
    return [Phase(each.run, each.tokens, int(end)) for each, end in zip(found, ends, strict=False)]


def labels(phases: Sequence[Phase]) -> list[str]:
    """The labels of phases. Phases of the same kind are distinguished by the names of their runs."""
    kinds = [phase.label for phase in phases]
    return [
        f"{kind} ({phase.run.setting('run.name', phase.run.name)})" if kinds.count(kind) > 1 else kind
        for kind, phase in zip(kinds, phases, strict=True)
    ]


def chain_of(runs: Sequence[RunData]) -> list[Phase]:
    """Return the chain that has all these runs as phases; [] if there is none."""
    for run in runs:
        phases = phases_of(run)
        if _paths(phases) >= {each.path.resolve() for each in runs}:
            return phases
    return []


def _paths(phases: Sequence[Phase]) -> set[Path]:
    return {phase.run.path.resolve() for phase in phases}


def _start(run: RunData) -> Phase | None:
    """The phase before a run; None if it does not start from an existing run."""
    name = run.setting("run.init_from")
    if not isinstance(name, str) or name.startswith("bundled:"):
        return None
    folder, step = (match[1], int(match[2])) if (match := CHECKPOINT.fullmatch(name)) else (name.rstrip("/"), None)
    path = _found(Path(folder), run.path.resolve().parent)
    if path is None:
        return None
    try:
        start = load_run(path)
    except ConfigError:  # weights of another origin
        return None
    reached = start.records if step is None else start.records[start.records.step == step]
    return None if reached.empty else Phase(start, int(reached.tokens.max()))


def _found(path: Path, beside: Path) -> Path | None:
    """The run directory of a path or glob: among the neighbours of the run that names it, else at the path."""
    for folder in (beside, path.parent):
        hits = [hit for hit in folder.glob(path.name) if (hit / "records.jsonl").is_file()] if folder.is_dir() else []
        if len(hits) == 1:
            return hits[0]
    return None
