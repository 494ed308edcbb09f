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
from lccp_sim.plan.shapes import forward_flops, shape_of
from lccp_sim.plan.watching import monitor_costs

COUNTED = json.loads((Path(__file__).parents[2] / "bench" / "results" / "monitor_shares.json").read_text())


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
    assert cost.looks == 3
    assert cost.flops == 3 * routing.items * 256 * (sum(each.values()) - each["head"])  # it asks for no logits


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
    cost = monitor_costs(config.monitors.watch, [0, 4, 8, 12], shape_of(config.model, 512))["mine"]
    assert (cost.looks, cost.tokens_a_look, cost.tokens_once) == (3, 300, 0)
    with pytest.raises(TypeError, match="passes"):
        type("Silent", (Mine,), {"passes": Monitor.passes})(texts=1)
