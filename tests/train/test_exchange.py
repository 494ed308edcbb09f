"""In from Hugging Face and out again: imported models as runs, runs that start from a folder, exports that load."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
import yaml
from rich.console import Console

from lccp_sim.cli import main
from lccp_sim.configure.compose import check
from lccp_sim.configure.load import load_config, load_model, plain_config
from lccp_sim.data.tokenizer import read_tokenizer, tokenizer_hash
from lccp_sim.errors import ConfigError
from lccp_sim.files import write_atomic
from lccp_sim.models.transformer import Transformer, initialise
from lccp_sim.train.run import train
from lccp_sim.train.saved.checkpoint import VerifiedIO, checkpoints, read_checkpoint
from lccp_sim.train.saved.exchange import export_checkpoint, import_checkpoint
from lccp_sim.train.saved.init import load_transformer
from tests.train.foreign import folder
from tests.train.tiny import weights

DENSE = {  # the model of `foreign.folder`, as ours
    "d_model": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_head": 8, "num_dense_layers": 2,
    "d_dense": 32, "qk_norm": "none", "norm_eps": 1e-6, "tie_embeddings": False,
    "rope": {"kind": "base", "base": 10000},
}  # fmt: skip
QUIET = {
    "first_window_tokens": None,
    "needle": {"lengths": [96], "haystack": "prose", "items": 4, "depths": 2, "controls": 2},
}


@pytest.fixture(scope="module")
def llama(measuring: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of transformers, with its tokenizer and a chat template. Only to be read."""
    path = folder(measuring, tmp_path_factory.mktemp("hub") / "tiny-llama", bos_token_id=0, eos_token_id=0)
    (path / "chat_template.jinja").write_text("{{ messages }}")
    return path


@pytest.fixture
def imported(llama: Path, measuring: Path, tmp_path: Path) -> Path:
    """The same, imported with the config `look`."""
    look = check(["run=look"], measuring / "configs")
    import_checkpoint(llama, tmp_path / "mine", "fp32", look)
    return tmp_path / "mine"


def test_an_imported_model_is_measured_as_the_folder_is(
    imported: Path, llama: Path, measuring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["run=look", "--config-dir", str(measuring / "configs"), "--out"]
    assert main(["measure", str(llama), *base, str(tmp_path / "theirs")]) == 0
    assert main(["measure", str(imported), "--out", str(tmp_path / "ours")]) == 0, capsys.readouterr().err
    found = [
        {(r["monitor"], r["metric"], str(r["tags"])): r["value"] for r in map(json.loads, path.open())}
        for path in (tmp_path / "theirs" / "records.jsonl", tmp_path / "ours" / "records.jsonl")
    ]
    assert found[0].keys() == found[1].keys() and len(found[0]) > 50
    assert {k: (v, found[1][k]) for k, v in found[0].items() if found[1][k] != pytest.approx(v, 1e-5, 1e-4)} == {}


def test_the_command_that_an_import_prints_is_one(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(llama), str(tmp_path / "tiny-llama_2.0")]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])[2:]
    place = words.index("--config-dir")
    config = check([word for word in words if word not in words[place : place + 2]], Path(words[place + 1]))
    assert config.run.context_tokens == 1024 and config.model.num_dense_layers == 2 and config.model.vocab_size == 400
    assert config.model.rope.base == 40_000 and config.data.old_context_tokens == 512
    again = load_model(yaml.safe_load((tmp_path / "tiny-llama_2.0" / "config.yaml").read_text()))
    assert again.rope.base == 10_000 and again.d_dense == 32


def test_a_run_from_a_folder_is_the_run_from_its_import(
    imported: Path, llama: Path, make: Callable[..., Any], tmp_path: Path, say: Console
) -> None:
    ends = []
    for base in (llama, imported):
        changes = {"run.init_from": str(base), "run.tokens": 512, "model": DENSE, "monitors": QUIET}
        run = train(make(changes | {"run.name": base.name}), say)
        facts = read_checkpoint(checkpoints(run)[-1])["lccp"]
        assert facts["source"]["name"] == "tiny-llama" and facts["vocab_size"] == 400
        assert yaml.safe_load((run / "config.yaml").read_text())["data"]["tokenizer"]["bos_token"] == "<|document|>"
        ends.append(weights(checkpoints(run)[-1]))
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    started = weights(imported / "checkpoints" / "window-00000000.ckpt")
    assert not torch.equal(started["model.norm.weight"], ends[0]["model.norm.weight"])
    verdict = {"caution": "Read with care.", "summary": ["The hit goes up.", "By the rule, so.", "Beside them: no."]}
    for out, report in (("out", None), ("reported", {"tokens": 512, "verdict": verdict})):
        if report is not None:
            write_atomic(run / "report" / "report.json", json.dumps(report))
        export_checkpoint(str(run), tmp_path / out, "bf16")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["max_position_embeddings"] == 512 and settings["eos_token_id"] == 0
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`tiny-llama` (llama)" in card and "512 in this run" in card and "the run had no report" in card
    said = "up to 512 tokens: Read with care. The hit goes up. By the rule, so. Beside them: no."
    assert said in (tmp_path / "reported" / "README.md").read_text() and not list(tmp_path.glob(".*"))
    model = t.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert model.lm_head.weight.equal(ends[1]["model.lm_head.weight"].bfloat16().float())


def test_a_run_of_another_model_says_which_values_to_put(llama: Path, make: Callable[..., Any], say: Console) -> None:
    changes = {"run.init_from": str(llama), "model": DENSE | {"norm_eps": 1e-5, "d_dense": 48}, "monitors": QUIET}
    message = (
        "tiny-llama has another shape: model.d_dense (32 there, 48 here), model.norm_eps (1e-06 there, 1e-05 here); "
        "set model.d_dense=32 model.norm_eps=1e-06"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(make(changes), say)


ROPES: dict[str, dict[str, Any]] = {
    "base": {"kind": "base", "base": 40000.0},
    "ntk": {"kind": "ntk", "base": 10000.0, "factor": 4.0},
    "alpha": {"kind": "alpha", "base": 10000.0, "alpha": 50.0},
    "linear": {"kind": "linear", "base": 10000.0, "factor": 4.0},
    "yarn": {"kind": "yarn", "base": 10000.0, "factor": 4.0, "original_context_tokens": 32},
    "llama3": {
        "kind": "llama3", "base": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_context_tokens": 32,
    },
}  # fmt: skip
FRESH = """
import sys, torch, transformers as t
torch.set_num_threads(1)
for path in sys.argv[1:]:
    tokens = torch.load(path + "/tokens.pt")
    t.AutoTokenizer.from_pretrained(path)
    torch.save(t.AutoModelForCausalLM.from_pretrained(path)(tokens).logits, path + "/logits.pt")
"""


@torch.no_grad()
def test_exports_load_in_a_fresh_process_and_agree_beyond_the_context(
    measuring: Path, settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """The family of the study (scaled and tied embedding, norm after RoPE, shared expert), with every kind of RoPE."""
    wanted: dict[Path, torch.Tensor] = {}
    for kind, rope in ROPES.items():
        changes = {"scale_embeddings": True, "init_std": 0.3, "router": {}, "rope": rope}
        plain = settings({"monitors": QUIET})
        plain["model"] |= changes
        config = load_config(plain)
        model = initialise(Transformer(config.model, 400), 0).eval()
        run = tmp_path / f"run-{kind}"
        path = checkpoint_of(model, plain_config(config), run, measuring)
        out = tmp_path / kind
        assert export_checkpoint(str(path), out, "fp32") == "hunyuan_v1_moe"
        assert "none, trained from scratch" in (out / "README.md").read_text()
        tokens_BT = torch.randint(0, 400, (2, 256))
        torch.save(tokens_BT, out / "tokens.pt")
        wanted[out] = load_transformer(path, read_checkpoint(path)).logits(model(tokens_BT).hidden_BTD.flatten(0, 1))
    subprocess.run([sys.executable, "-c", FRESH, *map(str, wanted)], check=True, capture_output=True)
    for out, logits in wanted.items():
        got = torch.load(out / "logits.pt").flatten(0, 1)
        assert logits.std() > 0.5 and (got - logits).abs().max() <= 1e-4, out.name


def checkpoint_of(model: Transformer, plain: dict[str, Any], run: Path, measuring: Path) -> Path:
    """The path of a checkpoint of ours, as a run would have written it before its first step."""
    run.mkdir()
    shutil.copy(measuring / "tokenizer.json", run)
    facts = {"config": plain, "vocab_size": model.vocab_size, "tokens_before": 0, "tokens": 0}
    facts |= {"step": 0, "tokenizer": tokenizer_hash(read_tokenizer(run / "tokenizer.json"))}
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    path = run / "checkpoints" / "window-00000000.ckpt"
    VerifiedIO().save_checkpoint({"global_step": 0, "state_dict": state, "lccp": facts}, path)
    return path


def test_what_cannot_be_imported(llama: Path, measuring: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "model"
    shutil.copytree(llama, path)
    settings = json.loads((path / "config.json").read_text())
    for change, message in (
        (
            {"model_type": "gpt2"},
            "model_type='gpt2': can be imported: hunyuan_v1_moe, olmoe, qwen3_moe, mixtral, llama",
        ),
        (
            {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}},
            "needs its own code (auto_map in config.json), which is",
        ),
        (
            {"vocab_size": 300},
            "its tokenizer has 400 tokens, its embedding 300 rows, and text needs those",
        ),
        ({"vocab_size": 900}, "its tokenizer has 400 tokens, its embedding 900 rows; put its own tokenizer there"),
        ({"intermediate_size": 16}, "mlp.down_proj.weight has shape (32, 32), but config.json implies (32, 16)"),
    ):
        (path / "config.json").write_text(json.dumps(settings | change))
        assert message in refused("import", path, tmp_path / "out")
    (path / "config.json").write_text(json.dumps(settings))
    (path / "tokenizer.json").write_text("{")
    assert "tokenizer.json: cannot be read" in refused("import", path, tmp_path / "out")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    assert "pytorch_model.bin is a pickle, which is refused" in refused("import", path, tmp_path / "out")
    assert "no such checkpoint" in refused("import", tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "exists; name a new folder" in refused("import", llama, tmp_path / "full")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function (*argv) -> the one line that the command leaves on stderr."""

    def run(*argv: str | Path) -> str:
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lccp: ")]
        assert len(lines) == 1, lines
        return lines[0]

    return run


def test_what_cannot_be_exported(finished: Path, llama: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "(model.router.bias_update_rate), but no architecture" in refused("export", finished, tmp_path / "out")
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "DONE").unlink()
    assert "is not finished; finish it, or name one of its checkpoints" in refused("export", copy, tmp_path / "out")
    assert "matches nothing" in refused("export", tmp_path / "no", tmp_path / "out")
    assert "is a transformers checkpoint already" in refused("export", llama, tmp_path / "out")


def test_a_run_with_another_tokenizer_than_the_folder(
    llama: Path, finished: Path, make: Callable[..., Any], say: Console
) -> None:
    other = {"kind": "file", "path": str(finished / "tokenizer.json")}
    changes = {"run.init_from": str(llama), "model": DENSE, "monitors": QUIET, "data.tokenizer": other}
    with pytest.raises(ConfigError, match="data.tokenizer: is not the tokenizer of .*tiny-llama"):
        train(make(changes), say)
