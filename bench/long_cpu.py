"""One training step on one long row at the shape of run=tiny_lccp, on the CPU: peak memory, beside the planned one.

Each cell is a process of its own; its peak is VmHWM over what the process held after its imports. Seconds are those
of the clock, and those of the processor, which a busy machine stretches less. bf16 runs only where the processor has
it: elsewhere torch emulates each product. `mapped`: once more, with glibc told to give freed memory back at once, as it
keeps what it may need again. `--train` asks the same of `lccp train`: two steps, monitors at that length,
and the peak of the whole process, imports and data included.

    PYTHONPATH=. python bench/long_cpu.py --tokens 32768
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.plan_accuracy import one_pass
from lccp_sim.configure.compose import check
from lccp_sim.models.transformer import Transformer, initialise
from lccp_sim.plan.memory import Layout, Place, memory
from lccp_sim.plan.shapes import shape_of

RESULT = Path(__file__).parent / "results" / "long_cpu.json"
MIB = 2**20
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


def status(key: str) -> float:
    """A line of this process's status in MiB: VmRSS (held now) or VmHWM (most so far)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def cell(tokens: int, precision: str, threads: int) -> dict[str, Any]:
    """Peak and planned MiB, and seconds, of one step in this process."""
    config = check(["run=tiny_lccp", f"run.context_tokens={tokens}", f"run.batch_tokens={tokens}"])
    vocabulary = config.data.tokenizer.vocab_size
    torch.set_num_threads(threads)
    torch.ones(64, 64) @ torch.ones(64, 64)  # the libraries' own buffers belong to the import
    before = status("VmRSS")
    model = initialise(Transformer(config.model, vocabulary), 0)
    row = torch.randint(1, vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    clock, processor = time.perf_counter(), time.process_time()
    one_pass(model, row, precision == "bf16")
    optimizer.step()
    seconds = {"seconds": time.perf_counter() - clock, "processor_seconds": time.process_time() - processor}
    shape, place = shape_of(config.model, vocabulary), Place(precision == "bf16", gpu=False)
    planned = memory(config.model, shape, tokens, Layout(), place).total / MIB
    where = {"tokens": tokens, "precision": precision, "threads": threads}
    return {**where, "peak_mib": status("VmHWM") - before, "planned_mib": planned, **seconds}


TRAIN = (
    "run=tiny_lccp run.init_from=null run.precondition=false run.stopping=null run.loggers={} monitors=base "
    "monitors.needle.items=5 monitors.perplexity.sources=[code] monitors.perplexity.items=4 monitors.induction=null"
).split()


def trained(tokens: int, precision: str, threads: int) -> dict[str, Any]:
    """Peak MiB of a process of `lccp train` that makes two steps, each on one row, and looks at texts as long."""
    keys = [f"run.precision={precision}", f"run.threads={threads}", f"run.tokens={2 * tokens}"]
    keys += [f"run.context_tokens={tokens}", f"run.batch_tokens={tokens}", f"monitors.needle.lengths=[{tokens}]"]
    keys += [f"monitors.perplexity.context_tokens={tokens}"]
    return {"tokens": tokens, "precision": precision, "threads": threads, **peak_of([*TRAIN, *keys])}


def peak_of(words: list[str]) -> dict[str, Any]:
    """Peak MiB of a whole process of `lccp train`, and its seconds by what took them."""
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "lccp_sim.cli", "train", *words, f"run.root={root}"]
        child = subprocess.Popen(command, stdout=sys.stderr)
        _, status, used = os.wait4(child.pid, 0)
        rows = [
            json.loads(line) for path in Path(root).glob("*/timing.jsonl") for line in path.read_text().splitlines()
        ]
    if status:
        raise SystemExit(f"lccp train ended with {os.waitstatus_to_exitcode(status)}")
    seconds = {row["what"]: row["seconds"] for row in rows}
    return {"command": words, "process_peak_mib": used.ru_maxrss / 1024, "seconds": seconds}


def main() -> None:
    """Prints every cell and writes them to results/long_cpu.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--train", action="store_true", help="lccp train at the longest of --tokens, too")
    parser.add_argument("--only", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(cell(*options.only)))
        return
    has = torch.backends.cpu.get_cpu_capability(), bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    out: dict[str, Any] = {"machine": {"isa": has[0], "bf16": has[1], "cores": os.cpu_count()}, "cells": []}
    out |= {"train": kept["train"]} if "train" in kept and not options.train else {}
    out["machine"]["torch"] = torch.__version__
    for precision in options.precision:
        for tokens in options.tokens:
            if precision == "bf16" and not has[1]:
                out["cells"].append({"tokens": tokens, "precision": precision, "not_run": "no bf16 in the processor"})
            else:
                command = [sys.executable, __file__, "--only", json.dumps([tokens, precision, options.threads])]
                for more in ({}, MAPPED):
                    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | more)
                    out["cells"].append(json.loads(ran.stdout.splitlines()[-1]) | {"mapped": bool(more)})
                    print(out["cells"][-1], flush=True)
            options.out.write_text(json.dumps(out, indent=1) + "\n")  # a long run that is cut keeps its cells
    if options.train:
        out["train"] = trained(max(options.tokens), options.precision[0], options.threads)
        print(out["train"], flush=True)
        options.out.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
