"""Checkpoints that are not of a run: folders and files of transformers, series of them, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers as t
import yaml
from tokenizers import processors

from lccp_sim.cli import main
from lccp_sim.records import Record, overall_name, read_records
from tests.train.foreign import folder


@pytest.fixture
def look(measuring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A function (paths and overrides) -> the exit status of `lccp measure` into `tmp_path/out`, and what it said."""

    def run(*words: Path | str) -> tuple[int, str]:
        base = ["--config-dir", str(measuring / "configs"), "--out", str(tmp_path / "out"), "run=look"]
        status = main(["measure", *map(str, words), *base])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def records(path: Path) -> list[Record]:
    return read_records(path / "records.jsonl")[0]


def test_a_folder_of_transformers_is_measured(measuring: Path, tmp_path: Path, look: Callable) -> None:
    status, said = look(folder(measuring, tmp_path / "llama"))
    assert status == 0, said
    found = records(tmp_path / "out")
    assert {r.monitor for r in found} == {"needle", "perplexity", "induction", "heads"}
    heads = [r for r in found if r.metric == "copy_hard_frac"]
    assert {(r.tags["layer"], r.tags["head"]) for r in heads} == {(i, j) for i in range(2) for j in range(4)}
    timing = [json.loads(line) for line in (tmp_path / "out" / "timing.jsonl").read_text().splitlines()]
    sent = {row["what"]: row["forward_tokens"] for row in timing}
    assert (4 + 2) * 95 < sent["monitor:needle"] < (4 + 2 + 2) * 95  # two needles alone are shorter
    assert sent["monitor:induction"] == 2 * 47
    assert list((tmp_path / "out" / "tensorboard").glob("events*"))


def test_a_folder_that_is_refused_leaves_earlier_records_alone(measuring: Path, tmp_path: Path, look: Callable) -> None:
    path = folder(measuring, tmp_path / "llama")
    assert look(path)[0] == 0
    kept = {name: (tmp_path / "out" / name).read_bytes() for name in ("records.jsonl", "timing.jsonl", "measured.yaml")}
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-9])
    assert look(path, "monitors.needle.controls=1")[0] == 1
    assert kept == {name: (tmp_path / "out" / name).read_bytes() for name in kept}
    assert list((tmp_path / "out" / "samples").iterdir())


def test_a_series_equals_its_members_measured_alone(measuring: Path, tmp_path: Path, look: Callable) -> None:
    paths = [folder(measuring, tmp_path / f"step{seed}", seed) for seed in range(3)]
    listed = [{"path": path.name, "tokens": 1000 * i} for i, path in enumerate(paths)]
    (tmp_path / "series.yaml").write_text(yaml.safe_dump({"checkpoints": listed}))
    status, said = look(tmp_path / "series.yaml")
    assert status == 0, said
    whole = [r for r in records(tmp_path / "out") if r.monitor != "heads"]
    assert sorted({(r.step, r.tokens) for r in whole}) == [(0, 0), (1, 1000), (2, 2000)]
    overlap = [r for r in records(tmp_path / "out") if r.metric == "topk_overlap_frac"]
    assert {(r.step, r.tags["against"]) for r in overlap} >= {(1, "previous"), (1, "first"), (2, "previous")}
    for step, path in enumerate(paths):
        assert look(path)[0] == 0
        alone = {r.key[1:]: r.value for r in records(tmp_path / "out") if r.monitor != "heads"}
        assert alone == {r.key[1:]: r.value for r in whole if r.step == step}


@pytest.mark.parametrize(
    ("checkpoints", "message"),
    [
        ([{"path": "a", "tokens": 5}, {"path": "a", "tokens": 5}], r"checkpoints\[1\]: out of order: step 1 with 5"),
        ([{"path": "a", "tokens": 5, "step": 3}, {"path": "a", "tokens": 6, "step": 2}], "out of order: step 2"),
        ([{"path": "a"}], r"checkpoints\[0\].tokens=None: must be an integer >= 0"),
        ([{"path": "a", "tokens": -1}], r"tokens=-1: must be an integer >= 0"),
        ([{"tokens": 1}], r"checkpoints\[0\] has no path"),
        ([{"path": "a", "tokens": 1, "tokns": 2}], "no such key: tokns; there are path, tokens, step"),
        ([{"path": "nowhere", "tokens": 1}], "nowhere: no such checkpoint"),
        ([], "has no list `checkpoints`"),
        ("no list", "has no list `checkpoints`"),
    ],
)
def test_a_series_that_is_none(checkpoints: Any, message: str, tmp_path: Path, look: Callable) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "series.yaml").write_text(yaml.safe_dump({"checkpoints": checkpoints}))
    refused(look(tmp_path / "series.yaml"), message)


def refused(got: tuple[int, str], message: str) -> None:
    import re

    status, said = got
    lines = [line for line in said.splitlines() if line.startswith("lccp: ")]
    assert status == 1 and len(lines) == 1 and "Traceback" not in said
    assert re.search(message, lines[0]), lines[0]


def test_a_member_of_another_architecture(measuring: Path, tmp_path: Path, look: Callable) -> None:
    folder(measuring, tmp_path / "a"), folder(measuring, tmp_path / "b", num_hidden_layers=3)
    listed = [{"path": "a", "tokens": 0}, {"path": "b", "tokens": 1}]
    (tmp_path / "series.yaml").write_text(yaml.safe_dump({"checkpoints": listed}))
    refused(look(tmp_path / "series.yaml"), r"b: has another architecture \(.*'num_layers': 3.*\) than the first")


def test_a_member_of_another_tokenizer_is_refused_before_any_is_measured(
    measuring: Path, tmp_path: Path, look: Callable
) -> None:
    for name in "ab":
        folder(measuring, tmp_path / name)
    path = tmp_path / "b" / "tokenizer.json"
    plain = json.loads(path.read_text())
    plain["model"]["merges"].pop()
    path.write_text(json.dumps(plain))
    listed = [{"path": "a", "tokens": 0}, {"path": "b", "tokens": 1}]
    (tmp_path / "series.yaml").write_text(yaml.safe_dump({"checkpoints": listed}))
    refused(look(tmp_path / "series.yaml"), "b: has another tokenizer than the first; measure it on its own")
    assert not (tmp_path / "out").exists()
    for name in "ab":  # of two runs, which hold their tokenizers
        (tmp_path / name / "checkpoints" / "window-00000001.ckpt").mkdir(parents=True)
    runs = [each | {"path": f"{each['path']}/checkpoints/window-00000001.ckpt"} for each in listed]
    (tmp_path / "runs.yaml").write_text(yaml.safe_dump({"checkpoints": runs}))
    refused(look(tmp_path / "runs.yaml"), "b/checkpoints/window-00000001.ckpt: has another tokenizer than the first")
    path.unlink()
    assert look(tmp_path / "series.yaml")[0] == 0


def test_folders_that_cannot_be_measured(measuring: Path, tmp_path: Path, look: Callable) -> None:
    path = folder(measuring, tmp_path / "llama")
    settings = json.loads((path / "config.json").read_text())
    for change, message in (
        ({"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, "needs its own code .auto_map.*refused"),
        ({"model_type": "no_such_model"}, "transformers cannot load"),
    ):
        (path / "config.json").write_text(json.dumps(settings | change))
        refused(look(path), message)
    (path / "config.json").write_text("{")
    refused(look(path), "config.json: damaged")
    (path / "config.json").write_text(json.dumps(settings))
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    refused(look(path), "holds no safetensors .pytorch_model.bin is a pickle, which is refused")
    (path / "pytorch_model.bin").unlink()
    refused(look(path), "holds no safetensors .no weights")
    refused(look(tmp_path / "nothing"), "not a run directory")
    (tmp_path / "file.txt").write_text("hello")
    refused(look(tmp_path / "file.txt"), "file.txt: not a run directory, checkpoint, or series file")


def test_a_model_that_returns_nan(measuring: Path, tmp_path: Path, look: Callable) -> None:
    path = folder(measuring, tmp_path / "llama")
    model = t.LlamaForCausalLM.from_pretrained(path)
    model.lm_head.weight.data[7] = float("nan")
    model.save_pretrained(path)
    refused(look(path), "is not finite; the model diverged")


def test_a_tokenizer_that_is_not_the_models(measuring: Path, tmp_path: Path, look: Callable) -> None:
    message = "llama: its tokenizer has 400 tokens, its embedding 100 rows, and text needs"
    refused(look(folder(measuring, tmp_path / "llama", vocab_size=100)), message)


def test_a_tokenizer_that_merges_across_the_answers_start(measuring: Path, tmp_path: Path, look: Callable) -> None:
    """Without a pre-tokenizer, a BPE may learn one token for the colon and what follows it."""
    trained = tokenizers.Tokenizer.from_file(str(measuring / "tokenizer.json"))
    plain = json.loads(trained.to_str())
    plain["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    for left, right in ((":", "Ġ"),):
        plain["model"]["vocab"][left + right] = len(plain["model"]["vocab"])
        plain["model"]["merges"].insert(0, [left, right])
    path = tmp_path / "merging.json"
    path.write_text(json.dumps(plain))
    got = look(folder(measuring, tmp_path / "llama", tokenizer=path, vocab_size=450))
    refused(got, "merges across the start of")


def test_a_run_is_measured_with_other_monitors(measuring: Path, tmp_path: Path, look: Callable) -> None:
    base = ["--config-dir", str(measuring / "configs"), "run=tiny", f"run.root={tmp_path}", "run.tokens=3000"]
    assert main(["train", *base]) == 0
    [run] = [path for path in tmp_path.iterdir() if (path / "config.yaml").exists()]
    args = ["monitors.needle.items=6", "monitors.probe=null", "--out", str(tmp_path / "out")]
    assert main(["measure", str(run), *args]) == 0
    found = records(tmp_path / "out")
    assert {r.n for r in found if overall_name(r) == "needle/hit_frac"} == {6}
    assert "probe" not in {r.monitor for r in found}
    refused(look(run, "optim.lr=1"), "measuring a run can only change monitors.KEY=VALUE")
    [checkpoint] = sorted((run / "checkpoints").glob("window-*.ckpt"))[-1:]
    assert main(["measure", str(checkpoint), "--out", str(tmp_path / "one")]) == 0
    last = max(r.step for r in found)
    assert {r.step for r in records(tmp_path / "one")} == {last}


def test_check_needs_a_run_and_its_own_settings(measuring: Path, tmp_path: Path, look: Callable) -> None:
    refused(look(folder(measuring, tmp_path / "llama"), "--check"), "--check compares with a run's own records")


def test_processors_that_add_tokens_do_not_matter(measuring: Path, tmp_path: Path, look: Callable) -> None:
    """A tokenizer that begins every text with BOS gives the same records: BOS is ours to add, once."""
    adding = tokenizers.Tokenizer.from_file(str(measuring / "tokenizer.json"))
    bos = adding.token_to_id("<|document|>")
    adding.post_processor = processors.TemplateProcessing(
        single="<|document|> $A", pair=None, special_tokens=[("<|document|>", bos)]
    )
    adding.save(str(tmp_path / "adding.json"))
    values = []
    for name, tokenizer in (("plain", None), ("adding", tmp_path / "adding.json")):
        assert look(folder(measuring, tmp_path / name, tokenizer=tokenizer))[0] == 0
        values.append([r.line() for r in records(tmp_path / "out")])
    assert values[0] == values[1]


def test_the_probe_and_interventions_work_on_models_of_others(measuring: Path, tmp_path: Path, look: Callable) -> None:
    """A copy is fine-tuned, heads are masked, and what follows is measured on the model as it was."""
    path = folder(measuring, tmp_path / "llama")
    probe = "{short_tokens: 240, long_tokens: 300, train_tokens: 240, steps: 2, rows: 2, items: 4, seeds: [0, 1, 2],"
    probe += " lr: 1.0e-3, tasks: {longbio_standard: 1, two_hop: 1}}"
    more = ["monitors.intervention={lengths: [96], haystack: prose, items: 10, k: 2}", f"monitors.probe={probe}"]
    status, said = look(path, *more, "monitors.heads={lengths: [160], items: 5}")
    assert status == 0, said
    found = records(tmp_path / "out")
    steps = {r.tags["sft_step"] for r in found if r.monitor == "probe" and "sft_step" in r.tags}
    arms = {r.tags["arm"] for r in found if r.monitor == "intervention" and "arm" in r.tags}
    assert steps == {0, 2} and arms == {"none", "mask_top", "mask_random", "boost_top"}
    assert [r for r in found if r.metric == "copy_hard_frac" and r.tags.get("samples") == "longbio"]
    again = {r.key: r.value for r in found if r.monitor == "needle"}
    assert look(path)[0] == 0
    assert {r.key: r.value for r in records(tmp_path / "out") if r.monitor == "needle"} == again


def test_a_model_without_heads_is_measured_without_them(measuring: Path, tmp_path: Path, look: Callable) -> None:
    path = folder(measuring, tmp_path / "mamba")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 16}
    t.Mamba2ForCausalLM(t.Mamba2Config(vocab_size=400, chunk_size=32, **shape)).save_pretrained(path)
    probe = "{short_tokens: 240, long_tokens: 300, train_tokens: 240, steps: 2, rows: 2, items: 4, seeds: [0, 1, 2],"
    probe += " lr: 1.0e-3, tasks: {longbio_standard: 1, two_hop: 1}}"
    more = ["monitors.intervention={lengths: [96], haystack: prose, items: 10, k: 2}", f"monitors.probe={probe}"]
    status, said = look(path, *more, "monitors.heads={lengths: [160], items: 5}")
    assert status == 0, said
    assert " ".join(said.split()).count("so head scores are left out, and interventions") == 1
    found = records(tmp_path / "out")
    assert {r.monitor for r in found} == {"needle", "perplexity", "induction", "heads", "probe"}
    assert not [r for r in found if r.metric == "copy_hard_frac"]
