"""A training step on the CPU: tokens a second and peak memory, beside transformers' HunYuanMoEV1ForCausalLM.

Both have the same weights in shape, the same loss and the same AdamW. Times are medians over pairs of steps, ours and
theirs in turn in one process, so that a busy machine slows both; memory is each one's alone, in a process of its own.
Theirs is its fastest expert and attention implementation in every cell; all that were tried are in the output.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.models.hunyuan_v1_moe import configuration_hunyuan_v1_moe as hf_config  # noqa: E402
from transformers.models.hunyuan_v1_moe import modeling_hunyuan_v1_moe as hf_model  # noqa: E402

from lccp_sim.config import ModelConfig  # noqa: E402
from lccp_sim.models.loss import cross_entropy  # noqa: E402
from lccp_sim.models.positions import BaseRope  # noqa: E402
from lccp_sim.models.transformer import Transformer, initialise  # noqa: E402

Step = Callable[[], float]

VOCABULARY = 4096
SHAPE = {
    "d_model": 256,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "d_head": 64,
    "num_experts": 8,
    "d_expert": 256,
}
ADAMW = {"loop": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}
EXPERTS = ("eager", "grouped_mm", "batched_mm", "deepgemm", "sonicmoe")
ATTENTION = ("sdpa", "eager", "flex_attention", "flash_attention_2")


def stepper(model: torch.nn.Module, loss: Callable[[], torch.Tensor], precision: str, adamw: str) -> Step:
    """A function that takes one training step and returns its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, **ADAMW[adamw])
    model.train()

    def step() -> float:
        context = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
        with context:
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def ours(tokens: int, precision: str, adamw: str = "fused", documents: int = 1, **changes: Any) -> Step:
    """A step of our Transformer on one row of `tokens` tokens, cut into equal documents."""
    model = initialise(Transformer(ModelConfig(rope=BaseRope(10_000.0), **(SHAPE | changes)), VOCABULARY), 0)
    row = torch.randint(1, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(0))
    length = tokens // documents
    positions = torch.arange(length).repeat(documents)[None]
    bounds = torch.arange(0, tokens + 1, length)
    learn = torch.ones(tokens, dtype=torch.bool)
    learn[length - 1 :: length] = False

    def loss() -> torch.Tensor:
        out = model(row, positions, bounds)
        target = row[0].roll(-1)[learn]
        value = cross_entropy(out.hidden_BTD[0, learn], model.head_weight, target, len(target))
        return value + 0.01 * out.balance_loss + 0.001 * out.z_loss

    return stepper(model, loss, precision, adamw)


def theirs(
    tokens: int, precision: str, experts: str, attention: str, adamw: str = "fused", checkpoint: bool = False
) -> Step:
    """A step of transformers' model on one row; its loss has no router term, which is to its advantage."""
    torch.manual_seed(0)
    config = hf_config.HunYuanMoEV1Config(
        vocab_size=VOCABULARY,
        hidden_size=SHAPE["d_model"],
        intermediate_size=SHAPE["d_expert"],
        num_hidden_layers=SHAPE["num_layers"],
        num_attention_heads=SHAPE["num_heads"],
        num_key_value_heads=SHAPE["num_kv_heads"],
        head_dim=SHAPE["d_head"],
        num_experts=SHAPE["num_experts"],
        moe_topk=2,
        tie_word_embeddings=True,
        max_position_embeddings=tokens,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        use_cache=False,
        attn_implementation=attention,
        experts_implementation=experts,
    )
    model = hf_model.HunYuanMoEV1ForCausalLM(config)
    if precision == "pure_bf16":
        model.to(torch.bfloat16)
    if checkpoint:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    row = torch.randint(1, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(0))
    return stepper(model, lambda: model(input_ids=row, labels=row).loss, precision, adamw)


def seconds(step: Step) -> float:
    """Wall-clock seconds of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def paired(first: Step, second: Step, pairs: int) -> dict[str, Any]:
    """Median seconds of both, and the median and quartiles of `second`'s over `first`'s, pair by pair."""
    for step in (first, second):
        step()
    times = []
    for pair in range(pairs):
        # The order alternates, so that neither always runs in the other's warm cache.
        a, b = (first, second) if pair % 2 == 0 else (second, first)
        x, y = seconds(a), seconds(b)
        times.append((x, y) if pair % 2 == 0 else (y, x))
    ratios = [y / x for x, y in times]
    low, middle, high = statistics.quantiles(ratios, n=4)
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return {"pairs": pairs, "seconds": medians, "ratio": middle, "ratio_quartiles": [low, high], "raw_seconds": times}


def fastest(tokens: int, precision: str, names: list[tuple[str, str]]) -> tuple[tuple[str, str], list[dict[str, Any]]]:
    """The fastest (experts, attention) of transformers in this cell, and a line for each that was tried."""
    lines = []
    for experts, attention in names:
        line: dict[str, Any] = {"experts": experts, "attention": attention}
        try:
            step = theirs(tokens, precision, experts, attention)
            step()
            line["seconds"] = min(seconds(step) for _ in range(3))
        except Exception as error:  # what CUDA alone has says so in many ways
            line["refused"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
        lines.append(line)
    best = min((line for line in lines if "seconds" in line), key=lambda line: line["seconds"])
    return (best["experts"], best["attention"]), lines


def status_mib(key: str) -> float:
    """A memory figure of this process in MiB: VmRSS (now) or VmHWM (highest so far)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def peak_mib(threads: int, side: str, **arguments: Any) -> float:
    """Peak memory of three steps above what the imports took, in MiB, measured in a process of its own."""
    job = json.dumps({"threads": threads, "side": side, "arguments": arguments})
    command = [sys.executable, __file__, "--child", job]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def child(job: dict[str, Any]) -> None:
    """Prints the peak of one side's steps."""
    torch.set_num_threads(job["threads"])
    torch.ones(64, 64) @ torch.ones(64, 64)  # the libraries' own buffers belong to the import
    before = status_mib("VmRSS")
    step = {"ours": ours, "theirs": theirs}[job["side"]](**job["arguments"])
    for _ in range(3):
        step()
    print(status_mib("VmHWM") - before)


def machine() -> dict[str, Any]:
    """What the figures depend on, without names or paths."""
    cpu = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ""
    )
    versions = {name: __import__(name).__version__ for name in ("torch", "transformers")}
    capability = torch.backends.cpu.get_cpu_capability()
    return {"cpu": cpu, "cores": os.cpu_count(), "isa": capability, "python": platform.python_version(), **versions}


def cell(threads: int, tokens: int, precision: str, names: list[tuple[str, str]], pairs: int) -> list[dict[str, Any]]:
    """The lines of one cell: like precision; packed rows of ours; in bf16, theirs with its weights in bf16 too."""
    if tokens > 1024:  # attention matrices of gigabytes
        names = [name for name in names if name[1] != "eager"]
    best, tried = fastest(tokens, precision, names)
    where = {"threads": threads, "tokens": tokens, "precision": precision}
    hf = {"tokens": tokens, "experts": best[0], "attention": best[1]}
    line: dict[str, Any] = {"line": "like precision", **where, "theirs": best, "tried": tried}
    line |= paired(ours(tokens, precision), theirs(precision=precision, **hf), pairs)
    memory = [peak_mib(threads, "ours", tokens=tokens, precision=precision) for _ in range(3)]
    other = [peak_mib(threads, "theirs", precision=precision, **hf) for _ in range(3)]
    line |= {"peak_mib": [memory, other], "peak_ratio": statistics.median(memory) / statistics.median(other)}
    few = max(2, pairs // 2)
    packed = {"line": "ours: 8 documents against 1", **where}
    lines = [line, packed | paired(ours(tokens, precision, documents=8), ours(tokens, precision), few)]
    if precision == "bf16":
        pure = paired(ours(tokens, precision), theirs(precision="pure_bf16", **hf), few)
        lines.append({"line": "theirs with bf16 weights", **where, "theirs": best, **pure})
    for line in lines:
        print(
            {k: line[k] for k in ("line", "threads", "tokens", "precision", "ratio", "ratio_quartiles")},
            line.get("peak_ratio"),
        )
    return lines


def adamw_lines(tokens: int, pairs: int) -> list[dict[str, Any]]:
    """Each AdamW of torch against its fused one, for both models in fp32."""
    sides = {"ours": ours, "theirs": theirs}
    more: dict[str, dict[str, str]] = {"ours": {}, "theirs": {"experts": "grouped_mm", "attention": "sdpa"}}
    return [
        {
            "side": side,
            "adamw": name,
            **paired(build(tokens, "fp32", **more[side]), build(tokens, "fp32", adamw=name, **more[side]), pairs),
        }
        for side, build in sides.items()
        for name in ("loop", "foreach")
    ]


def main() -> None:
    """Runs every cell and writes the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small cell, for tests")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step_cpu.json")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 4096])
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child)
    if options.quick:
        options.pairs, options.threads, options.tokens = 2, [1], [64]
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    everything = [(e, "sdpa") for e in EXPERTS] + [(e, a) for e in EXPERTS[:2] for a in ATTENTION[1:]]
    _, tried = fastest(options.tokens[0], "fp32", everything)
    usable = [(x["experts"], x["attention"]) for x in tried if "seconds" in x and x["experts"] != "batched_mm"]
    out: dict[str, Any] = {"machine": machine(), "shape": SHAPE | {"vocabulary": VOCABULARY}, "tried": tried}
    out |= {"adamw": adamw_lines(options.tokens[0], options.pairs), "cells": []}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for threads in options.threads:
        torch.set_num_threads(threads)
        for tokens in options.tokens:
            for precision in ("fp32", "bf16"):
                out["cells"] += cell(threads, tokens, precision, usable, options.pairs)
                options.out.write_text(json.dumps(out, indent=1) + "\n")  # a long run that is cut keeps its cells
    return None


if __name__ == "__main__":
    main()
