"""What the monitors would send is what they were counted to send."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest

from lccp_sim.configure.compose import check
from lccp_sim.configure.load import windows_of
from lccp_sim.monitors import MONITORS, Monitor
from lccp_sim.monitors.monitor import Pass
from lccp_sim.plan.plan import plan_monitors
from lccp_sim.plan.shapes import forward_flops, shape_of

COUNTED = json.loads((Path(__file__).parents[2] / "bench" / "results" / "monitor_shares.json").read_text())


@pytest.mark.parametrize("run", COUNTED)
def test_tokens_and_looks_are_those_of_the_bench(run: str) -> None:
    config = check([f"run={run}"])
    watch = dict(config.monitors.watch)
    if run == "small_lccp":  # its sources have 161 stretches of the 300 that it asks for
        watch["perplexity"] = dataclasses.replace(watch["perplexity"], sources=("code",), items=161)
    planned = plan_monitors(watch, windows_of(config), shape_of(config.model, 1024), training=1.0)
    for name, counted in COUNTED[run]["monitors"].items():
        each, once = (sum(p.sent for p in passes) for passes in (watch[name].passes(), watch[name].reference_passes()))
        assert planned[name]["looks"] == counted["looks"]
        assert planned[name]["tokens"] == counted["looks"] * each + once
        # The probe's texts are of random lengths, padded to the longest of a batch.
        assert each == pytest.approx(counted["tokens_a_look"], rel=0.08 if name == "probe" else 0.003)
        assert once == pytest.approx(counted["tokens_once"])


def test_flops_are_those_of_the_texts_at_their_own_length() -> None:
    config = check(["run=smoke"])
    shape, routing = shape_of(config.model, 512), config.monitors.watch["routing"]
    [plan] = plan_monitors({"routing": routing}, [0, 4, 8], shape, training=1e9).values()
    each = forward_flops(shape, 256)
    assert plan["looks"] == 3 and not routing.beside and plan["share"] == plan["flops"] / 1e9
    assert plan["flops"] == 3 * routing.items * 256 * (sum(each.values()) - each["head"])  # it asks for no logits


def test_what_is_measured_as_trained_is_a_cost_of_its_own_until_the_switch() -> None:
    attention = "model.attention={kind: lighthouse, levels: 3, factor: 2, budget: 16, tile_budget: 8}"
    config = check(["run=smoke", attention])
    shape, watch = shape_of(config.model, 512), {"needle": config.monitors.watch["needle"]}
    dense, trained = plan_monitors(watch, [0, 4, 8], shape, training=1.0, sparse_until=4).values()
    assert (dense["looks"], trained["looks"]) == (3, 2) and trained["tokens"] / 2 == dense["tokens"] / 3
    assert 0 < trained["flops"] / 2 < dense["flops"] / 3
    assert list(plan_monitors(watch, [0, 4, 8], shape, training=1.0)) == ["needle"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(Monitor):
    """What a new monitor has to say."""

    texts: int
    kind: Literal["mine"] = "mine"

    def prepare(self, corpus: Any) -> Any:
        return ()

    def score(self, model: Any, items: Any) -> Any:
        return ()

    def aggregate(self, measured: Any, moment: Any) -> list:
        return []

    def passes(self) -> list[Pass]:
        return [Pass(self.texts, 100)]


def test_a_monitor_is_a_class_and_a_line_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MONITORS, "mine", Mine)
    config = check(["run=smoke", "monitors.mine.texts=3", "monitors.mine.every=2"])
    plan = plan_monitors(config.monitors.watch, [0, 4, 8, 12], shape_of(config.model, 512), training=1.0)["mine"]
    assert (plan["looks"], plan["tokens"]) == (3, 900)
    with pytest.raises(TypeError, match="passes"):
        type("Silent", (Mine,), {"passes": Monitor.passes})(texts=1)
