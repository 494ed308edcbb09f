"""What another value of a key changes: directories keep their names, and every comparison of configs its keys."""

from pathlib import Path

import pytest

from lccp_sim.analysis.run import PLACE_KEYS
from lccp_sim.config import FREE, Effect, ModelConfig, is_one_of, keys_with
from lccp_sim.configure.compose import check
from lccp_sim.configure.load import config_keys, unequal
from lccp_sim.train.saved.run_directory import run_directory

NAMES = {
    "smoke": "smoke-s0-93fe7e6b",
    "tiny_emergence": "tiny_emergence-s0-18749b6b",
    "tiny_lccp": "tiny_lccp-s0-e12715a9",
    "small_lccp": "small_lccp-s0-1f8cba8b",
    "smoke run.init_optimizer=carried": "smoke-s0-0e424c1f",
    "smoke data.order_seed=3": "smoke-s0-f1ce8761",
    "smoke optim.schedule=cosine": "smoke-s0-8565b338",
    "smoke run.precision=bf16": "smoke-s0-1e5c29d5",
    "smoke run.stopping.action=decay run.stopping.decay_tokens=4096": "smoke-s0-94d4bd18",
    "smoke run.tokens=1000000 run.threads=7 data.cache=/c data.mirror=/m run.precondition=true": "smoke-s0-93fe7e6b",
}
KEYS = {
    (Effect.FIXED,): "run.name run.precondition run.deterministic run.log_every_steps run.init_optimizer "
    "run.tensorboard_axis",
    (Effect.PLACE,): "run.root run.init_from run.branch_from data.cache data.mirror",
    (Effect.SPEED,): "run.accelerator run.threads run.loggers run.micro_batch_tokens run.checkpoint_every_steps "
    "run.shard run.ep run.cp run.timeout_minutes run.recompute_every run.checkpoints",
    (Effect.LATER,): "run.tokens run.stopping",
    (Effect.RATES,): "optim.schedule optim.decay_steps optim.final_lr_frac",
    (Effect.REACH,): "model.window_tokens model.full_attention_every",
    (Effect.APART,): "model.rope model.experts model.init_std model.previous_token_heads model.qk_norm_gain "
    "model.attention model.router.balance_loss model.router.z_loss model.router.bias_update_rate",
}


@pytest.mark.parametrize("effects", KEYS, ids=lambda each: each[0].name)
def test_each_effect_has_its_keys(effects: tuple[Effect, ...]) -> None:
    assert config_keys(*effects) == set(KEYS[effects].split())


@pytest.mark.parametrize("words", NAMES)
def test_a_directory_keeps_its_name(words: str) -> None:
    config = check([f"run={words.split()[0]}", *words.split()[1:]])
    assert run_directory(config, None) == Path(config.run.root) / NAMES[words]


def test_tables_leave_out_where_things_lie() -> None:
    assert config_keys(Effect.PLACE) | {"run.name"} == PLACE_KEYS


def test_a_key_may_change_with_all_that_lies_inside_it() -> None:
    may = config_keys(*FREE)
    assert is_one_of("run.stopping.eps", may) and is_one_of("run.tokens", may) and not is_one_of("run.tokens_", may)
    old, new = {"run.tokens": 1, "run.loggers.a": 1, "optim.lr": 1}, {"run.tokens": 2, "optim.lr": 2, "seed": 0}
    assert unequal(old, new, may) == ["optim.lr", "seed"]
    assert "router.z_loss" in keys_with(ModelConfig, "", Effect.APART)
