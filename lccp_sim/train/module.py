"""The LightningModule: loss, optimizer, schedule, and nothing about monitors.

Every sum is divided by counts of the *global* batch that are known in advance, so one micro-batch equals four and one
rank equals many. The balance bias moves once an optimizer step, on the counts of that step alone.
"""

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lccp_sim.config import Config, ConfigError
from lccp_sim.models.loss import cross_entropy
from lccp_sim.models.transformer import Transformer
from lccp_sim.train.parallel.ranks import ALONE, Ranks
from lccp_sim.train.parallel.sharding import clip, fill, shard
from lccp_sim.train.recompute import recompute


class NotFinite(RuntimeError):
    """A loss, gradient or measured value that is not finite: the step, and the documents of the batch."""


class LccpModule(L.LightningModule):
    """Trains a Transformer on packed batches. `facts` go into every checkpoint under the key `lccp`.

    A model on the meta device is cut there, and takes its part of `weights` (whole tensors by name) then.
    """

    def __init__(
        self,
        config: Config,
        model: Transformer,
        facts: dict[str, Any],
        ranks: Ranks = ALONE,
        weights: Iterable[tuple[str, Tensor]] = (),
    ):
        super().__init__()
        self.config, self.model, self.facts, self.ranks, self.weights = config, model, facts, ranks, weights
        self.step_loss = torch.zeros(())
        self.step_aux = torch.zeros(())
        self.step_counts: Tensor | int = 0
        self.step_names: list[str] = []
        self.grad_norm = torch.zeros(())

    def configure_model(self) -> None:
        """None; blocks that run again are told so, and the weights are cut, where Lightning has a mesh for it."""
        recompute(self.model, self.config.run.recompute_every)
        r, bf16 = self.config.run, self.config.run.precision == "bf16" and self.config.watched_in_bf16
        shard(self.model, self.device_mesh, r.ep, r.cp, bf16)
        fill(self.model, self.weights)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """The micro-batch's part of the global loss, an fp32 scalar in nats."""
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        out = self.model(batch["tokens_BT"], batch["positions_BT"], batch["bounds"], batch.get("text_BT"))
        learn_BT = batch["learn_BT"]
        targets_R = batch["targets_BT"][learn_BT]
        loss = cross_entropy(out.hidden_BTD[learn_BT], self.model.head_weight, targets_R, batch["target_count"])
        router = self.config.model.router
        aux = (router.balance_loss * out.balance_loss + router.z_loss * out.z_loss) / parts
        self.step_names += batch["names"]
        if self.ranks.world == 1:  # of several, one alone must not leave: the gradients of all will not be finite
            self._check_finite("loss", loss + aux)
        self.step_loss += loss.detach()
        self.step_aux += aux.detach()
        self.step_counts = self.step_counts + out.count_LE
        # Lightning divides by the micro-batches of a step and averages over ranks; both are undone.
        return (loss + aux) * parts

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sums of a step start anew at its first micro-batch."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.step_loss = torch.zeros((), device=self.device)
            self.step_aux = torch.zeros((), device=self.device)
            self.step_counts = 0
            self.step_names = []

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """None; clips, keeps the norm from before, and stops while the weights are still whole."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        limit = self.config.optim.clip_norm or float("inf")
        self.grad_norm = clip(parameters, limit)
        self._check_finite("gradient norm", self.grad_norm)

    def _check_finite(self, what: str, value: Tensor) -> None:
        if not torch.isfinite(value):
            whole = bool(torch.isfinite(self.step_loss + self.step_aux))
            shares = self.ranks.gather(lambda: (whole, self.step_names))
            found = [name for whole, names in sorted(shares, key=lambda share: share[0]) for name in names]
            names = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
            raise NotFinite(f"the {what} is {value.item()} at step {self.global_step + 1}, on documents {names}")

    def update_router_bias(self) -> None:
        """None; moves each layer's selection bias towards the experts that this step starved (arXiv 2408.15664)."""
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
        # Weights on two meshes cannot be updated by one call.
        foreach = None if self.config.run.ep == 1 else False
        optimizer = torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), foreach=foreach)
        steps = self.config.run.steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: o.factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch on the device; `bounds` stay on the CPU, where attention reads them."""
        return {k: v.to(device) if isinstance(v, Tensor) and k != "bounds" else v for k, v in batch.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ConfigError where the checkpoint was trained with another tokenizer than the data are read with."""
        if checkpoint["lccp"]["tokenizer"] != self.facts["tokenizer"]:
            raise ConfigError("tokenizer.json is not the one that the run's checkpoints were trained with; put it back")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what another run needs to start from these weights."""
        tokens = self.global_step * self.config.run.batch_tokens
        checkpoint["lccp"] = self.facts | {"step": self.global_step, "tokens": tokens}
