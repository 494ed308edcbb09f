"""Two real pretrained models, as `make smollm2` and `make gemma` fetch them; more of them in bench/real_models.py."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.real_models import PICTURE, RESULT, figures, tables
from lccp_sim.cli import main
from lccp_sim.data.cache import cache_root
from lccp_sim.data.gguf_files import MODELS
from lccp_sim.data.pools import DataConfig
from lccp_sim.data.tokenizer import encode, parse_tokenizer
from lccp_sim.models.foreign.hf import load_checkpoint, load_tokenizer_json
from lccp_sim.records import read_records
from lccp_sim.train.saved.checkpoint import checkpoints, read_checkpoint
from lccp_sim.train.saved.init import load_transformer
from tests.models.test_adapter import hold_scores

ROOT = Path(__file__).parents[2]
OFF = "perplexity=null induction=null heads=null intervention=null"


def fetched(key: str) -> Path:
    """The GGUF file of a model; without it the test is skipped."""
    path = MODELS[key].path(cache_root(DataConfig.cache))
    if not path.exists():
        pytest.skip(f"{path.name} is absent: make {key} fetches it")
    return path


def test_the_page_has_the_figures_of_the_bench() -> None:
    page = (ROOT / "docs" / "real_models.md").read_text()
    results = json.loads(RESULT.read_text())
    for table in tables(results).split("\n\n"):
        assert table in page
    for figure in figures(results):
        assert figure in page
    assert f"]({PICTURE.name})" in page and PICTURE.stat().st_size < 200_000


@pytest.mark.slow
def test_gemmas_head_scores_are_those_of_its_full_matrices(capfd: pytest.CaptureFixture[str]) -> None:
    """Of a text longer than its window, with one needle within reach of the windowed layers and one beyond."""
    path = fetched("gemma")
    adapter = load_checkpoint(path, torch.float32, "cpu")
    assert capfd.readouterr().err == "", "no bar of another library"
    adapter.model.set_attn_implementation("eager")
    text, bos = load_tokenizer_json(path)
    assert bos == "<bos>" and (adapter.num_layers, adapter.num_heads) == (18, 4)
    ids = [2, *encode(parse_tokenizer(text), (ROOT / "README.md").read_text())][:560]
    tokens_BS = torch.tensor([ids, ids])
    needles, answers = [(400, 412), (9, 21)], [(548, 560)] * 2
    for row, needle, answer in zip(tokens_BS, needles, answers, strict=True):
        row[slice(*answer)] = row[slice(*needle)].clone()
    want = hold_scores(adapter.model, tokens_BS, answers, needles)
    assert want[..., 0].max() > 0.3
    windowed = [layer for layer in range(18) if layer % 6 != 5]
    assert want[1, windowed, :, 2].max() == 0 < want[0, windowed, :, 2].max()


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """Its GGUF file."""
    return fetched("smollm2")


@pytest.fixture(scope="module")
def base(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SmolLM2, imported."""
    path = tmp_path_factory.mktemp("models") / "smollm2"
    assert main(["import", str(smollm2), str(path)]) == 0
    yield path
    (path / "checkpoints" / "window-00000000.ckpt").unlink()  # half a gigabyte


@pytest.mark.slow
@torch.no_grad()
def test_the_logits_are_those_of_transformers(base: Path, smollm2: Path) -> None:
    [path] = checkpoints(base)
    tokens_BT = torch.randint(0, 49152, (1, 256))
    models = (load_transformer(path, read_checkpoint(path)), load_checkpoint(smollm2, torch.float32, "cpu"))
    ours, theirs = (model.logits(model.eval()(tokens_BT).hidden_BTD[0]) for model in models)
    assert theirs.abs().max() > 10 and (ours - theirs).abs().max() <= 1e-3


@pytest.mark.slow
def test_it_has_retrieval_heads_and_a_needle_map(base: Path, tmp_path: Path) -> None:
    keys = "needle.lengths=[256,512] needle.items=4 needle.depths=2 needle.controls=2 needle.variants=null"
    words = [f"monitors.{key}" for key in f"{keys} {OFF}".split()]
    assert main(["measure", str(base), *words, "--out", str(tmp_path / "out")]) == 0
    records, _ = read_records(tmp_path / "out" / "records.jsonl")
    [count] = [r.value for r in records if r.metric == "retrieval_heads_count" and not r.tags]
    assert 5 <= count <= 135
    assert main(["report", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report" / "needle_maps.png").exists()


@pytest.mark.slow
def test_some_steps_of_lccp_and_the_result_in_transformers(smollm2: Path, tmp_path: Path) -> None:
    """At 1024 tokens, for the sake of time; the bench trains at twice the model's context."""
    words = (
        "run.context_tokens=1024 run.batch_tokens=1024 run.tokens=2048 run.accelerator=cpu data.old_context_tokens=512"
    )
    words += " model=smollm2_135m model.rope.base=400000 optim.lr=1e-5 run.name=smollm2"
    keys = "needle.lengths=[256] needle.items=2 needle.depths=2 needle.controls=2 needle.variants=null"
    words += "".join(f" monitors.{key}" for key in f"{keys} {OFF}".split())
    root = [f"run.root={tmp_path}/runs", f"run.init_from={smollm2}"]
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
