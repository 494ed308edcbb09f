"""Settings that decide the last bits of every number: the precision (with `auto` resolved) and torch's threads.

A CPU without bf16 arithmetic emulates it; its products take many times as long as in fp32 (bench/bf16_cpu.py).
"""

import dataclasses
from typing import Literal

import torch

from lccp_sim.config import Config
from lccp_sim.errors import refuse

SLOWER = 25  # bf16 time over fp32 time of a 512 x 512 product, limited to AVX2; 93 at 1024 (bench/bf16_cpu.py)
UNITS = ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")  # as torch names them, x86 and Arm


def bf16_units() -> list[str]:
    """The bf16 instructions that this CPU has, by torch's names; none where bf16 is emulated."""
    has = torch.cpu.get_capabilities()
    return [unit for unit in UNITS if has.get(unit)]


def bf16_is_native(accelerator: str) -> bool:
    """Whether the device that `run.accelerator` picks here has bf16 arithmetic of its own."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_capability()[0] >= 8
    return bool(bf16_units())


def settle(config: Config, native: bool) -> Config:
    """The config with bf16 or fp32 for `run.precision=auto`: bf16 where the device has it (`native`)."""
    if config.run.precision != "auto":
        return config
    precision: Literal["bf16", "fp32"] = "bf16" if native else "fp32"
    return dataclasses.replace(config, run=dataclasses.replace(config.run, precision=precision))


def check_bf16(config: Config, native: bool) -> None:
    """Raise ConfigError if a run would train in bf16 on a CPU that emulates it."""
    rule = (
        "this CPU has no bf16 arithmetic (avx512_bf16 or amx_bf16) and emulates it: matrix products take at least "
        f"{SLOWER} times as long as in fp32 (bench/bf16_cpu.py); set run.precision=fp32, or auto"
    )
    refuse(config.run.precision == "bf16" and not native, "run.precision", "bf16", rule)


def set_threads(config: Config) -> None:
    """Set torch's threads to `run.threads`, which decides the order of sums; null keeps torch's own choice."""
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
