"""What the callback of `transformers.Trainer` costs between windows: steps with it and without it, in turn.

A tiny random Llama trains on CPU, one thread. Each pair is two trainings of the same steps, with and without monitors
that have no window among them, in alternating order. A training gives the median time of its steps after the first
few, and a pair the ratio of two such medians. What is reported is the median ratio, with its interval over the pairs
from resampling them.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers as t  # noqa: E402

from lccp_sim.configure.compose import check  # noqa: E402
from lccp_sim.data.tokenizer import train_tokenizer  # noqa: E402
from lccp_sim.train.window.own_loop import Windows  # noqa: E402
from lccp_sim.train.window.trainer import TrainerMonitors  # noqa: E402

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
SIZES |= {"intermediate_size": 128, "vocab_size": 2048}
ROWS, LENGTH, WARM = 4, 128, 5
FEW = ["run=measure", "monitors.needle.lengths=[96]", "monitors.needle.items=5", "monitors.intervention=null"]
FEW += ["monitors.heads=null", "monitors.induction=null", "monitors.perplexity.items=2"]
FEW += ["monitors.needle.controls=2", "monitors.perplexity.context_tokens=256", "monitors.perplexity.short_tokens=64"]


class Clock(t.TrainerCallback):
    """The time at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Note when the step before, with all callbacks, had ended."""
        self.ends.append(time.perf_counter())


def step_seconds(monitors: TrainerMonitors | None, steps: int, folder: str) -> float:
    """The median seconds of a step in a fresh training."""
    torch.manual_seed(0)
    clock = Clock()
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(2, 2000, (ROWS * steps, LENGTH))]
    settings = t.TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=ROWS, use_cpu=True, report_to=[], disable_tqdm=True,
        save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    callbacks = [clock] if monitors is None else [monitors, clock]
    model = t.LlamaForCausalLM(t.LlamaConfig(**SIZES))
    t.Trainer(model, settings, train_dataset=rows, callbacks=callbacks).train()
    return statistics.median(np.diff(clock.ends)[WARM:].tolist())


def main() -> None:
    """Print the figures and write them to results/callback_cost.json."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "callback_cost.json")
    arguments.add_argument("--pairs", type=int, default=12)
    arguments.add_argument("--steps", type=int, default=40)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer.json"
        train_tokenizer(SIZES["vocab_size"], iter([Path(os.__file__).read_text(encoding="utf-8")])).save(str(tokenizer))
        monitors = TrainerMonitors(
            check(FEW), Windows(steps=[10**9]), Path(folder) / "records", ROWS * LENGTH, tokenizer, say=lambda _: None
        )
        ratios, base = [], []
        for pair in range(chosen.pairs):
            order = (monitors, None) if pair % 2 else (None, monitors)
            took = {which is None: step_seconds(which, chosen.steps, folder) for which in order}
            ratios.append(took[False] / took[True])
            base.append(took[True])
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    results = {
        "torch": torch.__version__, "transformers": t.__version__, "machine": platform.machine(),
        "pairs": chosen.pairs, "steps": chosen.steps, "step_milliseconds_without": 1e3 * statistics.median(base),
        "overhead_percent": 100 * (statistics.median(ratios) - 1),
        "interval_95_percent": [100 * (float(low) - 1), 100 * (float(high) - 1)],
    }  # fmt: skip
    print(json.dumps(results, indent=1))
    chosen.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
