"""What `lccp train` says at the end of a run: the first screen of its report."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lccp_sim.analysis.report.run_page import brief_report
from lccp_sim.train.parallel.meeting import Place
from lccp_sim.verbs import train


def ends(directory: Path, say: Console, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is printed once the run in `directory` was trained."""
    monkeypatch.setattr(train, "train", lambda config, console: directory)
    train.train_verb(None, say)  # type: ignore[arg-type]
    return say.file.getvalue()  # type: ignore[attr-defined]


def test_it_ends_with_what_lccp_report_brief_prints(
    finished: Path, say: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ends(finished, say, monkeypatch)
    assert said == f"{brief_report(finished)}\n" and "levelled at" in said


def test_a_run_that_a_signal_ended_has_no_verdict(
    tmp_path: Path, say: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ends(tmp_path, say, monkeypatch) == ""


def test_only_the_first_rank_speaks(finished: Path, say: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "place_here", lambda: Place(world=2, rank=1))
    assert ends(finished, say, monkeypatch) == ""


def test_a_fault_in_the_verdict_does_not_fail_the_run(
    finished: Path, say: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(directory: Any) -> str:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(train, "brief_report", fail)
    said = ends(finished, say, monkeypatch)
    assert "warning: no verdict (ZeroDivisionError: planted)" in said and f"`lccp report {finished}`" in said
