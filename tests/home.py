"""A place to use the command in: the texts of the tiny run, and its config as Hydra groups of a user's own."""

import random
from pathlib import Path

import yaml

from tests.train.tiny import WORDS, plain


def build(root: Path) -> Path:
    """`root` with a folder `texts`, and a folder `configs` for --config-dir, whose run is called `tiny`.

    Runs lie in `root/runs`, the cache in `root/cache`.
    """
    rng = random.Random(0)
    (root / "texts").mkdir(parents=True)
    for index in range(36):
        words = rng.choices(WORDS, k=rng.choice([100, 300, 600])) + [str(rng.randrange(1000))]
        (root / "texts" / f"{index:02}.txt").write_text(f"Part {index}: {' '.join(words)}.\n", encoding="utf-8")
    tree = plain(root / "runs", root)
    groups = ("model", "data", "optim", "monitors")
    for group in groups:
        _write(root / "configs" / group / "mine.yaml", tree[group])
    _write(root / "configs" / "run" / "tiny.yaml", {
        "defaults": [{f"override /{group}": "mine"} for group in groups],
        "run": tree["run"],
    })  # fmt: skip
    return root


def _write(path: Path, tree: dict) -> None:
    path.parent.mkdir(parents=True)
    package = "# @package _global_\n" if path.parent.name == "run" else ""
    path.write_text(package + yaml.safe_dump(tree, sort_keys=False))
