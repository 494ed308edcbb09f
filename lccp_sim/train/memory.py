"""Messages about too little memory: the peak that plan expects, what the device has, and what to change.

Design note: a run is refused only if the device cannot hold even the weights and their states. The rest of the peak is
predicted to within some 15 %, and a CPU may have swap, so exceeding it is a warning.
"""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psutil
import torch

from lccp_sim.config import Config
from lccp_sim.errors import ConfigError, OutOfMemory
from lccp_sim.plan.memory import Layout, memory, place_of
from lccp_sim.plan.shapes import shape_of
from lccp_sim.train.parallel.layout import tokens_at_once


class Device(NamedTuple):
    """The memory of one rank: the device's name, bytes, and whether it is a GPU."""

    name: str
    bytes: float
    gpu: bool


def device_of(config: Config) -> Device:
    """The device on which a rank of this run trains. Ranks of one machine share its memory evenly."""
    if config.run.accelerator != "cpu" and torch.cuda.is_available():
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        return Device(found.name, float(found.total_memory), True)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    whose = f"this machine for each of its {ranks} ranks" if ranks > 1 else "this machine"
    return Device(whose, psutil.virtual_memory().total / ranks, False)


class Expected(NamedTuple):
    """Bytes of a rank: the peak, and the weights, gradients and optimizer moments within it."""

    peak: float
    state: float


def expected_memory(config: Config, vocab_size: int, world: int, gpu: bool) -> Expected:
    """The memory that plan expects on one of `world` ranks. Raises ConfigError if this layout is impossible."""
    run, tokens = config.run, tokens_at_once(config, world)
    layout = Layout(world // (run.ep * run.cp), run.ep, run.cp) if run.shard else Layout()
    shape = shape_of(config.model, vocab_size)
    place, row = place_of(config, gpu), run.context_tokens
    needs = memory(config.model, shape, tokens // run.cp, layout, place, run.recompute_every, row)
    return Expected(needs.peak(run.recompute_every), needs.state)


def check_memory(config: Config, vocab_size: int, world: int, device: Device) -> str | None:
    """A line if plan expects more than the device has, else None.

    Raises ConfigError if a GPU cannot hold even weights, gradients and the optimizer's moments.
    """
    needs = expected_memory(config, vocab_size, world, device.gpu)
    if needs.peak <= device.bytes:
        return None
    line = f"memory: {words(config, vocab_size, world, device)}"
    if device.gpu and needs.state > device.bytes:
        raise ConfigError(line)
    return line


@contextmanager
def enough_memory(config: Config, vocab_size: int, world: int, device: Device) -> Iterator[None]:
    """Within the context, an allocation error becomes an OutOfMemory that says what was expected."""
    try:
        yield
    except (MemoryError, RuntimeError, TypeError) as error:
        # The CPU's allocator raises plain RuntimeErrors, and a size beyond 64 bits a TypeError.
        named = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not named and not any(word in str(error) for word in ("DefaultCPUAllocator", "verflow")):
            raise
        why = " ".join(str(error).split())[:200] or "an allocation failed"
        raise OutOfMemory(f"out of memory: {words(config, vocab_size, world, device)} ({why})") from error


def words(config: Config, vocab_size: int, world: int, device: Device) -> str:
    """What plan expects, what the device has, and the keys to change, smallest change first, with the estimate."""
    needs, tokens = expected_memory(config, vocab_size, world, device.gpu), tokens_at_once(config, world)
    tries = [f"{what} ({_gib(then)})" for what, then in remedies(config, vocab_size, world, device.gpu)]
    tries += ["more processes with run.shard=true", "a smaller model or run.context_tokens"]
    return (
        f"plan expects {_gib(needs.peak)} at the peak, {_gib(needs.state)} of it weights, gradients and moments, with "
        f"{tokens // config.run.cp:,} tokens at once, but {device.name} has {_gib(device.bytes)}; "
        f"try in this order: {', '.join(tries)}"
    )


def remedies(config: Config, vocab_size: int, world: int, gpu: bool) -> list[tuple[str, float]]:
    """Key changes that lower the peak on the same ranks, smallest first, with the bytes that plan then expects."""
    run, row = config.run, config.run.context_tokens
    at_once = tokens_at_once(config, world)
    tries: list[dict[str, Any]] = [{"micro_batch_tokens": row}] if at_once > row else []
    tries += [{"recompute_every": 1}] if run.recompute_every != 1 else []
    tries += [{"shard": True}] if not run.shard and world > 1 else []
    tries += [{"shard": True, "cp": 2 * run.cp, "micro_batch_tokens": row}] if world > 1 else []
    before, found = expected_memory(config, vocab_size, world, gpu).peak, []
    for changes in tries:
        try:
            other = dataclasses.replace(config, run=dataclasses.replace(run, **changes))
            then = expected_memory(other, vocab_size, world, gpu).peak
        except ConfigError:  # this layout is impossible
            continue
        if then < before:
            new = {key: value for key, value in changes.items() if getattr(run, key) != value}
            found.append((" ".join(f"run.{key}={str(value).lower()}" for key, value in new.items()), then))
    return found


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:,.1f} MiB"
