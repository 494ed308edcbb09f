"""What `lccp train` says at the end of a run: the first screen of its report."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lccp_sim.analysis.report.run_page import brief_report
from lccp_sim.train.parallel.meeting import RankEnvironment
from lccp_sim.verbs import train


def ends(directory: Path, say: Console) -> str:
    """What is printed once the run in `directory` was trained."""
    train.print_verdict(directory, say)
    return say.file.getvalue()  # type: ignore[attr-defined]


def test_it_ends_with_what_lccp_report_brief_prints(finished: Path, say: Console) -> None:
    said = ends(finished, say)
    assert said == f"{brief_report(finished)}\n" and "levelled at" in said


def test_a_run_that_a_signal_ended_has_no_verdict(tmp_path: Path, say: Console) -> None:
    assert ends(tmp_path, say) == ""


def test_only_the_first_rank_speaks(finished: Path, say: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lccp_sim.train.parallel.meeting.place_here", lambda: RankEnvironment(world=2, rank=1))
    assert ends(finished, say) == ""


def test_a_fault_in_the_verdict_does_not_fail_the_run(
    finished: Path, say: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(directory: Any) -> str:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("lccp_sim.analysis.report.run_page.brief_report", fail)
    said = ends(finished, say)
    assert "warning: no verdict (ZeroDivisionError: planted)" in said and f"`lccp report {finished}`" in said
