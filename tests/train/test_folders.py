"""Cut weights: no rank holds them whole, not even at first, and their checkpoints are folders that everything reads."""

import hashlib
import json
import os
import pickle
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from lccp_sim.config import Config
from lccp_sim.configure.load import load_config
from lccp_sim.errors import ConfigError
from lccp_sim.models.transformer import Transformer, fresh, initialise
from lccp_sim.records import read_records
from lccp_sim.train import run as running
from lccp_sim.train.loop.module import LccpModule
from lccp_sim.train.parallel.sharding import whole_tensors
from lccp_sim.train.run import train
from lccp_sim.train.saved.checkpoint import checkpoints, damage, manifest_of, newest, read_checkpoint, weights_hash
from lccp_sim.train.saved.exchange import export_checkpoint
from lccp_sim.train.saved.journal import RECORDS
from lccp_sim.train.saved.sharded import INDEX, REST
from lccp_sim.train.series import measure
from tests.train.test_parallel import EP, FEW, SHARD, assert_close, ended, start
from tests.train.tiny import final, plain

ALONE = FEW | {f"monitors.{name}": None for name in ("heads", "induction", "perplexity", "routing")}
ALONE |= {"model.router": {}}  # no bias of selection, so that it can be exported


@pytest.fixture(scope="module")
def cut(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with FSDP2 on two ranks, finished. Only to be read."""
    tree = plain(tmp_path_factory.mktemp("cut"), shared)
    for key, value in (ALONE | SHARD).items():
        group, name = key.split(".")
        tree[group][name] = value
    assert ended(start(load_config(tree), 2)) == [0, 0]
    return next(Path(tree["run"]["root"]).glob("tiny-*"))


@pytest.fixture
def spoilt(cut: Path, tmp_path: Path) -> Path:
    """The last checkpoint of a copy of that run."""
    return checkpoints(shutil.copytree(cut, tmp_path / "copy"))[-1]


def watched(model: Transformer, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Fresh weights, each asked for only once the one before is gone."""
    last: weakref.ref | None = None
    for name, weight in fresh(model, seed):
        assert last is None or last() is None, name
        last = weakref.ref(weight)
        yield name, weight
        del weight


@pytest.mark.parametrize("layout", [SHARD, EP], ids=["fsdp", "ep"])
def test_ranks_begin_with_their_part_of_the_weights_of_one_process(layout: dict, make: Callable[..., Config]) -> None:
    config = make(ALONE | layout | {"monitors.needle": None, "model.previous_token_heads": 1})

    def check(rank: int) -> None:
        def step(self: LccpModule, *a: Any) -> Any:
            wanted = initialise(Transformer(self.model.config, self.model.vocab_size), 0).state_dict()
            held = sum(p.to_local().numel() for p in self.model.parameters())
            assert held < 0.51 * sum(p.numel() for p in self.model.parameters())
            mine = whole_tensors(self.model.state_dict())
            os._exit(7 if all(torch.equal(mine[name], wanted[name]) for name in wanted) else 8)

        running.fresh = watched
        LccpModule.training_step = step  # type: ignore[method-assign]

    assert ended(start(config, 2, check)) == [7, 7]


def test_a_run_leaves_folders_and_as_many_as_files(cut: Path) -> None:
    found = checkpoints(cut)
    assert [path.stem for path in found if path.stem.startswith("last")] == ["last-00000005", "last-00000010"]
    assert all(path.is_dir() and damage(path) is None for path in found)
    names = {path.name for path in found} | {manifest_of(path).name for path in found}
    assert {path.name for path in (cut / "checkpoints").iterdir()} == names
    parts = {"__0_0.distcp", "__1_0.distcp", INDEX, REST}
    assert {path.name for path in found[-1].iterdir()} == parts
    sizes = [(found[-1] / name).stat().st_size for name in ("__0_0.distcp", "__1_0.distcp")]
    assert max(sizes) < 1.1 * min(sizes)


def test_a_folder_is_measured_exported_and_trained_on(
    cut: Path, make: Callable[..., Config], say: Console, tmp_path: Path
) -> None:
    measure(cut, tmp_path / "out", True, [], lambda: make(), say)  # the windows; one process rounds as two do, or not
    own, measured = ({r.key: r.value for r in read_records(d / RECORDS)[0]} for d in (cut, tmp_path / "out"))
    assert measured and measured == {key: pytest.approx(own[key], rel=1e-5, abs=1e-6) for key in measured}
    assert {key for key in own if key[1] == "needle"} == {key for key in measured if key[1] == "needle"}
    last = checkpoints(cut)[-1]
    assert measure(last, tmp_path / "one", False, [], lambda: make(), say) == 0
    assert export_checkpoint(str(cut), tmp_path / "exported", "fp32")
    steps = ALONE | {"run.tokens": 2 * 256, "monitors.needle": None, "optim.warmup_steps": 0}
    chained = make(steps | {"run.name": "chained", "run.init_from": str(cut)})
    one = train(chained, say)
    shutil.move(one, tmp_path / "one-process")
    assert ended(start(make(steps | SHARD | {"run.name": "chained", "run.init_from": str(cut)}), 2)) == [0, 0]
    assert_close(tmp_path / "one-process", one)
    branch = make(ALONE | {"run.name": "branch", "run.branch_from": str(cut / "checkpoints" / "window-00000008.ckpt")})
    assert_close(cut, train(branch, say))


def test_weights_are_those_of_a_file(cut: Path, tmp_path: Path) -> None:
    path = checkpoints(cut)[-1]
    content = read_checkpoint(path)
    state = final(cut)
    assert all(torch.equal(content["state_dict"][name], value) for name, value in state.items())
    assert weights_hash(content) == weights_hash({"state_dict": state})


def test_a_damaged_folder_is_named_and_passed_over(spoilt: Path) -> None:
    run, before = spoilt.parent.parent, checkpoints(spoilt.parent.parent)[-2]
    part = spoilt / "__1_0.distcp"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    assert newest(run) == (before, [f"{spoilt}: __1_0.distcp does not match its manifest's hash"])
    part.unlink()
    with pytest.raises(ConfigError, match=r"__1_0.distcp is missing; name another checkpoint of the run"):
        read_checkpoint(spoilt)
    (before / "more").touch()
    assert "more does not match" in str(damage(before))


def test_an_index_that_is_no_index_is_refused_before_it_runs(spoilt: Path, tmp_path: Path) -> None:
    class Foreign:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    manifest = json.loads(manifest_of(spoilt).read_text())
    (spoilt / INDEX).write_bytes(pickle.dumps(Foreign()))
    with open(spoilt / INDEX, "rb") as file:
        manifest["sha256"][INDEX] = hashlib.file_digest(file, "sha256").hexdigest()
    manifest_of(spoilt).write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"it was not unpickled \(.metadata holds posix.mkdir, which no index"):
        read_checkpoint(spoilt)
    assert not (tmp_path / "ran").exists()


def test_a_kill_while_a_folder_is_written_leaves_the_one_before(make: Callable[..., Config], say: Console) -> None:
    few = ALONE | {"monitors.needle": None, "run.checkpoint_every_steps": 2, "run.tokens": 6 * 256}
    whole = train(make(few | {"run.name": "whole"}), say)

    def die(rank: int) -> None:
        from lccp_sim.train.parallel import strategy

        plain = strategy.commit

        def commit(temporary: Path, path: Path, *a: Any) -> None:
            if path.stem == "last-00000004":
                os._exit(9)
            plain(temporary, path, *a)

        strategy.commit = commit  # type: ignore[assignment]

    config = make(few | SHARD | {"run.name": "killed", "run.timeout_minutes": 0.2})
    assert ended(start(config, 2, die))[0] == 9
    killed = next(whole.parent.glob("killed-*"))
    assert (killed / "checkpoints" / ".last-00000004.ckpt.tmp").is_dir()
    assert checkpoints(killed)[-1].stem in ("window-00000003", "window-00000004")
    assert ended(start(config, 2)) == [0, 0]
    assert not list((killed / "checkpoints").glob(".*"))
    assert_close(whole, killed)


def test_files_can_be_asked_for(make: Callable[..., Config], tmp_path: Path) -> None:
    few = ALONE | {"monitors.needle": None, "run.tokens": 2 * 256}
    assert ended(start(make(few | SHARD | {"run.checkpoints": "file"}), 2)) == [0, 0]
    assert all(path.is_file() for path in checkpoints(next(tmp_path.glob("runs/tiny-*"))))
    with pytest.raises(ConfigError, match=r"run.checkpoints='sharded': needs sharded weights"):
        make({"run.checkpoints": "sharded"})
