"""What this machine can run: versions, devices, memory, loggers, and each expert backend tried on a tiny input.

A backend counts as usable only when its forward and backward agree with the plain loop here and now; that a package can
be imported says too little, as its kernels may miss the device or the torch that they were built for.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

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
AGREES = {"float32": 1e-4, "bfloat16": 5e-2}  # largest error over the largest value of the loop; bf16 keeps 8 bits


@dataclass(frozen=True)
class Row:
    """One line of the answer: what was looked at (topic, name), what was found, and whether it can be used."""

    topic: str
    name: str
    value: str
    ok: bool = True


def doctor(cache: Path) -> list[Row]:
    """What was found, in the order in which it is shown; `cache` is the folder that corpora and probe sets go to."""
    from lccp_sim.models.experts import EXPERTS

    return [*version_rows(), *machine_rows(), *disk_rows(cache), *expert_rows(EXPERTS)]


def show(rows: list[Row]) -> int:
    """The exit code, after the rows were printed as a table: 0, or 1 where no expert backend is usable."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid("topic", "name", "ok", "value", padding=(0, 2))
    shown = ""
    for row in rows:
        mark = Text("ok", "green") if row.ok else Text("no", "yellow")
        topic = Text("" if row.topic == shown else row.topic, "bold")
        table.add_row(topic, row.name, mark, Text(row.value))  # Text: a value such as lccp-sim[hf] is no markup
        shown = row.topic
    Console(highlight=False).print(table)
    return 0 if any(row.ok for row in rows if row.topic == "experts") else 1


def version_rows() -> list[Row]:
    """The version of Python, of each package that training needs, and of the optional ones, with how to get them."""
    rows = [Row("versions", "python", platform.python_version())]
    for name in (*CORE, *OPTIONAL):
        try:
            rows.append(Row("versions", name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            need = "optional" if name in OPTIONAL else "needed"
            remedy = OPTIONAL.get(name, name)
            rows.append(Row("versions", name, f"not installed ({need}): pip install '{remedy}'", ok=False))
    return rows


def machine_rows() -> list[Row]:
    """Cores that this process may use, memory in GiB, torch's threads, and each device with its bf16 support."""
    import psutil
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    rows = [
        Row("machine", "cores", f"{cores} usable of {os.cpu_count()}, {torch.get_num_threads()} torch threads"),
        Row("machine", "memory", f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}"),
    ]
    has = torch.cpu.get_capabilities()
    units = [unit for unit in ("avx512_bf16", "amx_bf16") if has.get(unit)]
    bf16 = f"bf16 in hardware ({', '.join(units)})" if units else "bf16 is emulated and slow: train in fp32"
    rows.append(Row("machine", "cpu", f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {bf16}"))
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if device.major >= 8 else "no bf16"
        what = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, sm_{device.major}{device.minor}, {bf16}"
        rows.append(Row("machine", f"cuda:{index}", what))
    if not torch.cuda.is_available():
        why = "this torch is a CPU build" if torch.version.cuda is None else f"no device for CUDA {torch.version.cuda}"
        rows.append(Row("machine", "cuda", why, ok=False))
    return rows


def disk_rows(cache: Path) -> list[Row]:
    """The cache and the working directory, with their free disk in GiB, and whether they can be written."""
    rows = []
    for name, path in (("cache", cache.expanduser()), ("runs", Path.cwd())):
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        writable = os.access(there, os.W_OK)
        what = f"{path}, {shutil.disk_usage(there).free / 2**30:.1f} GiB free"
        rows.append(Row("disk", name, what if writable else f"{what}, not writable", ok=writable))
    return rows


def expert_rows(experts: Mapping[str, Experts]) -> list[Row]:
    """For each backend, on the CPU and on CUDA where there is one: usable, or the reason why not in one line.

    `experts` maps a name to `(x_RD, gate_EFD, up_EFD, down_EFD, count_E) -> y_RD` and has "loop", which all are
    compared with. CUDA is tried in bfloat16, as fused kernels take nothing else; the CPU in float32.
    """
    import torch

    places = [("cpu", torch.float32)] + ([("cuda", torch.bfloat16)] if torch.cuda.is_available() else [])
    rows = []
    for device, dtype in places:
        for name, expert in experts.items():
            where = f"{device}, {str(dtype).removeprefix('torch.')}"
            try:
                rows.append(Row("experts", name, f"{where}: {_agreement(expert, experts['loop'], device, dtype)}"))
            except Exception as error:  # whatever a backend raises is the answer to the question
                line = next(iter(str(error).strip().splitlines()), "no message")
                rows.append(Row("experts", name, f"{where}: {type(error).__name__}: {line}", ok=False))
    return rows


def _agreement(expert: Experts, loop: Experts, device: str, dtype: torch.dtype) -> str:
    """A line with the largest error against the loop in float32; raises ValueError where it is too large."""
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
