"""Several runs in one command, each from the weights of the one before: LCCP window -> fine-tuning -> RL."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lccp_sim.configure.compose import check
from lccp_sim.errors import ConfigError
from lccp_sim.verbs import Verb, add_config_dir

if TYPE_CHECKING:
    from rich.console import Console


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="runs in order, then key=value for all of them")
    add_config_dir(parser)


def _run(arguments: Namespace, console: "Console") -> int:
    return chain(arguments.names, arguments.config_dir, console)


def chain(words: Sequence[str], config_dir: Path | None, console: "Console") -> int:
    """Train the runs; return 0 once all are finished, 1 if a signal ended one: the same command then continues.

    `words`: names of runs, then overrides for all of them. The first run starts from run.init_from, if that is given.
    Raises UserError.
    """
    names, overrides = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if not names:
        raise ConfigError("chain: no run named, only key=value; name the runs in order: lccp chain tiny_sft tiny_rl")
    named = [word for word in overrides if word.startswith("run=")]
    if named:
        raise ConfigError(f"chain: {named[0]}: name runs without run=, as in lccp chain tiny_sft tiny_rl")
    start: list[str] = []
    for name in names:
        # Check all configs first, so that a mistake in the last run does not show only after hours of the first.
        check([f"run={name}", *overrides], config_dir)
    from lccp_sim.train.run import train
    from lccp_sim.train.saved.run_directory import DONE

    for name in names:
        directory = train(check([f"run={name}", *overrides, *start], config_dir), console)
        if not (directory / DONE).exists():
            return 1
        start = [f"run.init_from={directory}"]
    return 0


CHAIN_VERB = Verb(
    "train runs one after the other, each from the one before: lccp chain tiny_sft tiny_rl run.init_from=CHECKPOINT",
    _add_arguments,
    _run,
)
