"""A real pretrained model: SmolLM2-135M-Instruct, as `make smollm2` fetches it; more of it in bench/smollm2.py."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lccp_sim.cli import main
from lccp_sim.models.hf import load_checkpoint
from lccp_sim.records import read_records
from lccp_sim.train.checkpoint import checkpoints, read_checkpoint
from lccp_sim.train.start import load_transformer

GGUF = Path(__file__).parents[2] / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GGUF.exists(), reason=f"{GGUF.name} is absent: make smollm2 fetches it (98 MB)"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SmolLM2, imported."""
    path = tmp_path_factory.mktemp("models") / "smollm2"
    assert main(["import", str(GGUF), str(path)]) == 0
    yield path
    (path / "checkpoints" / "window-00000000.ckpt").unlink()  # half a gigabyte


@torch.no_grad()
def test_the_logits_are_those_of_transformers(base: Path) -> None:
    [path] = checkpoints(base)
    tokens_BT = torch.randint(0, 49152, (1, 256))
    models = (load_transformer(path, read_checkpoint(path)), load_checkpoint(GGUF, torch.float32, "cpu"))
    ours, theirs = (model.logits(model.eval()(tokens_BT).hidden_BTD[0]) for model in models)
    assert theirs.abs().max() > 10 and (ours - theirs).abs().max() <= 1e-3


def test_it_has_retrieval_heads_and_a_needle_map(base: Path, tmp_path: Path) -> None:
    monitors = "needle={lengths:[256,512],items:4,depths:2,controls:2,variants:null} perplexity=null induction=null"
    words = [f"monitors.{word}" for word in f"{monitors} heads=null intervention=null".split()]
    assert main(["measure", str(base), *words, "--out", str(tmp_path / "out")]) == 0
    records, _ = read_records(tmp_path / "out" / "records.jsonl")
    [count] = [r.value for r in records if r.metric == "retrieval_heads_count" and r.monitor == "needle"]
    assert 5 <= count <= 135
    assert main(["report", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report" / "needle_maps.png").exists()


def test_some_steps_of_lccp_and_the_result_in_transformers(base: Path, tmp_path: Path) -> None:
    """At 1024 tokens, for the sake of time; the bench trains at twice the model's context."""
    words = (
        "run.context_tokens=1024 run.batch_tokens=1024 run.tokens=2048 run.accelerator=cpu data.old_context_tokens=512"
    )
    words += " model=smollm2_135m model.rope.base=400000 optim.lr=1e-5 run.name=smollm2"
    watch = "needle={lengths:[256],items:2,depths:2,controls:2,variants:null} perplexity=null induction=null"
    words += "".join(f" monitors.{word}" for word in f"{watch} heads=null intervention=null".split())
    root = [f"run.root={tmp_path}/runs", f"run.init_from={GGUF}"]
    assert main(["train", "run=measure", *words.split(), *root]) == 0
    [run] = (tmp_path / "runs").glob("smollm2-*")
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["rope_theta"] == 400_000 and settings["max_position_embeddings"] == 8192
    path = checkpoints(run)[-1]
    tokens_BT = torch.randint(0, 49152, (1, 64))
    models = (load_transformer(path, read_checkpoint(path)), load_checkpoint(tmp_path / "out", torch.float32, "cpu"))
    with torch.no_grad():
        ours, theirs = (model.logits(model.eval()(tokens_BT).hidden_BTD[0]) for model in models)
    assert (ours - theirs).abs().max() <= 1e-3
