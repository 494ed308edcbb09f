"""Devices by name, and the layout of a run over them: the assumptions, and the impossible layouts.

Peaks and memory come from the manufacturers' public specifications (dense, no sparsity); a GB is 1e9 bytes. Design
note: the utilisation (MFU) is assumed; 0.25 is within the published range for mixtures of experts, 0.15 to 0.5.
"""

import os
from typing import NamedTuple

from lccp_sim.config import Config
from lccp_sim.errors import ConfigError, nearest, refuse
from lccp_sim.plan.memory import Layout

RESERVE = 0.08  # of a GPU's memory: allocator, workspaces, communication


class Hardware(NamedTuple):
    """One device: peak FLOP/s in bf16 and fp32, bytes, the assumed share of the peak, and the source."""

    name: str
    bf16_flops: float
    fp32_flops: float
    bytes: float
    mfu: float
    source: str

    def flops(self, bf16: bool) -> float:
        """The peak in FLOP/s."""
        return self.bf16_flops if bf16 else self.fp32_flops

    @property
    def usable(self) -> float:
        """Bytes available to a run."""
        return self.bytes * (1 - RESERVE)


def hardware(name: str, threads: int | None = None, mfu: float | None = None) -> Hardware:
    """The device of that name. Raises ConfigError. A `cpu` is `threads` cores of this machine (None: all)."""
    if name == "cpu":
        cores = threads or os.cpu_count() or 1
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        source = f"{cores} x one core's matrix products as in bench/results/plan_accuracy.json; this machine's memory"
        found = Hardware("cpu", 360e9 * cores, 89e9 * cores, float(memory), 0.3, source)
    else:
        names = ("cpu", *GPUS)
        known = f"no such hardware; there are {', '.join(names)}{nearest(name, names)}"
        refuse(name not in GPUS, "--hardware", name, known)
        found = GPUS[name]
    refuse(mfu is not None and not 0 < mfu <= 1, "--mfu", mfu, "must be above 0 and at most 1")
    return found._replace(mfu=mfu or found.mfu)


GPUS = {
    "h100": Hardware("h100", 989e12, 67e12, 80e9, 0.25, "NVIDIA H100 SXM data sheet"),
    "h200": Hardware("h200", 989e12, 67e12, 141e9, 0.25, "NVIDIA H200 SXM data sheet"),
    "a100": Hardware("a100", 312e12, 19.5e12, 80e9, 0.25, "NVIDIA A100 80GB SXM data sheet"),
}


def parse_layout(text: str) -> Layout:
    """Parse a layout such as `dp=8,ep=8,cp=1`; omitted parts are 1. Raises ConfigError."""
    sizes: dict[str, int] = {}
    for part in text.split(",") if text else ():
        key, _, value = part.strip().partition("=")
        rule = f"{key!r} is none of dp, ep, cp{nearest(key, Layout._fields)}; write dp=8,ep=8,cp=1"
        refuse(key not in Layout._fields, "--layout", text, rule)
        refuse(key in sizes, "--layout", text, f"{key} is there twice")
        refuse(
            not value.isdecimal() or int(value) < 1, "--layout", text, f"{key} must be a number of devices, 1 or more"
        )
        sizes[key] = int(value)
    return Layout(**sizes)


def rows_at_once(config: Config, layout: Layout, where: str = "--layout") -> int:
    """Tokens that `cp` devices process together: run.micro_batch_tokens, or their part of the batch.

    Raises ConfigError, naming `where` the layout is set, if it does not divide the experts, the batch or the context.
    """
    model, run = config.model, config.run
    dense = model.num_dense_layers == model.num_layers
    rule = "needs experts, and every layer of this model is dense; use dp"
    refuse(layout.ep > 1 and dense, f"{where} ep", layout.ep, rule)
    rule = f"must divide model.num_experts={model.num_experts}"
    refuse(model.num_experts % layout.ep and not dense, f"{where} ep", layout.ep, rule)
    rule = f"2 x cp must divide run.context_tokens={run.context_tokens}: each device takes an early and a late piece"
    refuse(layout.cp > 1 and run.context_tokens % (2 * layout.cp), f"{where} cp", layout.cp, rule)
    rule = "does not go with model.attention.kind=lighthouse, which needs unsplit rows; use dp"
    refuse(layout.cp > 1 and model.attention, f"{where} cp", layout.cp, rule)
    groups, rows = layout.dp * layout.ep, run.batch_tokens // run.context_tokens
    rule = f"dp x ep = {groups} must divide the {rows} rows of run.batch_tokens={run.batch_tokens}"
    refuse(rows % groups, where, ",".join(f"{k}={v}" for k, v in layout._asdict().items()), rule)
    micro = run.micro_batch_tokens or run.batch_tokens // groups
    rule = f"dp x ep = {groups} groups of so many must divide run.batch_tokens={run.batch_tokens}; lower it"
    refuse(run.batch_tokens % (micro * groups), "run.micro_batch_tokens", micro, rule)
    return micro


def fits(needed: float, device: Hardware, remedies: list[tuple[str, float]], how: str = "") -> None:
    """Raise ConfigError with required and available memory, and the first of `remedies` (change, bytes) that fits.

    `how` states in the message the condition under which this memory is needed.
    """
    if needed <= device.usable:
        return
    remedy = next((what for what, then in remedies if then <= device.usable), "nothing tried here is enough")
    raise ConfigError(
        f"--hardware {device.name}: a device needs {needed / 2**30:,.1f} GiB{how}, and has "
        f"{device.usable / 2**30:,.1f} of {device.bytes / 2**30:,.1f} to use; {remedy}"
    )
