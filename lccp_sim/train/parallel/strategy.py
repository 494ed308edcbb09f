"""The strategies of Lightning's Trainer: DDP, and FSDP2 with checkpoints that every other layout can read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from lccp_sim.config import Config
from lccp_sim.files import fresh_folder, hidden
from lccp_sim.train.parallel.ranks import Ranks
from lccp_sim.train.parallel.sharding import cut_as, whole_tensors
from lccp_sim.train.saved.checkpoint import BackgroundIO, VerifiedIO, commit, hashes_of, unwritten
from lccp_sim.train.saved.sharded import Tensors, write_parts


def placement(config: Config, ranks: Ranks) -> dict[str, Any]:
    """Arguments of Lightning's Trainer: devices of this node, nodes, strategy, and the reader of checkpoints."""
    background = config.run.checkpoints == "background"
    if ranks.world == 1:
        return {"devices": 1, "plugins": [BackgroundIO() if background else VerifiedIO()]}
    local, cut = int(os.environ["LOCAL_WORLD_SIZE"]), config.run.shard
    strategy = Sharded(ranks, config.run.checkpoints != "file") if cut else DDPStrategy()
    strategy.cluster_environment = TorchElasticEnvironment()
    plugins = [BackgroundIO() if background else VerifiedIO(pieces=cut)]
    return {"devices": local, "num_nodes": ranks.world // local, "strategy": strategy, "plugins": plugins}


class Sharded(ModelParallelStrategy):
    """FSDP2 whose checkpoints are folders of all ranks' parts (`folders`), or files of one process.

    Both forms are read tensor by tensor, and each rank takes its part.
    """

    lightning_restore_optimizer = True
    lightning_module_state_dict, optimizer_state = Strategy.lightning_module_state_dict, Strategy.optimizer_state
    load_checkpoint = Strategy.load_checkpoint

    def __init__(self, ranks: Ranks, folders: bool):
        super().__init__(ranks.world, tensor_parallel_size=1)
        self.ranks, self.folders = ranks, folders

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the checkpoint and its manifest to disk. Every rank must call it."""
        if not self.folders:
            Strategy.save_checkpoint(self, whole_tensors(checkpoint), filepath)
            return
        path = Path(filepath)
        temporary = hidden(path)
        self.ranks.first(lambda: fresh_folder(temporary))
        try:
            names = write_parts(checkpoint, temporary, self.ranks.rank, self.ranks.waiting)
        except OSError as error:
            raise unwritten(path, error) from error
        hashes = self.ranks.gather(lambda: hashes_of(temporary, names))
        every = {name: sha for each in hashes for name, sha in each.items()}
        self.ranks.first(lambda: commit(temporary, path, every, checkpoint["global_step"]))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this rank's part of the weights."""
        mine, theirs = Strategy.lightning_module_state_dict(self), checkpoint["state_dict"]
        pieces = theirs.pieces if isinstance(theirs, Tensors) else theirs
        state = {key: cut_as(value, mine.get(key)) for key, value in pieces.items()}
        Strategy.load_model_state_dict(self, {"state_dict": state}, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this rank's part of the optimizer states."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {i: {k: cut_as(v, parameters[i]) for k, v in each.items()} for i, each in saved["state"].items()}
            optimizer.load_state_dict(saved | {"state": state})
