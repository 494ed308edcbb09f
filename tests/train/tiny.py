"""A run of a few seconds: three dozen small text files, two layers, a dozen steps, six windows, and every monitor."""

from pathlib import Path
from typing import Any

import torch

from lccp_sim.train.saved.checkpoint import read_checkpoint

WORDS = (
    "the house river stone light under moves slowly while children gather around table where bread lies and nobody "
    "speaks because winter came early this year before harvest ended so people wait for letters from town about prices "
    "of grain salt iron wood every morning old man walks along garden wall counting birds that return again"
).split()

BATCH = 256
STEPS = 12
WINDOWS = [0, 3, 4, 6, 8, 12]


def plain(root: Path, shared: Path) -> dict[str, Any]:
    """The tiny run, windows at steps 0, 3, 4, 6, 8 and 12 (WINDOWS), as plain values.

    Runs go to `root`; `shared` has the folder `texts`, and the cache.
    """
    prose = {"kind": "text_files", "paths": [str(shared / "texts")], "share": 0.7}
    copies = {"kind": "synthetic", "task": "copies", "text_from": "prose", "share": 0.3, "documents": 20}
    return {
        "seed": 0,
        "run": {
            "name": "tiny",
            "root": str(root),
            "context_tokens": 64,
            "batch_tokens": BATCH,
            "tokens": STEPS * BATCH,
            "log_every_steps": 2,
            "checkpoint_every_steps": 5,
        },
        "model": {
            "d_model": 32,
            "num_layers": 2,
            "num_heads": 2,
            "num_kv_heads": 1,
            "d_head": 16,
            "num_experts": 4,
            "d_expert": 16,
            "init_std": 0.05,
            "rope": {"kind": "base", "base": 10000},
            "router": {"bias_update_rate": 0.001},
        },
        "optim": {"lr": 3e-3, "warmup_steps": 3},
        "data": {
            "tokenizer": {"kind": "train", "vocab_size": 400},
            "old_context_tokens": 32,
            "held_out_frac": 0.3,
            "cache": str(shared / "cache"),
            "sources": {"prose": prose, "copies": copies},
        },
        "monitors": {
            "first_window_tokens": 3 * BATCH,
            "needle": {
                "lengths": [192],
                "haystack": ["prose"],
                "items": 4,
                "depths": 2,
                "controls": 2,
                "variants": {"multikey": 1, "interference": 1},
                "interference_tokens": 64,
            },
            "perplexity": {
                "sources": ["prose"],
                "context_tokens": 64,
                "short_tokens": 32,
                "items": 2,
                # Bounds at which a model that has learned nothing yet has keys, too.
                "longppl": {"trunc_tokens": 16, "sliding_tokens": 8, "alpha": 0.01, "beta": -20},
            },
            "induction": {"lengths": [48], "haystack": "prose", "items": 2, "span_tokens": 6},
            "intervention": {
                "every": 3,
                "lengths": [160],
                "haystack": "prose",
                "items": 4,
                "depths": 2,
                "k": 1,
                "draws": 2,
            },
            "heads": {"every": 2, "lengths": [420], "items": 2, "depths": 2},
            "routing": {"source": "prose", "context_tokens": 64, "items": 2},
            "probe": {
                "every": 3,
                "short_tokens": 384,
                "long_tokens": 512,
                "lr": 1e-3,
                "tasks": {"longbio_standard": 1, "variable_tracking_1": 1},
                "train_tokens": 384,
                "steps": 2,
                "rows": 1,
                "items": 2,
            },
        },
    }


def records(directory: Path) -> bytes:
    """The bytes of a run's records."""
    return (directory / "records.jsonl").read_bytes()


def samples(directory: Path) -> dict[str, bytes]:
    """The bytes of a run's samples by file name."""
    return {path.name: path.read_bytes() for path in sorted((directory / "samples").glob("*.parquet"))}


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint."""
    return dict(read_checkpoint(checkpoint)["state_dict"])


def final(directory: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """The weights at a window, by default the last one."""
    return weights(directory / "checkpoints" / f"window-{step:08d}.ckpt")


def assert_same_run(one: Path, other: Path, step: int = STEPS) -> None:
    """Fails unless two runs wrote the same bytes of records and samples and ended in the same weights."""
    assert records(one) == records(other)
    assert samples(one) == samples(other)
    mine, theirs = final(one, step), final(other, step)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
