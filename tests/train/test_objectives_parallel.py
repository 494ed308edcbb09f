"""Objectives on two processes are those on one, to rounding: rows are shared out, and so are the questions of RL."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lccp_sim.config import Config
from tests.train.test_objectives import SFT
from tests.train.test_parallel import assert_close, ended, start
from tests.train.test_rl import RL

CASES = {
    "sft, whole weights": (SFT, {"run.micro_batch_tokens": 256}),
    "sft, sharded": (SFT, {"run.shard": True}),
    # Small steps: the first update of AdamW has the sign of a gradient alone, and these are small enough to change it.
    "rl, whole weights": ({**RL, "optim.lr": 1e-5}, {"run.micro_batch_tokens": 512}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_records_of_one(
    case: str, run: Callable[..., Path], make: Callable[..., Config], tmp_path: Path
) -> None:
    keys, layout = CASES[case]
    few: dict[str, Any] = {**keys, "run.tokens": 2 * keys["run.batch_tokens"], "run.log_every_steps": 1}  # type: ignore[operator]
    one = run({**few, "run.root": str(tmp_path / "one")})
    assert ended(start(make({**few, **layout, "run.root": str(tmp_path / "two")}), 2)) == [0, 0]
    (two,) = (tmp_path / "two").iterdir()
    assert two.name == one.name
    assert_close(one, two)
