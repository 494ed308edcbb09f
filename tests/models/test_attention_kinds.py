"""Each kind of attention has one form, and what was written before there were kinds stays as it was."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lccp_sim.configure.load import load_config, load_model, plain_config
from lccp_sim.errors import ConfigError
from lccp_sim.models.attention_kinds import ATTENTION, with_attention
from lccp_sim.models.lighthouse import LighthouseAttention
from lccp_sim.plan.hardware import rows_at_once
from lccp_sim.plan.memory import Layout
from lccp_sim.train.saved.run_directory import check_same, run_directory
from tests.train.tiny import BATCH, STEPS, plain

SPARSE = {"kind": "lighthouse", "levels": 3, "factor": 2, "budget": 4, "tile_budget": 2}
EXAMPLES = {"full": {"kind": "full"}, "window": {"kind": "window", "tokens": 8, "full_every": 2}, "lighthouse": SPARSE}


def of(root: Path, model: dict[str, Any], **run: Any) -> Any:
    """The config of the tiny run with these keys of its model and of its run."""
    tree = plain(root, root)
    (root / "texts").mkdir(exist_ok=True)
    (root / "texts" / "one.txt").write_text("the house")
    return load_config(tree | {"model": tree["model"] | model, "run": tree["run"] | run})


@pytest.mark.parametrize("kind", ATTENTION)
def test_a_config_that_was_written_reads_the_same(kind: str, tmp_path: Path) -> None:
    assert EXAMPLES.keys() == ATTENTION.keys()
    config = of(tmp_path, {"attention": EXAMPLES[kind]})
    again = yaml.safe_load(yaml.safe_dump(plain_config(config)))
    assert load_config(again) == config and load_model(again) == config.model


def test_full_and_windows_are_what_they_were_and_where(tmp_path: Path) -> None:
    """The names of run directories stay, and the settings found in one."""
    base = of(tmp_path, {})
    assert "attention" not in plain_config(base)["model"]
    for old, new in (({}, "full"), ({"window_tokens": 8, "full_attention_every": 2}, "window")):
        before, now = of(tmp_path, old), of(tmp_path, {"attention": EXAMPLES[new]})
        assert before == now and run_directory(before, None) == run_directory(now, None)
    sparse = of(tmp_path, {"attention": SPARSE})
    assert isinstance(sparse.model.attention, LighthouseAttention)
    names = {run_directory(each, None) for each in (base, sparse, of(tmp_path, {"attention": {**SPARSE, "budget": 8}}))}
    assert len(names) == 3
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump(plain_config(base)))
    check_same(directory, of(tmp_path, {"attention": {"kind": "full"}}))
    with pytest.raises(ConfigError, match=r"model.attention.budget \(None there, 4 now\)"):
        check_same(directory, sparse)


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no kind": ({"attention": {"levels": 2}}, {}, "model.attention: needs a `kind`, one of full, window, lighthouse"),
    "unknown kind": ({"attention": {"kind": "lighthous"}}, {}, "did you mean 'lighthouse'?"),
    "two windows": (
        {"attention": EXAMPLES["window"], "window_tokens": 8},
        {},
        "model.attention.kind='window': repeats model.window_tokens; remove one of them",
    ),
    "a row that windows do not divide": (
        {"attention": {**SPARSE, "factor": 3}},
        {},
        "run.context_tokens=64: must be a multiple of model.attention's factor^(levels - 1) = 9",
    ),
    "a budget larger than the row": (
        {"attention": {**SPARSE, "budget": 18}},
        {},
        "model.attention.budget=18: a row of 64 tokens has 16 windows of 4 that could be opened; lower it",
    ),
    "a budget that saves nothing": (
        {"attention": {**SPARSE, "budget": 12}},
        {},
        "model.attention.budget=12: lets 64 windows of a row meet, no fewer than its 64 tokens; lower it, or use",
    ),
    "half a tile": (
        {"attention": {**SPARSE, "budget": 5}},
        {},
        "model.attention.budget=5: must be a multiple of tile_",
    ),
    "one level": ({"attention": {**SPARSE, "levels": 1}}, {}, "model.attention.levels=1: input should be greater than"),
    "no such layer": (
        {"attention": {**SPARSE, "dense_layers": [0, -3]}},
        {},
        r"model.attention.dense_layers=[0, -3]: must be layers of model.num_layers=2, counted from 0 or from the end",
    ),
    "context parallelism": (
        {"attention": SPARSE},
        {"shard": True, "cp": 2},
        "run.cp=2: does not go with model.attention.kind=lighthouse, which needs unsplit rows",
    ),
    "dense after the end": (
        {"attention": {**SPARSE, "dense_from_tokens": STEPS * BATCH}},
        {},
        f"model.attention.dense_from_tokens={STEPS * BATCH}: lies beyond the run, which ends at {STEPS * BATCH} tokens",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    model, run, line = WRONG[name]
    with pytest.raises(ConfigError) as error:
        of(tmp_path, model, **run)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_plan_shares_no_rows_of_it_either(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--layout cp=2: does not go with model.attention.kind=lighthouse"):
        rows_at_once(of(tmp_path, {"attention": SPARSE}), Layout(cp=2))


def test_old_keys_pass_through() -> None:
    keys = {"window_tokens": 8, "attention": None}
    assert with_attention(keys) == {"window_tokens": 8}
