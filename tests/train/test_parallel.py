"""A run on several processes is the run on one: the same losses, gradient norms and records, to rounding."""

import io
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console

from lccp_sim.config import Config
from lccp_sim.records import read_records
from lccp_sim.train.run import train

FEW = {"monitors.intervention": None, "monitors.probe": None, "run.log_every_steps": 1}


def start(config: Config, world: int, plant: Callable[[int], None] = lambda rank: None) -> list[int]:
    """Trains `config` on `world` forked processes, as torchrun would; the process ids. `plant(rank)` comes first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush(), sys.stderr.flush()
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            status = 1
            try:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
                os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world), "MASTER_PORT": str(port)}
                rank_zero_only.rank = rank
                plant(rank)
                train(config, Console(file=io.StringIO()))
                status = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    return children


def ended(children: list[int]) -> list[int]:
    """The exit statuses of these processes, once all have ended."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def table(directory: Path) -> dict[tuple, float]:
    """Values of a run's records by step, monitor, metric and tags. Fails where one comes twice."""
    records = read_records(directory / "records.jsonl")[0]
    found = {(r.step, r.monitor, r.metric, *sorted(r.tags.items())): r.value for r in records}
    assert len(found) == len(records)
    return found


def assert_close(one: Path, other: Path) -> None:
    mine, theirs = table(one), table(other)
    assert list(mine) == list(theirs)
    assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("world", [2, 4])
def test_ddp_is_one_process(world: int, make: Callable[..., Config], say: Console) -> None:
    one = train(make(FEW | {"run.name": "one"}), say)
    assert ended(start(make(FEW | {"run.name": "several"}), world)) == [0] * world
    several = next(one.parent.glob("several-*"))
    assert (several / "DONE").exists()
    assert_close(one, several)
