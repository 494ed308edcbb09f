"""A run on several processes is the run on one: the same losses, gradient norms and records, to rounding."""

import io
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console

from lccp_sim.config import Config
from lccp_sim.configure.load import load_config
from lccp_sim.errors import ConfigError
from lccp_sim.models.moe import Router
from lccp_sim.models.transformer import Block
from lccp_sim.records import read_records
from lccp_sim.train.loop.module import LccpModule
from lccp_sim.train.run import train
from tests.train.test_resume import at_step
from tests.train.tiny import final, plain

FEW = {"monitors.intervention": None, "monitors.probe": None, "run.log_every_steps": 1}
SHARD = {"run.shard": True}
EP = {"run.shard": True, "run.ep": 2}
CP = {"run.shard": True, "run.cp": 2}
MICRO = {"run.micro_batch_tokens": 64}
AGAIN = {"run.recompute_every": 1}


def run(config: Config) -> None:
    """None; trains without a word."""
    train(config, Console(file=io.StringIO()))


def start(
    config: Config,
    world: int,
    plant: Callable[[int], None] = lambda rank: None,
    work: Callable[[Config], None] = run,
) -> list[int]:
    """Does `work` on `world` forked processes, as torchrun would; the process ids. `plant(rank)` comes first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush(), sys.stderr.flush()
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            status = 1
            try:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
                os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world), "MASTER_PORT": str(port)}
                rank_zero_only.rank = rank
                plant(rank)
                work(config)
                status = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    return children


def ended(children: list[int]) -> list[int]:
    """The exit statuses of these processes, once all have ended."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def table(directory: Path) -> dict[tuple, float]:
    """Values of a run's records by step, monitor, metric and tags. Fails where one comes twice."""
    records = read_records(directory / "records.jsonl")[0]
    found = {(r.step, r.monitor, r.metric, *sorted(r.tags.items())): r.value for r in records}
    assert len(found) == len(records)
    return found


def assert_close(one: Path, other: Path) -> None:
    mine, theirs = table(one), table(other)
    assert list(mine) == list(theirs)
    assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-6)


MANY = {
    "ddp-2-micro": (2, MICRO),
    "ddp-4-again": (4, AGAIN),
    "fsdp-2-micro": (2, SHARD | MICRO),
    "fsdp-4-again": (4, SHARD | AGAIN),
    "ep-2-micro": (2, EP | MICRO),
    "ep-2-fsdp-2": (4, EP),
    "cp-2-micro": (2, CP | MICRO),
    "cp-2-fsdp-2": (4, CP),
    "cp-2-ep-2-again": (4, CP | EP | AGAIN),
}


@pytest.fixture(scope="module")
def one(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one process. Only to be read."""
    tree = plain(tmp_path_factory.mktemp("one"), shared)
    for key, value in FEW.items():
        group, name = key.split(".")
        tree[group][name] = value
    return train(load_config(tree), Console(file=io.StringIO()))


@pytest.mark.parametrize(("world", "changes"), MANY.values(), ids=MANY)
def test_several_processes_are_one(
    world: int, changes: dict, one: Path, make: Callable[..., Config], tmp_path: Path
) -> None:
    assert ended(start(make(FEW | changes), world)) == [0] * world
    several = next(tmp_path.glob("runs/tiny-*"))
    assert several.name == one.name
    assert (several / "DONE").exists()
    assert_close(one, several)


@pytest.mark.parametrize(("world", "changes"), [(2, SHARD), (2, EP), (4, CP | EP | AGAIN)], ids=["fsdp", "ep", "all"])
def test_in_bf16_several_processes_are_one_but_for_rounding(
    world: int, changes: dict, make: Callable[..., Config], say: Console
) -> None:
    few = FEW | {"run.precision": "bf16", "run.tokens": 1024} | {f"monitors.{n}": None for n in ("heads", "induction")}
    one = train(make(few | {"run.name": "one"}), say)
    gathered: Path = one.parent / "gathered"

    def note(rank: int) -> None:
        of_router, of_block, dtypes = Router.forward, Block.forward, {}

        def router(self: Router, x: torch.Tensor) -> torch.Tensor:
            dtypes["router"], dtypes["its rows"] = self.weight.dtype, x.dtype
            return of_router(self, x)

        def block(self: Block, *inputs: Any) -> Any:
            out = of_block(self, *inputs)
            dtypes["matrices"], dtypes["norm"] = self.attention.qkv.weight.dtype, self.moe_norm.weight.dtype
            gathered.write_text(repr(dtypes))
            return out

        Router.forward, Block.forward = router, block  # type: ignore[method-assign]

    assert ended(start(make(few | {"run.name": "several"} | changes), world, note)) == [0] * world
    exact = dict.fromkeys(("router", "its rows"), torch.float32)
    assert gathered.read_text() == repr(exact | {"matrices": torch.bfloat16, "norm": torch.float32})
    mine, theirs = table(one), table(next(one.parent.glob("several-*")))
    assert list(mine) == list(theirs)
    losses = [key for key in mine if key[1] == "train"]
    assert len(losses) > 4 and {k: mine[k] for k in losses} == pytest.approx({k: theirs[k] for k in losses}, rel=5e-3)


def test_experts_that_ranks_do_not_divide_are_cut_by_width(make: Callable[..., Config], say: Console) -> None:
    few = FEW | {f"monitors.{name}": None for name in ("heads", "induction", "perplexity")} | {"model.num_experts": 3}
    one = train(make(few | {"run.name": "one"}), say)
    assert ended(start(make(few | {"run.name": "several"} | SHARD), 2)) == [0, 0]
    assert_close(one, next(one.parent.glob("several-*")))


def test_a_killed_rank_ends_the_run_with_a_reason_and_it_goes_on(
    make: Callable[..., Config], say: Console, capfd: pytest.CaptureFixture[str]
) -> None:
    few = {"run.checkpoint_every_steps": 2, "run.timeout_minutes": 0.2} | FEW
    few |= {f"monitors.{name}": None for name in ("heads", "induction", "perplexity")}
    one = train(make(few | {"run.name": "one"}), say)
    config = make(few | {"run.name": "several"})

    def die(rank: int) -> None:
        if rank == 1:
            at_step(5)

    assert ended(start(config, 2, die)) == [1, -signal.SIGKILL]
    assert "another process of the run is gone" in capfd.readouterr().err
    several = next(one.parent.glob("several-*"))
    assert (several / "FAILED").read_text().startswith("another process")
    assert ended(start(config, 2)) == [0, 0]
    assert not (several / "FAILED").exists()
    assert_close(one, several)


LAYOUTS = {"one": (1, {}), "ddp": (2, {}), "fsdp": (2, SHARD), "ep": (2, EP), "cp": (2, CP)}


@pytest.mark.parametrize(("before", "after"), [("fsdp", "one"), ("ddp", "fsdp"), ("one", "ep"), ("ep", "cp")])
def test_a_signal_to_one_rank_saves_on_all_and_the_run_goes_on_at_another_layout(
    before: str, after: str, make: Callable[..., Config], say: Console
) -> None:
    few = FEW | {f"monitors.{name}": None for name in ("heads", "induction", "perplexity")}
    uninterrupted = train(make(few | {"run.name": "one"}), say)
    configs = [make(few | {"run.name": "several"} | LAYOUTS[name][1]) for name in (before, after)]

    def interrupt(rank: int) -> None:
        plain = LccpModule.training_step

        def step(self: LccpModule, *a: Any) -> Any:
            if rank == LAYOUTS[before][0] - 1 and self.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(self, *a)

        LccpModule.training_step = step  # type: ignore[method-assign]

    assert set(ended(start(configs[0], LAYOUTS[before][0], interrupt))) == {0}
    directory = next(uninterrupted.parent.glob("several-*"))
    assert sorted(path.name for path in directory.glob("checkpoints/last-*.ckpt")) == ["last-00000005.ckpt"]
    assert set(ended(start(configs[1], LAYOUTS[after][0]))) == {0}
    assert (directory / "DONE").exists()
    assert_close(uninterrupted, directory)
    mine, theirs = final(uninterrupted), final(directory)
    assert list(mine) == list(theirs)
    # Adam makes a step of full size of a gradient that is nothing but rounding.
    assert all(torch.allclose(mine[key], theirs[key], rtol=1e-4, atol=3e-5) for key in mine)


def test_sharded_weights_are_cut(make: Callable[..., Config], say: Console) -> None:
    few = FEW | {f"monitors.{name}": None for name in ("heads", "induction", "perplexity", "needle")}

    def check(rank: int) -> None:
        def step(self: LccpModule, *a: Any) -> Any:
            parameters = list(self.model.parameters())
            held = sum(p.to_local().numel() for p in parameters)
            whole = sum(p.numel() for p in parameters)
            os._exit(7 if held < 0.51 * whole else 8)

        LccpModule.training_step = step  # type: ignore[method-assign]

    assert ended(start(make(few | {"run.shard": True}), 2, check)) == [7, 7]


def test_what_one_rank_cannot_learn_from_ends_all_and_names_the_documents(
    make: Callable[..., Config], capfd: pytest.CaptureFixture[str]
) -> None:
    few = FEW | {f"monitors.{name}": None for name in ("heads", "induction", "perplexity", "needle")}

    def spoil(rank: int) -> None:
        plain = LccpModule.training_step

        def step(self: LccpModule, batch: dict[str, Any], index: int) -> Any:
            loss = plain(self, batch, index)
            if rank == 1 and self.global_step == 4:
                self.step_parts = [(loss.detach() * float("nan"), ["prose/the-one"])]
                return loss * float("nan")
            return loss

        LccpModule.training_step = step  # type: ignore[method-assign]

    assert ended(start(make(few), 2, spoil)) == [1, 1]
    assert "the loss is nan at step 5, on documents prose/the-one, " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("world", "changes", "message"),
    [
        (3, {}, r"torchrun='dp=3,ep=1,cp=1': .* must divide the 4 rows of run.batch_tokens"),
        (2, {"run.micro_batch_tokens": 256}, r"run.micro_batch_tokens=256: .* = 2 groups of so many must divide"),
        (
            4,
            CP | {"run.context_tokens": 66, "run.batch_tokens": 264},
            r"torchrun cp=2: .* must divide run.context_tokens=66",
        ),
        (1, EP, r"run.ep=2: .* must divide the 1 processes; start others with torchrun"),
        (4, EP | {"model.num_experts": 5}, r"torchrun ep=2: must divide model.num_experts=5"),
        (4, EP | {"model.d_expert": 15}, r"run.ep=2: leaves 2 ranks .* which do not divide model.d_expert=15"),
    ],
)
def test_what_the_ranks_do_not_divide_is_refused(
    world: int,
    changes: dict,
    message: str,
    make: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    say: Console,
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("WORLD_SIZE", str(world))
    with pytest.raises(ConfigError, match=message):
        train(make(changes), say)


@pytest.mark.parametrize("key", ["run.ep", "run.cp"])
def test_experts_and_rows_are_shared_with_the_weights_alone(key: str, make: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=rf"{key}=2: .*; set run.shard=true"):
        make({key: 2})
