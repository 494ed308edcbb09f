"""The ranks of a run, and the only place that names torch.distributed.

`torchrun` starts the processes and says how many there are; a run takes what it is given, and no key repeats it. What a
reader would question: beside the group that training reduces over there is a second one, of gloo and patient, for what
one rank does while the others wait (reading a corpus, looking on). It never times out, and a rank that died still ends
it at once, because its connections close.

Weights that are cut over the ranks (FSDP2) are DTensors. Checkpoints hold whole tensors in one file all the same, and
the monitors look at a copy with whole weights: any layout goes on from any other, and every monitor runs, as long as
one device can hold the model.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._pytree import tree_map

from lccp_sim.config import Config, ConfigError
from lccp_sim.models.attention import attend_pieces
from lccp_sim.models.experts import Experts
from lccp_sim.models.transformer import Transformer
from lccp_sim.train.layout import starts, tokens_at_once

PATIENT = timedelta(days=30)
AXES = ("rows", "columns")  # of a mesh whose rows are neighbours
EXPERTS = ("gate_EFD", "up_EFD", "down_EFD")
Given = TypeVar("Given")


class LostRank(RuntimeError):
    """Another process of the run is gone, or did not answer in time."""


@dataclass(frozen=True)
class Ranks:
    """This process among `world` processes of a run. The one with rank 0 writes, and speaks."""

    rank: int = 0
    world: int = 1
    waiting: Any = None

    def first(self, work: Callable[[], Given]) -> Given:
        """What `work()` gives on rank 0, on every rank; the others wait for it. It must be picklable.

        An error is raised on rank 0; the others leave with exit status 1 and say nothing.
        """
        if self.world == 1:
            return work()
        told: list[Any] = [None, None]
        try:
            if self.rank == 0:
                told = [True, work()]
        finally:
            dist.broadcast_object_list(told, src=0, group=self.waiting)
            if not told[0] and self.rank:
                raise SystemExit(1)
        return told[1]

    def in_turn(self, work: Callable[[], Given]) -> Given:
        """What `work()` gives here, once it was done on rank 0: the others find what it left on disk."""
        mine: list[Given] = []
        self.first(lambda: mine.append(work()))
        return mine[0] if mine else work()

    def gather(self, work: Callable[[], Given]) -> list[Given]:
        """What `work()` gives on each rank, on every rank. Raises on every rank what it raised on any."""
        if self.world == 1:
            return [work()]
        try:
            mine: tuple[Any, Exception | None] = (work(), None)
        except Exception as error:  # noqa: BLE001
            mine = (None, error)
        every: list[Any] = [None] * self.world
        dist.all_gather_object(every, mine, group=self.waiting)
        for _, failure in every:
            if failure is not None:
                raise failure
        return [given for given, _ in every]

    def agree(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        if self.world == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.waiting)
        return int(largest)


ALONE = Ranks()


@contextmanager
def joined(config: Config) -> Iterator[Ranks]:
    """While it is open, this process is one of the ranks that `torchrun` started; without it, the only one.

    Raises ConfigError where the ranks cannot be laid out as the config says.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    tokens_at_once(config, world)
    if world == 1:
        yield ALONE
        return
    cuda = config.run.accelerator != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=config.run.timeout_minutes))
    try:
        yield Ranks(dist.get_rank(), world, dist.new_group(backend="gloo", timeout=PATIENT))
    finally:
        dist.destroy_process_group()


@contextmanager
def connected(config: Config) -> Iterator[None]:
    """While it is open, an error of the connection to the other ranks becomes a LostRank."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors that name its source files.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise LostRank(
            "another process of the run is gone, or did not answer within run.timeout_minutes="
            f"{config.run.timeout_minutes:g} (its own message says why); the same command goes on from the last "
            f"checkpoint ({' '.join(str(error).split())[:200]})"
        ) from error


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
        return _whole(Strategy.lightning_module_state_dict(self))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """None; each rank takes its part."""
        mine = Strategy.lightning_module_state_dict(self)
        state = {key: _cut(value, mine.get(key)) for key, value in checkpoint["state_dict"].items()}
        Strategy.load_model_state_dict(self, {"state_dict": state}, strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The state of an optimizer with whole tensors, on every rank."""
        return _whole(Strategy.optimizer_state(self, optimizer))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """None; each rank takes its part."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {i: {k: _cut(v, parameters[i]) for k, v in each.items()} for i, each in saved["state"].items()}
            optimizer.load_state_dict(saved | {"state": state})


def _whole(state: Any) -> Any:
    """The same tree with whole tensors, on the CPU. Every rank must call it."""
    return tree_map(lambda value: value.full_tensor().cpu() if isinstance(value, DTensor) else value, state)


def _cut(value: Any, like: Any) -> Any:
    """A whole tensor cut as `like` is; anything else as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def shard(model: Transformer, mesh: DeviceMesh | None, ep: int = 1, cp: int = 1) -> None:
    """None; cuts the weights over the data-parallel mesh of Lightning, a block at a time (None: leaves them whole).

    With `ep`, ranks stand in rows of `ep` neighbours: along a row the experts are cut by number, across rows by width.
    With `cp`, that many neighbours attend to each other's tokens, and average what a router's losses ask of a sequence.
    """
    if mesh is None or isinstance(model, FSDPModule):
        return
    ranks = mesh["data_parallel"]

    def mesh_of(neighbours: int) -> DeviceMesh:
        return init_device_mesh(ranks.device_type, (ranks.size() // neighbours, neighbours), mesh_dim_names=AXES)

    place = _place_experts(model, mesh_of(ep)) if ep > 1 else None
    if cp > 1:
        _share_rows(model, mesh_of(cp)["columns"].get_group())
    for block in model.layers:
        cut = fully_shard(block, mesh=ranks, shard_placement_fn=place)
        if ep > 1:
            # The exchange sums an expert's gradients over its row of ranks, FSDP over the rows: the mean is over both.
            cut.set_gradient_divide_factor(ranks.size())
            # gloo cannot scale while it sums; with one row there is no sum, and torch would scale twice.
            cut.set_force_sum_reduction_for_comms(ranks.size() > ep)
    fully_shard(model, mesh=ranks)


def _place_experts(model: Transformer, mesh: DeviceMesh) -> Callable[[nn.Parameter], Any]:
    """Which mesh and dimension FSDP cuts a parameter on, once the experts are cut over the second axis of `mesh`."""
    try:
        from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult
    except ImportError:
        raise ConfigError(f"run.ep: torch {torch.__version__} cannot shard over two meshes; 2.13 can") from None
    rows, columns = (mesh[axis] for axis in AXES)
    for block in model.layers:
        if block.moe is not None:
            for name in EXPERTS:
                weight = distribute_tensor(getattr(block.moe, name).data, columns, [Shard(0)], src_data_rank=None)
                setattr(block.moe, name, nn.Parameter(weight))
            block.moe.dispatch = partial(exchange, columns.get_group())
    across = ShardPlacementResult(Shard(1), FSDPMeshInfo(rows, shard_mesh_dim=0))
    return lambda parameter: across if isinstance(parameter, DTensor) else None


def _share_rows(model: Transformer, group: Any) -> None:
    for block in model.layers:
        block.attention.attend = partial(attend_across, group)
        if block.moe is not None:
            block.moe.average = lambda x: gathered(group, x.float()).mean(0)


def gathered(group: Any, x: Tensor) -> Tensor:
    """[ranks, *x.shape]: `x` of every rank of `group`. Its backward pass is the reduce-scatter that gloo lacks."""
    return all_to_all_single_autograd(torch.stack([x] * dist.get_world_size(group)), None, None, group)


def attend_across(
    group: Any, q_BSNH: Tensor, k_BSMH: Tensor, v_BSMH: Tensor, scale: float, bounds: Tensor, window: int | None
) -> Tensor:
    """[B, S, N, H]: `attend` of this rank's two pieces of each row, to the keys of all ranks of `group`."""
    pieces = [part.chunk(2, dim=1) for part in gathered(group, torch.cat((k_BSMH, v_BSMH), dim=-1))]
    kv_BTMH = torch.cat([early for early, _ in pieces] + [late for _, late in reversed(pieces)], dim=1)
    first = starts(kv_BTMH.shape[1], dist.get_rank(group), len(pieces))
    k_BTMH, v_BTMH = kv_BTMH.chunk(2, dim=-1)
    return attend_pieces(q_BSNH, k_BTMH, v_BTMH, scale, bounds, window, first)


def exchange(
    group: Any, run: Experts, x_RD: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EFD: Tensor, count_E: Tensor
) -> Tensor:
    """[R, D]: what `run` gives, each row computed by the rank of `group` that holds its expert.

    `x_RD` is sorted by expert, the weights are DTensors cut by expert. Two all-to-alls there and back (Source: arXiv
    2006.16668, section 3.2, without a capacity: no row is dropped), and a small one before them for the counts.
    """
    sent_PE = count_E.view(dist.get_world_size(group), -1)
    got_PE = torch.empty_like(sent_PE)
    dist.all_to_all_single(got_PE, sent_PE, group=group)
    here, there = got_PE.sum(1).tolist(), sent_PE.sum(1).tolist()
    x_SD = all_to_all_single_autograd(x_RD, here, there, group)
    # From each rank the rows come sorted by expert; a backend wants them sorted over all ranks.
    expert_S = torch.arange(got_PE.shape[1], device=x_RD.device).repeat(len(got_PE)).repeat_interleave(got_PE.flatten())
    order_S = expert_S.argsort(stable=True)
    gate, up, down = (w.to_local() if isinstance(w, DTensor) else w for w in (gate_EFD, up_EFD, down_EFD))
    y_SD = run(x_SD[order_S], gate, up, down, got_PE.sum(0))
    return all_to_all_single_autograd(y_SD[order_S.argsort()], there, here, group)


def whole(model: Transformer) -> Transformer:
    """The model itself, or a copy with whole weights where they are cut over the ranks. Every rank must call it."""
    if not isinstance(model, FSDPModule):
        return model
    with torch.device("meta"):
        copy = Transformer(model.config, model.vocab_size)
    copy.load_state_dict(_whole(model.state_dict()), assign=True)
    return copy.to(model.device)


def clip(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """The norm of all gradients before they are clipped to `limit`, over all ranks and meshes."""
    by_mesh: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        by_mesh.setdefault(parameter.device_mesh if isinstance(parameter, DTensor) else None, []).append(parameter)
    norms = [nn.utils.get_total_norm([p.grad for p in each if p.grad is not None]) for each in by_mesh.values()]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm = norms[0] if len(norms) == 1 else nn.utils.get_total_norm(norms)
    for each in by_mesh.values():
        nn.utils.clip_grads_with_norm_(each, limit, norm)
    return norm
