"""What a window of the probe costs on the CPU: as `tiny_lccp` has it, and as it was with one question a text.

The model is the tiny study's with fresh weights (the cost does not depend on them), the texts are its own. Times are
CPU seconds of one thread, medians over pairs, one of each in turn in one process, so that a busy machine slows both. A
pair is a quarter of a window of each, in questions and in steps, and seconds are given for a whole one; a training step
of the run's own rows stands beside them. Tokens are those of a whole window.
"""

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from bench.monitor_shares import Counter  # noqa: E402
from lccp_sim.configure.compose import check  # noqa: E402
from lccp_sim.data.pools import open_corpus  # noqa: E402
from lccp_sim.models.loss import cross_entropy  # noqa: E402
from lccp_sim.models.optimizer import adamw  # noqa: E402
from lccp_sim.models.transformer import Transformer, initialise  # noqa: E402
from lccp_sim.monitors import Probe  # noqa: E402
from lccp_sim.monitors.observing import counting, evaluating  # noqa: E402
from lccp_sim.monitors.probe import ProbeItems  # noqa: E402

BEFORE: dict[str, Any] = {
    "items": 48, "steps": 32, "rows": 8, "questions": 1, "long_train_frac": 0.1, "seeds": (0, 1, 2), "pass_at": None,
}  # fmt: skip
PART = 4  # a window is timed by this part of its questions and steps
PER = 100_000  # training tokens that a window is compared with


def seconds(probe: Probe, items: ProbeItems, model: Transformer) -> float:
    """CPU seconds of one window."""
    part = dataclasses.replace(probe, steps=probe.steps // PART)
    some = items._replace(train=items.train[: part.steps], evaluation=items.evaluation[::PART])
    with evaluating(model):
        start = time.process_time()
        part.score(model, some)
        return (time.process_time() - start) * PART


def training(model: Transformer, rows: int, context: int, lr: float) -> Callable[[], float]:
    """CPU seconds for `PER` tokens of training, from one step on random rows."""
    optimizer = adamw([{"params": list(model.parameters())}], lr=lr)
    tokens_BT = torch.from_numpy(np.random.default_rng(0).integers(0, model.vocab_size, (rows, context + 1)))

    def step() -> float:
        start = time.process_time()
        out = model(tokens_BT[:, :-1])
        loss = cross_entropy(
            out.hidden_BTD.flatten(0, 1), model.head_weight, tokens_BT[:, 1:].flatten(), rows * context
        )
        optimizer.zero_grad()
        (loss + out.balance_loss).backward()
        optimizer.step()
        return (time.process_time() - start) * PER / (rows * context)

    return step


def main() -> None:
    """Prints the figures and writes them to results/probe_cpu.json."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=3)
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "probe_cpu.json")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    config = check(["run=tiny_lccp", "run.init_from=null"])
    corpus = open_corpus(config.data, config.run.context_tokens, config.seed)
    model = initialise(Transformer(config.model, corpus.vocab_size), config.seed)
    now = config.monitors.watch["probe"]
    forms = {"before": dataclasses.replace(now, **BEFORE), "now": now}
    prepared, seconds_prepared = {}, {}
    for name, probe in forms.items():
        start = time.process_time()
        prepared[name] = probe.prepare(corpus)
        seconds_prepared[name] = time.process_time() - start
    copy = initialise(Transformer(config.model, corpus.vocab_size), config.seed)
    step = training(copy, config.run.batch_tokens // config.run.context_tokens, config.run.context_tokens, 1e-3)
    step()
    taken: dict[str, list[float]] = {name: [] for name in (*forms, "training")}
    for pair in range(chosen.pairs):
        for name in sorted(forms, reverse=bool(pair % 2)):
            taken["training"].append(float(np.median([step() for _ in range(5)])))
            taken[name].append(seconds(forms[name], prepared[name], model))
    ratios = [now / before for now, before in zip(taken["now"], taken["before"], strict=True)]
    counter, tokens = Counter(corpus.vocab_size), {}
    for name, probe in forms.items():
        with evaluating(counter), counting(counter) as sent:
            probe.score(counter, prepared[name])
        tokens[name] = sent[0]
    results: dict[str, Any] = {
        "torch": torch.__version__, "machine": platform.machine(), "threads": 1, "pairs": chosen.pairs,
        "seconds_for_100k_training_tokens": round(float(np.median(taken["training"])), 2),
        "seconds_now_over_before": round(float(np.median(ratios)), 3),
    }  # fmt: skip
    for name, probe in forms.items():
        lessons = [lesson for batch in prepared[name].train for lesson in batch]
        results[name] = {
            "seconds": round(float(np.median(taken[name])), 2),
            "tokens": tokens[name],
            "over_100k_training_tokens": round(float(np.median(taken[name]) / np.median(taken["training"])), 2),
            "seconds_to_prepare": round(seconds_prepared[name], 2),
            "texts": len(lessons),
            "fine_tuning_questions": sum(len(lesson.answers) for lesson in lessons),
            "fine_tuning_tokens": sum(len(lesson.tokens) for lesson in lessons),
            "evaluation_questions": probe.items,
            "evaluation_tokens": sum(len(question.tokens) for question in prepared[name].evaluation),
            "seeds": len(probe.seeds),
        }
    print(json.dumps(results, indent=1))
    chosen.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
