"""The strategies of Lightning's Trainer: DDP, and FSDP2 whose checkpoints are those of one process."""

import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from lccp_sim.config import Config
from lccp_sim.train.parallel.ranks import Ranks
from lccp_sim.train.parallel.sharding import cut_as, whole_tensors


def placement(config: Config, ranks: Ranks) -> dict[str, Any]:
    """What Lightning's Trainer has to know: devices of this node, nodes, strategy."""
    if ranks.world == 1:
        return {"devices": 1}
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    strategy = Sharded(ranks.world, tensor_parallel_size=1) if config.run.shard else DDPStrategy()
    strategy.cluster_environment = TorchElasticEnvironment()
    return {"devices": local, "num_nodes": ranks.world // local, "strategy": strategy}


class Sharded(ModelParallelStrategy):
    """FSDP2 whose checkpoints are those of one process: whole tensors, in the one file that `checkpoint_io` writes."""

    lightning_restore_optimizer = True
    save_checkpoint, load_checkpoint = Strategy.save_checkpoint, Strategy.load_checkpoint

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The state of the module with whole tensors, on every rank."""
        return whole_tensors(Strategy.lightning_module_state_dict(self))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """None; each rank takes its part."""
        mine = Strategy.lightning_module_state_dict(self)
        state = {key: cut_as(value, mine.get(key)) for key, value in checkpoint["state_dict"].items()}
        Strategy.load_model_state_dict(self, {"state_dict": state}, strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The state of an optimizer with whole tensors, on every rank."""
        return whole_tensors(Strategy.optimizer_state(self, optimizer))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """None; each rank takes its part."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {i: {k: cut_as(v, parameters[i]) for k, v in each.items()} for i, each in saved["state"].items()}
            optimizer.load_state_dict(saved | {"state": state})
