"""`lccp train`: a run and the first screen of its report, or with --multirun a sweep."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from lccp_sim.configure.compose import check
from lccp_sim.errors import one_line
from lccp_sim.verbs import Verb, add_overrides
from lccp_sim.verbs.sweep import jobs_of, launching, print_outcomes, sweep

if TYPE_CHECKING:
    from rich.console import Console


def _add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument("-m", "--multirun", action="store_true", help="a run for each value of key=a,b,c")
    parser.add_argument("--retry", action="store_true", help="in a sweep: also retry runs that failed before")


def _run(arguments: Namespace, console: "Console") -> int:
    if arguments.multirun:
        words, launcher = launching(arguments.overrides)
        return print_outcomes(sweep(jobs_of(words), launcher, arguments.retry, arguments.config_dir), console)
    config = check(arguments.overrides, arguments.config_dir)  # before torch is imported
    from lccp_sim.train.run import train

    print_verdict(train(config, console), console)
    return 0


def print_verdict(directory: Path, console: "Console") -> None:
    """Print the first screen of a finished run's report, on rank 0.

    A fault in the verdict is printed: a finished run must not seem to have failed.
    """
    from lccp_sim.analysis.report.run_page import brief_report
    from lccp_sim.train.parallel.meeting import place_here
    from lccp_sim.train.saved.run_directory import DONE

    if place_here().rank > 0 or not (directory / DONE).exists():
        return
    try:
        console.print(brief_report(directory), markup=False, soft_wrap=True)
    except Exception as error:  # noqa: BLE001
        remedy = f"`lccp report {directory}` says more"
        console.print(f"warning: no verdict ({one_line(error)}); {remedy}", style="yellow", markup=False)


TRAIN_VERB = Verb(
    "run, resume or extend a training run: lccp train run=tiny_lccp seed=1 optim.lr=1e-3", _add_arguments, _run
)
