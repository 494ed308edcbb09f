"""The data side of Lightning: micro-batches in order, from the optimizer's current step.

There is no loader state. The position derives from the global step, and batch i is a pure function of (seed, i), so a
resumed run continues exactly where it stopped.
"""

from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from lccp_sim.data.batch import Batch
from lccp_sim.train.objectives.objective import Rows
from lccp_sim.train.parallel.layout import piece


class _MicroBatches(IterableDataset):
    def __init__(self, feed: Rows, first_step: int, last_step: int, micro: int, rank: int, world: int, cp: int):
        self.feed, self.steps, self.micro = feed, range(first_step, last_step), micro
        self.rank, self.world, self.cp = rank, world, cp

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step in self.steps:
            if self.feed.live:  # the loader runs ahead of the weights: the module makes these rows
                yield from ({"step": step, "part": part} for part in range(self.micro))
                continue
            target_count = self.feed.target_count(step)
            for part in range(self.micro):
                batch = self.feed.slice(step, self.rank // self.cp, self.world // self.cp, part, self.micro)
                yield tensors_of(batch, target_count, self.rank % self.cp, self.cp)


def tensors_of(batch: Batch, target_count: float, rank: int = 0, cp: int = 1) -> dict[str, Any]:
    """The module's inputs from a batch: the part of the `rank`-th of `cp` neighbours, and the divisor of the loss."""
    arrays = {key: value for key, value in vars(batch).items() if isinstance(value, np.ndarray)}
    bounds = arrays.pop("bounds")
    pieces = {key: piece(value, rank, cp) for key, value in arrays.items()} | {"bounds": bounds}
    # As indices of the flattened rows: searching for them on a GPU would synchronise.
    pieces["learn_R"] = np.flatnonzero(pieces.pop("learn_BT"))
    tensors = {key: torch.from_numpy(value) for key, value in pieces.items()}
    return tensors | {"names": batch.names, "target_count": target_count}


class LccpData(L.LightningDataModule):
    """The micro-batches of each rank, from the trainer's global step on."""

    def __init__(self, feed: Rows, micro: int, last_step: int, cp: int = 1):
        super().__init__()
        self.feed, self.micro, self.last_step, self.cp = feed, micro, last_step, cp

    def train_dataloader(self) -> DataLoader:
        """A loader without workers: a batch is a few memory-mapped rows. For a GPU it is in pinned memory."""
        assert self.trainer is not None
        t = self.trainer
        place = t.global_rank, t.world_size, self.cp
        stream = _MicroBatches(self.feed, t.global_step, self.last_step, self.micro, *place)
        return DataLoader(stream, batch_size=None, pin_memory=t.strategy.root_device.type == "cuda")
