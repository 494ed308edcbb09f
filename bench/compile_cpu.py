"""torch.compile of what is elementwise in a block, on the CPU in fp32: time, memory, calls and graphs of a step.

Whole blocks are out of the question: attention is called once a document and experts by their rows, so each batch
would be another graph. What is compiled here has one graph for all batches: norms, rotation, SwiGLU (as plain formulas,
since a compiler needs no gradient by hand) and the router. Steps with and without it take turns in one process; peaks
are those of a process each, the compiler's own memory included. What a GPU would save is not known: the calls of a
step that work on numbers are counted, here and with the choices that are made on a GPU (grouped products, norms that
keep their input).

    python -m bench.compile_cpu
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters

from bench.step_cpu import SHAPE, VOCABULARY, machine, paired, seconds, status_mib
from lccp_sim.config import ModelConfig
from lccp_sim.configure.compose import check
from lccp_sim.models import kernels
from lccp_sim.models.loss import cross_entropy
from lccp_sim.models.moe import MoE
from lccp_sim.models.optimizer import adamw
from lccp_sim.models.positions import BaseRope, rotate
from lccp_sim.models.transformer import Transformer, initialise

RESULT = Path(__file__).parent / "results" / "compile_cpu.json"
PARTS = ("norms", "router", "both")
VIEWS = set(
    "view reshape reshape_alias transpose permute slice select expand unsqueeze squeeze split chunk as_strided narrow "
    "t unflatten flatten detach alias unsafe_view numpy_T unbind empty empty_like empty_strided new_empty resolve_conj "
    "resolve_neg lift_fresh unfold to contiguous local_scalar_dense item is_nonzero set_".split()
)
GROUPED = "aten::_grouped_mm"


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.float().square().mean(-1, keepdim=True) + eps).rsqrt().to(x.dtype) * weight


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotate(x.to(cos.dtype), cos, sin).to(x.dtype)


def turned_norm(x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor, eps: float) -> Tensor:
    return norm(rotate(x.to(cos.dtype), cos, sin), weight, eps).to(x.dtype)


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ down.T


def compiled(part: str | None) -> dict[tuple[Any, str], Any]:
    """What stands in for what, where `part` of PARTS is compiled."""
    torch._inductor.config.cpp.enable_kernel_profile = True
    found: dict[tuple[Any, str], Any] = {}
    if part in ("norms", "both"):
        plain = {"RMSNormFunction": norm, "RotateFunction": turned, "RotateNormFunction": turned_norm}
        plain["SwiGLUFunction"] = swiglu
        found |= {(kernels, k): SimpleNamespace(apply=torch.compile(f, dynamic=True)) for k, f in plain.items()}
    if part in ("router", "both"):
        found[MoE, "route"] = torch.compile(MoE.route, dynamic=True)
    return found


@contextmanager
def standing_in(what: dict[tuple[Any, str], Any]) -> Iterator[None]:
    before = {key: getattr(*key) for key in what}
    for (place, name), each in what.items():
        setattr(place, name, each)
    try:
        yield
    finally:
        for (place, name), each in before.items():
            setattr(place, name, each)


def stepper(shape: str, tokens: int, what: dict[tuple[Any, str], Any], experts: str = "auto") -> Callable[[], float]:
    """A function that takes a training step on `tokens` tokens, cut into other documents each time; gives its loss."""
    config, vocabulary, rows = ModelConfig(rope=BaseRope(10_000.0), **SHAPE), VOCABULARY, 1
    if shape == "tiny_lccp":
        tiny = check(["run=tiny_lccp"])
        config, vocabulary, rows = tiny.model, tiny.data.tokenizer.vocab_size, 2
    config = dataclasses.replace(config, experts=experts)
    model = initialise(Transformer(config, vocabulary), 0)
    optimizer = adamw([{"params": list(model.parameters())}], lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    size = tokens // rows

    def step() -> float:
        row = torch.randint(1, vocabulary, (rows, size), generator=generator)
        starts = [torch.randperm(size - 1, generator=generator)[: int(row[i, 0]) % 6] + 1 for i in range(rows)]
        bounds = torch.cat((*(start + i * size for i, start in enumerate(starts)), torch.arange(0, tokens + 1, size)))
        bounds = bounds.sort().values
        with standing_in(what):
            out = model(row, None, bounds)
            loss = cross_entropy(out.hidden_BTD.flatten(0, 1), model.head_weight, row.flatten().roll(-1), tokens)
            (loss + 0.01 * out.balance_loss + 0.001 * out.z_loss).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def calls(step: Callable[[], float]) -> int:
    """Calls in a step that work on numbers: those that call nothing else, and grouped products; views are left out."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()

    def counts(event: Any) -> bool:
        name, parent = event.name, event.cpu_parent
        while parent is not None:
            if parent.name == GROUPED:
                return False
            parent = parent.cpu_parent
        kernel = name.startswith("aten::") and name.removeprefix("aten::").strip("_") not in VIEWS
        return name == GROUPED or (not event.cpu_children and (kernel or "cpp_fused" in name))

    return sum(counts(event) for event in profile.events())


def calls_as_on_a_gpu(shape: str, tokens: int, what: dict[tuple[Any, str], Any]) -> int:
    """The calls of a step with the choices that are made on a GPU."""
    step = stepper(shape, tokens, what | {(kernels, "divides"): lambda weight: False}, experts="grouped_mm")
    step()
    return calls(step)


def child(job: dict[str, Any]) -> None:
    """Prints the peak, over its imports, of three steps in this process, in MiB."""
    torch.set_num_threads(1)
    torch.ones(64, 64) @ torch.ones(64, 64)
    what = compiled(job["part"])
    before = status_mib("VmRSS")
    step = stepper(job["shape"], job["tokens"], what)
    for _ in range(3):
        step()
    print(status_mib("VmHWM") - before)


def peak_mib(**job: Any) -> float:
    """What `child` printed in a process of its own; compiled kernels come from torch's cache on disk."""
    command = [sys.executable, "-m", "bench.compile_cpu", "--child", json.dumps(job)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def cell(shape: str, tokens: int, part: str, pairs: int) -> dict[str, Any]:
    """The line of one part: how a step of it compares with one without."""
    torch._dynamo.reset()
    counters.clear()
    what = compiled(part)
    plain, other = stepper(shape, tokens, {}), stepper(shape, tokens, what)
    line: dict[str, Any] = {"shape": shape, "tokens": tokens, "part": part, "first_step_seconds": seconds(other)}
    line["graphs"] = counters["stats"]["unique_graphs"]
    plain()
    apart = [abs(other() / plain() - 1) for _ in range(20)]
    line |= {"graphs_20_steps_later": counters["stats"]["unique_graphs"], "losses_apart": max(apart)}
    line |= {"calls": [calls(plain), calls(other)]}
    line["calls_as_on_a_gpu"] = [calls_as_on_a_gpu(shape, tokens, each) for each in ({}, what)]
    line |= paired(plain, other, pairs)
    peaks = [[peak_mib(shape=shape, tokens=tokens, part=each) for _ in range(3)] for each in (None, part)]
    return line | {"peak_mib": peaks, "peak_ratio": statistics.median(peaks[1]) / statistics.median(peaks[0])}


def main() -> None:
    """Runs every cell and writes the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child)
    torch.set_num_threads(1)
    out: dict[str, Any] = {"machine": machine(), "cells": []}
    began = time.perf_counter()
    cells = [("step_cpu", 1024), ("tiny_lccp", 2048)]
    for (shape, tokens), part in itertools.product(cells, options.parts):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # what was compiled before is not to be found
            line = cell(shape, tokens, part, options.pairs)
        out["cells"].append(line)
        options.out.write_text(json.dumps(out, indent=1) + "\n")
        print({key: value for key, value in line.items() if key != "raw_seconds"}, flush=True)
    print(f"{time.perf_counter() - began:.0f} s")
    return None


if __name__ == "__main__":
    main()
