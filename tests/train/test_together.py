"""Ranks that look together see what one process sees, and leave the model as it was, whoever holds its weights."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from lccp_sim.config import Config
from lccp_sim.data.pools import open_corpus
from lccp_sim.models.transformer import Transformer, initialise
from lccp_sim.monitors import observing
from lccp_sim.monitors.heads import CopyTap
from lccp_sim.monitors.values import Moment
from lccp_sim.train.parallel.ranks import connected, joined
from lccp_sim.train.parallel.sharding import shard
from lccp_sim.train.window.suite import HeadHistory, MonitorSuite, WindowResult
from tests.train.test_parallel import CP, EP, SHARD, ended, start

# More texts than one forward takes, of two lengths, and not as many as ranks divide.
CHANGES = {
    "monitors.needle.lengths": [192, 144],
    "monitors.needle.tokens_per_forward": 400,
    "monitors.perplexity.items": 3,
    "monitors.perplexity.tokens_per_forward": 128,
    "monitors.probe.rows": 3,
    "monitors.probe.items": 3,
    "monitors.probe.seeds": [0, 1],
    "monitors.probe.tokens_per_forward": 600,
    "run.timeout_minutes": 0.5,
}
LAYOUTS = {
    "ddp-2": (2, {}),
    "fsdp-2": (2, SHARD),
    "fsdp-4": (4, SHARD),
    "ep-2": (2, EP),
    "cp-2": (2, CP),
    "cp-2-ep-2": (4, CP | EP),
}


def look(config: Config) -> WindowResult:
    """What all monitors see of a fresh model, which must be as before, on each rank that torchrun started."""
    with joined(config) as ranks, connected(config):
        corpus = ranks.in_turn(lambda: open_corpus(config.data, config.run.context_tokens, config.seed))
        model = initialise(Transformer(config.model, corpus.vocab_size), config.seed)
        if config.run.shard:
            mesh = init_device_mesh("cpu", (ranks.world, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
            shard(model, mesh, config.run.ep, config.run.cp)
        suite = MonitorSuite(config.monitors.watch, corpus, [0], None, ranks)
        before, random = held(model), torch.get_rng_state()
        seen = suite.measure(model, Moment(0, 0), HeadHistory([], [0]))
        assert all(torch.equal(x, y) for x, y in zip(before, held(model), strict=True))
        assert torch.equal(torch.get_rng_state(), random)
        assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
        return seen


def held(model: Transformer) -> list[torch.Tensor]:
    """What this rank holds of the weights, in copy."""
    state = model.state_dict().values()
    return [(x.to_local() if isinstance(x, DTensor) else x).clone() for x in state]


@pytest.fixture(scope="module")
def alone() -> dict[str, WindowResult]:
    """What one process sees, once a test has asked for it."""
    return {}


@pytest.mark.parametrize(("world", "changes"), LAYOUTS.values(), ids=LAYOUTS)
def test_ranks_see_what_one_process_sees(
    world: int, changes: dict, alone: dict[str, WindowResult], make: Callable[..., Config], tmp_path: Path
) -> None:
    if not alone:
        alone["seen"] = look(make(CHANGES))
    one = alone["seen"]

    def work(config: Config) -> None:
        (tmp_path / os.environ["RANK"]).write_bytes(pickle.dumps(look(config)))

    assert ended(start(make(CHANGES | changes), world, work=work)) == [0] * world
    for rank in range(world):
        seen: WindowResult = pickle.loads((tmp_path / str(rank)).read_bytes())
        assert [(r.key, r.n) for r in seen.records] == [(r.key, r.n) for r in one.records]
        assert [v._replace(value=0) for v in seen.values] == [v._replace(value=0) for v in one.values]
        for mine, theirs in ((seen.records, one.records), (seen.values, one.values)):
            assert [x.value for x in mine] == pytest.approx([x.value for x in theirs], rel=1e-5, abs=1e-6)
        # Forwards that a rank makes for the others alone are not counted; the probe's groups are padded otherwise.
        tokens, wanted = ({row["what"]: row["forward_tokens"] for row in each.timing} for each in (seen, one))
        assert {**tokens, "monitor:probe": 0} == {**wanted, "monitor:probe": 0}


def fail(*_: object) -> None:
    raise ValueError("what is planted")


def test_an_error_of_one_rank_ends_all_with_its_message(
    make: Callable[..., Config], capfd: pytest.CaptureFixture[str]
) -> None:
    def plant(rank: int) -> None:
        if rank == 1:
            observing.score_places = fail  # type: ignore[assignment]

    assert ended(start(make(CHANGES | SHARD), 2, plant, look)) == [1, 1]
    assert capfd.readouterr().err.count("ValueError: what is planted") == 2


def test_an_error_within_a_forward_ends_its_rank_and_the_others_with_it(
    make: Callable[..., Config], capfd: pytest.CaptureFixture[str]
) -> None:
    def plant(rank: int) -> None:
        if rank == 1:
            CopyTap.__call__ = fail  # type: ignore[method-assign, assignment]

    assert ended(start(make(CHANGES | SHARD), 2, plant, look)) == [1, 1]
    said = capfd.readouterr().err
    assert "Halfway: ValueError in a forward that all ranks share: what is planted" in said
    assert "LostRank: another process of the run is gone" in said
