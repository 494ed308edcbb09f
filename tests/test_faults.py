"""The fault table in miniature, and a check that it sees a fault that is not caught."""

import pytest

from bench.faults import KINDS, Bench, cut, disk, flip, rotten


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A bench with its finished run."""
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_rots_is_refused_or_does_no_harm(bench: Bench, kind: str) -> None:
    for damage in (flip, cut):
        line = rotten(bench, kind, damage, 3)
        assert line.get("failures") == [] and sum(line["outcomes"].values()) == 3, line


def test_a_wrong_number_is_found_where_no_hash_guards_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lccp_sim.analysis.run.check_sums", lambda folder: None)
    assert rotten(bench, "records", flip, 30)["outcomes"]["wrong"] > 0


def test_a_disk_that_is_full_loses_nothing(bench: Bench) -> None:
    line = disk(bench, every=60)
    assert line["failures"] == [] and line["tried"] >= 2 and line["writes"] > 60
