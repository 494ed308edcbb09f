"""The stopping rule after each window: is the run saturated, and what would the next doubling of its tokens buy?

The run's own records are read back, and the saturation rule (analysis/stats/rule.py) judges each metric of
`run.stopping.watch`. Design note: the run acts only if *every* such metric is saturated, because deceptive saturation
shows as a hit that has levelled alone. Once a decay has begun nothing is judged any more: the rule predicts what a
doubling buys under the current learning rate.
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

ADVICE = {"saturated": "stop now", "improving": "train on", "not told apart": "undecided"}


@dataclass(frozen=True)
class Judged:
    """The rule's verdict on one metric, over this many windows."""

    watch: str
    windows: int
    decision: Decision


class Stopping(L.Callback):
    """A callback that judges the metrics of `settings` after each window of `monitors`, and warns, decays or stops.

    `look` must be in the `after_window` of `monitors`, to whose journal it writes; the Trainer's callbacks must list
    `monitors` first. Under DDP rank 0 judges. Its state is in every checkpoint, so a decay continues after a resume. In
    a decay the rate of each parameter group falls linearly to zero from its current value, whatever a scheduler says.
    """

    def __init__(self, settings: StoppingConfig, monitors: MonitorCallback):
        self.settings, self.monitors = settings, monitors
        self.since: int | None = None
        self.ends: int | None = None
        self.rates: list[float] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raise ConfigError if the window of a step would come after the decision about it."""
        order: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if self.monitors not in order[: order.index(self)]:
            raise ConfigError("callbacks: Stopping comes before its MonitorCallback, or without it; put it after that")
        if self.judge not in self.monitors.after_window:
            raise ConfigError("callbacks: Stopping gets no windows; set monitors.after_window = [stopping.judge]")

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the decisions, and the rates from which a decay began."""
        return {"action": self.settings.action, "since": self.since, "ends": self.ends, "rates": self.rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the decisions, except those under another action."""
        if state_dict["action"] == self.settings.action:
            self.since, self.ends, self.rates = (state_dict[key] for key in ("since", "ends", "rates"))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Apply a restored decision from the first step on."""
        self._plan(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Share a window's decision with all ranks, and stop at the end of the run."""
        if trainer.global_step in self.monitors.suite.windows:
            decided = trainer.strategy.broadcast((self.since, self.ends, self.rates))
            self.since, self.ends, self.rates = decided
        self._plan(trainer)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """In a decay, set the rates of the current update."""
        if self.rates and self.since is not None and self.ends is not None:
            factor = max(0.0, 1 - (trainer.global_step - self.since) / (self.ends - self.since))
            for group, rate in zip(_groups(trainer), self.rates, strict=True):
                group["lr"] = rate * factor

    def judge(self, trainer: L.Trainer, moment: Moment) -> list[Record]:
        """Judge the metrics, write the records and return them; act if all metrics are saturated."""
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
        journal.write_decisions(decision_rows(judged, moment, self.settings.action if acts else None))
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
        self.monitors.say(f"{self.settings.action}: every metric of run.stopping.watch is saturated; {what}")
        self._plan(trainer)

    def _plan(self, trainer: L.Trainer) -> None:
        """Make the step at which the run ends its last window, and stop there."""
        if self.ends is None or 0 <= trainer.max_steps < self.ends:
            return
        windows = self.monitors.suite.windows
        windows[:] = [*(step for step in windows if step < self.ends), self.ends]
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.ends


def _groups(trainer: L.Trainer) -> list[dict[str, Any]]:
    return [group for optimizer in trainer.optimizers for group in optimizer.param_groups]


def judge(run: RunData, settings: StoppingConfig, windows: Sequence[int]) -> list[Judged]:
    """The rule's verdict on each metric of a run, from the records of `windows` (steps) alone.

    The end of a run that was extended later is not a window of the longer run: an extended run equals a longer one.
    """
    kept = run.records.step.isin(list(windows)) | (
        run.records.monitor == "train"
    )  # the learning rate is logged at other steps
    run = dataclasses.replace(run, records=run.records[kept])
    probe = None if settings.probe_margin is None else probe_stays(run, settings.probe_margin)
    return [_judge(run, watch, settings.eps, probe) for watch in settings.watch]


def _judge(run: RunData, watch: str, eps: float, probe: Equivalence | None) -> Judged:
    curve = whole_curve(run, watch)
    if curve is not None:
        return Judged(watch, len(curve.tokens_W), decide(curve, eps, probe))
    of_monitor = run.records[run.records.monitor == watch.partition("/")[0]]
    known = sorted(f"{watch.partition('/')[0]}/{metric}" for metric in of_monitor.metric.unique())
    reason = f"no overall records of the monitor yet{nearest(watch, known)}"
    return Judged(watch, 0, Decision("not enough points", None, None, 0.0, None, [reason]))


def records_of(judged: Sequence[Judged], moment: Moment) -> list[Record]:
    """saturated_frac over all metrics, and for each metric 0 or 1 and the predicted gain of a doubling."""
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


def decision_rows(judged: Sequence[Judged], moment: Moment, action: str | None) -> list[dict[str, Any]]:
    """The decisions of a window as rows of decisions.jsonl. `action`: the run's action, None if it continues."""
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
    """One line for the user: stop or train on, and what the next doubling of tokens buys at what cost.

    `pace`: seconds per token of the run so far, monitors included; None if it was not measured.
    """
    said, hours = each.decision, "" if pace is None else f" and {number(pace * moment.tokens / 3600)} h at this speed"
    held = f" since {tokens(said.since_tokens)} tokens" if said.since_tokens is not None else ""
    buys = f"the next doubling buys {interval(said.gain)} {unit(each.watch)}"
    return f"{each.watch}{held}: {ADVICE[said.verdict]}: {buys} at a cost of {tokens(moment.tokens)} tokens{hours}"


def unit(watch: str) -> str:
    """The unit of a metric: its suffix."""
    return watch.rpartition("_")[2]


def seconds_per_token(run: RunData) -> float | None:
    """Seconds per token of training and monitors so far, or None if training was not timed."""
    trained = run.timing[run.timing.what == "train"].forward_tokens.sum()
    return float(run.timing.seconds.sum() / trained) if trained else None
