"""The rendezvous of a run's processes: each reports its arrival, and a waiting rank names those that are missing.

Design note: torch's own rendezvous waits silently for its full timeout, and cannot say which rank is missing. So each
rank writes its name into the store that torch uses anyway, and reads there which others have arrived.
"""

import os
import sys
import threading
import time
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist

from lccp_sim.errors import ConfigError, LostRank

SET_BY_TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SAY_AFTER_SECONDS = 3.0  # a user should get a message within 15 s, and importing torch takes most of that
POLL_SECONDS = 0.05
LAUNCH_REMEDY = (
    f"for a single process: unset {' '.join(SET_BY_TORCHRUN)}; for several: start all of them with torchrun, "
    "which sets these variables"
)


class RankEnvironment(NamedTuple):
    """The environment's description of this process: its rank of `world`, and the address at which rank 0 listens."""

    world: int = 1
    rank: int = 0
    local_rank: int = 0
    host: str = ""
    port: int = 0


def place_here() -> RankEnvironment:
    """The place of this process by the environment; a single process if WORLD_SIZE is unset or 1.

    Raises ConfigError if the variables are inconsistent, such as leftovers of another job.
    """
    if os.environ.get("WORLD_SIZE", "1").strip() in ("", "1"):
        return RankEnvironment()
    missing = [name for name in SET_BY_TORCHRUN if not os.environ.get(name)]
    if missing:
        raise ConfigError(f"{found()}, but {' and '.join(missing)} {_are(missing)} not set; {LAUNCH_REMEDY}")
    number = {}
    for name in SET_BY_TORCHRUN:
        if name != "MASTER_ADDR":
            word = os.environ[name].strip()
            if not (word.isascii() and word.isdigit()):
                raise ConfigError(f"{found()}: {name} is not a number; {LAUNCH_REMEDY}")
            number[name] = int(word)
    world, rank, port = number["WORLD_SIZE"], number["RANK"], number["MASTER_PORT"]
    if rank >= world:
        raise ConfigError(f"{found()}: there is no rank {rank} among {world} processes; {LAUNCH_REMEDY}")
    if not 0 < port < 2**16:
        raise ConfigError(f"{found()}: MASTER_PORT is not a port; {LAUNCH_REMEDY}")
    return RankEnvironment(world, rank, number["LOCAL_RANK"], os.environ["MASTER_ADDR"].strip(), port)


def found() -> str:
    """Those of torchrun's variables that are set, as text: 'the environment has WORLD_SIZE=2 RANK=0'."""
    there = (f"{name}={os.environ[name]}" for name in SET_BY_TORCHRUN if name in os.environ)
    return f"the environment has {' '.join(there)}"


def meet(place: RankEnvironment, timeout: timedelta) -> dist.Store:
    """The store of the run, once all ranks have arrived. A waiting rank names the missing ones on stderr.

    Raises LostRank after `timeout`, and ConfigError if rank 0 cannot listen.
    """
    until = time.monotonic() + timeout.total_seconds()
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"lccp/{restart}", _connect(place, timeout))
    key = {rank: f"here/{rank}" for rank in range(place.world)}
    store.set(key[place.rank], "")
    began, said = time.monotonic(), False
    while missing := [rank for rank in key if not store.check([key[rank]])]:
        if time.monotonic() > until:
            raise LostRank(f"{_who(missing, place.world)}: missing after {_long(timeout)}; {found()}; {LAUNCH_REMEDY}")
        if place.rank == 0 and not said and time.monotonic() > began + SAY_AFTER_SECONDS:
            _say(_who(missing, place.world), timeout)
            said = True
        time.sleep(POLL_SECONDS)  # store.wait() would print torch's own warning of a timeout
    return store


def _connect(place: RankEnvironment, timeout: timedelta) -> dist.Store:
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun itself listens
    listens = place.rank == 0 and not agent
    who = "the torchrun that" if agent else "rank 0, which"
    who = f"{who} should listen at {place.host}:{place.port}"
    timer = threading.Timer(SAY_AFTER_SECONDS, _say, (who, timeout))
    timer.daemon = True
    timer.start()
    try:
        return dist.TCPStore(
            place.host, place.port, place.world, listens, timeout, wait_for_workers=False, multi_tenant=True
        )
    except (dist.DistError, ValueError, RuntimeError) as error:
        if listens:
            why = "another process uses this port" if "EADDRINUSE" in str(error) else "rank 0 cannot listen there"
            raise ConfigError(f"{found()}: {why}; {LAUNCH_REMEDY}") from None
        raise LostRank(f"{who}: no answer within {_long(timeout)}; {found()}; {LAUNCH_REMEDY}") from None
    finally:
        timer.cancel()


def _say(who: str, timeout: timedelta) -> None:
    limit = f"run.timeout_minutes={timeout.total_seconds() / 60:g}"
    print(f"lccp: waiting for {who}, up to {limit}; {found()}; {LAUNCH_REMEDY}", file=sys.stderr, flush=True)


def _who(ranks: list[int], world: int) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if ranks[8:] else "")
    return f"rank{'s' if ranks[1:] else ''} {shown} of {world} processes"


def _long(timeout: timedelta) -> str:
    return f"{timeout.total_seconds() / 60:g} minutes"


def _are(names: list[str]) -> str:
    return "are" if names[1:] else "is"
