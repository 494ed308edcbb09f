"""Forward and backward of one attention layer at the shape of run=tiny_lccp: dense beside Lighthouse, on the CPU.

Seconds are paired: at each length one process takes dense and sparse in turn, `--repeats` times, and medians are
compared. Peak memory is that of a process of its own for each, VmHWM over what it held before the first pass. The
budget is `--budget` windows, at short lengths half of the widest windows that there are. Where a dense pass would take
more than `--longest-seconds`, by the square of the length before, its seconds are extrapolated by the fitted exponent,
and marked. The exponent is the slope of log seconds over log tokens, by least squares.

    PYTHONPATH=. python bench/lighthouse_cpu.py --tokens 4096 8192 16384
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from long_cpu import status
from step_cpu import machine

from lccp_sim.configure.compose import check
from lccp_sim.models.attention import Attention
from lccp_sim.models.lighthouse import LighthouseAttention
from lccp_sim.models.positions import rotation

RESULT = Path(__file__).parent / "results" / "lighthouse_cpu.json"
KINDS = ("dense", "sparse")
TILE = 128


def settings(tokens: int, levels: int, factor: int, budget: int) -> LighthouseAttention:
    """Lighthouse attention for rows of `tokens`."""
    most = tokens // factor ** (levels - 1) // 2
    tile = min(TILE, most)
    return LighthouseAttention(levels, factor, min(budget, most) // tile * tile, tile_budget=tile)


class Layer:
    """The layer and one row of `tokens`; the same weights and values for both kinds."""

    def __init__(self, tokens: int, attention: LighthouseAttention):
        model = replace(check(["run=tiny_lccp"]).model, attention=attention)
        torch.manual_seed(0)
        self.attention, self.bounds = Attention(model, 0), torch.tensor([0, tokens])
        self.x_BTD, self.grad_BTD = (torch.randn(1, tokens, model.d_model) for _ in range(2))
        frequencies, scale = model.rope.frequencies(model.d_head)
        self.rope = rotation(torch.arange(tokens)[None], frequencies, scale, torch.float32)

    def seconds(self, kind: str) -> tuple[float, float]:
        """Seconds of a forward pass and of the backward pass after it."""
        x_BTD = self.x_BTD.requires_grad_()
        x_BTD.grad = None
        began = time.perf_counter()
        y_BTD = self.attention(x_BTD, self.rope, self.bounds, sparse=kind == "sparse")
        between = time.perf_counter()
        y_BTD.backward(self.grad_BTD)
        return between - began, time.perf_counter() - between


def timed(tokens: int, attention: LighthouseAttention, kinds: list[str], repeats: int) -> dict[str, Any]:
    """Seconds of all pairs in this process, once each kind has warmed up at 1,024 tokens."""
    short = Layer(1024, settings(1024, attention.levels, attention.factor, attention.budget))
    for kind in kinds:
        short.seconds(kind)
    layer = Layer(tokens, attention)
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind in kinds:
            found[kind].append(layer.seconds(kind))
    return found


def peak(tokens: int, attention: LighthouseAttention, kind: str) -> float:
    """MiB that one forward and backward pass takes at its peak beside the layer and its input."""
    layer = Layer(tokens, attention)
    before = status("VmRSS")
    layer.seconds(kind)
    return status("VmHWM") - before


def child(what: str, *arguments: Any) -> Any:
    """What a process of its own finds."""
    command = [sys.executable, __file__, "--only", json.dumps([what, *arguments])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def exponent(cells: list[dict[str, Any]], kind: str) -> tuple[float, float] | None:
    """Slope and intercept of log seconds over log tokens; None of fewer than two lengths."""
    points = [(c["tokens"], c[kind]["seconds"]) for c in cells if kind in c and not c[kind].get("extrapolated")]
    if len(points) < 2:
        return None
    tokens, seconds = np.log(np.array(points)).T
    slope, intercept = np.polyfit(tokens, seconds, 1)
    return float(slope), float(intercept)


def measure(tokens: int, before: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """One length: medians, all pairs, and peaks of both kinds."""
    attention = settings(tokens, options.levels, options.factor, options.budget)
    kinds, timed_dense = list(KINDS), [c for c in before if "pairs" in c.get("dense", {})]
    if timed_dense:
        last = timed_dense[-1]
        foretold = last["dense"]["seconds"] * (tokens / last["tokens"]) ** 2
        if foretold > options.longest_seconds or tokens > options.dense_up_to:
            kinds.remove("dense")
    shape = [attention.levels, attention.factor, attention.budget, attention.tile_budget]
    cell: dict[str, Any] = {"tokens": tokens, "budget": attention.budget, "entries": attention.entries(tokens)}
    found = child("time", tokens, shape, kinds, options.repeats, options.threads)
    for kind in kinds:
        forward, backward = np.median(np.array(found[kind]), axis=0).tolist()
        both = float(np.median(np.sum(found[kind], axis=1)))
        cell[kind] = {"seconds": both, "forward_seconds": forward, "backward_seconds": backward, "pairs": found[kind]}
        cell[kind]["peak_mib"] = child("peak", tokens, shape, kind, options.threads)
    fit = exponent(before, "dense")
    if "dense" not in kinds and fit is not None and tokens <= options.dense_up_to:
        cell["dense"] = {"seconds": float(np.exp(fit[1]) * tokens ** fit[0]), "extrapolated": True}
    if "dense" in cell:
        cell["faster"] = cell["dense"]["seconds"] / cell["sparse"]["seconds"]
    return cell


def only(what: str, tokens: int, shape: list[int], *more: Any) -> Any:
    """The work of a child."""
    *rest, threads = more
    torch.set_num_threads(threads)
    levels, factor, budget, tile = shape
    attention = LighthouseAttention(levels, factor, budget, tile_budget=tile)
    return timed(tokens, attention, *rest) if what == "time" else peak(tokens, attention, *rest)


def main() -> None:
    """Prints every length and writes them to --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    lengths = [2**n for n in range(12, 19)] + [2**20]
    parser.add_argument("--tokens", type=int, nargs="+", default=lengths)
    parser.add_argument("--dense-up-to", type=int, default=2**18, help="tokens above which dense attention is left out")
    parser.add_argument("--longest-seconds", type=float, default=1200.0)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--only", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(only(*options.only)))
        return
    chosen = {key: getattr(options, key) for key in ("levels", "factor", "budget", "repeats", "threads")}
    out: dict[str, Any] = {"machine": machine(), "settings": chosen, "cells": []}
    for tokens in sorted(options.tokens):
        out["cells"].append(measure(tokens, out["cells"], options))
        fits = {kind: exponent(out["cells"], kind) for kind in KINDS}
        out["exponent"] = {kind: fit and fit[0] for kind, fit in fits.items()}
        shown = {k: v if not isinstance(v, dict) else {n: x for n, x in v.items() if n != "pairs"}
                 for k, v in out["cells"][-1].items()}  # fmt: skip
        print(shown, out["exponent"], flush=True)
        options.out.write_text(json.dumps(out, indent=1) + "\n")  # a long run that is cut keeps its cells


if __name__ == "__main__":
    main()
