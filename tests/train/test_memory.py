"""Too little memory is said in one line: what plan expected, what there is, and what to change first."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console

from lccp_sim.config import Config
from lccp_sim.errors import ConfigError, OutOfMemory, is_message
from lccp_sim.train import run as run_module
from lccp_sim.train.loop.module import LccpModule
from lccp_sim.train.memory import Device, check_memory, device_of, enough_memory, expected_memory, remedies
from lccp_sim.train.run import fit, prepare

VOCABULARY = 400
SMALL = Device("a small one", 2**16, False)
NONE = {f"monitors.{name}": None for name in ("heads", "induction", "perplexity", "intervention", "probe", "routing")}


def test_a_device_that_is_large_enough_is_not_spoken_of(make: Callable[..., Config]) -> None:
    assert check_memory(make(), VOCABULARY, 1, Device("a large one", 2**40, True)) is None


def test_a_cpu_is_warned_about_and_a_gpu_refused_where_weights_alone_do_not_fit(make: Callable[..., Config]) -> None:
    config = make()
    line = check_memory(config, VOCABULARY, 1, SMALL)
    needs = expected_memory(config, VOCABULARY, 1, gpu=True)
    assert line is not None and "\n" not in line
    assert "memory: plan expects " in line and "but a small one has 0.1 MiB; try in this order: run.micro_batch" in line
    tight = Device("a GPU", (needs.state + needs.peak) / 2, True)
    assert check_memory(config, VOCABULARY, 1, tight) is not None  # perhaps it does fit
    with pytest.raises(ConfigError, match="memory: plan expects .* but a GPU has "):
        check_memory(config, VOCABULARY, 1, tight._replace(bytes=needs.state - 1))


def test_remedies_come_the_least_first_and_help(make: Callable[..., Config]) -> None:
    config = make()
    found = remedies(config, VOCABULARY, 4, gpu=True)  # four ranks have a row each
    assert [what for what, _ in found] == [
        "run.recompute_every=1",
        "run.shard=true",
        "run.shard=true run.cp=2 run.micro_batch_tokens=64",
    ]
    before = expected_memory(config, VOCABULARY, 4, gpu=True).peak
    assert all(then < before for _, then in found)
    assert [what for what, _ in remedies(config, VOCABULARY, 1, gpu=False)] == [
        "run.micro_batch_tokens=64",
        "run.recompute_every=1",
    ]
    sharded = dataclasses.replace(config, run=dataclasses.replace(config.run, shard=True))
    assert expected_memory(sharded, VOCABULARY, 4, True).state == expected_memory(config, VOCABULARY, 4, True).state / 4


def by_the_cpu() -> None:
    torch.empty(2**55, dtype=torch.uint8)


def raised(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    "fail",
    [
        raised(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB free.")),
        raised(MemoryError()),
        by_the_cpu,
    ],
    ids=["CUDA", "python", "CPU"],
)
def test_an_allocation_that_fails_says_what_was_expected(fail: Callable[[], None], make: Callable[..., Config]) -> None:
    with pytest.raises(OutOfMemory) as caught, enough_memory(make(), VOCABULARY, 1, SMALL):
        fail()
    assert str(caught.value).startswith("out of memory: plan expects ") and "\n" not in str(caught.value)
    assert is_message(caught.value)


def test_other_errors_stay_what_they_are(make: Callable[..., Config]) -> None:
    with pytest.raises(RuntimeError, match="^shapes differ$"), enough_memory(make(), VOCABULARY, 1, SMALL):
        raise RuntimeError("shapes differ")


def test_a_run_warns_and_fails_in_one_line(
    make: Callable[..., Config], say: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: LccpModule, *a: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(LccpModule, "training_step", step)
    monkeypatch.setattr(run_module, "device_of", lambda config: SMALL)
    run = prepare(make(NONE), say)
    with pytest.raises(OutOfMemory, match="a small one has 0.1 MiB; .* Tried to allocate 2.00 GiB"):
        fit(run, say)
    assert "warning: memory: plan expects" in say.file.getvalue()  # type: ignore[attr-defined]
    assert (run.directory / "FAILED").read_text().startswith("out of memory: plan expects")


@pytest.mark.parametrize("experts", [2**40, 10**30])  # more than any machine has; more than 64 bits count
def test_a_model_that_cannot_be_allocated_is_one_line(make: Callable[..., Config], say: Console, experts: int) -> None:
    run = prepare(make({**NONE, "monitors.needle": None, "model.num_shared_experts": experts}), say)
    with pytest.raises(OutOfMemory, match="^out of memory: plan expects .* a smaller model") as caught:
        fit(run, say)
    assert is_message(caught.value) and "\n" not in str(caught.value)


def test_ranks_of_a_machine_share_its_memory(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    config = make({"run.accelerator": "cpu"})
    alone = device_of(config)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device_of(config).bytes == alone.bytes / 4 and "4 ranks" in device_of(config).name
