"""How the processes of a run meet: each says that it is there, and one that waits says for whom.

Design note: torch's own rendezvous waits in silence for its whole timeout, and cannot say who is missing. So each rank
writes its name into the store that torch uses anyway, and reads there who else has come.
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
SAY_AFTER_SECONDS = 3.0  # a user waits 15 s at most for a word, and importing torch takes most of them
POLL_SECONDS = 0.05
REMEDY = (
    f"for a single process: unset {' '.join(SET_BY_TORCHRUN)}; for several: start all of them with torchrun, "
    "which sets these"
)


class Place(NamedTuple):
    """What the environment says of this process: its rank of `world`, and where rank 0 listens."""

    world: int = 1
    rank: int = 0
    local_rank: int = 0
    host: str = ""
    port: int = 0


def place_here() -> Place:
    """The place of this process by the environment; alone without WORLD_SIZE, or where it is 1.

    Raises ConfigError where the variables do not fit together, as those that are left over from another job.
    """
    if os.environ.get("WORLD_SIZE", "1").strip() in ("", "1"):
        return Place()
    missing = [name for name in SET_BY_TORCHRUN if not os.environ.get(name)]
    if missing:
        raise ConfigError(f"{found()}, but {' and '.join(missing)} {_are(missing)} not set; {REMEDY}")
    number = {}
    for name in SET_BY_TORCHRUN:
        if name != "MASTER_ADDR":
            word = os.environ[name].strip()
            if not (word.isascii() and word.isdigit()):
                raise ConfigError(f"{found()}: {name} is no number; {REMEDY}")
            number[name] = int(word)
    world, rank, port = number["WORLD_SIZE"], number["RANK"], number["MASTER_PORT"]
    if rank >= world:
        raise ConfigError(f"{found()}: there is no rank {rank} among {world} processes; {REMEDY}")
    if not 0 < port < 2**16:
        raise ConfigError(f"{found()}: MASTER_PORT is no port; {REMEDY}")
    return Place(world, rank, number["LOCAL_RANK"], os.environ["MASTER_ADDR"].strip(), port)


def found() -> str:
    """What is set of torchrun's variables, in words: 'the environment has WORLD_SIZE=2 RANK=0'."""
    there = (f"{name}={os.environ[name]}" for name in SET_BY_TORCHRUN if name in os.environ)
    return f"the environment has {' '.join(there)}"


def meet(place: Place, timeout: timedelta) -> dist.Store:
    """The store of the run, once all ranks have come; a rank that waits says on stderr for whom.

    Raises LostRank after `timeout`, and ConfigError where rank 0 cannot listen.
    """
    until = time.monotonic() + timeout.total_seconds()
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"lccp/{restart}", _connect(place, timeout))
    key = {rank: f"here/{rank}" for rank in range(place.world)}
    store.set(key[place.rank], "")
    began, said = time.monotonic(), False
    while missing := [rank for rank in key if not store.check([key[rank]])]:
        if time.monotonic() > until:
            raise LostRank(f"{_who(missing, place.world)}: not there after {_long(timeout)}; {found()}; {REMEDY}")
        if place.rank == 0 and not said and time.monotonic() > began + SAY_AFTER_SECONDS:
            _say(_who(missing, place.world), timeout)
            said = True
        time.sleep(POLL_SECONDS)  # store.wait() would print torch's own warning of a timeout
    return store


def _connect(place: Place, timeout: timedelta) -> dist.Store:
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # then torchrun itself listens
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
            raise ConfigError(f"{found()}: {why}; {REMEDY}") from None
        raise LostRank(f"{who}: no answer within {_long(timeout)}; {found()}; {REMEDY}") from None
    finally:
        timer.cancel()


def _say(who: str, timeout: timedelta) -> None:
    line = f"lccp: waiting for {who}, up to run.timeout_minutes={timeout.total_seconds() / 60:g}; {found()}; {REMEDY}"
    print(line, file=sys.stderr, flush=True)


def _who(ranks: list[int], world: int) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if ranks[8:] else "")
    return f"rank{'s' if ranks[1:] else ''} {shown} of {world} processes"


def _long(timeout: timedelta) -> str:
    return f"{timeout.total_seconds() / 60:g} minutes"


def _are(names: list[str]) -> str:
    return "are" if names[1:] else "is"
