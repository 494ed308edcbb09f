"""The catalogue of metrics: the same names as the documentation and the records, each row of it consistent."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from lccp_sim.analysis.metrics import BY_UNIT, CATALOGUE, METRICS, PLACES, groups, metric_of, shown
from tests.analysis.world import World

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "monitors.md").read_text()


def documented() -> set[str]:
    """The keys in the first column of the tables of metrics, by the monitor of their section."""
    keys = set()
    for section in re.split(r"^## ", DOCS, flags=re.MULTILINE)[1:]:
        monitor = section.split()[0]
        for table in re.findall(r"^\| metric \|.*\n\|[-|]+\n((?:\|.*\n)+)", section, re.MULTILINE):
            names = [name for row in table.splitlines() for name in re.findall(r"`([\w/]+)`", row.split("|")[1])]
            keys |= {name if "/" in name else f"{monitor}/{name}" for name in names}
    return keys


def test_the_documentation_defines_the_metrics_of_the_catalogue() -> None:
    in_prose = {each.key for each in METRICS if each.monitor in ("precondition", "train", "stopping")}
    in_prose |= {"heads/hit_frac", "heads/answer_nll_nats"}  # of LongBio, in the words above its table
    assert documented() == set(CATALOGUE) - in_prose
    for key in in_prose - {each.key for each in METRICS if each.monitor == "stopping"}:
        assert f"`{key.partition('/')[2]}`" in DOCS, key


def test_every_name_that_a_monitor_writes_is_in_the_catalogue() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "lccp_sim" / "monitors").rglob("*.py"))
    written = set(re.findall(r'"([a-z]\w*_(?:frac|nats|count)|\w*ppl)"', sources))
    assert len(written) > 30 and written <= {each.name for each in METRICS}


def test_what_runs_recorded_is_in_the_catalogue(planted: tuple[Path, World]) -> None:
    lines = (planted[0] / "records.jsonl").read_text().splitlines()
    assert {"{monitor}/{metric}".format(**json.loads(line)) for line in lines} <= set(CATALOGUE)


def test_rows_are_consistent() -> None:
    assert len(CATALOGUE) == len(METRICS)
    for each in METRICS:
        assert set(each.shown.split()) <= set(PLACES) and each.better in ("up", "down", "")
        low, high = each.bounds
        assert (high == 1) == (each.scale == "logit") and (low is None) == (each.scale == "signed")
        assert each.name.endswith("_frac") or each.scale != "logit", each.key
    assert all(any(shown(place)) for place in PLACES)
    assert len({each.title for each in METRICS}) == len(METRICS), "a title says which metric it is"


@pytest.mark.parametrize("name", ["mine_nats", "mine_frac", "mine_count", "mine"])
def test_a_metric_without_a_row_is_read_by_its_unit(name: str) -> None:
    assert (metric_of("mine", name).better, metric_of("mine", name).scale) == BY_UNIT.get(name[5:], ("up", "linear"))


def test_the_whole_sentence_has_the_row_of_the_value_and_a_title_of_its_own() -> None:
    value, sentence = (metric_of("needle", name) for name in ("hit_frac", "sentence_hit_frac"))
    assert dataclasses.replace(sentence, label=value.label) == value
    assert sentence.title == "needle hit of the full sentence, fraction of items"


def test_groups_share_their_items_and_keep_the_order() -> None:
    assert groups("page", "needle") == [
        ("hit_frac", "answer_nll_nats"),
        ("control_nll_nats", "gain_nats"),
        ("answer_ppl",),
    ]
    assert [name for group in groups("page", "heads") for name in group] == [m.name for m in shown("page", "heads")]
    assert dataclasses.replace(METRICS[0], key="a/b").monitor == "a"
