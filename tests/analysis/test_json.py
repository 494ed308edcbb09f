"""What a finding is in report.json: its fields, and of an estimate the interval, not the draws."""

import json

import numpy as np

from lccp_sim.analysis.stats.correlation import Coefficient
from lccp_sim.analysis.stats.curve import Estimate, to_json
from lccp_sim.analysis.stats.deceptive import Deceptive, DeceptiveRun
from lccp_sim.analysis.stats.equivalence import Equivalence


def test_an_estimate_is_value_low_high() -> None:
    estimate = Estimate.of(1.0, np.linspace(0, 2, 101))
    assert estimate.draws is not None
    assert to_json(estimate) == {"value": 1.0, "low": estimate.low, "high": estimate.high}
    row = to_json(Equivalence(8, 16, 40, estimate, 0.05, True, None))
    assert row["change"] == to_json(estimate) and json.loads(json.dumps(row)) == row


def test_what_is_nested_is_written_out() -> None:
    found = Deceptive({"length": 512}, (DeceptiveRun("a", 4, 3, (), ()),), ())
    run = {"run": "a", "items": 4, "windows": 3, "indices": [], "ceilings": []}
    assert to_json(found) == {"tags": {"length": 512}, "runs": [run], "predictions": []}
    assert to_json(Coefficient(0.5, 0.01, (0.1, 0.8)))["fisher"] == [0.1, 0.8]
