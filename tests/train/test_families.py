"""Models of other parts than Hunyuan's train, resume and chain, and leave no trace of being watched."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from lccp_sim.config import Config
from lccp_sim.errors import ConfigError
from lccp_sim.models.transformer import Transformer
from lccp_sim.train.loop.module import LccpModule
from lccp_sim.train.series import measure
from tests.train.test_run import UNWATCHED, rows
from tests.train.tiny import BATCH, assert_same_run, final

ROUTER = {"scores": "sigmoid", "scale": 2.5, "num_groups": 2, "num_groups_kept": 1, "bias_update_rate": 0.001}
OTHER = {
    "run.tokens": 6 * BATCH, "run.checkpoint_every_steps": 6, "model.num_dense_layers": 1, "model.d_dense": 48,
    "model.qk_norm": "full_width", "model.qkv_bias": True, "model.out_bias": True, "model.window_tokens": 16,
    "model.full_attention_every": 2, "model.router": ROUTER, "model.vocab_size": 512,
    "model.rope": {"kind": "yarn", "base": 10000, "factor": 2, "original_context_tokens": 32},
}  # fmt: skip
DENSE = {"run.tokens": 2 * BATCH, "model.num_dense_layers": 2, "model.d_dense": 48, "monitors.routing": None}


def test_a_model_of_other_parts_is_trained_watched_and_resumed(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bias moves in the layers with experts alone, by as much whether it is watched or not."""
    watched = run({**OTHER, "run.name": "watched"})
    weights = final(watched, 6)
    assert len(weights["model.embedding.weight"]) == 512
    assert weights["model.blocks.1.moe.bias_E"].any() and "model.blocks.0.moe.bias_E" not in weights
    routed = {row["tags"].get("layer") for row in rows(watched) if row["monitor"] == "routing"}
    assert routed == {None, 1}

    plain = LccpModule.training_step

    def stop(self: LccpModule, batch: Any, index: int) -> Any:
        if self.global_step == 5:
            raise KeyError("stopped")
        return plain(self, batch, index)

    with monkeypatch.context() as patch, pytest.raises(KeyError, match="stopped"):
        patch.setattr(LccpModule, "training_step", stop)
        run({**OTHER, "run.name": "stopped"})
    assert_same_run(run({**OTHER, "run.name": "stopped"}), watched, 6)
    unwatched = final(run({**OTHER, **UNWATCHED, "run.name": "unwatched"}), 6)
    assert all(torch.equal(weights[key], unwatched[key]) for key in weights)


def test_a_dense_model_is_trained_measured_and_chained(run: Callable[..., Path], tmp_path: Path, say: Console) -> None:
    base = run(DENSE)
    assert not any(".moe." in key for key in final(base, 2))
    assert measure(base, tmp_path / "out", True, [], lambda: None, say) == 0
    longer = run({**DENSE, **UNWATCHED, "run.name": "longer", "run.init_from": str(base)})
    assert final(longer, 0).keys() == final(base, 2).keys()
    with pytest.raises(ConfigError, match=r"has another shape: model.num_dense_layers \(2 there, 0 here\)"):
        run({"run.name": "other", "run.init_from": str(base)})
    with pytest.raises(ConfigError, match="a dense model has no experts to count; set monitors.routing=null"):
        run({**DENSE, "run.name": "routed", "monitors.routing": {"source": "prose", "context_tokens": 64}})


def test_the_bias_goes_to_the_experts_that_a_step_starved(make: Callable[..., Config]) -> None:
    config = make({"model.num_dense_layers": 1, "model.d_dense": 8})
    module = LccpModule(config, Transformer(config.model, 50), {})
    strategy = SimpleNamespace(reduce=lambda counts, reduce_op: counts * 2)
    module.trainer = SimpleNamespace(strategy=strategy)
    module.step_counts = torch.tensor([[0, 0, 0, 0], [8, 0, 4, 4]])
    module.update_router_bias()
    assert module.model.blocks[1].moe.bias_E.tolist() == pytest.approx([-0.001, 0.001, 0.0, 0.0])
