"""The kill farm in miniature: a run killed at random moments ends as one that nobody killed did."""

import json
import random
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest
import yaml

from bench import kill_farm
from bench.kill_farm import START, Ended, Farm, Length, Moment, attempt, drawn, hashes, hit, kind_of, summary
from tests import home
from tests.golden import Commands
from tests.train.test_objectives import SFT
from tests.train.test_rl import RL
from tests.train.tiny import BATCH, STEPS

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
    words = ["train", "run=tiny", *FEW, "run.root=runs", "data.cache=cache", "--config-dir", str(place / "configs")]
    monkeypatch.delenv("LCCP_CACHE", raising=False)
    monkeypatch.setattr(kill_farm, "Patient", Here)
    monkeypatch.setattr(kill_farm, "CASES", {"tiny": (1, [words])})
    return Farm(tmp_path / "farm", tmp_path / "farm.jsonl")


def test_killed_at_random_moments_it_ends_as_the_unkilled_run(farm: Farm) -> None:
    farm.reference("tiny")
    [length] = farm.lengths["tiny"]
    assert {"corpus", "checkpoint", "window"} <= {*length.writes} and length.steps == STEPS
    line = farm.trial("tiny", 0, most=3)
    assert line["differences"] == [] and line["kills"] and line["compared"] == len(farm.wanted["tiny"]) > 20
    assert not (farm.root / "tiny-0").exists()
    farm.wanted["tiny"]["records.jsonl"] = "another hash"
    assert farm.trial("tiny", 1, most=0)["differences"] == ["records.jsonl"]
    assert (farm.root / "tiny-1").exists(), "what differs is kept"


def test_a_chain_killed_at_five_random_moments_gives_the_same_bytes(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """base -> LCCP -> fine-tuning -> RL as one command; a kill lies in each fifth of its writes."""
    place = home.build(tmp_path / "home")
    tree = yaml.safe_load((place / "configs" / "run" / "tiny.yaml").read_text())
    often = {"checkpoint_every_steps": 1, "log_every_steps": 1}
    for name, keys in (("lccp", {"run.context_tokens": 64, "run.tokens": 3 * BATCH}), ("sft", SFT), ("rl", RL)):
        own = {key.removeprefix("run."): value for key, value in keys.items() if key.startswith("run.")}
        phase = tree | {"run": {**tree["run"], **own, "name": name, **often}}
        phase |= {"objective": keys["objective"]} if "objective" in keys else {}
        (place / "configs" / "run" / f"{name}.yaml").write_text("# @package _global_\n" + yaml.safe_dump(phase))
    monkeypatch.delenv("LCCP_CACHE", raising=False)
    words = ["chain", "lccp", "sft", "rl", f"run.init_from={finished}", *FEW, "monitors.needle=null"]
    words += ["run.root=runs", "data.cache=cache", "--config-dir", str(place / "configs")]
    rng = random.Random(20)
    whole, broken = (Here(Path(kill_farm.__file__).parents[1], tmp_path / name) for name in ("whole", "broken"))
    writes = len(attempt(whole, words, 1, None, rng).writes)
    at = [rng.randrange(writes * fifth // 5 + 1, writes * (fifth + 1) // 5) for fifth in range(5)]
    begun = []
    for before, place_ in pairwise([0, *at]):
        assert attempt(broken, words, 1, Moment(0.0, place_ - before), rng).killed
        begun.append(len(list((broken.root / "runs").glob("*-s0-*"))))
    assert begun[-1] > begun[0], "not all kills are in one phase"
    assert not attempt(broken, words, 1, None, rng).killed
    found = hashes(broken.root)
    assert found == hashes(whole.root) and {name.split("/")[0] for name in found} == {"lccp", "sft", "rl"}


def test_a_farm_goes_on_where_it_stopped(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Farm, "reference", lambda self, case: None)
    kill = {"seconds": 0.5, "hit": "at a write: window"}
    line = {"ranks": 1, "kills": [kill] * 3, "differences": []}
    monkeypatch.setattr(Farm, "trial", lambda self, case, n: line | {"case": case, "number": n})
    assert [line["number"] for line in farm.work(["tiny"], 5)] == [0, 1]
    assert [line["number"] for line in farm.work(["tiny"], 7)] == [2]
    assert len([json.loads(line) for line in farm.out.read_text().splitlines()]) == 3
    found = summary(farm.lines())
    assert (found["kills"], found["kills_by_case"], found["differences"]) == (9, {"tiny": 9}, 0)
    assert found["kills_by_hit"] == {"at a write: window": 9} and found["kills_in_the_first_second"] == 9
    assert found["kills_by_ranks"] == {1: 9}


def test_moments_are_uniform_over_what_is_left_of_a_run() -> None:
    length, rng = Length(10.0, 100, {}), random.Random(0)
    first = [drawn(rng, length, 0, 9).seconds for _ in range(4000)]
    assert mean(first) == pytest.approx(0.9 * 10 / (9 + 1) + 0.1 * 0.5, abs=0.05)  # a tenth is in the first second
    last = [drawn(rng, length, 100, 1).seconds for _ in range(400)]
    assert 1.9 < max(last) <= START * 10


def test_what_a_kill_hit_is_what_it_left_in_part_or_the_write_before_it() -> None:
    killed = Ended(True, 3.0, ["start", "window"], 0.01)
    assert hit(killed, {"corpus", "checkpoint"}) == "inside a write: checkpoint"
    assert hit(killed, set()) == "at a write: window"
    assert hit(killed._replace(still=1.0), set()) == "computing, after a write: window"
    assert hit(killed._replace(writes=[]), set()) == "before the first write"


def test_writes_are_told_apart() -> None:
    kinds = {
        "cache/rows-1/ids.npy": "corpus",
        "runs/tiny-s0-1/checkpoints/.last-00000005.ckpt.7.tmp": "checkpoint",
        "runs/tiny-s0-1/records.jsonl": "window",
        "runs/tiny-s0-1/config.yaml": "start",
    }
    assert {path: kind_of(path) for path in kinds} == kinds
