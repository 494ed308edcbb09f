"""What `lccp plan` foretells, beside what torch counts and allocates: FLOPs, peak memory, and one core's speed.

FLOPs: torch.utils.flop_counter over a forward and backward pass, with attention done query by query, so that it counts
the pairs that causal attention needs and no more. Memory: the highest sum of all CPU allocations that torch's profiler
saw in such a pass, weights, gradients and moments being there before; it knows what no hook on saved tensors sees, the
tensors in between. CPU only: none of this was run on a GPU.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lccp_sim.config import ModelConfig
from lccp_sim.models import attention
from lccp_sim.models.loss import cross_entropy
from lccp_sim.models.positions import BaseRope
from lccp_sim.models.transformer import Block, Transformer, initialise
from lccp_sim.plan.memory import Layout, Memory, Place, memory
from lccp_sim.plan.shapes import shape_of, training_flops

RESULT = Path(__file__).parent / "results" / "plan_accuracy.json"


def model_config(**changes: Any) -> ModelConfig:
    """A config with these keys."""
    return ModelConfig(rope=BaseRope(10_000.0), **changes)


WIDE = {"d_model": 256, "num_heads": 4, "num_kv_heads": 2, "d_head": 64, "d_expert": 256}
SHAPES: dict[str, tuple[ModelConfig, int, int]] = {  # config, vocabulary, tokens
    "tiny": (model_config(), 1024, 1024),
    "tiny, long": (model_config(), 1024, 4096),
    "16 experts": (model_config(**WIDE, num_experts=16, num_experts_per_token=4), 4096, 1024),
    "no shared, no norm": (model_config(**WIDE, num_shared_experts=0, qk_norm="none"), 512, 2048),
    "full-width norm, biases": (model_config(**WIDE, qk_norm="full_width", qkv_bias=True, out_bias=True), 512, 2048),
    "windows": (model_config(**WIDE, window_tokens=128, full_attention_every=2), 512, 2048),
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


def one_pass(model: Transformer, row: Tensor, bf16: bool = False) -> None:
    """None; a forward and a backward pass over one row, as training makes them."""
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        out = model(row)
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

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_})
    with mock.patch.object(attention, "attend", query_by_query), counter:
        one_pass(model, row)
    return counter.get_total_flops()


def measured_peak(config: ModelConfig, vocab_size: int, tokens: int, bf16: bool, checkpointed: bool) -> int:
    """Bytes that a forward and backward pass allocates at its peak beside weights and gradients."""
    model = initialise(Transformer(config, vocab_size), 0)
    row = torch.randint(1, vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    plain = Block.forward

    def again(block: Block, *inputs: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(plain, block, *inputs, use_reentrant=False)

    with mock.patch.object(Block, "forward", again) if checkpointed else nullcontext():
        one_pass(model, row, bf16)  # the gradients exist from here on
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            one_pass(model, row, bf16)

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


def planned(config: ModelConfig, vocab_size: int, tokens: int, bf16: bool) -> Memory:
    """The plan's memory for the same pass, on one CPU."""
    return memory(config, shape_of(config, vocab_size), tokens, Layout(), Place(bf16, gpu=False))


def memory_line(name: str, bf16: bool, checkpointed: bool) -> dict[str, Any]:
    """Planned and measured peaks in bytes."""
    needs, peak = planned(*SHAPES[name], bf16), measured_peak(*SHAPES[name], bf16, checkpointed)
    plan = (needs.total_checkpointed if checkpointed else needs.total) - needs.state
    precision = "bf16" if bf16 else "fp32"
    where = {"shape": name, "precision": precision, "checkpointed": checkpointed}
    return {**where, "planned": plan, "measured": peak, "ratio": plan / peak}


def flops_line(name: str, tokens: int) -> dict[str, Any]:
    """Planned and counted FLOPs of a row of `tokens`."""
    config, vocab_size, _ = SHAPES[name]
    if name == "grouped products":  # which the counter does not know
        config = dataclasses.replace(config, experts="loop")
    plan = training_flops(shape_of(config, vocab_size), tokens) * tokens
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
        return statistics.median(times)

    peak = 2 * 2048**3 / seconds(lambda: a @ b)
    shares = {}
    for name in ("tiny", "16 experts", "grouped products"):
        config, vocab_size, tokens = SHAPES[name]
        model = initialise(Transformer(config, vocab_size), 0)
        row = torch.randint(1, vocab_size, (1, tokens))
        flops = training_flops(shape_of(config, vocab_size), tokens) * tokens
        shares[name] = flops / seconds(lambda model=model, row=row: one_pass(model, row, bf16)) / peak
    return {"peak_flops": peak, **shares}


def main() -> None:
    """Prints each line and writes all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    out: dict[str, Any] = {"torch": torch.__version__, "flops": [], "memory": [], "speed": {}}
    for name in SHAPES:
        out["flops"].append(flops_line(name, 256))
        print(out["flops"][-1], flush=True)
        for checkpointed in (False, True):
            for bf16 in (False, True):
                out["memory"].append(memory_line(name, bf16, checkpointed))
                print(out["memory"][-1], flush=True)
    for precision in ("fp32", "bf16"):
        out["speed"][precision] = speed(precision == "bf16", options.repeats)
        print(precision, out["speed"][precision], flush=True)
    options.out.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
