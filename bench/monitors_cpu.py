"""What the monitors cost on the CPU, in forward passes of the tokens that they send, and what head scoring adds.

Everything is the tiny study's: its model (fresh weights: the cost does not depend on them), its corpus, its settings.
A plain forward is the decoder without the head, on the very batches that the monitor sends. `last_layer`: what is saved
where only a few places of a row are read, so that the last layer leaves out the others. Times are CPU seconds of
one thread, medians over pairs, one of each in turn in one process, so that a busy machine slows both.
"""

import argparse
import dataclasses
import functools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from lccp_sim.configure.compose import check  # noqa: E402
from lccp_sim.data.pools import Corpus, open_corpus  # noqa: E402
from lccp_sim.models.language_model import Attended, LanguageModel  # noqa: E402
from lccp_sim.models.taps import tapping  # noqa: E402
from lccp_sim.models.transformer import Transformer, initialise  # noqa: E402
from lccp_sim.monitors import Monitor, Needle  # noqa: E402
from lccp_sim.monitors.needle_items import NeedleItem  # noqa: E402
from lccp_sim.monitors.observing import evaluating, score_spans  # noqa: E402

GRID = ((1024, 1), (1024, 5), (4096, 1))  # length, items a forward
AGREE = 1e-6
# A quarter of the tiny study's items and steps: the ratio stays, the wait does not.
FEWER: dict[str, dict[str, Any]] = {
    "needle": {"items": 10, "controls": 2, "variants": {"heldout": 3, "distractor": 2}},
    "probe": {"items": 12, "steps": 10},
}


def seconds(run: Callable[[], Any]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def paired(one: Callable[[int], Any], other: Callable[[int], Any], pairs: int) -> dict[str, Any]:
    """Median seconds of both, and of their ratio one / other with its quartiles; who goes first alternates."""
    one(0), other(0)  # warm
    times = []
    for i in range(pairs):
        order = (one, other) if i % 2 else (other, one)
        taken = {run: seconds(functools.partial(run, i)) for run in order}
        times.append((taken[one], taken[other]))
    low, middle, high = np.quantile([a / b for a, b in times], (0.25, 0.5, 0.75)).round(4).tolist()
    return {
        "seconds": np.median(times, axis=0).round(5).tolist(),
        "ratio": middle,
        "quartiles": [low, high],
        "pairs": pairs,
    }


def sent(model: Transformer, run: Callable[[], Any]) -> list[Tensor]:
    """The tokens of every forward that `run` makes with the model."""
    tokens: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    run()
    hook.remove()
    return tokens


def cost(model: Transformer, monitor: Monitor, corpus: Corpus, pairs: int) -> dict[str, Any]:
    """A monitor's score beside plain forwards of what it sends."""
    items = monitor.prepare(corpus)
    tokens = sent(model, lambda: monitor.score(model, items))
    result = paired(lambda i: monitor.score(model, items), lambda i: [model(t) for t in tokens], pairs)
    return {"forwards": len(tokens), "tokens": sum(t.numel() for t in tokens)} | result


def last_layer(model: Transformer, monitor: Monitor, corpus: Corpus, pairs: int) -> dict[str, Any]:
    """A monitor's score beside its score when the last layer computes all places, and how far their values differ."""
    items = monitor.prepare(corpus)

    def whole(i: int) -> list[float]:
        with mock.patch.object(Transformer, "hidden_at", LanguageModel.hidden_at):
            return values(i)

    def values(i: int) -> list[float]:
        return [value.value for value in monitor.samples(monitor.score(model, items))]

    difference = float(np.abs(np.subtract(values(0), whole(0))).max(initial=0))
    assert difference <= AGREE, f"values differ from those of all places by {difference}"
    return paired(values, whole, pairs) | {"largest_difference": difference}


class FullMatrix:
    """A tap that forms the whole attention matrix of every head and reads the four scores off it: the reference."""

    def __init__(self, item: NeedleItem):
        self.item = item
        self.layers: list[list[list[float]]] = []

    def __call__(self, layer: int, attended: Attended) -> None:
        """One layer's scores of a single item, [heads, 4]: copy_hard, copy_soft, needle_mass, sink_mass."""
        q_BTNH, k_BTMH, scale = attended[:3]
        k_TNH = k_BTMH[0].repeat_interleave(q_BTNH.shape[2] // k_BTMH.shape[2], dim=1)
        rows_NTS = torch.einsum("tnh,snh->nts", q_BTNH[0], k_TNH).mul_(scale)
        future_TS = torch.ones(rows_NTS.shape[1:], dtype=torch.bool).triu_(1)
        rows_NTS = rows_NTS.masked_fill_(future_TS, float("-inf")).softmax(-1)
        tokens, (start, stop) = self.item.tokens, self.item.needle
        answer = range(*self.item.answer)
        same = [[j for j in range(start, stop) if tokens[j] == tokens[p]] for p in answer]
        scores = []
        for rows_TS in rows_NTS:
            rows = rows_TS[answer.start - 1 : answer.stop - 1].double().numpy()
            hard = [row.argmax() in held for row, held in zip(rows, same, strict=True)]
            soft = [row[held].sum() for row, held in zip(rows, same, strict=True)]
            scores.append([np.mean(hard), np.mean(soft), rows[:, start:stop].sum(1).mean(), rows[:, 0].mean()])
        self.layers.append(scores)


def heads(model: Transformer, corpus: Corpus, base: Needle, length: int, batch: int, pairs: int) -> dict[str, Any]:
    """What scoring the heads adds to the needle's own forwards at a length, and how far it is from the reference."""
    on = dataclasses.replace(base, lengths=(length,), items=5, variants={}, tokens_per_forward=batch * length)
    off = dataclasses.replace(on, heads=False)
    items = [item._replace(control=None) for item in on.prepare(corpus)]

    def forward(i: int) -> list[NeedleItem]:
        """The items of the i-th forward: another needle each time."""
        return [items[(i + j) % len(items)] for j in range(batch)]

    result = paired(lambda i: on.score(model, forward(i)), lambda i: off.score(model, forward(i)), pairs)
    answers = [item.answer[1] - item.answer[0] for item in items]
    grid = {"length": length, "items_per_forward": batch, "answer_tokens": answers}
    return grid | result | {"added_frac": round(result["ratio"] - 1, 4)} | full_matrix(model, on, items)


def full_matrix(model: Transformer, monitor: Needle, items: list[NeedleItem]) -> dict[str, Any]:
    """The largest difference of all scores from the reference (asserted), and what whole matrices add to a forward."""
    whole: list[FullMatrix] = []

    def tapped(i: int) -> None:
        whole.append(FullMatrix(items[i]))
        with tapping(model, whole[-1]):
            plain(i)

    def plain(i: int) -> None:
        score_spans(model, [items[i].tokens], [items[i].answer])

    added = paired(tapped, plain, len(items))["ratio"] - 1
    fast = monitor.score(model, items).head_scores[..., :4]  # the fifth, chance, reads the same rows
    difference = float(np.abs(fast - np.array([tap.layers for tap in whole[1:]])).max())
    assert difference <= AGREE, f"head scores differ from the full matrix by {difference}"
    return {"largest_difference": difference, "full_matrix_added_frac": round(added, 2)}


def main() -> None:
    """Prints the figures and writes them to results/monitors_cpu.json."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=15)
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "monitors_cpu.json")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    config = check(["run=tiny_lccp"])
    corpus = open_corpus(config.data, config.run.context_tokens, config.seed)
    model = initialise(Transformer(config.model, corpus.vocab_size), config.seed)
    watch = config.monitors.watch
    results: dict[str, Any] = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1}
    results |= {"model": "tiny", "monitors": {}, "last_layer": {}, "heads": []}
    with evaluating(model):
        for length, batch in GRID:
            row = heads(model, corpus, watch["needle"], length, batch, chosen.pairs)
            print(json.dumps(row), flush=True)
            results["heads"].append(row)
        for name, monitor in watch.items():
            fewer = dataclasses.replace(monitor, **FEWER.get(name, {}))
            results["monitors"][name] = cost(model, fewer, corpus, max(3, chosen.pairs // 5))
            print(name, json.dumps(results["monitors"][name]), flush=True)
            results["last_layer"][name] = last_layer(model, fewer, corpus, max(3, chosen.pairs // 5))
            print("last layer", name, json.dumps(results["last_layer"][name]), flush=True)
    chosen.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
