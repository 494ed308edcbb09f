"""Stopping: the rule's verdicts on planted records, and what a run does about them, resumed or not."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from rich.console import Console

from lccp_sim.analysis.run import load_run
from lccp_sim.analysis.stats.curve import Curve, Estimate
from lccp_sim.analysis.stats.equivalence import Equivalence
from lccp_sim.analysis.stats.rule import Decision
from lccp_sim.cli import main
from lccp_sim.config import Config, StoppingConfig
from lccp_sim.errors import ConfigError
from lccp_sim.monitors.values import Moment, Value
from lccp_sim.records import Record, read_records
from lccp_sim.train.loop.module import LccpModule
from lccp_sim.train.run import train
from lccp_sim.train.saved.journal import Journal
from lccp_sim.train.saved.run_directory import run_directory
from lccp_sim.train.window import stopping
from lccp_sim.train.window.callback import MonitorCallback
from lccp_sim.train.window.stopping import Stopping, advice, judge, seconds_per_token
from lccp_sim.train.window.suite import WindowResult
from tests.train.test_resume import at_step, before_checkpoint, in_records, killed, scalars
from tests.train.tiny import BATCH, WINDOWS, final, records, samples

NLL, HIT = "needle/answer_nll_nats", "needle/hit_frac"
FEW = {f"monitors.{name}": None for name in ("induction", "intervention", "heads", "routing", "probe")}
STEPS = [0, *(2 ** (j / 2) for j in range(12))]


def ended(directory: Path) -> dict[str, Any]:
    """What DONE holds, without the sum of itself."""
    return {key: value for key, value in json.loads((directory / "DONE").read_text()).items() if key != "check"}


def planted(directory: Path, levels: dict[str, Callable[[float], float]], noise: float = 0.01) -> Path:
    """Records and samples of 200 items whose means follow `levels` (of steps), at 13 windows of 1000 tokens a step."""
    rng, journal = np.random.default_rng(0), Journal(directory)
    directory.mkdir(parents=True)
    items = {metric: rng.normal(0, 0.3, 200) for metric in levels}
    for index, where in enumerate(STEPS):
        values, found = [], []
        moment = Moment(index, int(1000 * where))
        for metric, level in levels.items():
            each = level(where) + items[metric] - items[metric].mean() + rng.normal(0, noise, 200)
            cell: dict[str, Any] = {"variant": "single", "span": "value"}
            values += [Value("needle", metric, f"{i:03}", cell, float(v)) for i, v in enumerate(each)]
            stderr = float(each.std() / np.sqrt(200))
            found.append(Record(*moment, "probabilistic", "needle", metric, float(each.mean()), 200, stderr,
                                {"span": "value"}))  # fmt: skip
            found.append(Record(*moment, "probabilistic", "needle", metric, 9.0 - index, 200, 0.1, {"span": "full"}))
        journal.write(found)
        journal.write_samples(index, values)
    return directory


def test_a_curve_that_levels_is_saturated_and_one_that_falls_is_not(tmp_path: Path) -> None:
    settings = StoppingConfig(watch=("needle/control_nll_nats", "needle/answer_nll_nats", "needle/c_nats"))
    run = load_run(planted(tmp_path / "run", {
        "control_nll_nats": lambda n: 1 + 3 * np.exp(-n / 2),
        "answer_nll_nats": lambda n: 4 - 0.5 * np.log2(1 + n),
    }))  # fmt: skip
    level, fall, absent = judge(run, settings, range(13))
    assert fall.decision.gain is not None
    assert level.decision.verdict == "saturated" and level.windows == 13
    assert fall.decision.verdict == "improving" and fall.decision.gain.value == pytest.approx(0.5, abs=0.1)
    assert absent.decision.verdict == "not enough points" and "did you mean 'needle/" in absent.decision.reasons[0]
    early = judge(run, settings, range(5))
    assert {each.decision.verdict for each in early} == {"not enough points"}
    line = advice(fall, Moment(12, 32000), 0.1)
    assert (
        line.startswith("needle/answer_nll_nats: train on: the next doubling buys 0.")
        and " nats at a cost of 32k tokens" in line
    )
    assert "to " in line and line.endswith(f" and {3200 / 3600:.3g} h at this speed")
    assert ": stop now: " in advice(level, Moment(12, 32000), None)


def saturated_from(steps: int, *watch: str) -> Callable[..., Decision]:
    """A rule by which the metrics of `watch` (all, where there is none) are saturated from so many tokens on."""

    def decide(curve: Curve, eps: float, probe: Equivalence | None) -> Decision:
        late = curve.tokens_W[-1] >= steps * BATCH and (not watch or f"{curve.monitor}/{curve.metric}" in watch)
        verdict = "saturated" if late else "improving"
        since = int(curve.tokens_W[-1]) if late else None
        return Decision(verdict, since, Estimate(0.125, 0.0, 0.25), 1.0, "log", ["planted"])

    return decide


@pytest.fixture
def rule(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that puts `saturated_from` in the place of the rule."""
    return lambda *args: monkeypatch.setattr(stopping, "decide", saturated_from(*args))


def keys(action: str | None = "warn", **more: Any) -> dict[str, Any]:
    """The tiny run with needle and perplexity alone, and what it does where both needle metrics are saturated."""
    settings = {"watch": [NLL, HIT], "action": action, **more}
    return {**FEW, "run.log_every_steps": 1, "run.stopping": settings if action else None}


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "decisions.jsonl").read_text().splitlines()]


def without_stopping(directory: Path) -> list[bytes]:
    return [line for line in records(directory).splitlines() if b'"monitor": "stopping"' not in line]


def test_warning_changes_no_byte_of_other_records(
    run: Callable[..., Path], say: Any, rule: Callable[..., None]
) -> None:
    rule(6, NLL)
    quiet, warned = run({**keys(None), "run.name": "quiet"}), run({**keys(), "run.name": "warned"})
    assert without_stopping(warned) == records(quiet).splitlines()
    assert samples(warned) == samples(quiet)
    assert all(torch.equal(value, final(quiet)[key]) for key, value in final(warned).items())
    assert not (quiet / "decisions.jsonl").exists() and "doubling" not in records(quiet).decode()
    found = [r for r in read_records(warned / "records.jsonl")[0] if r.monitor == "stopping"]
    assert {r.tier for r in found} == {"training"}
    whole = {r.step: r.value for r in found if not r.tags}
    assert whole == {step: 0.5 if step >= 6 else 0.0 for step in WINDOWS}
    assert dict(scalars(warned)["stopping/saturated_frac"]) == whole
    gains = {(r.tags["watch"], r.metric) for r in found if "gain" in r.metric}
    assert gains == {(NLL, "doubling_gain_nats"), (HIT, "doubling_gain_frac")}
    assert [(row["step"], row["verdict"]) for row in rows(warned) if row["watch"] == NLL][-2:] == [
        (8, "saturated"), (12, "saturated"),
    ]  # fmt: skip
    assert {row["action"] for row in rows(warned)} == {None} and rows(warned)[0]["reasons"] == ["planted"]
    [line] = [s for s in say.file.getvalue().splitlines() if s.startswith(f"{NLL} since 2.05k tokens: ")]
    assert line.startswith(
        f"{NLL} since 2.05k tokens: stop now: the next doubling buys 0.125 (0 to 0.25) nats at a cost"
    )
    assert " at a cost of 2.05k tokens and " in line and line.endswith(" h at this speed")
    assert main(["measure", str(warned), "--check"]) == main(["report", str(warned)]) == 0


def test_a_run_stops_is_finished_and_goes_on_without_stopping(
    run: Callable[..., Path], say: Any, rule: Callable[..., None]
) -> None:
    rule(6)
    whole = run({**keys(None), "run.name": "whole"})
    stopped = run(keys("stop"))
    assert ended(stopped) == {"tokens": 6 * BATCH, "stopped_by": "stop"}
    assert records(whole).startswith(b"\n".join(without_stopping(stopped)))
    assert {row["step"]: row["action"] for row in rows(stopped)} == {0: None, 3: None, 4: None, 6: "stop"}
    assert main(["measure", str(stopped), "--check"]) == 0
    before = records(stopped)
    for more in ({}, {"run.tokens": 99 * BATCH}):
        assert run({**keys("stop"), **more}) == stopped and records(stopped) == before
    assert say.file.getvalue().count(f"stopped it at {6 * BATCH:,} tokens; run.stopping=null trains on") == 2
    assert run(keys(None)) == stopped
    assert without_stopping(stopped) == records(whole).splitlines()
    assert ended(stopped) == {"tokens": 12 * BATCH}
    assert all(torch.equal(value, final(whole)[key]) for key, value in final(stopped).items())


def test_one_metric_of_two_stops_nothing_and_the_end_is_no_stop(
    run: Callable[..., Path], rule: Callable[..., None]
) -> None:
    rule(0, HIT)
    assert "stopped_by" not in (run({**keys("stop"), "run.name": "one"}) / "DONE").read_text()
    rule(12)
    last = run({**keys("stop"), "run.name": "end"})
    assert "stopped_by" not in (last / "DONE").read_text() and {row["action"] for row in rows(last)} == {None}


def learning_rates(directory: Path) -> dict[int, float]:
    return {r.step: r.value for r in read_records(directory / "records.jsonl")[0] if r.metric == "lr"}


DECAY = keys("decay", decay_tokens=3 * BATCH - 1)


def test_a_decay_takes_the_rate_to_zero_and_ends_the_run(
    run: Callable[..., Path], say: Any, rule: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule(6)
    used: dict[int, float] = {}
    step_of = torch.optim.AdamW.step

    def keep(self: Any, *a: Any, **k: Any) -> Any:
        loss = step_of(self, *a, **k)  # it calls the closure first, and reads the rates after that
        used[len(used) + 1] = self.param_groups[1]["lr"]
        return loss

    monkeypatch.setattr(torch.optim.AdamW, "step", keep)
    decayed = run(DECAY)
    rates = learning_rates(decayed)
    assert [rates[step] for step in range(3, 10)] == pytest.approx([3e-3] * 5 + [2e-3, 1e-3])
    assert used == pytest.approx(rates) and max(rates) == 9
    assert ended(decayed) == {"tokens": 9 * BATCH, "stopped_by": "decay"}
    assert {row["step"]: row["action"] for row in rows(decayed)} == {0: None, 3: None, 4: None, 6: "decay"}
    last = [r for r in read_records(decayed / "records.jsonl")[0] if r.step == 9]
    assert {r.monitor for r in last} == {"train", "needle", "heads", "perplexity"}
    assert (decayed / "checkpoints" / "window-00000009.ckpt").exists()
    assert main(["measure", str(decayed), "--check"]) == 0
    assert run(DECAY) == decayed and "took the learning rate to zero at 2,304 tokens" in say.file.getvalue()


@pytest.mark.parametrize(
    "where",
    [[(before_checkpoint, 6), (at_step, 7)], [(at_step, 6), (in_records, 9)], [(at_step, 8), (before_checkpoint, 9)]],
    ids=["decision", "after it", "end"],
)
def test_a_resumed_decay_is_the_uninterrupted_one(
    where: list, make: Callable[..., Config], say: Console, rule: Callable[..., None]
) -> None:
    rule(6)
    whole = train(make({**DECAY, "run.name": "whole"}), say)
    config = make(DECAY)
    for seconds, (plant, step) in zip((120, 60), where, strict=True):
        killed(config, say, plant, step, seconds)
    parts = train(config, say)
    assert records(parts) == records(whole) and samples(parts) == samples(whole)
    assert (parts / "decisions.jsonl").read_bytes() == (whole / "decisions.jsonl").read_bytes()
    assert (parts / "DONE").read_bytes() == (whole / "DONE").read_bytes()
    assert all(torch.equal(value, final(whole, 9)[key]) for key, value in final(parts, 9).items())
    assert scalars(parts) == scalars(whole)


def test_a_decay_that_the_tokens_cut_short_goes_on_when_they_grow(
    run: Callable[..., Path], rule: Callable[..., None]
) -> None:
    rule(6)
    whole = run({**DECAY, "run.name": "whole"})
    short = run({**DECAY, "run.tokens": 7 * BATCH})
    assert ended(short) == {"tokens": 7 * BATCH}
    assert run(DECAY) == short
    at_grid = [line for line in records(short).splitlines() if b'"step": 7,' not in line or b'"train"' in line]
    assert at_grid == records(whole).splitlines()


def test_a_run_killed_between_its_stop_and_its_end_stops(
    make: Callable[..., Config], say: Any, rule: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule(6)
    config = make(keys("stop"))
    directory = train(config, say)
    before, done = records(directory), (directory / "DONE").read_bytes()
    os.unlink(directory / "DONE")
    monkeypatch.setattr(LccpModule, "training_step", lambda *a: pytest.fail("it trained on"))
    assert train(config, say) == directory
    assert records(directory) == before and (directory / "DONE").read_bytes() == done


def test_only_a_decay_is_another_directory(make: Callable[..., Config]) -> None:
    base = run_directory(make(keys(None)), None)
    assert {run_directory(make(keys(action)), None) for action in ("warn", "stop")} == {base}
    decays = {run_directory(make(keys("decay", decay_tokens=n)), None) for n in (1, 2)}
    assert len(decays) == 2 and base not in decays


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"run.stopping": {"action": "decay"}}, "run.stopping.decay_tokens=None: .*; give the tokens of the decay"),
        ({"run.stopping": {"decay_tokens": 9}}, "run.stopping.decay_tokens=9: .*; remove it"),
        ({"run.stopping": {"watch": ["neddle/hit_frac"]}}, "watch='neddle/hit_frac': .*did you mean 'needle'"),
        ({"run.stopping": {"watch": ["needle"]}}, "watch='needle': must be monitor/metric"),
        ({"run.stopping": {"watch": []}}, "must name a metric"),
        ({"run.stopping": {"eps": 1.0}}, "run.stopping.eps=1.0: input should be less than 1"),
        (
            {"run.stopping": {"action": "decay", "decay_tokens": 9}, "optim.schedule": "cosine"},
            "run.stopping.action='decay': needs a learning rate that is constant until then.*use stop",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict, line: str, make: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        make(changes)
    assert "\n" not in str(caught.value)


class Looking:
    """What a stranger's MonitorCallback measures with, in place of a suite: one number that levels, at every step."""

    def __init__(self) -> None:
        self.windows = list(range(40))

    def measure(self, model: Any, moment: Moment, history: Any, *told: Any) -> WindowResult:
        values = [Value("mine", "x_nats", str(i), {}, 1 + 3 * 0.5**moment.step + i / 10) for i in range(5)]
        return WindowResult([Record(*moment, "behavioural", "mine", "x_nats", values[2].value, 5, 0.1)], values, [])


class Strange(L.LightningModule):
    """Nobody's module, with a rate of 0.5 and no schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 1)
        self.model.num_heads = 1
        self.rates: list[float] = []

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self.model(batch[0]).square().mean()

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(60, 1)))


def strange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool = True, told: bool = True, **settings: Any
) -> tuple[Any, Any]:
    monkeypatch.setattr("lccp_sim.train.window.callback.adapted", lambda model: SimpleNamespace(num_heads=1))
    lines: list[str] = []
    suite: Any = Looking()
    monitors = MonitorCallback(suite, Journal(tmp_path), 10, say=lines.append)
    stop = Stopping(StoppingConfig(watch=("mine/x_nats",), **settings), monitors)
    monitors.after_window = [stop.judge] if told else []
    trainer = L.Trainer(
        max_steps=50, callbacks=[monitors, stop] if first else [stop, monitors], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    module = Strange()
    trainer.fit(module)
    return trainer, module


def test_it_stops_a_strangers_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = strange(tmp_path, monkeypatch, action="stop")
    last = rows(tmp_path)[-1]
    assert 6 <= trainer.global_step == last["step"] < 39 and last["action"] == "stop"
    assert last["verdict"] == "saturated" and len(rows(tmp_path)) == last["step"] + 1
    assert seconds_per_token(load_run(tmp_path)) is None  # nobody timed the training


def test_it_decays_a_strangers_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, module = strange(tmp_path, monkeypatch, action="decay", decay_tokens=40)
    since = rows(tmp_path)[-1]["step"]
    assert trainer.global_step == since + 4
    used = [rate for rate in dict.fromkeys(module.rates)]
    assert used == pytest.approx([0.5, 0.375, 0.25, 0.125][: len(used)]) and len(used) >= 3


def test_it_must_come_after_its_monitors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="put it after that"):
        strange(tmp_path, monkeypatch, first=False)


def test_it_must_be_told_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"set monitors.after_window = \[stopping.judge\]"):
        strange(tmp_path, monkeypatch, told=False)
