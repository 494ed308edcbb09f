"""The bases that ship: whole, of the shape of `model=tiny`, small, and with the card that their page shows."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from lccp_sim.configure.compose import check
from lccp_sim.train.saved.init import Start, transformer_of
from lccp_sim.train.saved.weights_file import bundled

CARDS = json.loads((files("lccp_sim") / "bases" / "bases.json").read_text())


@pytest.mark.parametrize("name", CARDS)
def test_a_base_that_ships_starts_the_run_that_names_it(name: str) -> None:
    card = CARDS[name]
    path = bundled(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["sha256"]
    assert path.stat().st_size <= 6 * 2**20
    config = check(["run=tiny_lccp", f"seed={card['seed']}"])
    assert config.run.init_from == f"bundled:{name}"
    start = Start.of(config)
    assert start.tokens == card["tokens"] and config.data.old_context_tokens == card["context_tokens"]
    model = transformer_of(config.model, start)
    assert config.model.rope.base == card["rope_base"] == start.model.rope.base
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_the_page_shows_what_the_cards_say() -> None:
    page = (Path(__file__).parents[2] / "docs" / "studies" / "base.md").read_text(encoding="utf-8")
    for name, card in CARDS.items():
        needles = card["needles"]
        shown = [f"{needles[f'{variant}/512/hit']:.2f}" for variant in ("single", "distractor", "multikey")]
        assert f"| {name} | {' | '.join(shown)} |" in page
