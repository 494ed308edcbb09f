"""`lccp train`: a run, and at its end the first screen of its report."""

from rich.console import Console

from lccp_sim.analysis.report.run_page import brief_report
from lccp_sim.config import Config
from lccp_sim.errors import one_line
from lccp_sim.train.parallel.meeting import place_here
from lccp_sim.train.run import train
from lccp_sim.train.saved.run_directory import DONE


def train_verb(config: Config, console: Console) -> None:
    """None, once the run is finished and its verdict printed, or saved after a signal. Raises UserError.

    A fault in the verdict is printed: it must not make a finished run look like one that failed.
    """
    directory = train(config, console)
    if place_here().rank > 0 or not (directory / DONE).exists():
        return
    try:
        console.print(brief_report(directory), markup=False, soft_wrap=True)
    except Exception as error:  # noqa: BLE001
        remedy = f"`lccp report {directory}` says more"
        console.print(f"warning: no verdict ({one_line(error)}); {remedy}", style="yellow", markup=False)
