"""What decides the last bits of every number: the precision, what `auto` becomes of it, and the threads of torch.

A CPU without bf16 arithmetic emulates it, in products that take many times as long as fp32's (bench/bf16_cpu.py).
"""

import dataclasses
from typing import Literal

import torch

from lccp_sim.config import Config
from lccp_sim.errors import refuse

SLOWER = 25  # times that a bf16 product takes of fp32's at 512 x 512, held to AVX2; 93 at 1024 (bench/bf16_cpu.py)
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
    """None, or ConfigError where a run would train in bf16 on a CPU that emulates it."""
    rule = (
        f"this CPU has no bf16 arithmetic (avx512_bf16 or amx_bf16), and emulates it: matrix products take {SLOWER} "
        "times as long as in fp32 and more (bench/bf16_cpu.py); set run.precision=fp32, or auto"
    )
    refuse(config.run.precision == "bf16" and not native, "run.precision", "bf16", rule)


def set_threads(config: Config) -> None:
    """Take `run.threads`, which decide the order of sums; null leaves torch its own choice."""
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
