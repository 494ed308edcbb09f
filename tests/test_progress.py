"""Long work shows that it lives: what is said of it, in a terminal and elsewhere, and when nothing is said."""

import io
import threading

import pytest
from rich.console import Console

from lccp_sim import progress
from lccp_sim.progress import Work, clock, shown_on


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (605, "10 min"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
    ],
)
def test_times_are_said_as_a_person_says_them(seconds: float, said: str) -> None:
    assert clock(seconds) == said


def test_the_time_left_follows_the_pace_since_the_first_word() -> None:
    now = Clock()
    work = Work(now)
    now.seconds = 100  # before the work began: no part of its pace
    work("a: 2 of 10", 0.2)
    assert work.left is None and work.times() == "0 s"
    now.seconds = 120
    work("a: 4 of 10", 0.4)
    assert work.left == pytest.approx(60) and work.times() == "20 s, about 1 min left"
    work("b: 0 of 5", 0.0)  # another piece
    assert work.left is None
    now.seconds = 130
    work("b: 1 of 5", 0.2)
    assert work.left == pytest.approx(40)
    work("b: more than was counted", 1.3)
    assert work.left == 0


def test_a_pipe_gets_no_line_for_work_that_ends_soon(capfd: pytest.CaptureFixture[str]) -> None:
    with shown_on(Console()) as tell:
        tell("needle: 1 of 4 texts", 0.25)
    assert capfd.readouterr() == ("", "")


def test_what_takes_the_line_in_between_leaves_the_clock_alone() -> None:
    now = Clock()
    training = Work(now)
    window = training.beside()
    training("step 0 of 10", 0.0)
    now.seconds = 10
    window("window: 0 of 4 texts", 0.0)
    now.seconds = 30
    window("window: 1 of 4 texts", 0.25)
    assert training.line == [window] and window.times() == "20 s, about 1 min left"
    training("step 5 of 10", 0.5)
    assert training.line == [training] and training.left == pytest.approx(30)


class Told(io.StringIO):
    """A file that says when two lines were written."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        if self.getvalue().count("\n") >= 2:
            self.twice.set()
        return count


def test_a_pipe_gets_plain_lines_also_during_one_long_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PACE", 0.01)
    file = Told()
    with shown_on(Console(file=file, width=40)) as tell:
        tell("needle: 1 of 4 texts [512]", 0.25)
        assert file.twice.wait(60)  # nothing more is told
    lines = file.getvalue().splitlines()
    assert set(lines) == {"... needle: 1 of 4 texts [512]; 0 s"} and "\x1b" not in file.getvalue()


def test_a_terminal_gets_one_line_that_goes_at_the_end() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, force_interactive=True, width=80)
    with shown_on(console) as tell:
        tell("needle: 1 of 4 texts", 0.25)
        console.print("a line that stays")
    said = file.getvalue()
    assert "needle: 1 of 4 texts" in said and "a line that stays" in said
    assert said.endswith("\x1b[2K"), "the line is erased"


def test_a_quiet_console_starts_nothing() -> None:
    before = threading.active_count()
    with shown_on(Console(quiet=True, force_terminal=True)) as tell:
        tell("anything", 0.5)
        assert threading.active_count() <= before


def test_an_error_ends_the_line() -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="mine"), shown_on(Console(file=io.StringIO())):
        raise ValueError("mine")
    assert threading.active_count() <= before
