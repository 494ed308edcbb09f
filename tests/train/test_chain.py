"""Runs that start from other runs, and what is measured after the fact: the same numbers by another way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lccp_sim.config import Config
from lccp_sim.errors import ConfigError
from lccp_sim.train.run import train
from lccp_sim.train.saved.checkpoint import VerifiedIO, read_checkpoint
from lccp_sim.train.series import measure
from lccp_sim.train.window import suite
from tests.train.test_run import UNWATCHED, scattered
from tests.train.tiny import BATCH, STEPS, final, records

WIDE = {**UNWATCHED, "run.name": "wide", "run.context_tokens": 128, "run.tokens": BATCH}
LONGER = {
    "run.name": "longer",
    "run.context_tokens": 128,
    "run.tokens": 3 * BATCH,
    "model.rope": {"kind": "base", "base": 500000},
    **{f"monitors.{name}": None for name in ("perplexity", "routing", "probe")},
}


def windowed(directory: Path, step: int) -> Path:
    return directory / "checkpoints" / f"window-{step:08d}.ckpt"


@pytest.mark.parametrize("name", ["tiny-s0-*", "checkpoints/window-00000012.ckpt"])
def test_a_run_starts_from_the_weights_of_another(name: str, run: Callable[..., Path], finished: Path) -> None:
    named = finished / name if name.endswith("ckpt") else finished.parent / name
    directory = run({**LONGER, "run.init_from": str(named)})
    first, base = final(directory, 0), final(finished)
    assert all(torch.equal(value, base[key]) for key, value in first.items())
    config = yaml.safe_load((directory / "config.yaml").read_text())
    assert config["run"]["tokens_before"] == STEPS * BATCH and config["model"]["rope"]["base"] == 500000
    assert (directory / "tokenizer.json").read_bytes() == (finished / "tokenizer.json").read_bytes()


def test_the_optimizer_is_carried_on_or_begins_fresh(run: Callable[..., Path], finished: Path) -> None:
    """One step from the same weights on the same batch: the moments differ by what the base's had left, to rounding."""
    keys = {**UNWATCHED, "run.tokens": BATCH, "run.init_from": str(finished)}
    fresh, carried = (run({**keys, "run.init_optimizer": which}) for which in ("fresh", "carried"))
    assert fresh != carried and "init_optimizer: carried" in (carried / "config.yaml").read_text()
    base, one, other = (
        read_checkpoint(windowed(directory, step))["optimizer_states"][0]["state"]
        for directory, step in ((finished, STEPS), (fresh, 1), (carried, 1))
    )
    for i, left in base.items():
        assert (float(one[i]["step"]), float(other[i]["step"])) == (1, STEPS + 1)
        for name, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.95)):
            assert torch.allclose(other[i][name], beta * left[name] + one[i][name], rtol=1e-4, atol=1e-7)
    assert any(not torch.equal(value, final(carried, 1)[key]) for key, value in final(fresh, 1).items())


def test_an_optimizer_that_cannot_be_carried_is_refused(
    run: Callable[..., Path], finished: Path, tmp_path: Path
) -> None:
    keys = {**UNWATCHED, "run.tokens": BATCH, "run.init_optimizer": "carried"}
    with pytest.raises(ConfigError, match="^run.init_optimizer='carried': needs run.init_from; name a run, or use fr"):
        run(keys)
    content = read_checkpoint(windowed(finished, 8))
    bare = tmp_path / "bare" / "window-00000008.ckpt"
    VerifiedIO().save_checkpoint({key: content[key] for key in ("lccp", "state_dict", "global_step")}, bare)
    shutil.copy(finished / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(ConfigError, match="^run.init_optimizer='carried': .*ckpt holds no optimizer state; use f"):
        run({**keys, "run.init_from": str(bare)})


def test_a_window_is_a_start_too_and_tokens_add_up_along_the_chain(run: Callable[..., Path], finished: Path) -> None:
    keys = {**UNWATCHED, "run.tokens": BATCH}
    second = run({**keys, "run.name": "second", "run.init_from": str(windowed(finished, 4))})
    third = run({**keys, "run.name": "third", "run.init_from": str(second)})
    before = [yaml.safe_load((run / "config.yaml").read_text())["run"]["tokens_before"] for run in (second, third)]
    assert before == [4 * BATCH, 5 * BATCH]
    assert all(torch.equal(value, final(second, 1)[key]) for key, value in final(third, 0).items())


def test_the_directory_follows_the_weights_of_the_base_and_not_its_place(
    run: Callable[..., Path], finished: Path, tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(finished, tmp_path / "elsewhere")
    one = run({**UNWATCHED, "run.init_from": str(finished), "run.tokens": BATCH})
    assert run({**UNWATCHED, "run.init_from": str(elsewhere), "run.tokens": BATCH}) == one
    assert run({**UNWATCHED, "run.init_from": str(windowed(finished, 8)), "run.tokens": BATCH}) != one


def test_the_precondition_is_measured_with_the_base_as_it_was(run: Callable[..., Path], say: Any) -> None:
    keys = {"run.init_from": str(run(WIDE)), "run.precondition": True, "run.tokens": BATCH, "monitors.probe": None}
    changed, same = (
        run({**keys, "run.name": name, "model.rope.base": base}) for name, base in (("a", 10**6), ("b", 10**4))
    )
    found = [
        [r for r in map(json.loads, records(directory).splitlines()) if r["monitor"] == "precondition"]
        for directory in (changed, same)
    ]
    assert found[0] == found[1]  # the new RoPE plays no part
    assert [r["metric"] for r in found[0]] == [
        "hit_frac",
        "hit_frac",
        "copy_nll_ratio",
        "first_copy_nll_nats",
        "second_copy_nll_nats",
    ]
    assert [r["tags"].pop("span", None) for r in found[0]] == ["value", "full", None, None, None]
    assert all(r["step"] == 0 and r["tags"] == {"length": 128} and r["tier"] == "mechanistic" for r in found[0])
    assert "precondition NOT met" in say.file.getvalue()
    assert "expert load before step 1: at " in say.file.getvalue()


def test_a_precondition_that_cannot_be_measured_is_refused_before_anything_is_written(
    run: Callable[..., Path], finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="run.precondition, at the base's context of 64 tokens: monitors.needle"):
        run({"run.init_from": str(finished), "run.precondition": True})
    assert not list((tmp_path / "runs").glob("*"))


def test_the_text_of_the_base_may_be_gone(
    make: Callable[..., Config], run: Callable[..., Path], say: Any, shared: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(shared / "texts", tmp_path / "texts"))
    keys = {**UNWATCHED, "run.tokens": BATCH, "data.sources.prose.paths": [str(moved)]}
    base = run({**keys, "run.name": "base"})
    shutil.rmtree(moved)
    assert run({**UNWATCHED, "run.tokens": BATCH, "run.init_from": str(base)}).exists()


def test_a_record_that_is_not_measured_again_is_a_difference(finished: Path, say: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    lines = (run / "records.jsonl").read_text().splitlines()
    where = next(i for i, line in enumerate(lines) if '"step": 6' in line and '"perplexity"' in line)
    lines.insert(where, json.dumps(json.loads(lines[where]) | {"metric": "another_nats"}))
    (run / "records.jsonl").write_text("\n".join(lines) + "\n")
    assert measure(run, tmp_path / "out", True, [], lambda: None, say) == 1
    [line] = [line for line in say.file.getvalue().splitlines() if line.startswith("differs: ")]
    assert "perplexity/another_nats" in line and "at step 6: missing now" in line


def test_an_extended_run_is_measured_as_it_was(
    run: Callable[..., Path], say: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(suite, "head_scores", scattered)
    keys = {f"monitors.{name}": None for name in ("perplexity", "routing", "induction")}
    run({**keys, "run.tokens": 7 * BATCH})
    assert measure(run(keys), tmp_path / "out", True, [], lambda: None, say) == 0, say.file.getvalue()[-3000:]
    assert {json.loads(line)["step"] for line in records(tmp_path / "out").splitlines()} == {0, 3, 4, 6, 7, 8, 12}


def test_a_chained_run_is_resumed_like_any_other(
    make: Callable[..., Config], run: Callable[..., Path], say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lccp_sim.train.loop.module import LccpModule

    keys = {**LONGER, "run.precondition": True, "run.init_from": str(run(WIDE))}
    whole = train(make({**keys, "run.name": "whole"}), say)
    plain = LccpModule.training_step

    def stop(self: LccpModule, *a: Any) -> Any:
        if self.global_step == 2:
            raise KeyError("stopped")
        return plain(self, *a)

    with monkeypatch.context() as patch:
        patch.setattr(LccpModule, "training_step", stop)
        with pytest.raises(KeyError):
            train(make(keys), say)
    assert records(train(make(keys), say)) == records(whole)
