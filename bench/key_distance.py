"""Over how many tokens a base carries a key to its value: rows of records, asked after each record's key.

    PYTHONPATH=. python bench/key_distance.py NAME=RUN/checkpoints/window-N.ckpt ... [--tokens 64]

A row has five records in random order: a key of two tokens, 0 to 3 tokens that all records share, a value of two. The
share of known keys whose first value token is the argmax; chance is about a fifth. Keys and values are words of the
needles' atoms, or any plain tokens.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lccp_sim.data.documents.facts import word_atoms
from lccp_sim.data.documents.synthetic import plain_tokens
from lccp_sim.data.tokenizer import read_tokenizer
from lccp_sim.train.saved.checkpoint import read_checkpoint
from lccp_sim.train.saved.init import load_transformer

RESULT = Path(__file__).parent / "results" / "key_distance.json"
RECORDS, ROWS, DISTANCES = 5, 40, (0, 1, 2, 3)


def row(rng: np.random.Generator, atoms: np.ndarray, between: int, tokens: int) -> tuple[list[int], list[int]]:
    """Ids after a BOS of 0, and the places of the first value token of each record that stood before."""
    shared = rng.choice(atoms, between)
    known = [(rng.choice(atoms, 2), rng.choice(atoms, 2)) for _ in range(RECORDS)]
    ids, places, seen = [0], [], set()
    for which in rng.integers(RECORDS, size=tokens // (4 + between)):
        if which in seen:
            places.append(len(ids) + 2 + between)
        seen.add(which)
        ids += [*known[which][0], *shared, *known[which][1]]
    return ids, places


def measured(path: Path, tokens: int) -> dict[str, Any]:
    """The share of hits by kind of token and tokens between key and value."""
    content = read_checkpoint(path)
    model = load_transformer(path, content).eval()
    tokenizer = read_tokenizer(path.parent.parent / "tokenizer.json")
    found: dict[str, Any] = {"tokens_seen": content["lccp"]["tokens"] + content["lccp"]["tokens_before"]}
    for kind, atoms in (("words", word_atoms(tokenizer)), ("any", plain_tokens(tokenizer))):
        for between in DISTANCES:
            rng, hits = np.random.default_rng(0), []
            for _ in range(ROWS):
                ids, places = row(rng, atoms, between, tokens)
                with torch.no_grad():
                    logits_SV = model.logits(model(torch.tensor([ids])).hidden_BTD)[0]
                guess = logits_SV.argmax(-1).tolist()
                hits += [guess[place - 1] == ids[place] for place in places]
            found[f"{kind}/{between}"] = round(float(np.mean(hits)), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bases", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, path in (each.split("=", 1) for each in arguments.bases):
        found[name] = measured(Path(path), arguments.tokens)
        print(name, found[name])
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
