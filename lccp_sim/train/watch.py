"""All monitors of a run, as one function of a model and a moment.

Training calls it at its windows and `lccp measure` after the fact, so that both give the same records. What compares
windows (initial heads, overlap) is a pure function of the records before, which the caller hands in.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lccp_sim.analysis.heads import initial_heads, mean_score, rank_correlation, retrieval_heads, top_k, topk_overlap
from lccp_sim.data.pools import Corpus
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors import Monitor
from lccp_sim.monitors.observing import counting, observing
from lccp_sim.monitors.values import Moment, Value
from lccp_sim.records import Record
from lccp_sim.train.module import NotFinite
from lccp_sim.train.reference import find_reference, read_reference


@dataclass(frozen=True)
class Seen:
    """What one window gave: records, per-item values, and a row of timing per monitor."""

    records: list[Record]
    values: list[Value]
    timing: list[dict[str, Any]]


class Watch:
    """Monitors with their items. `windows` are the steps at which they look; a monitor may skip some (`every`).

    What the first look fixes for all later ones (`train/reference.py`) is written to the folder `store`, if any.
    `notes`: what a person should know about the items, a line each.
    """

    def __init__(self, monitors: Mapping[str, Monitor], corpus: Corpus, windows: list[int], store: Path | None = None):
        self.monitors, self.windows = monitors, windows
        self.items = {name: monitor.prepare(corpus) for name, monitor in monitors.items()}
        self.notes = [note for name, monitor in monitors.items() for note in monitor.notes(self.items[name])]
        self.corpus, self.store = corpus, store
        self.open = [name for name, monitor in monitors.items() if monitor.reference_from is not None]

    def recall(self, store: Path) -> None:
        """None, after the references that `store` holds were read; `open` names those that it does not hold."""
        for name in list(self.open):
            found = read_reference(store, name, self.monitors[name], self.items[name])
            if found is not None:
                self.items[name] = found
                self.open.remove(name)

    def due(self, step: int) -> list[str]:
        """The monitors that look at the window at `step`; at the last window all do."""
        index = self.windows.index(step)
        return [n for n, m in self.monitors.items() if index % m.every == 0 or step == self.windows[-1]]

    def look(
        self,
        model: LanguageModel,
        moment: Moment,
        history: "HeadHistory",
        report: Callable[[str], None] = lambda name: None,
    ) -> Seen:
        """Everything that is due; at a step that is no window, everything.

        The model is as before afterwards, to the bit, and so is the random state.
        """
        records: list[Record] = []
        values: list[Value] = []
        timing = []
        with observing(model):
            for name in self.due(moment.step) if moment.step in self.windows else self.monitors:
                report(name)
                monitor, start = self.monitors[name], time.perf_counter()
                with counting(model) as tokens:
                    if name in self.open:
                        self.items[name] = find_reference(
                            self.store, name, monitor, self.items[name], model, self.corpus
                        )
                        self.open.remove(name)
                    measured = monitor.score(model, self.items[name])
                try:
                    records += monitor.aggregate(measured, moment)
                except ValueError as error:  # a Record refuses what is not finite
                    raise NotFinite(str(error)) from error
                values += monitor.samples(measured)
                seconds = time.perf_counter() - start
                cost = {"seconds": round(seconds, 4), "forward_tokens": tokens[0]}
                timing.append(moment._asdict() | {"what": f"monitor:{name}"} | cost)
        records += history.compare(records, moment)
        return Seen(records, values, timing)


class HeadHistory:
    """The per-head scores of the first and the previous window, read from records; compares a new window with them.

    Only `windows` count: the end of a run that was extended later is none, so an extended run equals a longer one.
    """

    def __init__(self, records: list[Record], windows: list[int]):
        self.windows = windows
        self.first: np.ndarray | None = None
        self.previous: np.ndarray | None = None
        for step in sorted({r.step for r in records if r.monitor == "heads"}):
            self._remember(step, head_scores([r for r in records if r.step == step]))

    def _remember(self, step: int, scores: np.ndarray | None) -> None:
        if scores is not None and step in self.windows:
            self.first = scores if self.first is None else self.first
            self.previous = scores

    def compare(self, records: list[Record], moment: Moment) -> list[Record]:
        """Head counts, the initial heads' mean, overlap and Spearman; the window then becomes the previous one."""
        scores = head_scores(records)
        if scores is None:
            return []
        first = scores if self.first is None else self.first
        n, k = scores.size, top_k(scores.size)

        def record(metric: str, value: float, count: int, tags: dict | None = None) -> Record:
            return Record(*moment, "mechanistic", "heads", metric, value, count, None, tags or {})

        initial = initial_heads(first)
        out = [
            record("retrieval_heads_count", float(len(retrieval_heads(scores))), n),
            record("initial_heads_mean_frac", mean_score(scores, initial), len(initial)),
        ]
        for against, other in (("previous", self.previous), ("first", self.first)):
            if other is not None:
                out.append(record("topk_overlap_frac", topk_overlap(scores, other, k), k, {"k": k, "against": against}))
                rho = rank_correlation(scores, other)
                if rho is not None:
                    out.append(record("spearman", rho, n, {"against": against}))
        induction = [r.value for r in records if r.monitor == "heads" and r.metric == "induction_frac"]
        if induction:
            out.append(record("induction_frac", max(induction), n))
        self._remember(moment.step, scores)
        return out


def head_scores(records: list[Record]) -> np.ndarray | None:
    """The hard copy scores of one window's records as [layers, heads], or None where it has none."""
    found = {(r.tags["layer"], r.tags["head"]): r.value for r in records if r.metric == "copy_hard_frac"}
    if not found:
        return None
    layers, heads = (1 + max(int(place[i]) for place in found) for i in (0, 1))
    return np.array([[found[layer, head] for head in range(heads)] for layer in range(layers)])
