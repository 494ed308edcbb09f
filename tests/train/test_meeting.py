"""A process that waits says for whom: real processes, variables left over, a rank that never comes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lccp_sim.errors import ConfigError
from lccp_sim.train.parallel import meeting
from lccp_sim.train.parallel.meeting import RankEnvironment, place_here

ROOT = Path(__file__).parents[2]
CODE = """
import sys
from datetime import timedelta
from lccp_sim.errors import LostRank
from lccp_sim.train.parallel import meeting
meeting.SAY_AFTER_SECONDS = 0.2
try:
    meeting.meet(meeting.place_here(), timedelta(seconds=float(sys.argv[1])))
except LostRank as error:
    sys.exit(f"{type(error).__name__}: {error}")
print("met")
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in meeting.SET_BY_TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def begin(rank: int, world: int, at: int, seconds: float) -> subprocess.Popen[str]:
    there = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    env = os.environ | there | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(at), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE, str(seconds)]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_rank_0_names_who_is_missing_waits_on_and_meets_them() -> None:
    at = port()
    first = begin(0, 2, at, 60)
    assert first.stderr is not None
    line = first.stderr.readline()  # no sleep: the second process begins once the first has complained
    assert line.startswith("lccp: waiting for rank 1 of 2 processes, up to run.timeout_minutes=1; the environment has ")
    assert f"WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT={at}" in line
    assert "for a single process: unset WORLD_SIZE RANK" in line
    second = begin(1, 2, at, 60)
    assert second.communicate()[0] == "met\n"
    assert first.communicate() == ("met\n", "")  # said once


def test_a_rank_that_never_comes_ends_the_others_at_their_timeout() -> None:
    first = begin(0, 3, port(), 0.5)
    said = first.communicate()[1]
    assert "waiting for ranks 1, 2 of 3 processes" in said
    assert "LostRank: ranks 1, 2 of 3 processes: missing after" in said
    assert first.returncode == 1


def test_a_rank_without_rank_0_says_where_it_looked() -> None:
    at = port()
    second = begin(1, 2, at, 1)
    said = second.communicate()[1]
    assert f"lccp: waiting for rank 0, which should listen at 127.0.0.1:{at}" in said
    assert "LostRank: rank 0, which should listen" in said
    assert second.returncode == 1


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first = begin(0, 2, taken.getsockname()[1], 5)
        assert "another process uses this port" in first.communicate()[1]
        assert first.returncode == 1


FULL = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "", "MASTER_PORT": ""}, "WORLD_SIZE=2 .*, but RANK and MASTER_PORT are not set; for a single"),
        ({"MASTER_ADDR": ""}, "but MASTER_ADDR is not set"),
        ({"RANK": "2"}, "there is no rank 2 among 2 processes"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is not a number"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT is not a port"),
    ],
)
def test_variables_that_do_not_fit_together_are_refused(
    changes: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (FULL | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        place_here()


def test_a_process_is_alone_without_world_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_here() == RankEnvironment()
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert place_here() == RankEnvironment()
    for name, value in FULL.items():
        monkeypatch.setenv(name, value)
    assert place_here() == RankEnvironment(2, 0, 0, "localhost", 29500)
