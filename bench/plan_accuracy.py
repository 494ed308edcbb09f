"""What `lccp plan` foretells, beside what torch counts and allocates: FLOPs, peak memory, and one core's speed.

FLOPs: torch.utils.flop_counter over a forward and backward pass, with attention done query by query, so that it
counts the pairs that causal attention needs and no more. Memory: the highest sum of all CPU allocations that torch's
profiler saw in such a pass, weights, gradients and moments being there before; it knows what no hook on saved tensors
sees, the tensors in between. With cut weights it is the pass of the first of some ranks that are only pretended. None
of this was run on a GPU; what the kernels keep there is measured on the CPU, which keeps the same where a norm has a
weight of zero and the experts run as grouped products.
"""

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._profiler import _EventType
from torch.distributed.device_mesh import DeviceMesh
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lccp_sim.config import ModelConfig
from lccp_sim.models import attention
from lccp_sim.models.lighthouse import LighthouseAttention
from lccp_sim.models.loss import cross_entropy
from lccp_sim.models.positions import AlphaRope, BaseRope, Llama3Rope, Rope, YarnRope
from lccp_sim.models.transformer import Transformer, initialise
from lccp_sim.plan.memory import Layout, Place, memory
from lccp_sim.plan.rope import KNOWN_MODELS, base_bound, first_negative
from lccp_sim.plan.shapes import counts, shape_of, training_flops
from lccp_sim.train.loop.recompute import recompute
from lccp_sim.train.parallel.fake_ranks import fake_rank
from lccp_sim.train.parallel.sharding import shard

ALONE = Layout()
LAYOUTS = {
    "dp=8": Layout(8),
    "dp=4, ep=2": Layout(4, 2),
    "dp=4, cp=2": Layout(4, 1, 2),
    "dp=2, ep=2, cp=2": Layout(2, 2, 2),
}
RESULT = Path(__file__).parent / "results" / "plan_accuracy.json"


def model_config(**changes: Any) -> ModelConfig:
    """A config with these keys."""
    return ModelConfig(rope=BaseRope(10_000.0), **changes)


WIDE = {"d_model": 256, "num_heads": 4, "num_kv_heads": 2, "d_head": 64, "d_expert": 256}
RANKS = ("16 experts", "grouped products")
Case = tuple[ModelConfig, int, int]  # config, vocabulary, tokens
SHAPES: dict[str, Case] = {
    "tiny": (model_config(), 1024, 1024),
    "tiny, long": (model_config(), 1024, 4096),
    "16 experts": (model_config(**WIDE, num_experts=16, num_experts_per_token=4), 4096, 1024),
    "no shared, no norm": (model_config(**WIDE, num_shared_experts=0, qk_norm="none"), 512, 2048),
    "full-width norm, biases": (model_config(**WIDE, qk_norm="full_width", qkv_bias=True, out_bias=True), 512, 2048),
    "windows": (model_config(**WIDE, window_tokens=128, full_attention_every=2), 512, 2048),
    "lighthouse": (model_config(**WIDE, attention=LighthouseAttention(3, 4, 16, tile_budget=8)), 512, 2048),
    "dense": (model_config(**WIDE, num_dense_layers=4, d_dense=1024), 512, 2048),
    "first layer dense, untied": (
        model_config(**WIDE, num_dense_layers=1, d_dense=1024, tie_embeddings=False, qk_norm="before_rope"),
        4096,
        1024,
    ),
    "grouped products": (
        model_config(d_model=512, num_kv_heads=4, d_head=64, d_expert=128, tie_embeddings=False),
        2048,
        1024,
    ),
}


def one_pass(model: Transformer, row: Tensor, bf16: bool = False, cp: int = 1, sparse: bool = True) -> None:
    """None; a forward and a backward pass over one row, or one rank's part of it, as training makes them."""
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        out = model(row, bounds=torch.tensor([0, row.numel() * cp]), sparse=sparse)
        loss = cross_entropy(out.hidden_BTD[0], model.head_weight, row[0].roll(-1), row.numel())
        loss = loss + 0.01 * out.balance_loss + 0.001 * out.z_loss
    loss.backward()


def query_by_query(
    q_BTNH: Tensor, k_BTMH: Tensor, v_BTMH: Tensor, scale: float, bounds: Tensor, window: int | None = None
) -> Tensor:
    """Attention of one document a row, each query with the keys that it sees alone."""
    rows, group = [], q_BTNH.shape[2] // k_BTMH.shape[2]
    k, v = (x.repeat_interleave(group, dim=2).transpose(1, 2) for x in (k_BTMH, v_BTMH))
    for t, q_BNH in enumerate(q_BTNH.unbind(1)):
        seen = slice(max(0, t + 1 - (window or t + 1)), t + 1)
        weight = (q_BNH[:, :, None] @ k[:, :, seen].transpose(2, 3) * scale).softmax(-1)
        rows.append((weight @ v[:, :, seen]).squeeze(2))
    return torch.stack(rows, dim=1)


def counted_flops(config: ModelConfig, vocab_size: int, tokens: int) -> int:
    """FLOPs of a forward and backward pass over one row of `tokens`, as torch counts them."""
    model = initialise(Transformer(config, vocab_size), 0)
    row = torch.randint(1, vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))

    def addmm_(target: Any, a: Any, b: Any, **kwargs: Any) -> int:  # in place, which the counter does not know
        return 2 * a[0] * a[1] * b[1]

    def causal(*heads_BNSH: Tensor, is_causal: bool, scale: float) -> Tensor:  # among the entries of sparse attention
        return query_by_query(*(x.transpose(1, 2) for x in heads_BNSH), scale, row).transpose(1, 2)

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_})
    sdpa = mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", causal)
    with mock.patch.object(attention, "attend", query_by_query), sdpa, counter:
        one_pass(model, row)
    return counter.get_total_flops()


@contextmanager
def first_of(layout: Layout) -> Iterator[DeviceMesh | None]:
    """While it is open, this process is the first rank of a layout; what is sent comes back, counts of rows too."""
    if layout.devices == 1:
        yield None
        return
    with (
        fake_rank(0, layout.devices) as mesh,
        mock.patch.object(dist, "all_to_all_single", lambda out, sent, group: out.copy_(sent)),
    ):
        yield mesh


def measured_peak(
    config: ModelConfig, vocab_size: int, tokens: int, place: Place, every: int | None = None, layout: Layout = ALONE
) -> int:
    """Bytes that a forward and backward pass allocates at its peak beside weights and gradients.

    Of every `every` blocks one is checkpointed (None: none). On a GPU norms and experts keep what they keep there.
    """
    model, bf16 = initialise(Transformer(config, vocab_size), 0), place.bf16
    if place.gpu:
        for weight in (p for name, p in model.named_parameters() if name.endswith("norm.weight")):
            weight.data[0] = 0.0
        for block in model.layers:
            if block.moe is not None:
                block.moe.backend = "grouped_mm"
    row = torch.randint(1, vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    recompute(model, every)
    with first_of(layout) as mesh:
        shard(model, mesh, layout.ep, layout.cp, place.gathers_bf16)
        one_pass(model, row, bf16, layout.cp)  # the gradients exist from here on
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            one_pass(model, row, bf16, layout.cp)

    def allocations(events: Any) -> Iterator[Any]:
        for event in events:
            if event.tag == _EventType.Allocation:
                yield event
            yield from allocations(event.children)

    events = allocations(seen.profiler.kineto_results.experimental_event_tree())
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_time_ns):
        now += event.extra_fields.alloc_size
        peak = max(peak, now)
    return peak


def memory_line(
    case: Case, bf16: bool, checkpointed: bool, gpu: bool, every: int = 1, layout: Layout = ALONE, exact: bool = False
) -> dict[str, Any]:
    """Planned and measured peaks in bytes, and their ratio. `every`: how many blocks have a checkpointed one."""
    config, vocab_size, tokens = case
    place = Place(bf16, gpu, exact)
    needs = memory(config, shape_of(config, vocab_size), tokens, layout, place, every)
    plan = (needs.total_checkpointed if checkpointed else needs.total) - needs.state
    peak = measured_peak(*case, place, every if checkpointed else None, layout)
    where = {"precision": "bf16" if bf16 else "fp32", "checkpointed": checkpointed, "as_gpu": gpu}
    return {**where, "planned": plan, "measured": peak, "ratio": plan / peak}


def few_tokens(name: str) -> Case:
    """A shape with so few tokens that what ranks gather is most of the peak."""
    return (*SHAPES[name][:2], 256)


def flops_line(name: str, tokens: int) -> dict[str, Any]:
    """Planned and counted FLOPs of a row of `tokens`."""
    config, vocab_size, _ = SHAPES[name]
    if name == "grouped products":  # which the counter does not know
        config = dataclasses.replace(config, experts="loop")
    plan = training_flops(shape_of(config, vocab_size), tokens, sparse_frac=1.0) * tokens
    count = counted_flops(config, vocab_size, tokens)
    return {"shape": name, "tokens": tokens, "planned": plan, "counted": count, "ratio": plan / count}


def speed(bf16: bool, repeats: int) -> dict[str, float]:
    """One thread: FLOP/s of large matrix products, and of training passes over shapes of SHAPES as a share of it."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))

    def seconds(work: Any) -> float:
        work()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)  # of a machine that other jobs share

    peak = 2 * 2048**3 / seconds(lambda: a @ b)
    shares = {}
    for name in ("tiny", "16 experts", "grouped products"):
        config, vocab_size, tokens = SHAPES[name]
        model = initialise(Transformer(config, vocab_size), 0)
        row = torch.randint(1, vocab_size, (1, tokens))
        flops = training_flops(shape_of(config, vocab_size), tokens) * tokens
        shares[name] = flops / seconds(lambda model=model, row=row: one_pass(model, row, bf16)) / peak
    return {"peak_flops": peak, **shares}


KNOWN_ROPES: dict[str, Rope] = {  # what plan/rope.py says of them in words
    "OLMoE-1B-7B": BaseRope(base=1e4),
    "Llama-3.1": Llama3Rope(5e5, 8.0, 1.0, 4.0, 8192),
    "Mixtral-8x7B": BaseRope(base=1e6),
    "Qwen3-30B-A3B": BaseRope(base=1e6),
    "Hunyuan-A13B, 32k stage": AlphaRope(1e4, 50.0),
    "Hunyuan-A13B extended": BaseRope(base=2e6),
    "Hunyuan-A13B, 256k stage": AlphaRope(1e4, 1000.0),
    "ProLong-8B, 64k stage": BaseRope(base=8e6),
    "ProLong-8B, 512k stage": BaseRope(base=1.28e8),
    "gpt-oss": YarnRope(1.5e5, 32.0, 4096, truncate=False),
}
GRID = [(d_head, 2**j) for d_head in (16, 32, 64, 128) for j in range(8, 18)] + [(128, 2**20)]


def rope_lines() -> dict[str, list[dict[str, Any]]]:
    """The bound of the base over widths and contexts, with the seconds of a fresh search; and where models stand."""
    bounds = []
    for d_head, context in GRID:
        base_bound.cache_clear()
        start = time.perf_counter()
        bound = base_bound(d_head, context)
        bounds.append({"d_head": d_head, "context": context, "bound": bound, "seconds": time.perf_counter() - start})
    known = []
    for k in KNOWN_MODELS:
        frequencies = np.asarray(KNOWN_ROPES[k.model].frequencies(k.d_head)[0])
        start = time.perf_counter()
        reach = first_negative(frequencies, k.context_tokens)
        line = {"model": k.model, "first_negative": reach, "seconds": time.perf_counter() - start}
        known.append(line | {"bound": base_bound(k.d_head, k.context_tokens)})
    return {"bounds": bounds, "known": known}


def tables(results: dict[str, Any]) -> list[str]:
    """The tables of docs/plan.md: memory alone and of ranks, bounds, and known models."""
    cells = [(gpu, checkpointed) for gpu in (False, True) for checkpointed in (False, True)]
    memory = []
    measured = {line["shape"] for line in results["memory"]}
    for name, (config, vocab_size, tokens) in SHAPES.items():
        if name not in measured:
            continue
        row = [name, f"{counts(shape_of(config, vocab_size)).total / 1e6:.1f}", str(tokens)]
        for where in cells:
            found = [x for x in results["memory"] if x["shape"] == name and (x["as_gpu"], x["checkpointed"]) == where]
            row.append(" / ".join(f"{line['ratio']:.2f}" for line in found))  # fp32, bf16
        memory.append(row)
    ranks = []
    for name, words in itertools.product(RANKS, LAYOUTS):
        found = [x for x in results["ranks"] if (x["shape"], x["layout"]) == (name, words)]
        halves = [[x for x in found if x["checkpointed"] is checkpointed] for checkpointed in (False, True)]
        ranks.append([name, words, *(" / ".join(f"{line['ratio']:.2f}" for line in half) for half in halves)])
    by = {(line["d_head"], line["context"]): line["bound"] for line in results["rope"]["bounds"]}
    contexts = sorted({context for _, context in by})
    widths = sorted({width for width, _ in by})
    bounds = [
        [f"{context:,}", *(f"{by[width, context]:.3g}" if (width, context) in by else "" for width in widths)]
        for context in contexts
    ]
    known = []
    for k, line in zip(KNOWN_MODELS, results["rope"]["known"], strict=True):
        reach = "nowhere" if line["first_negative"] is None else f"{line['first_negative']:,}"
        scaling = k.scaling or "none"
        row = [k.model, str(k.d_head), f"{k.context_tokens:,}", f"{k.base:.3g}", scaling, f"{line['bound']:.3g}", reach]
        known.append([*row, k.paper])
    return ["\n".join(f"| {' | '.join(row)} |" for row in rows) for rows in (memory, ranks, bounds, known)]


def main() -> None:
    """Prints each line and writes all of them; with --only, the others stay as they were written before."""
    sections = ("flops", "memory", "ranks", "rope", "speed")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    out: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    out["torch"] = torch.__version__

    def shown(line: dict[str, Any]) -> dict[str, Any]:
        print(line, flush=True)
        return line

    if "flops" in options.only:
        out["flops"] = [shown(flops_line(name, 256)) for name in SHAPES]
    if "memory" in options.only:
        cells = itertools.product((False, True), repeat=3)
        out["memory"] = [
            shown({"shape": name, **memory_line(SHAPES[name], *cell)}) for cell in cells for name in SHAPES
        ]
    if "ranks" in options.only:
        out["ranks"] = [
            shown({"shape": name, "layout": words, **memory_line(few_tokens(name), *cell, False, layout=layout)})
            for name in RANKS
            for words, layout in LAYOUTS.items()
            for cell in itertools.product((False, True), repeat=2)
        ]
    if "rope" in options.only:
        out["rope"] = rope_lines()
    if "speed" in options.only:
        out["speed"] = {p: shown(speed(p == "bf16", options.repeats)) for p in ("fp32", "bf16")}
    options.out.write_text(json.dumps(out, indent=1) + "\n")
    print(*tables(out), sep="\n\n")


if __name__ == "__main__":
    main()
