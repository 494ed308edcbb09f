"""What `lccp measure` takes with a model of 300M parameters at its default lengths: texts counted, forwards timed.

The model is a random Llama of 304M parameters (24 layers of width 1024, a tied vocabulary of 32,768): the cost does not
depend on the weights. The texts of every monitor are counted from the settings, as the command's own estimate does, and
a text of each length is sent three times (the median counts), by one thread. Two threads are not measured: they are
what one takes over the factor that a step of training gains from a second thread (bench/processes_cpu.py).
"""

import argparse
import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers as t  # noqa: E402

from lccp_sim.configure.compose import check  # noqa: E402
from lccp_sim.models.foreign.adapter import Adapter  # noqa: E402
from lccp_sim.train.window.estimate import expected_seconds, kinds, timed  # noqa: E402

SHAPE = {
    "vocab_size": 32768, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 4, "intermediate_size": 2816, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
RUNS = ("measure", "measure_thorough")
ROUNDS = 3


def minutes(seconds: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Minutes of each run with one thread, and with two by the factor of bench/processes_cpu.py."""
    found = json.loads((Path(__file__).parent / "results" / "processes_cpu.json").read_text())
    factor = found["median_ratio_to_one_process"]["one process, two threads"]
    whole = {run: sum(of.values()) / 60 for run, of in seconds.items()}
    return {
        "minutes_one_thread": {run: round(m, 1) for run, m in whole.items()},
        "factor_of_two_threads": round(factor, 2),
        "minutes_two_threads_scaled": {run: round(m / factor, 1) for run, m in whole.items()},
    }


def main() -> None:
    """Prints the figures and writes them to results/measure_cost.json."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "measure_cost.json")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Adapter(t.LlamaForCausalLM(t.LlamaConfig(**SHAPE)).eval())
    watches = {run: check([f"run={run}"]).monitors.watch for run in RUNS}
    wanted = {kind for watch in watches.values() for of in kinds(watch).values() for kind in of}
    tokens = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], 4096)
    results: dict[str, Any] = {"torch": torch.__version__, "transformers": t.__version__, "machine": platform.machine()}
    results |= {"parameters": sum(p.numel() for p in model.parameters()), "shape": SHAPE, "rounds": ROUNDS}
    results["tokens"] = {
        run: {name: round(sum(n * k[0] for k, n in of.items())) for name, of in kinds(watch).items()}
        for run, watch in watches.items()
    }
    rounds = [timed(model, wanted, tokens, limit=float("inf")) for _ in range(ROUNDS)]
    seconds = {kind: statistics.median(each[kind] for each in rounds) for kind in sorted(wanted)}
    results["speeds"] = [
        {"text": n, "head": head, "tokens_per_second": round(n / s, 1)} for (n, head), s in seconds.items()
    ]
    takes = {run: expected_seconds(watch, seconds) for run, watch in watches.items()}
    results["seconds"] = {run: {name: round(s, 1) for name, s in of.items()} for run, of in takes.items()}
    results |= minutes(results["seconds"])
    print(json.dumps(results, indent=1))
    chosen.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
