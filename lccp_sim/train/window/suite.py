"""All monitors of a run, as one function of a model and a moment.

Training calls it at its windows and `lccp measure` calls it afterwards, so both give the same records. Comparisons of
windows (initial heads, overlap) are pure functions of the earlier records, which the caller passes in.
"""

import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lccp_sim.analysis.stats.heads import initial_heads, mean_score, rank_correlation, retrieval_heads, topk_overlap
from lccp_sim.config import top_k
from lccp_sim.data.pools import Corpus
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.models.lighthouse import LighthouseAttention
from lccp_sim.models.taps import attending_as_trained
from lccp_sim.monitors import Monitor
from lccp_sim.monitors.observing import counting, evaluating
from lccp_sim.monitors.values import Moment, Value
from lccp_sim.progress import Tell, silent
from lccp_sim.records import Record, Tag
from lccp_sim.train.parallel.monitor_ranks import together
from lccp_sim.train.parallel.ranks import ALONE, Ranks
from lccp_sim.train.window.estimate import TokenCount
from lccp_sim.train.window.key_tokens import find_reference, read_reference

NO_HEADS = (
    "warning: the model has layers without attention that can be scored, so head scores are left out, and interventions"
)

AS_TRAINED = " as trained"  # after the name of a monitor that measures with the attention of training


@dataclass(frozen=True)
class WindowResult:
    """The result of one window: records, per-item values, and a row of timing per monitor."""

    records: list[Record]
    values: list[Value]
    timing: list[dict[str, Any]]


class MonitorSuite:
    """Monitors with their items. `windows` are the steps at which they measure; a monitor may skip some (`every`).

    References that the first window fixes for all later ones (`key_tokens.py`) are written to the folder `store`, if
    any. With `bf16` the monitors see the model in bf16. `tell` receives the progress of preparing the items. While
    training is sparse by `beside`, monitors that support it also measure with that attention: records only, tagged
    attention=training. `notes`: warnings about the items, a line each.
    """

    def __init__(
        self,
        monitors: Mapping[str, Monitor],
        corpus: Corpus,
        windows: list[int],
        store: Path | None = None,
        ranks: Ranks = ALONE,
        bf16: bool = False,
        tell: Tell = silent,
        beside: LighthouseAttention | None = None,
    ):
        self.monitors, self.windows, self.ranks, self.bf16, self.beside = monitors, windows, ranks, bf16, beside
        self.items: dict[str, Any] = {}
        for number, (name, monitor) in enumerate(monitors.items()):
            tell(f"preparing {name}: monitor {number + 1} of {len(monitors)}", number / len(monitors))
            self.items[name] = monitor.prepare(corpus)
        self.notes = [note for name, monitor in monitors.items() for note in monitor.notes(self.items[name])]
        self.corpus, self.store = corpus, store
        self.unreferenced = [name for name, monitor in monitors.items() if monitor.reference_from is not None]

    def recall(self, store: Path) -> None:
        """Read the references that `store` holds; monitors whose reference is missing stay in `unreferenced`."""
        for name in list(self.unreferenced):
            found = read_reference(store, name, self.monitors[name], self.items[name])
            if found is not None:
                self.items[name] = found
                self.unreferenced.remove(name)

    def due(self, step: int) -> list[str]:
        """The monitors that measure at `step`: those of its window, or all where there is none."""
        if step not in self.windows:
            return list(self.monitors)
        return self.due_at(self.windows.index(step), step == self.windows[-1])

    def due_at(self, index: int, last: bool) -> list[str]:
        """The monitors that measure in window number `index`; in the last one all do."""
        return [name for name, monitor in self.monitors.items() if index % monitor.every == 0 or last]

    def measure(
        self,
        model: LanguageModel,
        moment: Moment,
        history: "HeadHistory",
        tell: Tell = silent,
        before: str = "",
        whole: tuple[float, float] = (0.0, 1.0),
        due: Sequence[str] | None = None,
    ) -> WindowResult:
        """Measure with the monitors `due` (None: those of `self.due`).

        The model and the random state are unchanged afterwards, to the bit. Several ranks measure together: each takes
        its share of a monitor's items, and all receive every result. `tell`, `before`, `whole`: see `TokenCount`.
        """
        due = self.due(moment.step) if due is None else due
        plan = {name: self.monitors[name].passes() for name in due}
        for name in set(due).intersection(self.unreferenced):
            plan[name] += self.monitors[name].reference_passes()
        beside = [name for name in due if self.monitors[name].beside] if self._trains_sparsely(moment) else []
        plan |= {f"{name}{AS_TRAINED}": self.monitors[name].passes() for name in beside}
        count = TokenCount(plan, tell, self.ranks.world, before, whole)
        with together(model, self.ranks):
            seen = [self._measure(name, model, moment, count) for name in due]
            seen += [self._measure(name, model, moment, count, as_trained=True) for name in beside]
        records = [record for each in seen for record in each.records]
        values = [value for each in seen for value in each.values]
        timing = [row for each in seen for row in each.timing]
        return WindowResult(records + history.compare(records, moment), values, timing)

    def _trains_sparsely(self, moment: Moment) -> bool:
        """Whether to measure with sparse attention: the last step before a moment (at step 0, the first) is sparse."""
        began = moment.tokens - moment.tokens // max(1, moment.step)
        return self.beside is not None and self.beside.sparse(began)

    def _measure(
        self, name: str, model: LanguageModel, moment: Moment, count: TokenCount, as_trained: bool = False
    ) -> WindowResult:
        monitor, start, title = self.monitors[name], time.perf_counter(), f"{name}{AS_TRAINED if as_trained else ''}"
        count.begin(title)
        attending = attending_as_trained(model) if as_trained else nullcontext()
        with evaluating(model, self.bf16), attending, counting(model, count.sent) as tokens:
            if name in self.unreferenced:
                found = find_reference(self.store, name, monitor, self.items[name], model, self.corpus, self.ranks)
                self.items[name] = found
                self.unreferenced.remove(name)
            measured = monitor.score(model, self.items[name])
        records = monitor.aggregate(measured, moment)
        values = list(monitor.samples(measured))
        if as_trained:  # heads are scored by dense attention alone
            kept = [record for record in records if record.monitor != "heads"]
            records = [replace(record, tags={**record.tags, "attention": "training"}) for record in kept]
            values = []
        sent = sum(self.ranks.gather(lambda: tokens[0]))
        cost = {"seconds": round(time.perf_counter() - start, 4), "forward_tokens": sent}
        return WindowResult(records, values, [moment._asdict() | {"what": f"monitor:{title}"} | cost])


class HeadHistory:
    """The per-head scores of the first and the previous window, read from records; compares a new window with them.

    Each set of texts has its own: needles, and others by their tag `samples`. Only `windows` count: the end of a run
    that was extended later is not a window, so an extended run equals a longer one.
    """

    def __init__(self, records: list[Record], windows: Container[int]):
        self.windows = windows
        self.first: dict[str, np.ndarray] = {}
        self.previous: dict[str, np.ndarray] = {}
        for step in sorted({r.step for r in records if r.monitor == "heads"}):
            self._remember(step, head_scores([r for r in records if r.step == step]))

    def _remember(self, step: int, scores: Mapping[str, np.ndarray]) -> None:
        if step in self.windows:
            self.first = {**scores, **self.first}
            self.previous |= scores

    def compare(self, records: list[Record], moment: Moment) -> list[Record]:
        """Head counts, the initial heads' mean, overlap and Spearman; the window then becomes the previous one."""
        scores, null = head_scores(records), head_scores(records, "copy_null_frac")
        out = [record for name in scores for record in self._compare(name, scores[name], null.get(name), moment)]
        induction = [r.value for r in records if r.monitor == "heads" and r.metric == "induction_frac"]
        if induction:
            largest, n = max(induction), len(induction)
            out.append(Record(*moment, "mechanistic", "heads", "induction_frac", largest, n))
        self._remember(moment.step, scores)
        return out

    def _compare(self, name: str, scores: np.ndarray, null: np.ndarray | None, moment: Moment) -> Iterator[Record]:
        n, k = scores.size, top_k(scores.size)
        samples = {"samples": name} if name else {}

        def record(metric: str, value: float, count: int, **tags: Tag) -> Record:
            return Record(*moment, "mechanistic", "heads", metric, value, count, None, tags | samples)

        initial = initial_heads(self.first.get(name, scores))
        yield record("retrieval_heads_count", float(len(retrieval_heads(scores))), n)
        if null is not None:
            yield record("null_heads_count", float(len(retrieval_heads(null))), n)
        yield record("initial_heads_mean_frac", mean_score(scores, initial), len(initial))
        for against, others in (("previous", self.previous), ("first", self.first)):
            if name in others:
                other = others[name]
                yield record("topk_overlap_frac", topk_overlap(scores, other, k), k, k=k, against=against)
                rho = rank_correlation(scores, other)
                if rho is not None:
                    yield record("spearman", rho, n, against=against)


def head_scores(records: list[Record], metric: str = "copy_hard_frac") -> dict[str, np.ndarray]:
    """One score of every head of one window's records as [layers, heads], by the tag `samples` ("" for needles)."""
    found: dict[str, dict[tuple[int, int], float]] = {}
    for r in records:
        if r.monitor == "heads" and r.metric == metric:
            place = int(r.tags["layer"]), int(r.tags["head"])
            found.setdefault(str(r.tags.get("samples", "")), {})[place] = r.value
    arrays = {}
    for name, by_place in found.items():
        arrays[name] = np.zeros([1 + max(axis) for axis in zip(*by_place, strict=True)])
        for place, value in by_place.items():
            arrays[name][place] = value
    return arrays
