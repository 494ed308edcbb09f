"""Every command of docs/first_hour.md runs, in the order of the page and in one folder, as a newcomer would run it."""

import glob
import itertools
import json
import random
import re
from pathlib import Path

import pytest

from lccp_sim.cli import main
from lccp_sim.data.tokenizer import train_tokenizer
from tests.test_docs import ROOT, commands, run_dry
from tests.train.foreign import folder
from tests.train.tiny import WORDS

PAGE = (ROOT / "docs" / "first_hour.md").read_text(encoding="utf-8")
NAMED = re.compile(r"^[^\n]*Save this as `(\S+\.yaml)`:\n```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
OFF = [f"monitors.{name}=null" for name in ("induction", "intervention", "heads", "routing", "probe")]
TINY = [*OFF, "monitors.needle.lengths=[256]", "monitors.needle.items=2", "monitors.needle.depths=2"]
TINY += ["monitors.needle.controls=2", "monitors.needle.variants=null", "monitors.perplexity.items=2"]
TINY += ["monitors.perplexity.longppl=null", "run.tokens=2048"]
TINY += ["data.sources.code.max_megabytes=0.2", "data.sources.text.max_megabytes=0.2"]
FOREIGN = [*TINY[:5], "monitors.needle.lengths=[256]", "monitors.needle.items=2", "monitors.needle.controls=2"]
FOREIGN += ["monitors.needle.depths=2", "monitors.perplexity={sources: [code], context_tokens: 256, short_tokens: 64}"]
FOREIGN += ["data.sources.code.max_megabytes=0.5", "data.sources.text.max_megabytes=0.2"]
SMALLER = {"train": TINY, "data": TINY[-2:], "measure": FOREIGN}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the texts, the model and the config files that the page asks for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LCCP_CACHE", str(tmp_path / "cache"))
    rng = random.Random(0)
    (tmp_path / "my_texts").mkdir()
    for index in range(24):
        (tmp_path / "my_texts" / f"{index}.txt").write_text(f"Part {index}: {' '.join(rng.choices(WORDS, k=400))}.")
    train_tokenizer(400, iter([" ".join(WORDS)] * 20)).save(str(tmp_path / "tokenizer.json"))
    folder(tmp_path, tmp_path / "my_model")
    for name, text in NAMED.findall(PAGE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + f"common: {json.dumps(TINY)}\n" * (Path(name).parent.name == "study"))
    return tmp_path


def shrunk(words: list[str]) -> list[str]:
    """A command of the page, its patterns of files expanded as a shell does, and small enough for a test."""
    verb, *rest = words
    paths = [sorted(glob.glob(word)) or [word] if word.startswith("runs/") else [word] for word in rest]
    return [verb, *itertools.chain(*paths), *SMALLER.get(verb, [])]


def test_the_page_works_from_top_to_bottom(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [demo, demo_report, *rest] = commands(PAGE)
    assert demo == ["make", "demo"] and demo_report == ["lccp", "report", "runs/tiny_lccp-s0-*"]
    run_dry(demo)
    done = set()
    for words in (shrunk(each[1:]) for each in rest):
        assert main(words) == 0, f"lccp {' '.join(words)}: {capsys.readouterr().err}"
        done.add(words[0])
    assert done == {"data", "train", "report", "measure", "import", "plan", "export", "study"}
    assert (place / "runs" / "studies" / "rate" / "index.html").exists()
    assert (place / "exported" / "mine" / "config.json").exists()
    assert [len(list(place.glob(f"runs/mine-s{seed}-*"))) for seed in (0, 1)] == [2, 2], "sweep and study share runs"


def test_the_page_names_its_files() -> None:
    assert [name for name, _ in NAMED.findall(PAGE)] == ["configs/run/mine.yaml", "configs/study/rate.yaml"]
