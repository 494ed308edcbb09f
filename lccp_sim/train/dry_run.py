"""A dry run: the model of a config sharded over the ranks of a layout, on the meta device, compared with plan.

It uses training's own `shard` and optimizer, so its numbers are what training would hold. Design note: no forward pass
is run. Gradients are sharded as FSDP2 shards them, like their weights; tensors that layers gather and keep are not
counted.
"""

import dataclasses
from typing import Any, NamedTuple

import torch

from lccp_sim.config import Config
from lccp_sim.errors import ConfigError
from lccp_sim.models.transformer import Transformer
from lccp_sim.plan.memory import Layout
from lccp_sim.train.loop.module import LccpModule
from lccp_sim.train.parallel.collectives import local_part
from lccp_sim.train.parallel.fake_ranks import cuts, fake_rank
from lccp_sim.train.parallel.layout import tokens_at_once
from lccp_sim.train.parallel.sharding import shard

ROUNDING = 0.02  # share of a rank's weights: the most that uneven shards may add up to
PARTS = {
    "embedding": "embedding",
    "lm_head": "head",
    "attention": "attention",
    "router": "router",
    "shared": "shared experts",
    "dense": "dense layers",
    **dict.fromkeys(("gate_EFD", "up_EFD", "down_EFD"), "experts"),
}


class Held(NamedTuple):
    """A weight: its part, how it is sharded, its size, and this rank's share (elements, then bytes)."""

    name: str
    part: str
    cut: str
    whole: int
    local: int
    row: int  # elements per index of the sharded dimension: the most that an uneven shard adds
    weight_bytes: int
    gradient_bytes: int
    moment_bytes: int


def laid_out(config: Config, layout: Layout) -> Config:
    """The config of a run with that layout. Raises the ConfigError with which training would refuse it."""
    cut: dict[str, Any] = {"shard": layout.devices > 1, "ep": layout.ep, "cp": layout.cp}
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, **cut))
    tokens_at_once(config, layout.devices)
    return config


def held(config: Config, vocab_size: int, rank: int, world: int) -> tuple[list[Held], int]:
    """The share of each weight on `rank` of `world`, and the bytes of buffers, which every rank holds in full."""
    with fake_rank(rank, world) as mesh:
        with torch.device("meta"):
            model = Transformer(config.model, vocab_size)
        shard(model, mesh if world > 1 else None, config.run.ep, config.run.cp)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer = LccpModule(config, model, {}).configure_optimizers()["optimizer"]
        optimizer.step()
        found = []
        for name, p in model.named_parameters():
            part = next((PARTS[word] for word in name.split(".") if word in PARTS), "norms")
            assert p.grad is not None
            mine, moments = local_part(p), (optimizer.state[p][key] for key in ("exp_avg", "exp_avg_sq"))
            row = max(mine.numel() // size for size in mine.shape if size) if mine.numel() else 0
            sizes = mine.nbytes, local_part(p.grad).nbytes, sum(local_part(moment).nbytes for moment in moments)
            found.append(Held(name, part, cuts(p), p.numel(), mine.numel(), row, *sizes))
        return found, sum(buffer.nbytes for buffer in model.buffers())


def dry_run(config: Config, vocab_size: int, layout: Layout, plan: dict[str, Any]) -> dict[str, Any]:
    """Compare what the ranks hold, part by part, with `plan` (of plan_run): a tree of plain numbers.

    Only the first and the last rank are inspected: uneven shards give the first rank more, and the last less.
    Raises ConfigError if training would refuse the layout.
    """
    config = laid_out(config, layout)
    ranks = {rank: held(config, vocab_size, rank, layout.devices) for rank in sorted({0, layout.devices - 1})}
    first, buffers = ranks[0]
    tree: dict[str, Any] = {"ranks": layout.devices, "looked_at": list(ranks), "parts": {}, "buffer_bytes": buffers}
    for part, planned in plan["parameters"]["parts"].items():
        mine = [weight for weight in first if weight.part == part]
        tree["parts"][part] = {
            "whole": sum(weight.whole for weight in mine),
            "planned_whole": planned,
            "cut": sorted({weight.cut for weight in mine}),
            "planned": planned / layout.devices,
            "local": [sum(weight.local for weight in found if weight.part == part) for found, _ in ranks.values()],
        }
    for kind in ("weight", "gradient", "moment"):
        sums = [sum(getattr(weight, f"{kind}_bytes") for weight in found) for found, _ in ranks.values()]
        tree[f"{kind}s"] = {"planned": plan["memory"][f"{kind}s"], "local": sums}
    problems = [*_uneven(ranks, layout.devices), *_sums(tree)]
    return tree | {"problems": problems}


def agrees(tree: dict[str, Any]) -> None:
    """Raise ConfigError if a dry run found other numbers than plan."""
    if tree["problems"]:
        more = f" (and {len(tree['problems']) - 1} more)" if tree["problems"][1:] else ""
        raise ConfigError(f"--dry-run: {tree['problems'][0]}{more}")


def _uneven(ranks: dict[int, tuple[list[Held], int]], world: int) -> list[str]:
    """Weights whose share on a rank exceeds an even share plus rounding."""
    return [
        f"rank {rank} holds {weight.local:,} elements of {weight.name} (sharding: {weight.cut}), but plan shards its "
        f"{weight.whole:,} evenly over {world} ranks"
        for rank, (found, _) in ranks.items()
        for weight in found
        if weight.local - weight.whole / world >= max(weight.row, 1)
    ]


def _sums(tree: dict[str, Any]) -> list[str]:
    """Sums over the weights that differ from plan's by more than uneven shards explain."""
    parts = tree["parts"].items()
    problems = [
        f"{part} has {found['whole']:,} weights, but plan counts {found['planned_whole']:,}"
        for part, found in parts
        if found["whole"] != found["planned_whole"]
    ]
    part, worst = max(parts, key=lambda each: max(each[1]["local"]) - each[1]["planned"])
    for kind in ("weights", "gradients", "moments"):
        planned, most = tree[kind]["planned"], max(tree[kind]["local"])
        if most - planned > ROUNDING * planned:
            problems.append(
                f"a rank holds {most / 2**20:,.1f} MiB of {kind}, {most / planned - 1:.1%} more than plan's even "
                f"share; most of it {part}, sharded {' and '.join(worst['cut'])}"
            )
    return problems
