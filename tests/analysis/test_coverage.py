"""A small bench/coverage.py: intervals hold the truth about as often as they say, and the rule rarely errs."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATH = ROOT / "bench" / "coverage.py"
SPEC = importlib.util.spec_from_file_location("coverage_bench", PATH)
bench = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bench)
REPETITIONS = 40


def test_intervals_cover_and_the_law_is_found_on_a_power_law():
    found = bench.measure(bench.WORLDS["power"], REPETITIONS, 60, whole=True)
    assert len(found["coverage"]) == 10
    for what, share in found["coverage"].items():
        assert share["covered"] >= 0.8, what
    assert found["laws"]["power"] >= 0.8 and found["identifiability"] > 1


def test_the_rule_is_silent_on_a_log_law_and_speaks_on_a_power_law():
    log = bench.measure(bench.WORLDS["log"], REPETITIONS, 50, rule=(bench.NLL,))
    assert log["laws"]["log"] >= 0.8
    assert log["rule"].get(f"{bench.NLL} saturated at some window", 0.0) <= 0.05
    assert log["rule"][f"{bench.NLL} has a knee by kneedle"] == 1.0, "the baseline that always finds one"
    power = bench.measure(bench.WORLDS["power"], 10, 50, rule=(bench.NLL,))
    assert power["rule"][f"{bench.NLL} saturated at the end"] >= 0.9


def test_the_page_shows_the_tables_of_the_raw_figures():
    page = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")
    for table in bench.tables(json.loads((ROOT / "bench" / "results" / "coverage.json").read_text())).split("\n\n"):
        assert table in page
    schedules = json.loads((ROOT / "bench" / "results" / "coverage_schedules.json").read_text())
    for table in bench.schedule_tables(schedules).split("\n\n"):
        assert table in page
