"""A run that trains with Lighthouse attention turns dense at its token count, and is resumed on either side of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lccp_sim.models.attention import Attention
from lccp_sim.train.loop.module import LccpModule
from tests.train.test_run import UNWATCHED, losses
from tests.train.tiny import BATCH, STEPS, assert_same_run, records

SPARSE = {"kind": "lighthouse", "levels": 3, "factor": 2, "budget": 4, "tile_budget": 2}
FIRST_DENSE = 7  # the first step that begins at `dense_from_tokens` or after it
STAGES = {"model.attention": {**SPARSE, "dense_from_tokens": (FIRST_DENSE - 1) * BATCH + 1}}
WATCHED = {name: None for name in UNWATCHED if name not in ("monitors.needle", "monitors.probe")}


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

    def attend(self: Any, x: Any, rope: Any, bounds: Any, sparse: bool = False) -> Any:
        if self.layer == 0:
            found["training" if inside else "watching"].append(sparse)
        return forward(self, x, rope, bounds, sparse)

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
