"""One attention layer, forward and backward, and a training step of run=tiny_lccp on one row: dense and Lighthouse.

Seconds are paired: a process takes dense and sparse in turn, and medians over `--pairs` are compared. Beside the clock
stand the seconds of the processor, which a busy machine stretches less; ratios and exponents are of these. Peak memory
is VmHWM over what the process held before, in a process of one kind with blocks from 256 KiB on unmapped when they are
freed: by default glibc keeps ever larger ones, and the peak is then one of fragments. The budget is `--budget` windows,
at short lengths half of the widest windows that there are. Where a dense pass would take over `--longest-seconds`, its
seconds are extrapolated by the exponent fitted to those that ran, and marked; its memory is not. The exponent is the
slope of log seconds over log tokens, by least squares.

Every number is written to --out as soon as it is there, and what --out holds is not measured again. So a killed run
goes on, and a later one adds longer rows.

    PYTHONPATH=. python bench/lighthouse_cpu.py --tokens 4096 16384 65536
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.long_cpu import peak_of, status
from bench.plan_accuracy import one_pass
from lccp_sim.configure.compose import check
from lccp_sim.files import write_atomic
from lccp_sim.models.attention import Attention
from lccp_sim.models.lighthouse import LighthouseAttention
from lccp_sim.models.positions import rotation
from lccp_sim.models.transformer import Transformer, initialise
from lccp_sim.train.loop.recompute import recompute

RESULT = Path(__file__).parent / "results" / "lighthouse_cpu.json"
KINDS = ("dense", "sparse")
TILE = 128
RECOMPUTED = 2**20  # tokens of a row from which on blocks are run again in the backward pass: it would keep 32 GiB
# Monitors look at texts of 1,024 tokens: dense attention on one text of 262,144 takes half an hour.
TRAIN = (
    "run=tiny_lccp run.threads=1 run.recompute_every=1 data.sources.copies.documents=2 data.sources.facts.documents=2 "
    "data.sources.keyed.documents=2 monitors.probe=null monitors.intervention=null"
).split()
Pass = Callable[[str], None]
Cell = dict[str, Any]


def settings(tokens: int, levels: int, factor: int, budget: int) -> LighthouseAttention:
    """Lighthouse attention for rows of `tokens`."""
    most = tokens // factor ** (levels - 1) // 2
    tile = min(TILE, most, budget)
    return LighthouseAttention(levels, factor, min(budget, most) // tile * tile, tile_budget=tile)


def layer(tokens: int, attention: LighthouseAttention) -> Pass:
    """Forward and backward of a layer over one row: the same weights and values for both kinds."""
    model = replace(check(["run=tiny_lccp"]).model, attention=attention)
    torch.manual_seed(0)
    module, bounds = Attention(model, 0), torch.tensor([0, tokens])
    x_BTD, grad_BTD = (torch.randn(1, tokens, model.d_model) for _ in range(2))
    frequencies, scale = model.rope.frequencies(model.d_head)
    rope = rotation(torch.arange(tokens)[None], frequencies, scale, torch.float32)
    x_BTD.requires_grad_()

    def run(kind: str) -> None:
        x_BTD.grad = None
        module(x_BTD, rope, bounds, sparse=kind == "sparse").backward(grad_BTD)

    return run


def step(tokens: int, attention: LighthouseAttention) -> Pass:
    """A training step of the model on one row, AdamW included; of very long rows with recomputation."""
    config = check(["run=tiny_lccp"])
    vocabulary = config.data.tokenizer.vocab_size
    model = initialise(Transformer(replace(config.model, attention=attention), vocabulary), 0)
    recompute(model, 1 if tokens >= RECOMPUTED else None)
    row = torch.randint(1, vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def run(kind: str) -> None:
        one_pass(model, row, sparse=kind == "sparse")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


PARTS: dict[str, Callable[[int, LighthouseAttention], Pass]] = {"layer": layer, "step": step}


def seconds(run: Pass, kind: str) -> list[float]:
    """Of the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    run(kind)
    return [time.perf_counter() - clock, time.process_time() - processor]


def child(part: str, tokens: int, shape: list[int], kinds: list[str], pairs: int, threads: int) -> None:
    """Prints a line of JSON a pair: {kind: [clock, processor]} and the peak of the process so far in MiB."""
    torch.set_num_threads(threads)
    levels, factor, budget, tile = shape
    warm = PARTS[part](1024, settings(1024, levels, factor, budget))
    for kind in kinds:
        warm(kind)
    before = status("VmRSS")
    run = PARTS[part](tokens, LighthouseAttention(levels, factor, budget, tile_budget=tile))
    for number in range(pairs):
        found = {kind: seconds(run, kind) for kind in (kinds if number % 2 == 0 else kinds[::-1])}
        print(json.dumps([found, status("VmHWM") - before]), flush=True)


def lines(part: str, tokens: int, shape: list[int], kinds: list[str], pairs: int, threads: int) -> Iterator[Any]:
    """What a child prints, as it comes."""
    arguments = part, tokens, shape, kinds, pairs, threads
    command = [sys.executable, __file__, "--only", json.dumps(arguments)]
    unmapped = {"MALLOC_MMAP_THRESHOLD_": "262144"} if len(kinds) == 1 else {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | unmapped) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise SystemExit(f"{arguments}: the process ended with {process.returncode}")


def ran(cell: Cell, kind: str) -> float | None:
    """The median of the processor's seconds, where there are any."""
    found = [pair[kind][1] for pair in cell["pairs"] if kind in pair]
    return statistics.median(found) if found else None


def fit(cells: list[Cell], part: str, kind: str) -> tuple[float, float] | None:
    """Slope and intercept of log seconds over log tokens; None of fewer than two lengths."""
    points = [(c["tokens"], s) for c in cells if c["part"] == part and (s := ran(c, kind)) is not None]
    if len(points) < 2:
        return None
    slope, intercept = np.polyfit(*np.log(np.array(points)).T, 1)
    return float(slope), float(intercept)


def summarise(out: dict[str, Any]) -> None:
    """Sets seconds, ratios and exponents from what was measured."""
    fits = {part: {kind: fit(out["cells"], part, kind) for kind in KINDS} for part in PARTS}
    out["exponent"] = {part: {kind: of and of[0] for kind, of in each.items()} for part, each in fits.items()}
    for cell in out["cells"]:
        dense, sparse, line = ran(cell, "dense"), ran(cell, "sparse"), fits[cell["part"]]["dense"]
        cell["dense_extrapolated"] = dense is None and line is not None
        if dense is None and line is not None:
            dense = math.exp(line[1]) * cell["tokens"] ** line[0]
        cell["seconds"] = {"dense": dense, "sparse": sparse}
        cell["faster"] = dense / sparse if dense and sparse else None


def measure(out: dict[str, Any], part: str, tokens: int, options: argparse.Namespace) -> None:
    """None, once the cell holds all its pairs and peaks; each is saved when it is there."""
    attention = settings(tokens, options.levels, options.factor, options.budget)
    shape = [attention.levels, attention.factor, attention.budget, attention.tile_budget]
    cell = next((c for c in out["cells"] if (c["part"], c["tokens"]) == (part, tokens)), None)
    if cell is None:
        cell = {"part": part, "tokens": tokens, "budget": attention.budget, "entries": attention.entries(tokens)}
        cell |= {"pairs": [], "peak_mib": {}}
        out["cells"] = sorted([*out["cells"], cell], key=lambda c: (list(PARTS).index(c["part"]), c["tokens"]))
    longest = [(c["tokens"], s) for c in out["cells"] if c["part"] == part and (s := ran(c, "dense")) is not None]
    last, took = max(longest, default=(tokens, 0.0))
    affordable = took * max(1.0, tokens / last) ** 2 <= options.longest_seconds and tokens <= options.dense_up_to
    kinds = [kind for kind in KINDS if kind == "sparse" or affordable]

    def save() -> None:
        summarise(out)
        write_atomic(options.out, json.dumps(out, indent=1) + "\n")
        shown = {
            key: cell.get(key) for key in ("part", "tokens", "seconds", "faster", "dense_extrapolated", "peak_mib")
        }
        print(shown, out["exponent"][part], flush=True)

    left = options.pairs - len(cell["pairs"])
    for pair, peak in lines(part, tokens, shape, kinds, left, options.threads) if left > 0 else ():
        cell["pairs"].append(pair)
        if len(kinds) == 1:
            cell["peak_mib"].setdefault(kinds[0], peak)
        save()
    for kind in (kind for kind in kinds if kind not in cell["peak_mib"]):
        ((_, cell["peak_mib"][kind]),) = lines(part, tokens, shape, [kind], 1, options.threads)
        save()


def main() -> None:
    """Prints every cell as it grows; --out has them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    lengths = [2**n for n in range(12, 19)] + [2**20]
    parser.add_argument("--tokens", type=int, nargs="+", default=lengths)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--dense-up-to", type=int, default=2**18, help="tokens above which dense attention is left out")
    parser.add_argument("--longest-seconds", type=float, default=1200.0)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--train", type=int, metavar="TOKENS", help="instead: one step of lccp train on a row so long")
    parser.add_argument("--only", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        child(*options.only)
        return
    from bench.step_cpu import machine

    chosen = {key: getattr(options, key) for key in ("levels", "factor", "budget", "threads")}
    fresh: dict[str, Any] = {"machine": machine(), "settings": chosen, "cells": []}
    out = json.loads(options.out.read_text()) if options.out.exists() else fresh
    if (out["machine"], out["settings"]) != (fresh["machine"], fresh["settings"]):
        raise SystemExit(f"{options.out}: of another machine or other settings; give another --out")
    if options.train:
        of = settings(options.train, options.levels, options.factor, options.budget)
        keys = [f"run.{key}_tokens={options.train}" for key in ("context", "batch")] + [f"run.tokens={options.train}"]
        keys += [f"model.attention={{kind: lighthouse, levels: {of.levels}, factor: {of.factor}, budget: {of.budget}}}"]
        out["train"] = peak_of([*TRAIN, *keys])
        write_atomic(options.out, json.dumps(out, indent=1) + "\n")
        print(out["train"])
        return
    for tokens in sorted(options.tokens):
        for part in options.parts:
            measure(out, part, tokens, options)


if __name__ == "__main__":
    main()
