"""What a change of RoPE alone, before any training, does to a base: needles by variant and length.

    PYTHONPATH=. python bench/rope_change.py BASE=RUN/checkpoints/window-N.ckpt ... [--lengths 128 256 512] [--items 60]

Each base is measured with its own RoPE base, and with 2, 4 and 16 times that. The texts are those of the needle
monitor, from the run's own corpus: value hit and answer NLL (nats) over the value's tokens.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from lccp_sim.data.pools import open_corpus
from lccp_sim.monitors import Needle
from lccp_sim.monitors.observing import evaluating
from lccp_sim.monitors.values import Moment
from lccp_sim.train.saved.checkpoint import read_checkpoint
from lccp_sim.train.saved.init import load_transformer
from lccp_sim.train.saved.run_directory import read_config

RESULT = Path(__file__).parent / "results" / "rope_change.json"
FACTORS = (1, 2, 4, 16)


def measured(path: Path, lengths: tuple[int, ...], items: int) -> dict[str, Any]:
    """What one checkpoint retrieves under each factor on its RoPE base."""
    run = path.parent.parent
    config = read_config(run)
    corpus = open_corpus(config.data, config.run.context_tokens, config.seed, run / "tokenizer.json")
    needle = Needle(
        lengths=lengths, haystack="code", items=items, controls=2, heads=False,
        variants={"distractor": items, "multikey": items},
    )  # fmt: skip
    texts = needle.prepare(corpus)
    content = read_checkpoint(path)
    model = load_transformer(path, content).eval()
    rope = model.config.rope
    rows = []
    for factor in FACTORS:
        changed = dataclasses.replace(rope, base=rope.base * factor)
        model.frequencies, model.rope_scale = changed.frequencies(model.config.d_head)
        with evaluating(model, False):
            records = needle.aggregate(needle.score(model, texts), Moment(0, 0))
        cells = [r for r in records if set(r.tags) == {"length", "span", "variant"} and r.tags["span"] == "value"]
        rows += [
            {"factor": factor, "metric": r.metric, **r.tags, "value": r.value, "n": r.n}
            for r in cells
            if r.metric in ("hit_frac", "answer_nll_nats")
        ]
    facts = {"rope": dataclasses.asdict(rope), "tokens": content["lccp"]["tokens"]}
    return facts | {"context_tokens": config.run.context_tokens, "corpus": corpus.hash, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bases", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--items", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, path in (each.split("=", 1) for each in arguments.bases):
        found[name] = measured(Path(path), tuple(arguments.lengths), arguments.items)
        for row in found[name]["rows"]:
            if row["metric"] == "hit_frac":
                print(f"{name:>10} x{row['factor']:<3} {row['variant']:<10} {row['length']:>4} {row['value']:.2f}")
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
