"""A training step on one GPU: tokens a second, MFU, memory beside plan's, what takes the time, and others beside it.

    python -m bench.step_gpu            # on a GPU, bf16; --models, --tokens and --long choose, --pairs 3 is quicker
    python -m bench.step_gpu --toy      # the same code at toy size on a CPU: its numbers say nothing

A cell is a model and a row of tokens, one document. Ours is timed alone; then each expert backend in turn with the
loop, and transformers' HunYuanMoEV1 in turn with ours (where both fit), pair by pair in one process. The parts of a
step are timed alone, forward and backward: attention, experts, head with loss, AdamW; what is left is the rest. Below
them stand bare kernels of the same shapes, what a step could come down to. MFU counts causal FLOPs (lccp_sim.plan),
nothing recomputed. Where plan expects more than the GPU has, blocks run again in the backward pass (`recompute_every`),
theirs, too. What does not fit even so, or is refused, is written down as such, and the next cell runs.
"""

import argparse
import dataclasses
import gc
import json
import math
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from bench.step_cpu import hf_config, hf_model, machine, paired, transformers
from lccp_sim.config import ModelConfig
from lccp_sim.configure.compose import check
from lccp_sim.models.experts import EXPERTS
from lccp_sim.models.loss import CHUNK_ROWS, cross_entropy
from lccp_sim.models.optimizer import adamw
from lccp_sim.models.positions import rotation
from lccp_sim.models.transformer import Transformer
from lccp_sim.plan.hardware import GPUS, RESERVE, hardware
from lccp_sim.plan.memory import Layout, Place, memory
from lccp_sim.plan.shapes import counts, shape_of, training_flops
from lccp_sim.train.loop.recompute import recompute

RESULT = Path(__file__).parent / "results" / "step_gpu.json"
MODELS = {"small": 16384, "base_1b_7b": 65536}  # vocabulary
TOKENS, LONG = [4096, 32768, 131072], [262144, 524288]
THEIRS = [("grouped_mm", "sdpa"), ("grouped_mm", "flash_attention_2"), ("eager", "sdpa")]  # experts, attention
TOY = {"d_model": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_head": 16, "num_experts": 4,
       "num_experts_per_token": 2, "d_expert": 32}  # fmt: skip
Step = Callable[[], float]


class Case(NamedTuple):
    """A cell: which model at how many tokens, where, and how often steps are timed."""

    name: str
    config: ModelConfig
    vocab_size: int
    tokens: int
    device: torch.device
    pairs: int
    every: int | None = None  # run.recompute_every


def case_of(name: str, tokens: int, device: torch.device, pairs: int, toy: bool) -> Case:
    """The cell of a model of configs/model; `toy`: of its kind, but tiny."""
    config = check(["run=small_base", f"model={name}"]).model
    config = dataclasses.replace(config, **TOY) if toy else config
    case = Case(name, config, 256 if toy else MODELS[name], tokens, device, pairs)
    has = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else math.inf
    return case._replace(every=1) if planned_bytes(case) > (1 - RESERVE) * has else case


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def quartiles(work: Callable[[], Any], device: torch.device, rounds: int) -> list[float]:
    """Quartiles of the seconds of `work()`, after two calls that warm up."""
    times = []
    for _ in range(2 + rounds):
        sync(device)
        begin = time.perf_counter()
        work()
        sync(device)
        times.append(time.perf_counter() - begin)
    return statistics.quantiles(times[2:], n=4)


def tried(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work()` gives, or why it could not be; its memory is free afterwards."""
    try:
        return work()
    except Exception as error:  # what a kernel, a package or an allocator lacks says so in many ways
        return {"refused": f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:200]}"}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def peak_bytes(step: Step, device: torch.device) -> int:
    """The most that was allocated in a step on a GPU; on a CPU the process's highest memory so far."""
    if device.type != "cuda":
        step()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


def row_of(case: Case) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, case.vocab_size, (1, case.tokens), generator=generator).to(case.device)


def stepper(model: torch.nn.Module, loss: Callable[[], torch.Tensor], device: torch.device) -> Step:
    """A function that takes one training step in bf16, as training does, and returns its loss."""
    optimizer = adamw([{"params": list(model.parameters())}], lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    return step


def ours(case: Case) -> tuple[Transformer, Step]:
    """Our model with normal weights, made where it is, and its step."""
    with torch.device("meta"):
        model = Transformer(case.config, case.vocab_size)
    model.to_empty(device=case.device)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else torch.nn.init.ones_(parameter)
    for buffer in model.buffers():
        buffer.zero_()
    row = row_of(case)
    recompute(model, case.every)

    def loss() -> torch.Tensor:
        out = model(row)
        value = cross_entropy(out.hidden_BTD[0, :-1], model.head_weight, row[0, 1:], case.tokens - 1)
        return value + 0.01 * out.balance_loss + 0.001 * out.z_loss

    return model, stepper(model, loss, case.device)


def theirs(case: Case, experts: str, attention: str) -> Step:
    """A step of transformers' model of the same shape; its loss has no router term, which is to its advantage."""
    c = case.config
    config = hf_config.HunYuanMoEV1Config(
        vocab_size=case.vocab_size, hidden_size=c.d_model, intermediate_size=c.d_expert,
        num_hidden_layers=c.num_layers, num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads,
        head_dim=c.d_head, num_experts=c.num_experts, moe_topk=c.num_experts_per_token, tie_word_embeddings=True,
        max_position_embeddings=case.tokens, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        use_cache=False, attn_implementation=attention, experts_implementation=experts,
    )  # fmt: skip
    with case.device:
        model = hf_model.HunYuanMoEV1ForCausalLM(config).train()
    if case.every:
        model.gradient_checkpointing_enable()
    row = row_of(case)
    return stepper(model, lambda: model(input_ids=row, labels=row).loss, case.device)


def figures(case: Case, step: Step) -> dict[str, Any]:
    """Seconds (quartiles), tokens a second, MFU and peak memory of a step; a GPU without a known peak has no MFU."""
    times = quartiles(step, case.device, case.pairs)
    flops = training_flops(shape_of(case.config, case.vocab_size), case.tokens) * case.tokens
    name = torch.cuda.get_device_name().lower() if case.device.type == "cuda" else "cpu"
    peak = next((gpu.bf16_flops for key, gpu in GPUS.items() if key in name), None)
    peak = hardware("cpu", torch.get_num_threads()).bf16_flops if name == "cpu" else peak
    found = {"seconds": times, "tokens_per_second": case.tokens / times[1], "flops": flops}
    return found | {"mfu": peak and flops / times[1] / peak, "peak_bytes": peak_bytes(step, case.device)}


def planned_bytes(case: Case) -> float:
    """The peak that plan expects."""
    shape, place = shape_of(case.config, case.vocab_size), Place(True, case.device.type == "cuda")
    return memory(case.config, shape, case.tokens, Layout(), place, case.every).peak(case.every)


def parts(case: Case, model: Transformer) -> dict[str, float]:
    """Median seconds of a step's parts, each alone, of all layers: forward and backward, or AdamW's update."""
    x = torch.randn(1, case.tokens, case.config.d_model, device=case.device, requires_grad=True)
    positions = torch.arange(case.tokens, device=case.device)[None]
    rope = rotation(positions, model.frequencies, model.rope_scale, torch.float32)
    bounds, block, grad = torch.tensor([0, case.tokens]), model.layers[0], torch.randn_like(x)
    assert block.moe is not None
    moe = block.moe

    def median(forward: Callable[[], torch.Tensor], grad: torch.Tensor | None = None) -> float:
        def work() -> None:
            with torch.autocast(case.device.type, torch.bfloat16):
                y = forward()
            y.backward(None if grad is None else grad.to(y.dtype))

        return quartiles(work, case.device, case.pairs)[1]

    row, layers = row_of(case)[0], case.config.num_layers
    found = {
        "attention": layers * median(lambda: block.attention(x, rope, bounds), grad),
        "experts": layers * median(lambda: moe(x)[0], grad),
        "head_and_loss": median(lambda: cross_entropy(x[0], model.head_weight, row, case.tokens)),
    }
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = adamw([{"params": list(model.parameters())}], lr=0.0)
    found["optimizer"] = quartiles(optimizer.step, case.device, case.pairs)[1]
    model.zero_grad(set_to_none=True)
    return found


def kernels(case: Case) -> dict[str, float]:
    """Median seconds of the bare bf16 kernels of a step: matrix products with both gradients, and attention."""
    c, T = case.config, case.tokens
    rows, hidden = T * c.num_experts_per_token // c.num_experts, c.num_shared_experts * c.d_expert
    q, k = c.num_heads * c.d_head, c.num_kv_heads * c.d_head

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=case.device, dtype=torch.bfloat16)

    def product(batch: int, m: int, inner: int, n: int) -> float:
        x, w, g = random(batch, m, inner), random(batch, inner, n), random(batch, m, n)
        return quartiles(lambda: (x @ w, g @ w.mT, x.mT @ g), case.device, case.pairs)[1]

    Q, K, V = (random(1, n, T, c.d_head).requires_grad_() for n in (c.num_heads, c.num_kv_heads, c.num_kv_heads))
    grad = random(1, c.num_heads, T, c.d_head)

    def attend() -> None:
        y = F.scaled_dot_product_attention(Q, K, V, is_causal=True, enable_gqa=c.num_heads != c.num_kv_heads)
        torch.autograd.grad(y, (Q, K, V), grad)

    each = {
        "attention products": product(1, T, c.d_model, q + 2 * k) + product(1, T, q, c.d_model),
        "attention scores": quartiles(attend, case.device, case.pairs)[1],
        "experts": 2 * product(c.num_experts, rows, c.d_model, c.d_expert)
        + product(c.num_experts, rows, c.d_expert, c.d_model),
    }
    if hidden:
        each["shared experts"] = product(1, T, c.d_model, 2 * hidden) + product(1, T, hidden, c.d_model)
    found = {name: c.num_layers * seconds for name, seconds in each.items()}
    chunk = min(CHUNK_ROWS, T)
    found["head"] = T / chunk * product(1, chunk, c.d_model, case.vocab_size)
    return found | {"sum": sum(found.values())}


def our_side(case: Case, compare: bool) -> dict[str, Any]:
    """Ours alone; with `compare` also its parts, and each backend beside the loop, on the same weights."""
    model, step = ours(case)
    found: dict[str, Any] = {"ours": figures(case, step)}
    if not compare:
        return found
    alone = tried(lambda: parts(case, model))
    if "refused" not in alone:
        alone["rest"] = found["ours"]["seconds"][1] - sum(alone.values())  # below zero where parts overlap in a step
    found["parts_seconds"] = alone

    def on(name: str) -> Step:
        def run() -> float:
            for block in model.layers:
                if block.moe is not None:
                    block.moe.backend = name
            return step()

        return run

    names = [name for name in ("auto", *EXPERTS) if name != "loop"]
    found["backends"] = {name: tried(lambda name=name: paired(on("loop"), on(name), case.pairs)) for name in names}
    return found


def their_side(case: Case) -> dict[str, Any]:
    """Theirs alone, each way that it knows; and its fastest in turn with ours: seconds, and theirs over ours."""
    lines = []
    for experts, attention in THEIRS:
        line = tried(lambda e=experts, a=attention: figures(case, theirs(case, e, a)))
        lines.append({"experts": experts, "attention": attention, **line})
    usable = [line for line in lines if "refused" not in line]
    if not usable:
        return {"tried": lines, "refused": "none of them ran"}
    best = min(usable, key=lambda line: line["seconds"][1])
    how = best["experts"], best["attention"]
    return {"tried": lines, "best": how, "paired": tried(lambda: paired(ours(case)[1], theirs(case, *how), case.pairs))}


def cell(case: Case, compare: bool) -> dict[str, Any]:
    """All lines of a cell."""
    weights = counts(shape_of(case.config, case.vocab_size))
    line: dict[str, Any] = {"model": case.name, "tokens": case.tokens, "weights": weights._asdict()}
    line |= {"recompute_every": case.every, "planned_bytes": planned_bytes(case)}
    line |= tried(lambda: our_side(case, compare))
    if compare:
        line |= {"kernels_seconds": tried(lambda: kernels(case)), "theirs": their_side(case)}
    return line


def main(argv: Sequence[str] | None = None) -> None:
    """Runs every cell and writes the raw numbers; on a GPU to bench/results, elsewhere to a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--tokens", type=int, nargs="*", default=TOKENS)
    parser.add_argument("--long", type=int, nargs="*", default=LONG, help="rows for ours alone, of the model `small`")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    if not options.toy and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use; --toy runs it at toy size on a CPU")
    device = torch.device("cpu" if options.toy else "cuda")
    if options.toy:
        options.models, options.tokens, options.long, options.pairs = ["small"], [64], [128], 2
    path = options.out or (Path(tempfile.gettempdir()) / "step_gpu_toy.json" if options.toy else RESULT)
    transformers.logging.set_verbosity_error()
    where = "cpu" if options.toy else torch.cuda.get_device_name()
    out: dict[str, Any] = {"device": where, "toy": options.toy, "machine": machine(), "pairs": options.pairs}
    out |= {"cells": [], "long": []}
    plain = [("cells", name, tokens) for name in options.models for tokens in options.tokens]
    for kind, name, tokens in plain + [("long", "small", tokens) for tokens in options.long]:
        case = case_of(name, tokens, device, options.pairs, options.toy)
        case = case._replace(every=1) if options.toy and kind == "long" else case  # as a GPU would need it there
        out[kind].append(cell(case, compare=kind == "cells"))
        path.write_text(json.dumps(out, indent=1) + "\n")  # a long run that is cut keeps its cells
        ours_ = out[kind][-1].get("ours", out[kind][-1])
        print(name, tokens, {key: ours_.get(key) for key in ("tokens_per_second", "mfu", "peak_bytes", "refused")})


if __name__ == "__main__":
    main()
