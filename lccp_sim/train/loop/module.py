"""The LightningModule: loss, optimizer, schedule, and nothing about monitors.

Every sum is divided by counts of the *global* batch that are known in advance, so one micro-batch equals four and one
rank equals many. The balance bias moves once an optimizer step, on the counts of that step alone.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lccp_sim.config import Config
from lccp_sim.errors import ConfigError, NotFinite
from lccp_sim.models.loss import cross_entropy
from lccp_sim.models.optimizer import adamw
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors.observing import evaluating
from lccp_sim.train.loop.loader import tensors_of
from lccp_sim.train.loop.recompute import recompute
from lccp_sim.train.objectives.objective import Live, Rows
from lccp_sim.train.parallel.monitor_ranks import together
from lccp_sim.train.parallel.ranks import ALONE, Ranks
from lccp_sim.train.parallel.sharding import clip, fill, shard


class LccpModule(L.LightningModule):
    """The training of a Transformer on packed batches. `facts` go into every checkpoint under the key `lccp`.

    A model on the meta device is sharded there, and then filled with its part of `weights` (full tensors by name).
    `moments`: the optimizer's initial state of each weight, in the order of its groups (None: fresh). `rows`: for an
    objective that makes its rows from the weights of each step, or adds to the loss.
    """

    def __init__(
        self,
        config: Config,
        model: Transformer,
        facts: dict[str, Any],
        ranks: Ranks = ALONE,
        weights: Iterable[tuple[str, Tensor]] = (),
        moments: Mapping[int, Any] | None = None,
        rows: Rows | None = None,
    ):
        super().__init__()
        self.config, self.model, self.facts, self.ranks, self.weights = config, model, facts, ranks, weights
        self.moments = moments
        self.live: Live | None = rows if rows is not None and rows.live else None  # type: ignore[assignment]
        self.penalty = None if rows is None else rows.penalty
        self.step_loss = torch.zeros(())
        self.step_aux = torch.zeros(())
        self.step_counts: Tensor | int = 0
        self.step_parts: list[tuple[Tensor, list[str]]] = []
        self.grad_norm = self.loss_nats = self.lr = math.nan

    def configure_model(self) -> None:
        """Set up recomputation of blocks, and shard the weights if Lightning has a mesh."""
        recompute(self.model, self.config.run.recompute_every)
        r, bf16 = self.config.run, self.config.run.precision == "bf16" and self.config.watched_in_bf16
        shard(self.model, self.device_mesh, r.ep, r.cp, bf16)
        fill(self.model, self.weights)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """The batch. If rows depend on the weights, those of this step and rank, made at its first micro-batch."""
        if self.live is None:
            return batch
        step, micro = batch["step"], self.trainer.accumulate_grad_batches
        if batch["part"] == 0:
            with together(self.model, self.ranks), evaluating(self.model, self.config.run.precision == "bf16"):
                self.live.play(self.model, step)
        rows = self.live.slice(step, self.trainer.global_rank, self.trainer.world_size, batch["part"], micro)
        return tensors_of(rows, self.live.target_count(step))

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """The micro-batch's part of the global loss, an fp32 scalar in nats."""
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        sparse = self.sparse(self.global_step)
        with self.penalty(self.model, batch) if self.penalty is not None else nullcontext() as added:
            out = self.model(batch["tokens_BT"], batch["positions_BT"], batch["bounds"], batch.get("text_BT"), sparse)
        learn_R = batch["learn_R"]
        hidden_RD, targets_R = out.hidden_BTD.flatten(0, 1)[learn_R], batch["targets_BT"].flatten()[learn_R]
        factor_R = batch["factor_BT"].flatten()[learn_R] if "factor_BT" in batch else None
        loss = cross_entropy(hidden_RD, self.model.head_weight, targets_R, batch["target_count"], factor_R)
        loss = loss if added is None else loss + added()
        router = self.config.model.router
        aux = (router.balance_loss * out.balance_loss + router.z_loss * out.z_loss) / parts
        self.step_parts.append(((loss + aux).detach(), batch["names"]))
        self.step_loss += loss.detach()
        self.step_aux += aux.detach()
        self.step_counts = self.step_counts + out.count_LE
        # Lightning divides by the micro-batches of a step and averages over ranks; undo both.
        return (loss + aux) * parts

    def sparse(self, step: int) -> bool:
        """Whether the update from `step` to `step + 1` uses sparse attention, in the layers that have it."""
        attention = self.config.model.attention
        if attention is None or self.live is not None:  # live rows have any length
            return False
        return attention.sparse(step * self.config.run.batch_tokens)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Reset the sums of a step at its first micro-batch."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.step_loss = torch.zeros((), device=self.device)
            self.step_aux = torch.zeros((), device=self.device)
            self.step_counts = 0
            self.step_parts = []

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip gradients, keep their norm before clipping and the learning rate, and stop before weights are damaged.

        This is the only point where a step waits for a GPU. A loss that is not finite gives gradients that are not, and
        all ranks share these.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = clip(parameters, self.config.optim.clip_norm or float("inf"))
        self.grad_norm, self.loss_nats = torch.stack((norm, self.step_loss)).tolist()
        self.lr = optimizer.param_groups[0]["lr"]  # of this update, whatever set it
        if math.isfinite(self.grad_norm):
            return
        shares = self.ranks.gather(lambda: [(value.item(), names) for value, names in self.step_parts])
        parts = sorted((part for share in shares for part in share), key=lambda part: math.isfinite(part[0]))
        worst, found = parts[0][0], [name for _, names in parts for name in names]
        what = f"gradient norm is {self.grad_norm}" if math.isfinite(worst) else f"loss is {worst}"
        names = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
        raise NotFinite(f"the {what} at step {self.global_step + 1}, on documents {names}")

    def update_router_bias(self) -> None:
        """Move each layer's selection bias towards the experts that this step starved (arXiv 2408.15664)."""
        rate = self.config.model.router.bias_update_rate
        if rate:
            count_LE = self.trainer.strategy.reduce(self.step_counts, reduce_op="sum").float()
            for block, count_E in zip(self.model.layers, count_LE, strict=True):
                if block.moe is not None:
                    block.moe.bias_E += rate * (count_E.mean() - count_E).sign()

    def configure_optimizers(self) -> Any:
        """AdamW; weight decay on matrices only, embeddings and the router included."""
        o = self.config.optim
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = adamw(groups, lr=o.lr, betas=(o.beta1, o.beta2))
        if self.moments is not None:
            optimizer.load_state_dict({"state": self.moments, "param_groups": optimizer.state_dict()["param_groups"]})
            self.moments = None
        steps = self.config.run.steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: o.factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move the batch to the device, except `bounds`, which attention reads on the CPU."""
        moved = {k: v for k, v in batch.items() if isinstance(v, Tensor) and k != "bounds"}
        return batch | {k: v.to(device, non_blocking=True) for k, v in moved.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise ConfigError if the checkpoint was trained with another tokenizer than that of the data."""
        if checkpoint["lccp"]["tokenizer"] != self.facts["tokenizer"]:
            raise ConfigError("tokenizer.json is not the one that the run's checkpoints were trained with; put it back")
        if self.live is not None:
            self.live.state = checkpoint["objective"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what another run needs to start from these weights."""
        tokens = self.global_step * self.config.run.batch_tokens
        checkpoint["lccp"] = self.facts | {"step": self.global_step, "tokens": tokens}
        if self.live is not None:
            checkpoint["objective"] = self.live.state
