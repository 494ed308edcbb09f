"""The bases that ship: whole, of the shape of `model=tiny`, small, and with the card that their page shows."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from lccp_sim.cli import main
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


def test_a_base_is_made_in_miniature_by_the_stages_that_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four stages and the export of `make bases`, each of a few steps; the result starts long-context training."""
    monkeypatch.chdir(tmp_path)
    few = [
        "run.threads=1",
        "data.tokenizer.vocab_size=512",
        "data.sources.code.include=[sympy/core/a*.py,sympy/sets/*.py]",
    ]
    few += ["data.sources.text.include=['*/Help/command/a*.rst']"]
    few += ["data.sources.unseen_code.include=[networkx/algorithms/flow/*.py]", "run.tokens=4096"]
    quiet = ["monitors.needle=null", "monitors.perplexity=null", "monitors.induction=null"]
    less = {"repeats": 200, "records": 200, "copies": 60, "facts": 60, "keyed": 60, "asked": 30}
    sources = {"tiny_emergence": ("repeats", "records")} | dict.fromkeys(
        ("tiny_short", "tiny_base", "tiny_raised"), less
    )
    for run, names in sources.items():
        own = [f"data.sources.{name}.documents={less[name]}" for name in names]
        assert main(["train", f"run={run}", "seed=5", *few, *quiet, *own]) == 0
        (made,) = tmp_path.glob(f"runs/{run}-s5-*")
    assert main(["export", str(made), "tiny-s5.safetensors", "--dtype", "bf16"]) == 0
    config = check(["run=tiny_lccp", "run.init_from=tiny-s5.safetensors", "data.tokenizer.vocab_size=512"])
    start = Start.of(config)
    assert start.tokens == 4 * 4096 and start.model.rope.base == config.model.rope.base
    assert "train run=$$run seed=$$seed" in (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    for run in sources:
        assert run in (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
