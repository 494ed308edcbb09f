"""The verbs of the command `lccp`. A module defines the arguments and actions of its verbs; cli.py has the table.

A verb imports heavy packages only when it runs, so that `lccp --help` is instant.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console


class Verb(NamedTuple):
    """A verb: its line in `lccp --help`, the function that adds its arguments to a parser, and the one that runs it.

    `run` returns the exit status.
    """

    text: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace, "Console"], int]


def add_overrides(parser: ArgumentParser) -> None:
    """Add the arguments from which a config is composed."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what to change, run=NAME first")
    add_config_dir(parser)


def add_config_dir(parser: ArgumentParser, groups: str = "run/, data/, ...") -> None:
    """Add the option for the user's own configs, which are in these groups."""
    parser.add_argument("--config-dir", type=Path, help=f"a directory with groups of your own ({groups})")
