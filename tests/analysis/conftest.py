"""Runs of a simulated world as fixtures; the world itself is in world.py."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lccp_sim.analysis.stats.curve import Curve
from lccp_sim.analysis.stats.estimate import weights
from tests.analysis.world import METRICS, World, Writer, write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., tuple[Path, World]]:
    """A function that writes a run of the planted world with the given changes, and returns (directory, world)."""

    def make(**changes) -> tuple[Path, World]:
        world = World(**changes)
        return write_run(tmp_path / f"run-{world.seed}", world), world

    return make


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, World]:
    """A run of the world as planted, to be read only, and the world."""
    world = World()
    return write_run(tmp_path_factory.mktemp("planted") / "run", world), world


@pytest.fixture
def make_world() -> World:
    """The world as planted; change it with dataclasses.replace."""
    return World()


@pytest.fixture
def simulated() -> Callable[[World], dict[str, Curve]]:
    """A function that gives the curves of hit and answer NLL of a world, without a run directory in between."""

    def simulate(world: World) -> dict[str, Curve]:
        writer, grid = Writer(world), world.grid
        cells = [[writer.cell(tokens, latent, 1.0) for latent in writer.latent.values()] for tokens in grid]
        weight_RI = weights(np.repeat(np.arange(len(writer.latent)), world.items), seed=world.seed)
        result = {}
        for metric in METRICS[:2]:
            value_WI = np.array([np.concatenate([values[metric] for values in window]) for window in cells])
            mean_W, tokens_W = value_WI.mean(1), np.array(grid, float)
            draws_RW = weight_RI @ value_WI.T
            result[metric] = Curve(
                "needle", metric, {}, tokens_W, mean_W, np.zeros_like(mean_W), draws_RW, "paired items"
            )
        return result

    return simulate
