"""A check of this machine: versions, devices, memory, loggers, and a trial of each expert backend on a tiny input.

A backend counts as usable only if its forward and backward agree with the plain loop on this machine. An import is not
enough: the kernels of a package may not match this device or this torch. Usable backends are timed, for information
only: `experts: auto` stays a fixed rule, so that a config gives the same bytes whatever else runs.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lccp_sim.verbs import Verb

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from lccp_sim.models.experts import Experts

CORE = ("lccp-sim", "torch", "lightning", "datasets", "tokenizers", "hydra-core", "pydantic", "numpy", "tensorboard")
OPTIONAL = {
    "transformers": "lccp-sim[hf]",
    "megablocks": "lccp-sim[megablocks]",
    "hydra-joblib-launcher": "lccp-sim[joblib]",
    "hydra-submitit-launcher": "lccp-sim[submitit]",
    "hydra-ray-launcher": "lccp-sim[ray]",
    "wandb": "wandb",
}
TIMED = {  # rows, experts, d_model, d_expert: a small layer, slow enough to time
    "cpu": (1024, 8, 512, 256),
    "cuda": (16384, 16, 1024, 1024),
}
ROUNDS = 5
AGREES = {"float32": 1e-4, "bfloat16": 5e-2}  # largest error over the largest value of the loop; bf16 keeps 8 bits


@dataclass(frozen=True)
class Finding:
    """One line of the answer: what was checked (topic, name), what was found, and whether it is usable."""

    topic: str
    name: str
    value: str
    ok: bool = True


def doctor(cache: Path) -> list[Finding]:
    """All findings, in display order. `cache`: the folder of corpora and probe sets."""
    from lccp_sim.models.experts import EXPERTS

    found = expert_rows(EXPERTS)
    return [*version_rows(), *machine_rows(), *disk_rows(cache), *found, *speed_rows(EXPERTS, found)]


def show(rows: list[Finding], console: Console) -> int:
    """Print the rows as a table; return the exit code: 0, or 1 if no expert backend is usable."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid("topic", "name", "ok", "value", padding=(0, 2))
    shown = ""
    for row in rows:
        mark = Text("ok", "green") if row.ok else Text("no", "yellow")
        topic = Text("" if row.topic == shown else row.topic, "bold")
        table.add_row(topic, row.name, mark, Text(row.value))  # Text: a value such as lccp-sim[hf] is not markup
        shown = row.topic
    console.print(table)
    return 0 if any(row.ok for row in rows if row.topic == "experts") else 1


def version_rows() -> list[Finding]:
    """The versions of Python, of the packages that training needs, and of optional ones, with how to install them."""
    from importlib import metadata  # late, as statistics: each command reads this module's options

    rows = [Finding("versions", "python", platform.python_version())]
    for name in (*CORE, *OPTIONAL):
        try:
            rows.append(Finding("versions", name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            need = "optional" if name in OPTIONAL else "needed"
            remedy = OPTIONAL.get(name, name)
            rows.append(Finding("versions", name, f"not installed ({need}): pip install '{remedy}'", ok=False))
    return rows


def machine_rows() -> list[Finding]:
    """Usable cores, memory in GiB, torch's threads, and each device with its bf16 support."""
    import psutil
    import torch

    from lccp_sim.train.loop.precision import SLOWER, bf16_units

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    rows = [
        Finding("machine", "cores", f"{cores} usable of {os.cpu_count()}, {torch.get_num_threads()} torch threads"),
        Finding("machine", "memory", f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}"),
    ]
    units, slow = bf16_units(), f"bf16 is emulated, {SLOWER} times slower than fp32 and more, and refused for training"
    bf16 = f"bf16 in hardware ({', '.join(units)})" if units else f"{slow}: use run.precision=fp32 or auto"
    rows.append(Finding("machine", "cpu", f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {bf16}"))
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if device.major >= 8 else "no bf16"
        what = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, sm_{device.major}{device.minor}, {bf16}"
        rows.append(Finding("machine", f"cuda:{index}", what))
    if not torch.cuda.is_available():
        why = "this torch is a CPU build" if torch.version.cuda is None else f"no device for CUDA {torch.version.cuda}"
        rows.append(Finding("machine", "cuda", why, ok=False))
    return rows


def disk_rows(cache: Path) -> list[Finding]:
    """The cache and the working directory, with free disk space in GiB, and whether they are writable."""
    rows = []
    for name, path in (("cache", cache.expanduser()), ("runs", Path.cwd())):
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        writable = os.access(there, os.W_OK)
        what = f"{path}, {shutil.disk_usage(there).free / 2**30:.1f} GiB free"
        rows.append(Finding("disk", name, what if writable else f"{what}, not writable", ok=writable))
    return rows


def expert_rows(experts: Mapping[str, Experts]) -> list[Finding]:
    """For each backend, on the CPU and on CUDA if available: usable, or the reason why not in one line.

    `experts` maps a name to `(x_RD, gate_EFD, up_EFD, down_EFD, count_E) -> y_RD`, including "loop", with which all are
    compared. CUDA is tried in bfloat16, the only dtype that fused kernels take; the CPU in float32.
    """
    rows = []
    for device, dtype in _places():
        for name, expert in experts.items():
            where = f"{device}, {str(dtype).removeprefix('torch.')}"
            try:
                rows.append(Finding("experts", name, f"{where}: {_agreement(expert, experts['loop'], device, dtype)}"))
            except Exception as error:  # whatever a backend raises is its finding
                line = next(iter(str(error).strip().splitlines()), "no message")
                rows.append(Finding("experts", name, f"{where}: {type(error).__name__}: {line}", ok=False))
    return rows


def _places() -> list[tuple[str, torch.dtype]]:
    import torch

    return [("cpu", torch.float32)] + ([("cuda", torch.bfloat16)] if torch.cuda.is_available() else [])


def speed_rows(experts: Mapping[str, Experts], found: list[Finding]) -> list[Finding]:
    """For each device, the forward and backward time of each backend that is usable there by `found` (of expert_rows).

    The last line of a device names the backend that `experts: auto` takes, and whether another was faster by more than
    noise: the slower quartile of its times is below the faster quartile of auto's.
    """
    import torch

    from lccp_sim.models.experts import choose_backend

    rows = []
    for device, dtype in _places():
        usable = {row.name: experts[row.name] for row in found if row.ok and row.value.startswith(device)}
        R, E, D, F = TIMED[device]
        where = f"{device}, {str(dtype).removeprefix('torch.')}"
        times = _times(usable, device, dtype)
        for name, (low, middle, high) in times.items():
            text = f"{where}: {1e3 * middle:.1f} ms, half of the times within {1e3 * low:.1f} to {1e3 * high:.1f}"
            rows.append(Finding("speed", name, text))
        chosen = choose_backend("auto", D, F, torch.device(device), dtype)
        auto = next((name for name, expert in usable.items() if expert is chosen), None)
        text = f"{where}: takes {auto} for {R:,} rows and {E} experts of {D} x {F}, whatever these times"
        best = min(times, key=lambda name: times[name][1], default=None)
        if auto is None:
            text = f"{where}: takes a backend that is not usable here" + (f"; set model.experts={best}" if best else "")
        elif best and times[best][2] < times[auto][0]:
            text += f"; {best} was faster by more than noise: set model.experts={best}"
        rows.append(Finding("speed", "auto", text, ok=auto is not None))
    return rows


def _times(experts: Mapping[str, Experts], device: str, dtype: torch.dtype) -> dict[str, list[float]]:
    """The quartiles of each backend's seconds, forward and backward; each round times all backends in turn."""
    import statistics

    import torch

    R, E, D, F = TIMED[device]
    shapes = ((R, D), (R, D), (E, F, D), (E, F, D), (E, F, D))
    grad_RD, *inputs = [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes]
    count_E = torch.full((E,), R // E, device=device)
    seconds: dict[str, list[float]] = {name: [] for name in experts}
    for _ in range(1 + ROUNDS):
        for name, expert in experts.items():
            begin = time.perf_counter()
            x_RD, gate_EFD, up_EFD, down_EFD = inputs
            y_RD = expert(x_RD, gate_EFD, up_EFD, down_EFD, count_E)
            torch.autograd.grad(y_RD, inputs, grad_RD)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.quantiles(each[1:], n=4) for name, each in seconds.items()}  # the first is a warm-up


def _agreement(expert: Experts, loop: Experts, device: str, dtype: torch.dtype) -> str:
    """A line with the largest error against the loop in float32; raises ValueError if it is too large."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 16), (3, 16, 16), (3, 16, 16), (3, 16, 16), (6, 16))  # x_RD, gate_EFD, up_EFD, down_EFD, grad_y_RD
    tensors = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    count_E = torch.tensor([2, 0, 4], device=device)  # an expert without tokens, as in training

    def run(backend: Experts, dtype: torch.dtype) -> list[torch.Tensor]:
        x_RD, gate_EFD, up_EFD, down_EFD, grad_y_RD = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
        y_RD = backend(x_RD, gate_EFD, up_EFD, down_EFD, count_E)
        return [y_RD.detach(), *torch.autograd.grad(y_RD, (x_RD, gate_EFD, up_EFD, down_EFD), grad_y_RD)]

    error = max(
        float((got.float() - wanted).abs().max() / wanted.abs().max())
        for got, wanted in zip(run(expert, dtype), run(loop, torch.float32), strict=True)
    )
    if not error <= AGREES[str(dtype).removeprefix("torch.")]:
        raise ValueError(f"its values or gradients differ from the loop's by {error:.1e} of the largest")
    return f"agrees with the loop to {error:.0e}, forward and backward"


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/lccp-sim"))


def _run(arguments: Namespace, console: Console) -> int:
    return show(doctor(arguments.cache.expanduser()), console)


DOCTOR_VERB = Verb(
    "check versions, devices and expert backends, and show what is wrong with them", _add_arguments, _run
)
