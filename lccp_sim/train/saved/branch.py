"""A run that branches off another one, its trunk: it begins as a copy of it, at one of its checkpoints.

Both are the same run up to there, so the branch is what it would be from scratch, to the byte, without the cost: the
decay of a warm-up-stable-decay schedule can start from any window of a run at constant rate, and dense attention after
Lighthouse attention, too. Unlike `init_from`, which takes weights alone, optimizer, data order, records and windows go
on.
"""

import shutil
from pathlib import Path
from typing import Any

from lccp_sim.config import FREE, Config, Effect, OptimConfig, flatten
from lccp_sim.configure.load import config_keys, load_model, plain_config, unequal
from lccp_sim.configure.parse import parse
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.files import atomic_directory, atomic_file
from lccp_sim.models.lighthouse import LighthouseAttention
from lccp_sim.sums import check_sums
from lccp_sim.train.saved.checkpoint import checkpoints, manifest_of, read_checkpoint, resolve
from lccp_sim.train.saved.journal import DECISIONS, RECORDS, REFERENCE, TIMING
from lccp_sim.train.saved.run_directory import CORPUS

FILES = (RECORDS, TIMING, DECISIONS, CORPUS, "tokenizer.json")
FOLDERS = ("samples", REFERENCE, "tensorboard", "csv")
KEY = "run.branch_from"
DENSE = "model.attention.dense_from_tokens"


def branch(config: Config, directory: Path) -> None:
    """None, once a directory without a checkpoint holds all that its trunk had when it wrote `run.branch_from`.

    What the trunk wrote later is cut off when the run resumes there. Raises ConfigError where the trunk is another run
    before that checkpoint already.
    """
    if config.run.branch_from is None or checkpoints(directory):
        return
    path = resolve(config.run.branch_from, KEY)
    _check_same(config, read_checkpoint(path), path)
    trunk, kept = path.parent.parent, directory / "checkpoints"
    check_sums(trunk)
    for name in FILES:
        if (trunk / name).exists():
            shutil.copyfile(trunk / name, directory / name)
    for name in FOLDERS:
        if (trunk / name).exists():
            shutil.copytree(trunk / name, directory / name, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
    kept.mkdir(exist_ok=True)
    shutil.copyfile(manifest_of(path), kept / manifest_of(path).name)
    # The checkpoint comes last: killed before, the copy is made again.
    if path.is_dir():
        with atomic_directory(kept / path.name) as folder:
            shutil.copytree(path, folder, dirs_exist_ok=True)
    else:
        with atomic_file(kept / path.name) as file:
            shutil.copyfile(path, file)


def _check_same(config: Config, content: dict[str, Any], path: Path) -> None:
    """None, or ConfigError where a run of `config` would not have come to this checkpoint."""
    trunk, step = content["lccp"]["config"], content["global_step"]
    refuse(
        step >= config.run.steps,
        KEY,
        str(path),
        f"is at step {step}, and the run has {config.run.steps}; raise run.tokens",
    )
    old, new = flatten(trunk), flatten(plain_config(config))
    # The rates themselves, and when attention turned dense, are compared below.
    if differ := unequal(old, new, config_keys(*FREE, Effect.RATES) - {"run.init_from"} | {"run.name", DENSE}):
        shown = ", ".join(f"{key} ({old.get(key)!r} there, {new.get(key)!r} here)" for key in differ[:5])
        rule = "only the decay may differ, and when attention turns dense"
        raise ConfigError(f"{KEY}: {path} is of a run with other settings: {shown}; {rule}")
    _check_attention(config, load_model(trunk).attention, step, path)
    optim = parse(OptimConfig, trunk["optim"], "optim")
    steps = -(-trunk["run"]["tokens"] // trunk["run"]["batch_tokens"])
    other = [s for s in range(step + 1) if optim.factor(s, steps) != config.optim.factor(s, config.run.steps)]
    stopping = content.get("callbacks", {}).get("Stopping", {})
    rule = f"had another learning rate from step {min(other, default=step)} on; branch from an earlier checkpoint"
    refuse(other or stopping.get("rates"), KEY, str(path), rule)
    ended = stopping.get("since") is not None and config.run.stopping is not None
    refuse(ended, "run.stopping", stopping.get("action"), f"is what ended {path}; set run.stopping=null for the branch")


def _check_attention(config: Config, trunk: LighthouseAttention | None, step: int, path: Path) -> None:
    """None, or ConfigError where one of the steps up to a checkpoint attended densely in one run, and not in both."""
    own = config.model.attention
    if own is None or trunk is None:  # then both are
        return
    counts = [each * config.run.batch_tokens for each in range(step)]
    other = [tokens for tokens in counts if trunk.sparse(tokens) != own.sparse(tokens)]
    rule = f"{path} had {trunk.dense_from_tokens}, and another attention from {min(other, default=0)} tokens on"
    refuse(other, DENSE, own.dense_from_tokens, f"{rule}; branch from an earlier checkpoint")
