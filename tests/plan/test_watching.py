"""What the monitors would send is what they were counted to send."""

import dataclasses
import json
from pathlib import Path

import pytest

from lccp_sim.configure.compose import check
from lccp_sim.configure.load import windows_of
from lccp_sim.monitors import MONITORS
from lccp_sim.plan.shapes import forward_flops, shape_of
from lccp_sim.plan.watching import ONCE, PASSES, monitor_costs

COUNTED = json.loads((Path(__file__).parents[2] / "bench" / "results" / "monitor_shares.json").read_text())


def test_every_monitor_has_a_cost() -> None:
    assert PASSES.keys() == MONITORS.keys() and ONCE.keys() <= PASSES.keys()


@pytest.mark.parametrize("run", COUNTED)
def test_tokens_and_looks_are_those_of_the_bench(run: str) -> None:
    config = check([f"run={run}"])
    watch = dict(config.monitors.watch)
    if run == "small_lccp":  # its sources have 161 stretches of the 300 that it asks for
        watch["perplexity"] = dataclasses.replace(watch["perplexity"], sources=("code",), items=161)
    costs = monitor_costs(watch, windows_of(config), shape_of(config.model, 1024))
    for name, counted in COUNTED[run]["monitors"].items():
        found = costs[name]
        assert found.looks == counted["looks"]
        # The probe's texts are of random lengths, padded to the longest of a batch.
        assert found.tokens_a_look == pytest.approx(counted["tokens_a_look"], rel=0.08 if name == "probe" else 0.003)
        assert found.tokens_once == pytest.approx(counted["tokens_once"])


def test_flops_are_those_of_the_texts_at_their_own_length() -> None:
    config = check(["run=smoke"])
    shape, routing = shape_of(config.model, 512), config.monitors.watch["routing"]
    [cost] = monitor_costs({"routing": routing}, [0, 4, 8], shape).values()
    each = forward_flops(shape, 256)
    assert cost.looks == 3 and not routing.beside
    assert cost.flops == 3 * routing.items * 256 * (sum(each.values()) - each["head"])  # it asks for no logits


def test_what_is_measured_as_trained_is_a_cost_of_its_own_until_the_switch() -> None:
    attention = "model.attention={kind: lighthouse, levels: 3, factor: 2, budget: 16, tile_budget: 8}"
    config = check(["run=smoke", attention])
    shape, needle = shape_of(config.model, 512), config.monitors.watch["needle"]
    dense, trained = monitor_costs({"needle": needle}, [0, 4, 8], shape, sparse_until=4).values()
    assert (dense.looks, trained.looks) == (3, 2) and trained.tokens_a_look == dense.tokens_a_look
    assert 0 < trained.flops / trained.looks < dense.flops / dense.looks
    assert list(monitor_costs({"needle": needle}, [0, 4, 8], shape)) == ["needle"]
