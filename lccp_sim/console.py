"""What the verbs print to."""

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
