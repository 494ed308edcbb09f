"""Scoring every head at 8k tokens on the CPU: the rows that predict the answer, against whole attention matrices.

The same random Llama, the same texts, the same scores. The usual way asks `transformers` for `output_attentions`, which
needs eager attention; ours taps q and k in the model's own SDPA. Times are CPU seconds of one thread, paired in one
process; memory is the peak of a process of its own, above what the model and a plain forward need.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from lccp_sim.models.foreign.adapter import Adapter
from lccp_sim.models.taps import tapping
from lccp_sim.monitors.heads import HEAD_METRICS, CopyTap

VOCAB, ANSWER = 1024, 24
SCORES = HEAD_METRICS[:4]  # the null needs no rows of its own
AGREE = 1e-5
SIZES = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 8, "num_hidden_layers": 4}


def build(attention: str, length: int) -> Any:
    """The model, of the tiny study's size, with its attention as asked."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, intermediate_size=256, max_position_embeddings=length, initializer_range=0.2, **SIZES
    )
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def text(length: int, seed: int) -> tuple[torch.Tensor, tuple[int, int], tuple[int, int]]:
    """A text whose last tokens repeat a needle in its middle, and both spans."""
    tokens_S = torch.from_numpy(np.random.default_rng(seed).integers(0, VOCAB, length))
    needle, answer = (length // 2, length // 2 + ANSWER), (length - ANSWER, length)
    tokens_S[slice(*answer)] = tokens_S[slice(*needle)].clone()
    return tokens_S, needle, answer


def plain(model: Any, length: int, seed: int) -> None:
    """The forward that a needle monitor makes anyway."""
    model.base_model(input_ids=text(length, seed)[0][None], use_cache=False)


def rows(adapter: Adapter, length: int, seed: int) -> np.ndarray:
    """Our scores [layers, heads, SCORES], from a tapped forward."""
    tokens_S, needle, answer = text(length, seed)
    tap = CopyTap(tokens_S[None], [answer], [needle], [0])
    with tapping(adapter, tap):
        adapter(tokens_S[None])
    return tap.scores[0][..., : len(SCORES)]


def matrices(model: Any, length: int, seed: int) -> np.ndarray:
    """The same scores read off the whole matrices that `transformers` returns."""
    tokens_S, (start, end), (first, stop) = text(length, seed)
    out = model.base_model(input_ids=tokens_S[None], use_cache=False, output_attentions=True)
    same_AW = tokens_S[first:stop, None] == tokens_S[None, start:end]
    layers = []
    for whole_BNSS in out.attentions:
        rows_NAS = whole_BNSS[0, :, first - 1 : stop - 1]
        needle_NAW = rows_NAS[..., start:end]
        top_NA1 = rows_NAS.argmax(-1, keepdim=True) - start
        hard_NA = ((top_NA1 == torch.arange(end - start)) & same_AW).any(-1)
        columns = (hard_NA, (needle_NAW * same_AW).sum(-1), needle_NAW.sum(-1), rows_NAS[..., 0])
        layers.append(torch.stack(columns, dim=-1).mean(1).numpy())
    return np.stack(layers)


def peak_mebibytes(way: str, length: int) -> float:
    """The peak memory of a process that does one thing once, in MiB."""
    command = [sys.executable, __file__, "--only", way, "--length", str(length)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def only(way: str, length: int) -> None:
    """Prints the peak memory of this process, in MiB, after doing one thing once."""
    if way == "plain":
        plain(build("sdpa", length), length, 0)
    elif way == "rows":
        rows(Adapter(build("sdpa", length)), length, 0)
    else:
        matrices(build("eager", length), length, 0)
    # Not ru_maxrss: it keeps the peak of the process that this one was forked from.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


def spread(numbers: list[float]) -> dict[str, float]:
    """The median and the quartiles."""
    low, middle, high = np.quantile(numbers, (0.25, 0.5, 0.75)).round(4).tolist()
    return {"median": middle, "low": low, "high": high}


def compare(length: int, pairs: int) -> dict[str, Any]:
    """Times, memory and agreement at one length."""
    fast, slow = build("sdpa", length), build("eager", length)
    bare = build("sdpa", length)
    adapter = Adapter(fast)
    ways = {
        "plain": lambda i: plain(bare, length, i),
        "rows": lambda i: rows(adapter, length, i),
        "matrices": lambda i: matrices(slow, length, i),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    difference = 0.0
    for i in range(pairs + 1):
        scores = {}
        for way in list(ways) if i % 2 else list(reversed(ways)):
            start = time.process_time()
            scores[way] = ways[way](i)
            if i:  # the first one warms up
                times[way].append(time.process_time() - start)
        difference = max(difference, float(np.abs(scores["rows"][..., 1:] - scores["matrices"][..., 1:]).max()))
        moved = (scores["rows"][..., 0] != scores["matrices"][..., 0]).sum()
        assert moved == 0 and difference <= AGREE, f"scores differ by {difference}, {moved} hard ones"
    added = {way: [t - p for t, p in zip(times[way], times["plain"], strict=True)] for way in ("rows", "matrices")}
    peaks = {way: sorted(peak_mebibytes(way, length) for _ in range(3))[1] for way in ways}
    extra = {way: max(peaks[way] - peaks["plain"], 1.0) for way in ("rows", "matrices")}
    return {
        "length": length,
        "pairs": pairs,
        "largest_difference": difference,
        "seconds": {way: spread(each) for way, each in times.items()},
        "added_seconds": {way: spread(each) for way, each in added.items()},
        "whole_ratio": spread([b / a for a, b in zip(times["rows"], times["matrices"], strict=True)]),
        "scoring_ratio": round(float(np.median(added["matrices"]) / max(np.median(added["rows"]), 1e-3)), 1),
        "peak_mebibytes": peaks,
        "added_mebibytes": extra,
        "memory_ratio": round(extra["matrices"] / extra["rows"], 1),
        "whole_memory_ratio": round(peaks["matrices"] / peaks["rows"], 1),
    }


def main() -> None:
    """Prints the figures and writes them to results/heads_8k.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("plain", "rows", "matrices"))
    parser.add_argument("--length", type=int)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "heads_8k.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if chosen.only:
        only(chosen.only, chosen.length)
        return
    results: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    results |= {"machine": platform.machine(), "threads": 1, "model": SIZES, "answer_tokens": ANSWER}
    results |= {"metrics": SCORES, "lengths": []}
    for length in [chosen.length] if chosen.length else [2048, 8192]:
        results["lengths"].append(compare(length, chosen.pairs))
        print(json.dumps(results["lengths"][-1]), flush=True)
    chosen.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
