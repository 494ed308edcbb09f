"""A dry run: the model of a config cut over as many ranks as a layout has, on the meta device, beside what plan says.

It takes the `shard` and the optimizer that training takes, so that what it finds is what training would hold. What a
reader would question: no forward pass is run. Gradients are cut as FSDP2 cuts them, like their weights; what layers
gather and keep is not looked at.
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

ROUNDING = 0.02  # of a rank's weights: what cuts that do not come out even may add up to
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
    """A weight: its part, how it is cut, its size, and what this rank holds (numbers, then bytes)."""

    name: str
    part: str
    cut: str
    whole: int
    local: int
    row: int  # numbers of one index of a dimension: what a cut that does not come out even may add
    weight_bytes: int
    gradient_bytes: int
    moment_bytes: int


def laid_out(config: Config, layout: Layout) -> Config:
    """The config of a run with that layout. Raises ConfigError where training would refuse it, in the same words."""
    cut: dict[str, Any] = {"shard": layout.devices > 1, "ep": layout.ep, "cp": layout.cp}
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, **cut))
    tokens_at_once(config, layout.devices)
    return config


def held(config: Config, vocab_size: int, rank: int, world: int) -> tuple[list[Held], int]:
    """What `rank` of `world` holds of each weight, and the bytes of buffers, which every rank has whole."""
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
    """What the ranks hold, part by part, beside `plan` (of plan_run), as one tree of plain numbers.

    Looked at are the first rank and the last: cuts that do not come out even give the first more, and the last less.
    Raises ConfigError where training would refuse the layout.
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
    """None, or ConfigError with what a dry run found otherwise than plan says."""
    if tree["problems"]:
        more = f" (and {len(tree['problems']) - 1} more)" if tree["problems"][1:] else ""
        raise ConfigError(f"--dry-run: {tree['problems'][0]}{more}")


def _uneven(ranks: dict[int, tuple[list[Held], int]], world: int) -> list[str]:
    """Weights of which a rank holds more than an even cut and what rounding adds."""
    return [
        f"rank {rank} holds {weight.local:,} numbers of {weight.name} (cut: {weight.cut}), and plan cuts its "
        f"{weight.whole:,} evenly over {world} ranks"
        for rank, (found, _) in ranks.items()
        for weight in found
        if weight.local - weight.whole / world >= max(weight.row, 1)
    ]


def _sums(tree: dict[str, Any]) -> list[str]:
    """Sums over the weights that differ from plan's by more than cuts of many rows do."""
    parts = tree["parts"].items()
    problems = [
        f"{part} has {found['whole']:,} weights, and plan counts {found['planned_whole']:,}"
        for part, found in parts
        if found["whole"] != found["planned_whole"]
    ]
    part, worst = max(parts, key=lambda each: max(each[1]["local"]) - each[1]["planned"])
    for kind in ("weights", "gradients", "moments"):
        planned, most = tree[kind]["planned"], max(tree[kind]["local"])
        if most - planned > ROUNDING * planned:
            problems.append(
                f"a rank holds {most / 2**20:,.1f} MiB of {kind}, {most / planned - 1:.1%} more than the even cut of "
                f"plan; most of it {part}, cut {' and '.join(worst['cut'])}"
            )
    return problems
