"""The layout of a run's ranks: which layouts are possible, and which rows and tokens each rank takes.

`cp` consecutive ranks share rows of the batch, `ep` consecutive ranks the experts. Both may overlap, because the rank
that holds an expert computes it for tokens of any row.
"""

import numpy as np

from lccp_sim.config import Config
from lccp_sim.errors import refuse
from lccp_sim.plan.hardware import rows_at_once
from lccp_sim.plan.memory import Layout


def tokens_at_once(config: Config, world: int) -> int:
    """Tokens of a micro-batch of `cp` neighbours. Raises ConfigError if `world` ranks cannot have this layout."""
    ep, cp, width = config.run.ep, config.run.cp, config.model.d_expert
    rule = f"run.ep x run.cp = {ep * cp} must divide the {world} processes; start others with torchrun --nproc-per-node"
    refuse(world % (ep * cp), "run.ep" if ep > 1 else "run.cp", ep if ep > 1 else cp, rule)
    rule = f"leaves {world // ep} ranks to shard each expert's width, which do not divide model.d_expert={width}"
    refuse(ep > 1 and width % (world // ep), "run.ep", ep, rule)
    return rows_at_once(config, Layout(dp=world // (ep * cp), ep=ep, cp=cp), where="torchrun")


def micro_batches(config: Config, world: int) -> int:
    """Micro-batches of an optimizer step on each rank."""
    return config.run.batch_tokens // (tokens_at_once(config, world) * (world // config.run.cp))


def piece(row_BT: np.ndarray, rank: int, cp: int) -> np.ndarray:
    """The pieces of each row for the `rank`-th of `cp` neighbours: one early, one late, so that all do equal work."""
    if cp == 1:
        return row_BT
    size = row_BT.shape[1] // (2 * cp)
    return np.concatenate([row_BT[:, first : first + size] for first in starts(row_BT.shape[1], rank, cp)], axis=1)


def starts(tokens: int, rank: int, cp: int) -> tuple[int, int]:
    """The starts of the two pieces of a row of `tokens`, each tokens / (2 cp) long."""
    size = tokens // (2 * cp)
    return rank * size, (2 * cp - 1 - rank) * size
