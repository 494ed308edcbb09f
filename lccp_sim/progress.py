"""Show the progress of long tasks on one line: done, total, elapsed time and an estimate of the time left.

In a terminal the line stays below other output and disappears at the end. Elsewhere (a file, a pipe) it is printed as
plain text every `PACE` seconds, less often as the hours pass, and never for a task that ends sooner. The task receives
a `Tell` and needs to know nothing else about this module.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Tell = Callable[[str, float], None]  # what is being done, in words, and the share of it that is done, 0 to 1
PACE = 20.0  # seconds between plain lines
RARER = 50  # and at least this share of the time so far: a day has some hundred lines, not thousands


def silent(said: str, share: float) -> None:
    """Ignore all progress."""


def clock(seconds: float) -> str:
    """Format seconds for a person: 40 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 and whole < 600 else "")
    return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 >= 60 else "")


class Work:
    """A long task: its last report, and the time left at the pace since the first report.

    A share smaller than the previous one begins another task with its own clock. `now` returns seconds. A shared `line`
    shows the task that reported last.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, line: "list[Work] | None" = None):
        self.now, self.line = now, [self] if line is None else line
        self.said, self.share, self.first = "", 0.0, (now(), 0.0)

    def __call__(self, said: str, share: float) -> None:
        """A `Tell`."""
        if not self.said or share < self.share:
            self.first = (self.now(), share)
        self.said, self.share, self.line[0] = said, share, self

    def beside(self) -> "Work":
        """Another task that uses the line in between without changing the clock of this one."""
        return Work(self.now, self.line)

    @property
    def left(self) -> float | None:
        """Seconds left; None if it is too early to estimate."""
        (began, first), share = self.first, min(self.share, 1.0)
        return (self.now() - began) * (1 - share) / (share - first) if share > first else None

    def times(self) -> str:
        """The elapsed and the remaining time, in words."""
        left = "" if self.left is None else f", about {clock(self.left)} left"
        return f"{clock(self.now() - self.first[0])}{left}"


@contextmanager
def shown_on(console: "Console") -> Iterator[Work]:
    """Within the context, a `Tell` whose reports appear on the console, unless the console is quiet."""
    work = Work()
    if console.quiet:
        yield work
        return
    with _bar(console, work.line) if console.is_interactive else _lines(console, work.line):
        yield work


@contextmanager
def _bar(console: "Console", line: list[Work]) -> Iterator[None]:
    """Within the context, the last line of a terminal, redrawn twice a second even without new reports."""
    from rich.progress import BarColumn, Progress, ProgressColumn, Task
    from rich.table import Column
    from rich.text import Text

    class Said(ProgressColumn):
        def render(self, task: Task) -> Text:
            task.completed = min(line[0].share, 1.0)
            return Text(line[0].said)

    class Times(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(line[0].times(), style="dim")

    said = Said(Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    columns = said, BarColumn(bar_width=12), Times(Column(no_wrap=True))
    with Progress(*columns, console=console, transient=True, refresh_per_second=2, expand=True) as progress:
        progress.add_task("", total=1.0)
        yield


@contextmanager
def _lines(console: "Console", line: list[Work]) -> Iterator[None]:
    """Within the context, a plain line at intervals, printed by a thread so that it appears during a long call, too."""
    ended, began = threading.Event(), time.monotonic()

    def lines() -> None:
        while not ended.wait(max(PACE, (time.monotonic() - began) / RARER)):
            if line[0].said:
                console.print(f"... {line[0].said}; {line[0].times()}", markup=False, soft_wrap=True)

    thread = threading.Thread(target=lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
