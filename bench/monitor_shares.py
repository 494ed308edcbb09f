"""Tokens that each monitor sends through the model over a whole run, as a share of the run's training tokens.

Exact, without training: the monitors of a run's config prepare their items and score a stand-in that only counts. A
token of the probe's fine-tuning counts as three, for its backward pass. What depends on the model is only how many
passes the probe's decoding takes; the stand-in always answers wrongly, and is done after two.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from lccp_sim.configure.compose import check  # noqa: E402
from lccp_sim.configure.load import windows_of  # noqa: E402
from lccp_sim.data.pools import open_corpus  # noqa: E402
from lccp_sim.models.language_model import Attended, LanguageModel, Tap  # noqa: E402
from lccp_sim.monitors.observing import counting, evaluating  # noqa: E402
from lccp_sim.train.window.suite import MonitorSuite  # noqa: E402


class Out(NamedTuple):
    """Hidden states of width 1."""

    hidden_BTD: Tensor


class Counter(LanguageModel):
    """A model that computes nothing: one layer whose attention is uniform, and the same logits everywhere."""

    num_layers, num_heads = 1, 16

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = vocab_size
        self.weight = nn.Parameter(torch.zeros(1))
        self.tap: Tap | None = None

    def forward(self, tokens_BT: Tensor) -> Out:
        """Zeros."""
        if self.tap is not None:
            flat = torch.zeros(1, 1, 1, 1).expand(*tokens_BT.shape, self.num_heads, 1)
            self.tap(0, Attended(flat, flat[:, :, :1], 1.0))
        return Out(self.weight.expand(*tokens_BT.shape, 1))

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """The first token leads everywhere."""
        return torch.zeros(self.vocab_size).index_fill(0, torch.tensor([0]), 1.0) + hidden_RD

    def set_tap(self, tap: Tap | None) -> None:
        """None; the tap is called."""
        self.tap = tap

    def set_gate(self, gate_LN: Tensor | None) -> None:
        """None; there is nothing to scale."""


def shares(run: str) -> dict[str, Any]:
    """For each monitor of a run: looks, tokens a look, and its share of the training tokens; the sums."""
    config = check([f"run={run}", "run.init_from=null"])
    corpus = open_corpus(config.data, config.run.context_tokens, config.seed)
    monitors = {name: monitor for name, monitor in config.monitors.watch.items() if name != "routing"}
    steps = windows_of(config)
    suite = MonitorSuite(config.monitors.watch, corpus, steps)
    model = Counter(corpus.vocab_size)
    training = config.run.steps * config.run.batch_tokens
    rows = {}
    for name in suite.monitors:
        looks, once = sum(name in suite.due(step) for step in steps), 0
        if name not in monitors:  # it counts experts, which the stand-in has not
            tokens = suite.items[name].size
        else:
            monitor, items = monitors[name], suite.items[name]
            with evaluating(model):
                if monitor.reference_from is not None:  # found once, at the first window
                    with counting(model) as sent:
                        items = monitor.refer(items, monitor.reference(model, items))
                    once = sent[0]
                with counting(model) as sent:
                    monitor.score(model, items)
            tokens = sent[0]
        whole = looks * tokens + once
        rows[name] = {"looks": looks, "tokens_a_look": tokens, "tokens_once": once, "share": whole / training}
        print(run, name, json.dumps(rows[name]), flush=True)
    without = sum(row["share"] for name, row in rows.items() if name != "probe")
    everything = sum(row["share"] for row in rows.values())
    sums = {"without_probe": without, "all": everything}
    print(run, json.dumps(sums), flush=True)
    return {"training_tokens": training, "windows": len(steps), "monitors": rows, "share": sums}


def main() -> None:
    """Prints the table and writes it to results/monitor_shares.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "monitor_shares.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    results = {run: shares(run) for run in ("tiny_lccp", "small_lccp")}
    chosen.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
