"""`lccp train`: one run, or with --multirun a sweep."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from lccp_sim.configure.compose import check
from lccp_sim.verbs import Verb, add_overrides
from lccp_sim.verbs.sweep import jobs_of, launching, print_outcomes, sweep

if TYPE_CHECKING:
    from rich.console import Console


def _add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument("-m", "--multirun", action="store_true", help="a run for each value of key=a,b,c")
    parser.add_argument("--retry", action="store_true", help="in a sweep: also runs that failed before")


def _run(arguments: Namespace, console: "Console") -> int:
    if arguments.multirun:
        words, launcher = launching(arguments.overrides)
        return print_outcomes(sweep(jobs_of(words), launcher, arguments.retry, arguments.config_dir), console)
    config = check(arguments.overrides, arguments.config_dir)  # before torch is imported
    from lccp_sim.train.run import train

    train(config, console)
    return 0


TRAIN_VERB = Verb(
    "run, resume or extend a training run: lccp train run=tiny_lccp seed=1 optim.lr=1e-3", _add_arguments, _run
)
