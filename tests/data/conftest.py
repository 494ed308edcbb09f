"""A small corpus of real-looking text files, and the config that reads it."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lccp_sim.data.documents.sources import TextFiles
from lccp_sim.data.pools import DataConfig
from lccp_sim.data.tokenizer import TokenizerConfig

WORDS = (
    "the house river stone light under moves slowly while children gather around table where bread lies and nobody "
    "speaks because winter came early this year before harvest ended so people wait for letters from town about prices "
    "of grain salt iron wood every morning old man walks along garden wall counting birds that return again"
).split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty text files of 20 to 600 words."""
    rng = random.Random(0)
    path = tmp_path / "texts"
    path.mkdir()
    for index in range(30):
        words = rng.choices(WORDS, k=rng.choice([20, 100, 600])) + [str(rng.randrange(1000))]
        (path / f"{index:02}.txt").write_text(f"Part {index}: " + " ".join(words) + ".\n", encoding="utf-8")
    return path


@pytest.fixture
def make(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DataConfig]:
    """A function (sources, **keys) -> DataConfig with a small tokenizer, its cache in the test's own directory."""
    monkeypatch.delenv("LCCP_CACHE", raising=False)

    def config(sources: dict[str, Any] | None = None, **keys: Any) -> DataConfig:
        sources = sources or {}
        if "prose" not in sources:
            sources = {"prose": TextFiles(paths=(str(folder),)), **sources}
        keys = {"tokenizer": TokenizerConfig(vocab_size=400), "old_context_tokens": 64, **keys}
        return DataConfig(sources=sources, cache=str(tmp_path / "cache"), **keys)

    return config
