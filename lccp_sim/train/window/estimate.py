"""The work of one measurement of a model, counted from the settings, and an estimate of its time on this machine.

Texts of equal length cost the same, so one text of each length is sent and timed. Design note: this sends one text at a
time, but monitors send several; so the estimate is too high on a GPU, and for very short texts. Scoring heads adds a
few percent (docs/monitors.md, Cost).
"""

import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.monitor import Monitor, Pass
from lccp_sim.monitors.observing import evaluating, row_nll
from lccp_sim.progress import Tell, clock

SECONDS = 10.0  # limit of timing: after it, longer texts are extrapolated

TextKind = tuple[int, bool]  # tokens of a text, and whether all of them meet the head


class TokenCount:
    """The progress of one measurement: `sent` gets each forward before it runs, and reports the progress.

    `plan`: the texts that each monitor sends. Each of `world` processes handles its own share of the texts. `before`:
    the beginning of each line; `whole`: the interval within [0, 1] that this measurement takes of all work.
    """

    def __init__(
        self,
        plan: Mapping[str, Iterable[Pass]],
        tell: Tell,
        world: int = 1,
        before: str = "",
        whole: tuple[float, float] = (0.0, 1.0),
    ):
        self.plan = {name: list(each) for name, each in plan.items()}
        self.tell, self.world, self.before, self.whole = tell, world, before, whole
        self.name, self.texts, self.tokens, self.ended = "", 0, 0, 0.0

    def begin(self, name: str) -> None:
        """Start monitor `name`; those before it are done."""
        self.ended += self._of(self.name)
        self.name, self.texts, self.tokens = name, 0, 0

    def sent(self, texts: int, tokens: int) -> None:
        """Report the texts before these, which are about to be sent."""
        own = self.plan.get(self.name, [])
        known = round(sum(each.sequences for each in own))
        of = f"{min(self.texts, known):,} of {known:,} texts" if known else f"{self.texts:,} texts"
        done = self.ended + min(self.tokens, self._of(self.name))
        share = done / (sum(map(self._of, self.plan)) or 1)
        start, stop = self.whole
        self.tell(f"{self.before}{self.name}: {of}", start + (stop - start) * share)
        self.texts, self.tokens = self.texts + texts * self.world, self.tokens + tokens * self.world

    def _of(self, name: str) -> float:
        return sum(each.sent for each in self.plan.get(name, ()))


def kinds(watch: Mapping[str, Monitor]) -> dict[str, dict[TextKind, float]]:
    """The texts of each kind that each monitor sends at a first window; a training text counts as three."""
    found: dict[str, dict[TextKind, float]] = {}
    for name, monitor in watch.items():
        of: dict[TextKind, float] = {}
        for each in (*monitor.passes(), *monitor.reference_passes()):
            kind = each.tokens, each.head
            of[kind] = of.get(kind, 0.0) + each.sequences * each.weight
        found[name] = of
    return found


def timed(
    model: LanguageModel,
    wanted: Iterable[TextKind],
    tokens: np.ndarray,
    bf16: bool = False,
    limit: float = SECONDS,
    now: Callable[[], float] = time.perf_counter,
) -> dict[TextKind, float]:
    """Seconds of a forward of one text of each kind, shorter texts first, until timing has taken `limit` seconds.

    `tokens` (int64 [n]) are repeated to fill the texts. `longer` extrapolates the rest.
    """
    found: dict[TextKind, float] = {}
    began, ordered = now(), sorted(set(wanted))
    device = model.device
    with evaluating(model, bf16):
        for i, (length, head) in enumerate(ordered):
            if i and now() - began > limit:
                found[length, head] = longer(found, length, head)
                continue
            row_BT = torch.from_numpy(np.resize(tokens, (1, length + 1))).to(device)
            for _ in range(2 if i == 0 else 1):  # the very first forward is a warm-up
                start = now()
                if head:
                    row_nll(model, row_BT)
                else:
                    model(row_BT[:, :-1])
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                found[length, head] = now() - start
    return found


def longer(found: Mapping[TextKind, float], length: int, head: bool) -> float:
    """Seconds of a longer text, extrapolated from shorter texts: seconds per token grow linearly with length.

    If no text with the head was timed, texts without it are used, and vice versa.
    """
    alike = {kind: seconds for kind, seconds in found.items() if kind[1] == head} or found
    rates = {n: seconds / n for (n, _), seconds in alike.items()}
    *_, (last, rate) = sorted(rates.items())
    slope = 0.0
    if len(rates) > 1:
        first, least = min(rates.items())
        slope = max(0.0, (rate - least) / (last - first))
    return length * (rate + slope * (length - last))


def expected_seconds(watch: Mapping[str, Monitor], seconds: Mapping[TextKind, float]) -> dict[str, float]:
    """Seconds of each monitor at a first window."""
    return {name: sum(n * seconds[kind] for kind, n in of.items()) for name, of in kinds(watch).items()}


def estimate(model: LanguageModel, watch: Mapping[str, Monitor], tokens: np.ndarray, bf16: bool, looks: int) -> str:
    """A line for the user: the time of `looks` measurements like the first, monitor by monitor."""
    found = expected_seconds(watch, timed(model, {kind for of in kinds(watch).values() for kind in of}, tokens, bf16))
    each = ", ".join(f"{name} {clock(s)}" for name, s in sorted(found.items(), key=lambda item: -item[1]))
    many = f" for each of {looks} checkpoints" if looks > 1 else ""
    return f"estimate: about {clock(sum(found.values()))}{many} ({each}), from one text of each length, timed here"
