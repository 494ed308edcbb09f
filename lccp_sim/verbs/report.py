"""`lccp report`: the report page of a run, or of several runs side by side."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from lccp_sim.verbs import Verb

if TYPE_CHECKING:
    from rich.console import Console


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs, or the output of lccp measure")
    parser.add_argument(
        "--out", type=Path, help="where to write (default: RUN/report; several runs: next to the first)"
    )
    parser.add_argument("--brief", action="store_true", help="print the verdict and its table only; write nothing")


def _run(arguments: Namespace, console: "Console") -> int:
    from lccp_sim.analysis.report.compare_page import write_comparison
    from lccp_sim.analysis.report.run_page import brief_report, write_report

    runs, out = arguments.runs, arguments.out
    if arguments.brief:
        print("\n\n".join(f"{run}\n{brief_report(run)}" if len(runs) > 1 else brief_report(run) for run in runs))
    else:
        print(write_comparison(runs, out, print) if len(runs) > 1 else write_report(runs[0], out, print))
    return 0


REPORT_VERB = Verb(
    "write the report of a run, or compare several: one HTML page, figures, report.json, records.parquet",
    _add_arguments,
    _run,
)
