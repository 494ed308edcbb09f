"""Bad input ends with one clear line on stderr and exit status 1, never with a traceback, and nothing is lost by it."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from lccp_sim.cli import main
from lccp_sim.configure.compose import compose
from lccp_sim.errors import ConfigError
from lccp_sim.sums import change_sums
from lccp_sim.train.loop import module
from lccp_sim.train.loop.module import LccpModule
from lccp_sim.train.saved import checkpoint
from tests.home import build
from tests.train.tiny import STEPS, assert_same_run

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the finished tiny run, called `tiny-s0-*`. Only to be copied."""
    home = build(tmp_path_factory.mktemp("origin"))
    assert main(["train", *arguments(home)]) == 0
    return home


def arguments(home: Path, *overrides: str) -> list[str]:
    """The command line of the tiny run, whose runs lie in this home."""
    return ["run=tiny", f"run.root={home}/runs", *overrides, "--config-dir", f"{home}/configs"]


@pytest.fixture
def home(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of runs and configs, to be spoilt; texts and cache stay the origin's, because a run knows their path."""
    monkeypatch.delenv("LCCP_CACHE", raising=False)
    for part in ("runs", "configs"):
        shutil.copytree(origin / part, tmp_path / part)
    for path in tmp_path.glob("runs/*/config.yaml"):
        path.write_text(path.read_text().replace(str(origin / "runs"), str(tmp_path / "runs")))
        change_sums(path.parent, known={path.name: None})
    return tmp_path


@pytest.fixture
def directory(home: Path) -> Path:
    """The run directory of a home."""
    [found] = (home / "runs").glob("tiny-s0-*")
    return found


@pytest.fixture
def refused(home: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """A function (*argv) -> the one line that the command leaves on stderr. Fails where a file of a run changes."""

    def run(*argv: str) -> str:
        before = contents(home / "runs")
        capsys.readouterr()
        assert main(argv) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("lccp: "), lines
        assert contents(home / "runs") == before
        return lines[0]

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder, locks left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def windows(directory: Path) -> list[Path]:
    return sorted((directory / "checkpoints").glob("window-*.ckpt"))


def unfinish(directory: Path) -> None:
    """What a kill after the window at step 8 leaves."""
    (directory / "DONE").unlink()
    for path in (directory / "checkpoints").iterdir():
        if int(path.stem.split("-")[1]) > 8:
            path.unlink()


LONG = "run.context_tokens=65536 run.batch_tokens=65536 data.sources.copies.share=0"
CONFIG = {
    "unknown key": ("optim.lrr=1", "optim.lrr: no such key; did you mean 'lr'?"),
    "unknown group": ("optimm.lr=1", "optimm: no such group of keys; did you mean 'optim'?"),
    "unknown nested key": ("monitors.needle.item=4", "monitors.needle.item: no such key; did you mean 'items'?"),
    "unknown monitor": ("monitors.needel.items=4", "did you mean 'needle'?"),
    "unknown source": ("data.sources.pros.share=1", "did you mean 'prose'?"),
    "unknown source of a monitor": ("monitors.needle.haystack=pros", "did you mean 'prose'?"),
    "unknown kind": ("model.rope.kind=bass", "did you mean 'base'?"),
    "wrong type": ("run.tokens=many", "run.tokens='many': input should be a valid integer"),
    "wrong type of seed": ("seed=x", "seed='x': must be an integer >= 0"),
    "a value for a group": ("monitors.needle=3", "monitors.needle=3: must be a group of keys"),
    "a group for a value": ("run.tokens={a:1}", "run.tokens={'a': 1}: input should be a valid integer"),
    "no group": ("model=null", "model=null: a group of keys cannot be left out"),
    "unknown config of a group": (
        "model=big",
        "model=big: no such config; there are base_1b_7b, hunyuan_a13b, llama3_8b, mine, ",
    ),
    "no override": ("seed", "'seed': not an override; write key=value"),
    "unreadable override": ("optim.lr=[", "optim.lr=[: cannot be read"),
    "not finite": ("optim.lr=nan", "optim.lr=nan: input should be greater than 0"),
    "heads not divisible": ("model.num_kv_heads=3", "model.num_heads=2: must be a multiple of model.num_kv_heads=3"),
    "odd heads": ("model.d_head=15", "model.d_head=15: must be even"),
    "top-k above experts": ("model.num_experts_per_token=5", "must be at most model.num_experts=4"),
    "more dense layers than layers": (
        "model.num_dense_layers=3 model.d_dense=8",
        "model.num_dense_layers=3: must be at most model.num_layers=2",
    ),
    "dense layers without a width": (
        "model.num_dense_layers=1",
        "model.d_dense=None: goes with model.num_dense_layers=1; give the width",
    ),
    "a width without dense layers": ("model.d_dense=8", "model.d_dense=8: goes with model.num_dense_layers=0; remove"),
    "full layers without a window": ("model.full_attention_every=2", "every layer is full without model.window_tokens"),
    "unknown attention": ("model.attention={kind:sparse}", "model.attention.kind='sparse': one of full, window, "),
    "sparse attention that saves nothing": (
        "model.attention={kind:lighthouse,levels:3,factor:2,budget:12,tile_budget:2}",
        "model.attention.budget=12: lets 64 windows of a row meet, no fewer than its 64 tokens; lower it",
    ),
    "unknown scores": ("model.router.scores=topk", "model.router.scores='topk': input should be 'softmax', "),
    "raw softmax over the chosen": (
        "model.router.scores=topk_softmax model.router.renormalise=false",
        "model.router.renormalise=False: a softmax over the chosen sums to 1; set scores=softmax",
    ),
    "more groups kept than there are": (
        "model.router.num_groups_kept=2",
        "model.router.num_groups_kept=2: must be at most model.router.num_groups=1",
    ),
    "groups of one": ("model.router.num_groups=4", "must divide model.num_experts=4 into groups of two or more"),
    "too few groups": (
        "model.router.num_groups=2 model.num_experts_per_token=3",
        "model.router.num_groups_kept=1: must leave model.num_experts_per_token=3 of groups of 2 experts",
    ),
    "unknown key of rope": ("model.rope.factor=4", "model.rope.factor: no such key"),
    "missing key of rope": ("model.rope.kind=ntk", "model.rope.factor: this key is required"),
    "rope that shrinks": ("model.rope.kind=linear model.rope.factor=0.5", "input should be greater than or equal to 1"),
    "small vocabulary": ("model.vocab_size=300", "model.vocab_size=300: must be at least the tokenizer's 400"),
    "negative share": ("data.sources.prose.share=-1", "data.sources.prose.share=-1.0: must be a number >= 0"),
    "batch no multiple of context": ("run.batch_tokens=100", "must be a multiple of run.context_tokens=64"),
    "no micro-batch": ("run.micro_batch_tokens=192", "and divide run.batch_tokens=256"),
    "missing path": ("data.sources.prose.paths=[/no/where]", "data.sources.prose.paths='/no/where': does not exist"),
    "no path": ("data.sources.prose.paths=[]", "data.sources.prose.paths=[]: is empty"),
    "long context": (LONG, "run.context_tokens=65536: longer than every document"),
    "no GPU": ("run.accelerator=gpu", "run.accelerator='gpu': torch finds no usable GPU"),
    "long needle": ("monitors.needle.lengths=[65536]", "no held-out document of 'prose' has"),
    "long perplexity": ("monitors.perplexity.context_tokens=65536", "lower monitors.perplexity.context_tokens"),
    "logger without class": ("run.loggers.mine.project=a", "run.loggers.mine.class=None: must be the dotted path"),
}


@pytest.mark.parametrize("case", CONFIG)
def test_a_wrong_value_is_named(case: str, home: Path, refused: Refused) -> None:
    override, message = CONFIG[case]
    if case == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is one")
    assert message in refused("train", *arguments(home, *override.split(" "), "run.name=other"))


def test_every_wrong_value_has_its_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *arguments(home, "optim.lrr=1", "model.d_head=15", "monitors.probe.steps=0")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("=")[0].split(": no")[0] for line in lines] == [
        "lccp: model.d_head", "lccp: optim.lrr", "lccp: monitors.probe.steps"
    ]  # fmt: skip


def test_the_runs_are_listed(home: Path, refused: Refused) -> None:
    line = refused("train", "run=tny", "--config-dir", f"{home}/configs")
    assert "run=tny: no such config; there are" in line and " tiny," in f"{line}," and "smoke" in line
    assert "name a run" in refused("train", "seed=1")
    assert "no such directory" in refused("train", "run=tiny", "--config-dir", "/no/where")


@pytest.mark.parametrize("defaults", ["3", "\n  -", "\n  - [x]", "\n  - _self_: 3", "\n  - {a: 1, b: 2}"])
def test_a_defaults_list_that_hydra_cannot_read_is_one_line(defaults: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.yaml").write_text(f"defaults: {defaults}\n")
    with pytest.raises(ConfigError, match=r"^--config-dir .*: cannot be read \(.*default"):
        compose(["run=mine"], tmp_path)
    with pytest.raises(ConfigError, match="^'mine': not an override"):
        compose(["mine"], tmp_path)


def test_shares_that_sum_to_0(home: Path, refused: Refused) -> None:
    zero = ("data.sources.prose.share=0", "data.sources.copies.share=0")
    assert "the shares sum to 0" in refused("train", *arguments(home, *zero))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"caf\xe9 au lait", "a.txt is not UTF-8: byte 3 is 0xe9"),
        ("a.txt", b" \n", "data.sources.prose has no document with text"),
        ("a.jsonl", b'{"text": 1}\n', "a.jsonl:1 holds a number under the key 'text'"),
        ("a.pdf", b"x", "holds no jsonl, ndjson, json, parquet, txt or md file"),
    ],
)
def test_files_that_are_no_text(name: str, data: bytes, message: str, home: Path, refused: Refused) -> None:
    (home / "bad").mkdir()
    (home / "bad" / name).write_bytes(data)
    assert message in refused("train", *arguments(home, f"data.sources.prose.paths=[{home}/bad]", "run.name=other"))


def chained(home: Path, base: Path | str, *overrides: str) -> list[str]:
    return arguments(home, f"run.init_from='{base}'", "run.name=chained", *overrides)


def test_a_base_that_is_not_there(home: Path, directory: Path, refused: Refused) -> None:
    assert "matches nothing; train that run first, or name another" in refused("train", *chained(home, "/no/where-*"))
    shutil.copytree(directory, home / "runs" / "tiny-s0-second")
    assert "matches several" in refused("train", *chained(home, f"{home}/runs/tiny-s0-*"))


def test_a_base_that_is_not_finished(home: Path, directory: Path, refused: Refused) -> None:
    unfinish(directory)
    assert "is not finished; finish it, or name one" in refused("train", *chained(home, directory))


def test_a_base_of_another_shape(home: Path, directory: Path, refused: Refused) -> None:
    line = refused("train", *chained(home, directory, "model.d_model=48", "model.num_experts=3"))
    assert "another shape: model.d_model (32 there, 48 here), model.num_experts (4 there, 3 here)" in line


def test_a_base_with_another_tokenizer(home: Path, directory: Path, refused: Refused, tmp_path: Path) -> None:
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (tmp_path / "other.json").write_text(json.dumps(tokenizer))
    other = ("data.tokenizer.kind=file", f"data.tokenizer.path={tmp_path}/other.json")
    assert "is not the tokenizer of" in refused("train", *chained(home, directory, *other))


def test_a_base_whose_last_checkpoint_is_damaged(home: Path, directory: Path, refused: Refused) -> None:
    windows(directory)[-1].write_bytes(b"torn")
    line = refused("train", *chained(home, directory))
    assert "no intact last checkpoint" in line and "does not match its manifest's hash" in line
    line = refused("train", *chained(home, windows(directory)[-1]))
    assert "does not match its manifest's hash; name another checkpoint" in line


class Bomb:
    def __reduce__(self) -> Any:
        return exec, ("import os; os.environ['LCCP_BOMB'] = 'burst'",)


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_a_foreign_pickle_is_not_executed(
    write: Callable, home: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LCCP_BOMB", raising=False)
    path = home / "foreign.ckpt"
    with open(path, "wb") as file:
        write({"lccp": Bomb()}, file)
    assert "its manifest foreign.json is missing" in refused("train", *chained(home, path))
    path.with_suffix(".json").write_text(json.dumps({"sha256": checkpoint._sha256(path)}))
    assert "not a checkpoint of lccp-sim" in refused("train", *chained(home, path))
    torch.save({"weights": torch.zeros(2)}, path)
    path.with_suffix(".json").write_text(json.dumps({"sha256": checkpoint._sha256(path)}))
    assert "not a checkpoint of lccp-sim" in refused("train", *chained(home, path))
    assert "LCCP_BOMB" not in os.environ


def test_a_damaged_checkpoint_is_passed_over(
    home: Path, origin: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinish(directory)
    windows(directory)[-1].write_bytes(b"torn")
    assert main(["train", *arguments(home)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "window-00000008.ckpt: the file does not match its manifest's hash; continuing from window-0000" in said
    assert_same_run(directory, next((origin / "runs").glob("tiny-s0-*")))


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew(home: Path, directory: Path, refused: Refused) -> None:
    unfinish(directory)
    for path in (directory / "checkpoints").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-100])
    assert "no intact checkpoint to continue from" in refused("train", *arguments(home))
    shutil.rmtree(directory / "checkpoints")
    assert "it has none, but records up to step 12" in refused("train", *arguments(home))


def test_another_setting_of_a_run_is_named_with_both_values(home: Path, refused: Refused) -> None:
    line = refused("train", *arguments(home, "monitors.needle.items=6", "run.log_every_steps=3"))
    assert "monitors.needle.items (4 there, 6 now), run.log_every_steps (2 there, 3 now)" in line


def test_fewer_tokens_than_an_unfinished_run_was_begun_with(home: Path, directory: Path, refused: Refused) -> None:
    unfinish(directory)
    assert f"run.tokens=256: fewer than the {STEPS * 256}" in refused("train", *arguments(home, "run.tokens=256"))


def test_a_run_in_use(home: Path, directory: Path, refused: Refused) -> None:
    hold = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(directory / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        assert f"{directory}: in use by a live process" in refused("train", *arguments(home, "run.tokens=5000"))
        other.kill()
    with FileLock(directory / ".lock", timeout=0):
        pass
    assert main(["train", *arguments(home)]) == 0


@pytest.mark.parametrize("text", [b"", b"seed: 0\nrun: {na", b"\xff\xfe"], ids=["empty", "truncated", "binary"])
def test_a_damaged_config(text: bytes, home: Path, directory: Path, refused: Refused) -> None:
    (directory / "config.yaml").write_bytes(text)
    assert "config.yaml: damaged" in refused("train", *arguments(home))
    assert "config.yaml: damaged" in refused("measure", str(directory))


@pytest.mark.parametrize("name", ["DONE", "corpus.json"])
def test_a_damaged_fact(name: str, home: Path, directory: Path, refused: Refused) -> None:
    (directory / name).write_text("{")
    assert f"{name}: damaged" in refused("train", *arguments(home, "run.tokens=5000"))


def test_damaged_or_lost_records(
    home: Path, directory: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinish(directory)
    path = directory / "records.jsonl"
    text = path.read_bytes()
    path.write_bytes(b"#" + text[1:])
    assert "records.jsonl, line 1: not a record" in refused("train", *arguments(home))
    assert "records.jsonl, line 1: not a record" in refused("measure", str(directory), "--check")
    assert "records.jsonl, line 1: not a record" in refused("report", str(directory))
    line = text.index(b"\n") + 1
    path.write_bytes(text[:line])
    assert main(["train", *arguments(home)]) == 1
    assert f"has {line} bytes, but the checkpoint knows" in capsys.readouterr().err
    path.unlink()
    assert main(["train", *arguments(home)]) == 1
    assert "has 0 bytes, but the checkpoint knows" in capsys.readouterr().err


def test_a_directory_that_is_no_run_of_ours(home: Path, directory: Path, refused: Refused) -> None:
    assert "not a run directory" in refused("measure", "/no/where")
    refused("report", "/no/where")
    (directory / "config.yaml").write_text("name: foreign\n")
    assert "not a config of this version" in refused("measure", str(directory))


def test_measuring_into_a_run_would_wipe_it(directory: Path, refused: Refused) -> None:
    assert "is a run directory" in refused("measure", str(directory), "--out", str(directory))


def test_other_text_under_the_same_settings(origin: Path, home: Path, directory: Path, refused: Refused) -> None:
    unfinish(directory)
    path = origin / "texts" / "00.txt"
    text = path.read_text()
    try:
        path.write_text("Something else. " * 100)
        assert "the text of data.sources has changed since the run began" in refused("train", *arguments(home))
    finally:
        path.write_text(text)


def test_another_tokenizer_in_the_run(home: Path, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinish(directory)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert main(["train", *arguments(home)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("where", ["in the file", "in the manifest"])
def test_a_full_disk_leaves_the_checkpoints_before(
    where: str,
    home: Path,
    origin: Path,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unfinish(directory)
    kept = {path.name: path.read_bytes() for path in (directory / "checkpoints").iterdir()}

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    class Full:
        def write(self, data: Any) -> None:
            full()

        def flush(self) -> None:
            full()

    plain = torch.save
    with monkeypatch.context() as patch:
        if where == "in the file":
            patch.setattr(torch, "save", lambda content, file: plain(content, Full()))
        else:
            patch.setattr(checkpoint, "write_atomic", full)
        assert main(["train", *arguments(home)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "No space left on device" in lines[0], lines
    now = {path.name: path.read_bytes() for path in (directory / "checkpoints").iterdir()}
    assert {name: now.get(name) for name in kept} == kept
    assert main(["train", *arguments(home)]) == 0
    assert_same_run(directory, next((origin / "runs").glob("tiny-s0-*")))
    assert not list(directory.rglob("*.tmp"))


def test_a_diverging_run_stops_before_the_weights_are_spoilt(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *arguments(home, "optim.lr=1e30", "optim.warmup_steps=0", "run.name=wild")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "the gradient norm is nan at step 2, on documents " in line
    assert "the last good checkpoint is" in line and "window-00000000.ckpt" in line


def test_a_weight_that_is_not_finite_stops_the_window(
    home: Path, directory: Path, origin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinish(directory)

    @torch.no_grad()
    def spoil(self: LccpModule) -> None:
        plain(self)
        if self.global_step == STEPS:
            self.model.embedding.weight[0, 0] = float("nan")

    plain = LccpModule.update_router_bias
    with monkeypatch.context() as patch:
        patch.setattr(LccpModule, "update_router_bias", spoil)
        assert main(["train", *arguments(home)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"at step {STEPS}: the value nan" in line and "last-00000010.ckpt" in line
    assert main(["train", *arguments(home)]) == 0
    assert_same_run(directory, next((origin / "runs").glob("tiny-s0-*")))


def test_a_loss_that_is_not_finite_names_its_documents(
    home: Path, directory: Path, origin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinish(directory)
    calls = []

    def poisoned(*args: Any) -> torch.Tensor:
        calls.append(1)
        return plain(*args) * (float("nan") if len(calls) == 2 else 1.0)

    plain = module.cross_entropy
    with monkeypatch.context() as patch:
        patch.setattr(module, "cross_entropy", poisoned)
        assert main(["train", *arguments(home)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "the loss is nan at step 10, on documents " in line and ".txt" in line
    assert "the last good checkpoint is" in line and "window-00000008.ckpt" in line
    assert main(["train", *arguments(home)]) == 0
    assert_same_run(directory, next((origin / "runs").glob("tiny-s0-*")))


def test_a_refused_run_leaves_no_directory(home: Path, refused: Refused) -> None:
    refused("train", *arguments(home, *LONG.split(" "), "run.name=other"))
    assert not list((home / "runs").glob("other-*"))
