"""The kill farm in miniature: a run killed at random moments ends as one that nobody killed did."""

import json
from pathlib import Path

import pytest

from bench import kill_farm
from bench.kill_farm import Farm, kind_of, summary
from tests import home
from tests.golden import Commands

FEW = [f"monitors.{name}=null" for name in ("probe", "heads", "intervention", "routing", "induction")]


class Here(Commands):
    """Commands in forks of the tests, which have imported the package."""

    def __init__(self, package: Path, root: Path):
        self.package, self.root, self.entry, self.count = package, root, "lccp_sim.cli:main", 0
        root.mkdir(parents=True, exist_ok=True)


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Farm:
    """A farm whose only case is the tiny run with two monitors."""
    place = home.build(tmp_path / "home")
    words = ["run=tiny", *FEW, "run.root=runs", "data.cache=cache", "--config-dir", str(place / "configs")]
    monkeypatch.delenv("LCCP_CACHE", raising=False)
    monkeypatch.setattr(kill_farm, "Patient", Here)
    monkeypatch.setattr(kill_farm, "CASES", {"tiny": (1, [words])})
    return Farm(tmp_path / "farm", tmp_path / "farm.jsonl")


def test_killed_at_random_moments_it_ends_as_the_unkilled_run(farm: Farm) -> None:
    farm.reference("tiny")
    [reference] = farm.lengths["tiny"]
    assert {"corpus", "checkpoint", "window"} <= {*reference.writes}, "moments are drawn among all of them"
    line = farm.trial("tiny", 0, most=2)
    assert line["differences"] == [] and line["kills"] and line["compared"] == len(farm.wanted["tiny"]) > 20
    assert not (farm.root / "tiny-0").exists()
    farm.wanted["tiny"]["records.jsonl"] = "another hash"
    assert farm.trial("tiny", 1, most=0)["differences"] == ["records.jsonl"]
    assert (farm.root / "tiny-1").exists(), "what differs is kept"


def test_a_farm_goes_on_where_it_stopped(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Farm, "reference", lambda self, case: None)
    kill = {"seconds": 0.5, "last_write": "window"}
    monkeypatch.setattr(
        Farm, "trial", lambda self, case, n: {"case": case, "number": n, "kills": [kill] * 3, "differences": []}
    )
    assert [line["number"] for line in farm.work(["tiny"], 5)] == [0, 1]
    assert [line["number"] for line in farm.work(["tiny"], 7)] == [2]
    assert len([json.loads(line) for line in farm.out.read_text().splitlines()]) == 3
    found = summary(farm.lines())
    assert (found["kills"], found["kills_by_case"], found["differences"]) == (9, {"tiny": 9}, 0)
    assert found["kills_by_last_write"] == {"window": 9} and found["kills_in_the_first_second"] == 9


def test_writes_are_told_apart() -> None:
    kinds = {
        "cache/rows-1/ids.npy": "corpus",
        "runs/tiny-s0-1/checkpoints/.last-00000005.ckpt.7.tmp": "checkpoint",
        "runs/tiny-s0-1/records.jsonl": "window",
        "runs/tiny-s0-1/config.yaml": "start",
    }
    assert {path: kind_of(path) for path in kinds} == kinds
