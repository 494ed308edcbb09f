"""What the verbs print to, and what they print of an error."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 500  # columns: no table of ours needs as many, so that none loses a number to an ellipsis


def console_here() -> "Console":
    """A console on stdout: as wide as the terminal, or where stdout is none as wide as its lines and tables ask."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=not terminal, width=None if terminal else WIDE)


def is_message(error: Exception) -> bool:
    """Whether an error is a message for the user, not a bug: of a class of ours, or the machine's (as: disk full)."""
    return type(error).__module__.startswith("lccp_sim.") or isinstance(error, OSError)


def reason(error: Exception) -> str:
    """Why something failed, in one line; of a bug with its class."""
    line = " ".join(str(error).split())
    return line if is_message(error) else f"{type(error).__name__}: {line}"
