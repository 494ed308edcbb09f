"""The processes of a run, and work that one does while the others wait.

`torchrun` starts the processes and sets their number; no key of a run repeats it. Design note: next to the process
group over which training reduces there is a second one, a gloo group without timeout, for work that one rank does while
the others wait (such as reading a corpus). A rank that dies still ends the wait at once, because its connections close.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lccp_sim.config import Config
from lccp_sim.errors import Halfway, LostRank
from lccp_sim.train.parallel.layout import tokens_at_once
from lccp_sim.train.parallel.meeting import meet, place_here

PATIENT = timedelta(days=30)
_Given = TypeVar("_Given")


@dataclass(frozen=True)
class Ranks:
    """This process among the `world` processes of a run. Only rank 0 writes and prints."""

    rank: int = 0
    world: int = 1
    waiting: Any = None

    def first(self, work: Callable[[], _Given]) -> _Given:
        """The result of `work()` on rank 0, on every rank; the others wait for it. It must be picklable.

        An error is raised on rank 0; the others exit silently with status 1.
        """
        if self.world == 1:
            return work()
        told: list[Any] = [None, None]
        try:
            if self.rank == 0:
                told = [True, work()]
        finally:
            dist.broadcast_object_list(told, src=0, group=self.waiting)
            if not told[0] and self.rank:
                raise SystemExit(1)
        return told[1]

    def in_turn(self, work: Callable[[], _Given]) -> _Given:
        """The result of `work()` on this rank, run after rank 0's: the others find what rank 0 left on disk."""
        mine: list[_Given] = []
        self.first(lambda: mine.append(work()))
        return mine[0] if mine else work()

    def gather(self, work: Callable[[], _Given]) -> list[_Given]:
        """The results of `work()` on all ranks, on each. An error of any rank is raised on all, except Halfway."""
        if self.world == 1:
            return [work()]
        try:
            mine: tuple[Any, Exception | None] = (work(), None)
        except Halfway:
            raise
        except Exception as error:  # noqa: BLE001
            mine = (None, error)
        every: list[Any] = [None] * self.world
        dist.all_gather_object(every, mine, group=self.waiting)
        for _, failure in every:
            if failure is not None:
                raise failure
        return [given for given, _ in every]

    def agree(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        if self.world == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.waiting)
        return int(largest)


ALONE = Ranks()


@contextmanager
def joined(config: Config) -> Iterator[Ranks]:
    """Within the context, this process is one of the ranks that `torchrun` started; without torchrun, the only one.

    Raises ConfigError if the ranks cannot have the config's layout or the environment contradicts itself, and LostRank
    if a rank never arrives.
    """
    place = place_here()
    world = place.world
    tokens_at_once(config, world)
    if world == 1:
        yield ALONE
        return
    cuda = config.run.accelerator != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(place.local_rank)
    timeout = timedelta(minutes=config.run.timeout_minutes)
    store = meet(place, timeout)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timeout, store=store, rank=place.rank, world_size=world)
    try:
        yield Ranks(dist.get_rank(), world, dist.new_group(backend="gloo", timeout=PATIENT))
    finally:
        dist.destroy_process_group()


@contextmanager
def connected(config: Config) -> Iterator[None]:
    """Within the context, an error of the connection to other ranks becomes a LostRank."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors, which name its source files.
        if not isinstance(error.__cause__ or error, dist.DistError) and "gloo" not in str(error):
            raise
        raise LostRank(
            "another process of the run is gone, or did not answer within run.timeout_minutes="
            f"{config.run.timeout_minutes:g} (its own message says why); the same command continues from the last "
            f"checkpoint ({' '.join(str(error).split())[:200]})"
        ) from error
