"""A run that trains with Lighthouse attention turns dense at its token count, and is resumed on either side of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.report.figures import draw
from lccp_sim.analysis.report.plots import switch_note, switches
from lccp_sim.analysis.report.tables import attention_table
from lccp_sim.analysis.run import load_run
from lccp_sim.configure.load import load_config, plain_config
from lccp_sim.errors import ConfigError
from lccp_sim.models.attention import Attention
from lccp_sim.models.lighthouse import NO_DENSE_STAGE
from lccp_sim.train.loop.module import LccpModule
from tests.train.test_run import UNWATCHED, losses, rows
from tests.train.tiny import BATCH, STEPS, WINDOWS, assert_same_run, records

SPARSE = {"kind": "lighthouse", "levels": 3, "factor": 2, "budget": 4, "tile_budget": 2}
FIRST_DENSE = 7  # the first step that begins at `dense_from_tokens` or after it
STAGES = {"model.attention": {**SPARSE, "dense_from_tokens": (FIRST_DENSE - 1) * BATCH + 1}}
WATCHED = {name: None for name in UNWATCHED if name not in ("monitors.needle", "monitors.probe")}
KEPT = {"sources": ["prose"], "context_tokens": 64, "short_tokens": 32, "items": 2}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Whether each step of training asked for sparse attention, its tokens, and what monitors asked for."""
    found: dict[str, list[Any]] = {"training": [], "tokens": [], "watching": []}
    step, forward, inside = LccpModule.training_step, Attention.forward, []

    def training_step(self: Any, batch: Any, index: int) -> Any:
        inside.append(True)
        found["tokens"].append(batch["tokens_BT"])
        try:
            return step(self, batch, index)
        finally:
            inside.pop()

    def attend(self: Any, x: Any, rope: Any, bounds: Any, sparse: bool = False, *at: Any) -> Any:
        if self.layer == 0:
            found["training" if inside else "watching"].append(sparse)
        return forward(self, x, rope, bounds, sparse, *at)

    monkeypatch.setattr(LccpModule, "training_step", training_step)
    monkeypatch.setattr(Attention, "forward", attend)
    return found


def test_training_is_sparse_up_to_its_tokens_and_monitors_never_are(
    run: Callable[..., Path], seen: dict[str, list[Any]], say: Any
) -> None:
    """The batches are those of a run that is dense throughout, and before the first step monitors see the same."""
    directory = run(WATCHED | STAGES)
    assert seen["training"] == [True] * FIRST_DENSE + [False] * (STEPS - FIRST_DENSE)
    assert len(seen["watching"]) > 10 and not any(seen["watching"])
    mine = [*seen["tokens"]]
    for found in seen.values():
        found.clear()
    dense = run(WATCHED)
    assert directory != dense and all(torch.equal(a, b) for a, b in zip(mine, seen["tokens"], strict=True))
    first = [[line for line in records(each).splitlines() if b'"step": 0,' in line] for each in (directory, dense)]
    assert first[0] == first[1] != []
    assert losses(directory)["loss_nats"] != losses(dense)["loss_nats"]
    assert NO_DENSE_STAGE not in " ".join(say.file.getvalue().split())


def test_the_switch_is_a_record_and_a_line_in_every_figure(run: Callable[..., Path]) -> None:
    directory = run(WATCHED | STAGES | {"monitors.probe": None})
    shares = [(row["step"], row["value"]) for row in rows(directory) if row["metric"] == "dense_attention_frac"]
    assert shares == [(1, 0.0), (FIRST_DENSE + 1, 1.0)], "of the step that ended"
    read = load_run(directory)
    assert read.dense_from == FIRST_DENSE * BATCH
    figures = draw(Findings(read))
    said = "switched to dense attention at 1.79k tokens"
    assert len(figures) > 2 and all(said in each.caption for each in figures.values())
    ax = Figure().subplots()
    switches(ax, [None, 10.0, 20.0, 10.0], np.array([0.0, 5.0, 40.0]))
    assert sorted(line.get_xdata()[0] for line in ax.lines) == [10.0, 20.0]
    assert switch_note([None]) == ""


def test_the_attention_of_training_is_measured_beside_the_dense_one(run: Callable[..., Path]) -> None:
    """Up to the switch, and without the heads; what is measured densely is what it is without."""
    keys = {**WATCHED, **STAGES, "monitors.probe": None, "monitors.perplexity": KEPT, "run.name": "both"}
    directory = run(keys | {"monitors.attention": "both"})
    trained = [row for row in rows(directory) if row["tags"].get("attention") == "training"]
    assert {row["step"] for row in trained} == {step for step in WINDOWS if step <= FIRST_DENSE}
    assert {row["monitor"] for row in trained} == {"needle", "perplexity"}
    untagged = [row for row in rows(directory) if row not in trained]
    assert untagged == rows(run(keys | {"run.name": "dense"})) and any(row["monitor"] == "heads" for row in untagged)
    dense = {(row["step"], row["metric"], *row["tags"].items()): row["value"] for row in untagged}
    pairs = [
        (row["value"], dense[row["step"], row["metric"], *(t for t in row["tags"].items() if t[0] != "attention")])
        for row in trained
    ]
    assert len({one == other for one, other in pairs}) == 2, "most differ, and controls are as often"
    table = attention_table(Findings(load_run(directory)))
    assert [row[0] for row in table.rows] == ["0", "768", "1.02k", "1.54k"] and "/" in table.rows[0][1]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"monitors.attention": "both"},
            "monitors.attention='both': training is dense, so there is nothing to compare",
        ),
        ({"monitors.attention": "sparse"}, "monitors.attention='sparse': input should be 'dense' or 'both'"),
    ],
)
def test_what_cannot_be_measured_is_refused(keys: dict, message: str, settings: Callable[..., dict]) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(settings(keys))
    assert "attention" not in plain_config(load_config(settings({"monitors.attention": "dense"})))["monitors"]


def test_a_run_without_a_dense_stage_is_told_so(run: Callable[..., Path], say: Any) -> None:
    """Lighthouse attention is not dense attention (trap f), so what it trained is run as it was never trained."""
    run({**UNWATCHED, "model.attention": SPARSE, "run.tokens": BATCH})
    assert NO_DENSE_STAGE in " ".join(say.file.getvalue().split())


def test_a_branch_may_turn_dense_elsewhere_from_where_it_branches_on(run: Callable[..., Path]) -> None:
    """It is the run from scratch, to the byte; where a step before attended otherwise, it is none."""
    trunk = run({**UNWATCHED, **STAGES, "run.checkpoint_every_steps": 3})
    at = {step: str(trunk / "checkpoints" / f"window-{step:08d}.ckpt") for step in WINDOWS}

    def dense_from(tokens: int | None, **more: Any) -> Path:
        return run({**UNWATCHED, "model.attention": {**SPARSE, "dense_from_tokens": tokens}, **more})

    for step, tokens in ((6, 6 * BATCH), (6, 9 * BATCH), (6, None)):
        whole = dense_from(tokens, **{"run.name": f"whole-{tokens}"})
        assert_same_run(dense_from(tokens, **{"run.branch_from": at[step]}), whole)
    with pytest.raises(ConfigError, match="had 1537, so another attention from 1792 tokens on; branch from an earl"):
        dense_from(9 * BATCH, **{"run.branch_from": at[8], "run.name": "late"})
    with pytest.raises(ConfigError, match="model.attention.kind"):
        run({**UNWATCHED, "run.branch_from": at[6], "run.name": "other"})


@pytest.mark.parametrize("step", [FIRST_DENSE - 2, FIRST_DENSE + 2])
def test_it_is_resumed_on_either_side(
    step: int, run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments of AdamW, data and attention are those of the run that was not interrupted: the same bytes."""
    changes = UNWATCHED | STAGES
    whole = run(changes | {"run.root": str(tmp_path / "whole")})
    plain = LccpModule.training_step

    def fail(self: Any, *batch: Any) -> Any:
        if self.global_step == step:
            raise RuntimeError("killed")
        return plain(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(LccpModule, "training_step", fail)
        with pytest.raises(RuntimeError, match="killed"):
            run(changes)
    assert_same_run(run(changes), whole)
