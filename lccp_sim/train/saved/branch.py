"""Branches: a run that begins as a copy of another run, its trunk, at one of the trunk's checkpoints.

Both are the same run up to there, so the branch equals a run from scratch, byte for byte, without the cost. The decay
of a warm-up-stable-decay schedule can start from any window of a run at constant rate, and so can dense attention after
Lighthouse attention. Unlike `init_from`, which takes only weights, a branch continues optimizer, data order, records
and windows.
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

BRANCHED_FILES = (RECORDS, TIMING, DECISIONS, CORPUS, "tokenizer.json")
FOLDERS = ("samples", REFERENCE, "tensorboard", "csv")
KEY = "run.branch_from"
DENSE_UNTIL = "model.attention.dense_from_tokens"


def branch(config: Config, directory: Path) -> None:
    """Copy the trunk's files to a directory without a checkpoint, with the checkpoint `run.branch_from`.

    Resuming there truncates what the trunk wrote later. Raises ConfigError if the trunk is a different run even before
    that checkpoint.
    """
    if config.run.branch_from is None or checkpoints(directory):
        return
    path = resolve(config.run.branch_from, KEY)
    _check_same(config, read_checkpoint(path), path)
    trunk, kept = path.parent.parent, directory / "checkpoints"
    check_sums(trunk)
    for name in BRANCHED_FILES:
        if (trunk / name).exists():
            shutil.copyfile(trunk / name, directory / name)
    for name in FOLDERS:
        if (trunk / name).exists():
            shutil.copytree(trunk / name, directory / name, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
    kept.mkdir(exist_ok=True)
    shutil.copyfile(manifest_of(path), kept / manifest_of(path).name)
    # Copy the checkpoint last: after a kill the copy is made again.
    if path.is_dir():
        with atomic_directory(kept / path.name) as folder:
            shutil.copytree(path, folder, dirs_exist_ok=True)
    else:
        with atomic_file(kept / path.name) as file:
            shutil.copyfile(path, file)


def _check_same(config: Config, content: dict[str, Any], path: Path) -> None:
    """Raise ConfigError if a run of `config` would not have reached this checkpoint."""
    trunk, step = content["lccp"]["config"], content["global_step"]
    refuse(
        step >= config.run.steps,
        KEY,
        str(path),
        f"is at step {step}, but the run has {config.run.steps}; raise run.tokens",
    )
    old, new = flatten(trunk), flatten(plain_config(config))
    # The rates themselves, and when attention turned dense, are compared below.
    if differ := unequal(old, new, config_keys(*FREE, Effect.RATES) - {"run.init_from"} | {"run.name", DENSE_UNTIL}):
        shown = ", ".join(f"{key} ({old.get(key)!r} there, {new.get(key)!r} here)" for key in differ[:5])
        rule = "only the decay and the turn to dense attention may differ"
        raise ConfigError(f"{KEY}: {path} belongs to a run with other settings: {shown}; {rule}")
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
    """Raise ConfigError if a step up to the checkpoint attended densely in only one of the two runs."""
    own = config.model.attention
    if own is None or trunk is None:  # both are
        return
    counts = [each * config.run.batch_tokens for each in range(step)]
    other = [tokens for tokens in counts if trunk.sparse(tokens) != own.sparse(tokens)]
    rule = f"{path} had {trunk.dense_from_tokens}, so another attention from {min(other, default=0)} tokens on"
    refuse(other, DENSE_UNTIL, own.dense_from_tokens, f"{rule}; branch from an earlier checkpoint")
