"""A model cut over ranks that are only pretended: what each holds, beside the even cut that plan assumes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lccp_sim.cli import main
from lccp_sim.config import Config
from lccp_sim.errors import ConfigError
from lccp_sim.plan.memory import Layout, Place, memory
from lccp_sim.plan.shapes import shape_of
from lccp_sim.train import dry_run

ROOT = Path(__file__).parents[2]
VOCABULARY = 512
WIDE = {"model.num_experts": 8, "model.d_expert": 32, "model.d_model": 64, "run.batch_tokens": 16 * 64}


def planned(config: Config, layout: Layout) -> dict[str, Any]:
    """What of a plan the dry run is held to."""
    shape = shape_of(config.model, VOCABULARY)
    parts = {name: part.total for name, part in shape.parts().items() if part.total}
    needs = memory(config.model, shape, 64, layout, Place(bf16=False, gpu=True))
    return {"parameters": {"parts": parts}, "memory": needs._asdict()}


def run(config: Config, layout: Layout) -> dict[str, Any]:
    return dry_run.dry_run(config, VOCABULARY, layout, planned(config, layout))


@pytest.mark.parametrize("layout", [Layout(8), Layout(ep=8), Layout(2, 2, 2), Layout(cp=8), Layout()], ids=str)
def test_what_the_ranks_hold_is_the_model(layout: Layout, make: Callable[..., Config]) -> None:
    config = dry_run.laid_out(make(WIDE), layout)
    ranks = [dry_run.held(config, VOCABULARY, rank, layout.devices)[0] for rank in range(layout.devices)]
    for same in zip(*ranks, strict=True):
        assert sum(weight.local for weight in same) == same[0].whole
    assert {weight.part for weight in ranks[0]} == planned(config, layout)["parameters"]["parts"].keys()
    tree = run(config, layout)
    assert tree["problems"] == [] and dry_run.agrees(tree) is None
    sizes = {"weights": 4, "gradients": 4, "moments": 8}
    held = [sum(weight.local for weight in found) for found in (ranks[0], ranks[-1])]
    for kind, size in sizes.items():
        assert tree[kind]["local"] == [size * n for n in held][: layout.devices]
        assert tree[kind]["planned"] == size * sum(weight.whole for weight in ranks[0]) / layout.devices


def test_experts_that_ranks_do_not_divide_are_cut_by_width(make: Callable[..., Config]) -> None:
    tree = run(make(WIDE | {"model.num_experts": 6}), Layout(8))
    assert tree["parts"]["experts"]["cut"] == ["dim 1 by 8"] and not tree["problems"]
    # Nor does the width divide: two ranks hold nothing.
    uneven = run(make(WIDE | {"model.num_experts": 6, "model.d_expert": 20}), Layout(8))
    line = r"^--dry-run: a rank holds .* MiB of weights, [\d.]+% more than .*; most of it experts, sharded dim 0 by 8"
    with pytest.raises(ConfigError, match=line):
        dry_run.agrees(uneven)


def test_weights_that_nobody_cut_are_named(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "shard", lambda *_: None)
    line = r"rank 0 holds 32,768 elements of embedding.weight \(sharding: whole\), but plan shards its 32,768 evenly"
    with pytest.raises(ConfigError, match=line):
        dry_run.agrees(run(make(WIDE), Layout(8)))


def test_a_plan_of_another_model_is_found(make: Callable[..., Config]) -> None:
    other = planned(make(WIDE | {"model.num_shared_experts": 2}), Layout(8))
    tree = dry_run.dry_run(make(WIDE), VOCABULARY, Layout(8), other)
    assert any(re.match("shared experts has .* weights, but plan counts ", line) for line in tree["problems"])


@pytest.mark.parametrize(
    ("layout", "changes", "line"),
    [
        (Layout(3), {}, r"torchrun='dp=3,ep=1,cp=1': dp x ep = 3 must divide the 16 rows of run.batch_tokens"),
        (Layout(ep=3), {}, "torchrun ep=3: must divide model.num_experts=8"),
        (Layout(2, 2), {"model.d_expert": 31}, "run.ep=2: leaves 2 ranks to shard each expert's width, which do not"),
    ],
)
def test_what_training_refuses_is_refused_in_its_words(
    layout: Layout, changes: dict, line: str, make: Callable[..., Config]
) -> None:
    with pytest.raises(ConfigError, match=line):
        dry_run.laid_out(make(WIDE | changes), layout)


def test_the_command_prints_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    words = ["plan", "run=smoke", "--hardware", "h100", "--layout", "dp=2,ep=2", "--dry-run", "--json", str(path)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "dry run on 4 ranks" in said and all(word in said for word in ("experts", "gradients", "moments"))
    plan = json.loads(path.read_text())
    assert plan["dry_run"]["ranks"] == 4 and plan["dry_run"]["parts"].keys() == plan["parameters"]["parts"].keys()
    assert main(["plan", "run=smoke", "--counted", "gpt_oss_20b", "--dry-run"]) == 1
    assert "--dry-run='gpt_oss_20b': nothing here builds" in capsys.readouterr().err


def test_the_page_has_what_the_dry_run_of_512_ranks_found() -> None:
    tree = json.loads((ROOT / "bench" / "results" / "plan_dry_run.json").read_text())
    page = " ".join((ROOT / "docs" / "plan.md").read_text().split())
    assert tree["ranks"] == 512 and tree["problems"] == []
    weights = tree["weights"]
    assert f"{weights['local'][0] / weights['planned'] - 1:+.2%}".replace("%", " %") in page
    for part, found in tree["parts"].items():
        numbers = [f"{n:,.0f}" for n in (*found["local"], found["planned"])]
        cells = [part, f"{found['whole']:,}", " or ".join(found["cut"]), *numbers]
        assert f"| {' | '.join(cells)} |" in page
