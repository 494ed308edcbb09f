"""After each window: has the run gained what it can, and what would the next doubling of its tokens buy?

The run's own records are read back, and each watched metric is judged by the saturation rule (analysis/stats/rule.py).
What a reader would question: the run acts only where *every* watched metric is saturated, because a hit that has
levelled alone is what deceptive saturation looks like. Once a decay has begun nothing is judged any more: the rule
foretells what a doubling buys under the learning rate as it is.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L

from lccp_sim.analysis.format import interval, number, tokens
from lccp_sim.analysis.run import RunData, load_run
from lccp_sim.analysis.stats.curve import whole_curve
from lccp_sim.analysis.stats.equivalence import Equivalence, probe_stays
from lccp_sim.analysis.stats.rule import Decision, decide
from lccp_sim.config import StoppingConfig
from lccp_sim.errors import ConfigError, nearest
from lccp_sim.monitors.values import Moment
from lccp_sim.records import Record
from lccp_sim.train.window.callback import MonitorCallback

ADVICE = {"saturated": "stop now", "improving": "train on", "not told apart": "stop now or train on, not told apart"}


@dataclass(frozen=True)
class Judged:
    """What the rule says of one watched metric, over so many windows."""

    watch: str
    windows: int
    decision: Decision


class Stopping(L.Callback):
    """Judges the metrics of `settings` after each window of `monitors`, and warns, decays or stops.

    `look` must be in the `after_window` of `monitors`, to whose journal it writes, and after which it must stand in the
    Trainer's callbacks. Under DDP rank 0
    judges. Its state is in every checkpoint: a decay that began goes on after a resume. In a decay the rate of each
    parameter group is linear from what it was to zero, whatever a scheduler says.
    """

    def __init__(self, settings: StoppingConfig, monitors: MonitorCallback):
        self.settings, self.monitors = settings, monitors
        self.since: int | None = None
        self.ends: int | None = None
        self.rates: list[float] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raises ConfigError where the window of a step would come after the decision about it."""
        order: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if self.monitors not in order[: order.index(self)]:
            raise ConfigError("callbacks: Stopping stands before its MonitorCallback, or without; put it after them")
        if self.look not in self.monitors.after_window:
            raise ConfigError("callbacks: no window tells Stopping; set monitors.after_window = [stopping.look]")

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: what was decided, and the rates that a decay began from."""
        return {"action": self.settings.action, "since": self.since, "ends": self.ends, "rates": self.rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What was decided under another action does not hold any more."""
        if state_dict["action"] == self.settings.action:
            self.since, self.ends, self.rates = (state_dict[key] for key in ("since", "ends", "rates"))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A decision that was restored holds from the first step on."""
        self._plan(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """All ranks learn what was decided at a window, and stop where the run ends."""
        if trainer.global_step in self.monitors.suite.windows:
            decided = trainer.strategy.broadcast((self.since, self.ends, self.rates))
            self.since, self.ends, self.rates = decided
        self._plan(trainer)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """In a decay: the rates of the update at hand."""
        if self.rates and self.since is not None and self.ends is not None:
            factor = max(0.0, 1 - (trainer.global_step - self.since) / (self.ends - self.since))
            for group, rate in zip(_groups(trainer), self.rates, strict=True):
                group["lr"] = rate * factor

    def look(self, trainer: L.Trainer, moment: Moment) -> list[Record]:
        """The records of what is judged, once written; it acts where all that is watched is saturated."""
        if self.since is not None:
            return []
        began, journal, windows = time.perf_counter(), self.monitors.journal, self.monitors.suite.windows
        run = load_run(journal.directory)
        judged = judge(run, self.settings, windows)
        saturated = all(each.decision.verdict == "saturated" for each in judged)
        at_end = 0 <= trainer.max_steps <= moment.step
        acts = saturated and not at_end
        records = records_of(judged, moment)
        journal.write(records)
        journal.write_decisions(rows_of(judged, moment, self.settings.action if acts else None))
        seconds = round(time.perf_counter() - began, 4)
        journal.write_timing([moment._asdict() | {"what": "stopping", "seconds": seconds, "forward_tokens": 0}])
        for each in judged:
            if each.decision.gain is not None:
                self.monitors.say(advice(each, moment, seconds_per_token(run)))
            elif not each.windows and moment.step == windows[0]:
                self.monitors.say(f"warning: run.stopping.watch={each.watch!r}: {each.decision.reasons[0]}")
        if acts and self.settings.action != "warn":
            self._act(trainer, moment)
        return records

    def _act(self, trainer: L.Trainer, moment: Moment) -> None:
        self.since = self.ends = moment.step
        what = "the run ends here"
        if self.settings.decay_tokens is not None:
            steps = math.ceil(self.settings.decay_tokens / self.monitors.tokens_per_step)
            self.ends += steps
            self.rates = [float(group["lr"]) for group in _groups(trainer)]
            what = f"the learning rate falls to zero within {steps * self.monitors.tokens_per_step:,} tokens"
        self.monitors.say(f"{self.settings.action}: all that run.stopping.watch names is saturated; {what}")
        self._plan(trainer)

    def _plan(self, trainer: L.Trainer) -> None:
        """The step at which the run ends becomes its last window; once it is there, the run stops."""
        if self.ends is None or 0 <= trainer.max_steps < self.ends:
            return
        windows = self.monitors.suite.windows
        windows[:] = [*(step for step in windows if step < self.ends), self.ends]
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.ends


def _groups(trainer: L.Trainer) -> list[dict[str, Any]]:
    return [group for optimizer in trainer.optimizers for group in optimizer.param_groups]


def judge(run: RunData, settings: StoppingConfig, windows: Sequence[int]) -> list[Judged]:
    """What the rule says of each watched metric of a run, from the records of `windows` (steps) alone.

    The end of a run that was extended later is no window of the longer one: an extended run equals a longer one.
    """
    kept = run.records.step.isin(list(windows)) | (run.records.monitor == "train")  # the rate is logged at other steps
    run = dataclasses.replace(run, records=run.records[kept])
    probe = None if settings.probe_margin is None else probe_stays(run, settings.probe_margin)
    return [_judge(run, watch, settings.eps, probe) for watch in settings.watch]


def _judge(run: RunData, watch: str, eps: float, probe: Equivalence | None) -> Judged:
    curve = whole_curve(run, watch)
    if curve is not None:
        return Judged(watch, len(curve.tokens_W), decide(curve, eps, probe))
    of_monitor = run.records[run.records.monitor == watch.partition("/")[0]]
    known = sorted(f"{watch.partition('/')[0]}/{metric}" for metric in of_monitor.metric.unique())
    reason = f"no records yet that stand for the whole monitor{nearest(watch, known)}"
    return Judged(watch, 0, Decision("not enough points", None, None, 0.0, None, [reason]))


def records_of(judged: Sequence[Judged], moment: Moment) -> list[Record]:
    """saturated_frac of all that is watched, and of each metric 0 or 1 and the gain that a doubling is to bring."""
    saturated = [float(each.decision.verdict == "saturated") for each in judged]
    share = sum(saturated) / len(saturated)
    records = [Record(*moment, "training", "stopping", "saturated_frac", share, len(judged))]
    for each, value in zip(judged, saturated, strict=True):
        tags, gain = {"watch": each.watch}, each.decision.gain
        records.append(Record(*moment, "training", "stopping", "saturated_frac", value, each.windows, None, tags))
        if gain is not None and math.isfinite(gain.value):
            metric = f"doubling_gain_{unit(each.watch)}"
            records.append(Record(*moment, "training", "stopping", metric, gain.value, each.windows, None, tags))
    return records


def rows_of(judged: Sequence[Judged], moment: Moment, action: str | None) -> list[dict[str, Any]]:
    """The decisions of a window as rows of decisions.jsonl; `action` is what the run does, None where it goes on."""
    rows = []
    for each in judged:
        plain = {name: value for name, value in vars(each.decision).items() if name != "gain"}
        gain = each.decision.gain
        limits = gain and {name: _finite(getattr(gain, name)) for name in ("value", "low", "high")}
        row = moment._asdict() | {"watch": each.watch, "windows": each.windows} | plain
        rows.append(row | {"gain": limits, "action": action})
    return rows


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def advice(each: Judged, moment: Moment, pace: float | None) -> str:
    """One line for a person: stop or train on, and what the next doubling of tokens buys at what cost.

    `pace`: seconds that the run took a token, monitors included; None where nobody measured it.
    """
    said, hours = each.decision, "" if pace is None else f" and {number(pace * moment.tokens / 3600)} h at this speed"
    held = f" since {tokens(said.since_tokens)} tokens" if said.since_tokens is not None else ""
    buys = f"the next doubling buys {interval(said.gain)} {unit(each.watch)}"
    return f"{each.watch}{held}: {ADVICE[said.verdict]}: {buys} at a cost of {tokens(moment.tokens)} tokens{hours}"


def unit(watch: str) -> str:
    """The unit of a metric, which is its suffix."""
    return watch.rpartition("_")[2]


def seconds_per_token(run: RunData) -> float | None:
    """Seconds that training and monitors took a token so far, or None where the training was not timed."""
    trained = run.timing[run.timing.what == "train"].forward_tokens.sum()
    return float(run.timing.seconds.sum() / trained) if trained else None
