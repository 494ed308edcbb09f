"""What a base that ships is and can do, into lccp_sim/bases/bases.json: hashes, tokens, and its run's last window.

python bench/base_card.py RUN lccp_sim/bases/NAME.safetensors
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from bench.base_trials import windows
from lccp_sim.train.saved.weights_file import read_weights_file

CARDS = Path(__file__).parents[1] / "lccp_sim" / "bases" / "bases.json"


def card(run: Path, path: Path) -> dict[str, Any]:
    """Hashes of the file and of the text, what was trained, and value hits and NLL of needles by variant and length."""
    facts = read_weights_file(path)["lccp"]
    config = facts["config"]
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "corpus": json.loads((run / "corpus.json").read_text())["hash"],
        "run": config["run"]["name"],
        "seed": config["seed"],
        "tokens": facts["tokens"] + facts["tokens_before"],
        "context_tokens": config["run"]["context_tokens"],
        "rope_base": config["model"]["rope"]["base"],
        "needles": windows(run)[-1],
    }


def main() -> None:
    run, path = map(Path, sys.argv[1:])
    cards = json.loads(CARDS.read_text()) if CARDS.exists() else {}
    cards[path.stem] = card(run, path)
    CARDS.write_text(json.dumps(cards, indent=1) + "\n")
    print(json.dumps(cards[path.stem]))


if __name__ == "__main__":
    main()
