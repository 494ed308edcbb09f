"""A branch is the run from scratch, to the byte, and its trunk stays as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lccp_sim.config import Config
from lccp_sim.errors import ConfigError
from lccp_sim.train.loop.module import LccpModule
from lccp_sim.train.saved import branch as branching
from lccp_sim.train.saved.checkpoint import read_checkpoint
from tests.train.tiny import BATCH, final, records, samples

WSD = {"optim.schedule": "wsd", "optim.decay_steps": 4, "optim.final_lr_frac": 0.0, "run.tokens": 10 * BATCH}
LIGHT = {f"monitors.{name}": None for name in ("heads", "intervention", "probe", "routing", "induction")}


def window(run: Path, step: int) -> str:
    return str(run / "checkpoints" / f"window-{step:08d}.ckpt")


def stamps(run: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}


def assert_same(one: Path, other: Path, step: int) -> None:
    assert records(one) == records(other) and samples(one) == samples(other)
    mine, theirs = final(one, step), final(other, step)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_a_decay_from_a_window_is_the_run_from_scratch(
    run: Callable[..., Path], finished: Path, monkeypatch: pytest.MonkeyPatch, say: Any
) -> None:
    whole = run({**WSD, "run.name": "whole"})
    before, steps = stamps(finished), []
    plain = LccpModule.training_step
    monkeypatch.setattr(LccpModule, "training_step", lambda self, *a: steps.append(self.global_step) or plain(self, *a))
    branched = run({**WSD, "run.branch_from": window(finished, 6)})
    assert steps == [6, 7, 8, 9] and stamps(finished) == before
    assert_same(branched, whole, 10)
    assert records(branched) != records(finished)
    assert run({**WSD}) == branched and "done (2,560 tokens)" in say.file.getvalue()


def test_a_branch_that_was_killed_while_it_copied_copies_again(
    run: Callable[..., Path], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**WSD, "run.branch_from": window(finished, 6)}
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(keys)
    first = run(keys)
    assert_same(first, run({**WSD, "run.name": "whole"}), 10)


def test_the_rate_falls_over_the_last_steps(run: Callable[..., Path]) -> None:
    keys = {**LIGHT, **WSD, "monitors.needle": None, "monitors.perplexity": None, "run.log_every_steps": 1}
    rows = [json.loads(line) for line in records(run({**keys, "optim.warmup_steps": 0})).splitlines()]
    rates = [row["value"] for row in rows if row["metric"] == "lr"]
    assert rates == pytest.approx([3e-3 * f for f in (1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optim.decay_steps": 7, "run.tokens": 11 * BATCH},
            "had another learning rate from step 5 on; branch from an earlier",
        ),
        (
            {"optim.lr": 1e-3},
            "belongs to a run with other settings: optim.lr .0.003 there, 0.001 here.; only the decay",
        ),
        ({"seed": 1}, "other settings: seed"),
        ({"monitors.needle.items": 6}, "other settings: monitors.needle.items"),
        ({"run.init_from": "base"}, "run.init_from='base': matches nothing"),
        ({"run.tokens": 6 * BATCH, "optim.decay_steps": 3}, "is at step 6, but the run has 6; raise run.tokens"),
    ],
)
def test_a_trunk_that_is_another_run_is_refused(
    changes: dict, message: str, run: Callable[..., Path], finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run({**WSD, "run.branch_from": window(finished, 6), **changes})
    assert not list((tmp_path / "runs").glob("*"))


def test_a_trunk_that_run_stopping_ended_or_decayed_is_refused(make: Callable[..., Config], finished: Path) -> None:
    path = Path(window(finished, 6))
    content = read_checkpoint(path)
    branching._check_same(make(WSD), content, path)
    content["callbacks"]["Stopping"] = {"action": "stop", "since": 6, "ends": 6, "rates": []}
    branching._check_same(make(WSD), content, path)
    with pytest.raises(ConfigError, match="run.stopping='stop': is what ended .*set run.stopping=null for the branch"):
        branching._check_same(make({**WSD, "run.stopping": {"action": "stop"}}), content, path)
    content["callbacks"]["Stopping"]["rates"] = [3e-3]
    with pytest.raises(ConfigError, match="run.branch_from=.*had another learning rate"):
        branching._check_same(make(WSD), content, path)


def test_a_run_too_short_for_its_decay_is_refused(make: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="optim.decay_steps=4: with optim.warmup_steps=3 more than the run's 6 steps"):
        make({**WSD, "run.tokens": 6 * BATCH})
    with pytest.raises(ConfigError, match="optim.decay_steps=None: goes with optim.schedule=wsd alone, which needs it"):
        make({"optim.schedule": "wsd"})
    with pytest.raises(ConfigError, match="optim.decay_steps=4: goes with optim.schedule=wsd alone"):
        make({"optim.decay_steps": 4})
