"""The command `lccp`: a table of verbs, defined by the modules of verbs/.

Hydra only composes the config; nothing heavy is imported before the verb is known, so that `lccp --help` is instant.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lccp_sim.configure.compose import check  # for `lccp_sim.cli.check`, as the docs show it
from lccp_sim.errors import heard_once, is_message
from lccp_sim.verbs.chain import CHAIN_VERB
from lccp_sim.verbs.checkpoints import EXPORT_VERB, IMPORT_VERB, MEASURE_VERB, WATCH_VERB
from lccp_sim.verbs.data import DATA_VERB
from lccp_sim.verbs.doctor import DOCTOR_VERB
from lccp_sim.verbs.judge import COMPARE_VERB, GATE_VERB
from lccp_sim.verbs.plan import PLAN_VERB
from lccp_sim.verbs.report import REPORT_VERB
from lccp_sim.verbs.study import STUDY_VERB
from lccp_sim.verbs.train import TRAIN_VERB

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["VERBS", "check", "main"]
VERBS = {
    "train": TRAIN_VERB,
    "chain": CHAIN_VERB,
    "measure": MEASURE_VERB,
    "watch": WATCH_VERB,
    "report": REPORT_VERB,
    "study": STUDY_VERB,
    "plan": PLAN_VERB,
    "data": DATA_VERB,
    "import": IMPORT_VERB,
    "export": EXPORT_VERB,
    "gate": GATE_VERB,
    "compare": COMPARE_VERB,
    "doctor": DOCTOR_VERB,
}
WIDE = 500  # columns: no table of ours needs as many, so that none loses a number to an ellipsis


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, 1 after one line about bad input, or 2 for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="lccp", description="Long-context continual pre-training, measured at three levels."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        verb.add_arguments(verbs.add_parser(name, help=verb.text, description=verb.text))
    arguments, rest = parser.parse_known_args(argv)
    words = next(
        (getattr(arguments, name) for name in ("overrides", "paths", "names") if hasattr(arguments, name)), None
    )
    if words is None or any(word.startswith("-") for word in rest):
        parser.parse_args(argv)  # says what is wrong, and ends
    else:
        words += rest  # key=value after an option
    try:
        with heard_once():
            return VERBS[arguments.verb].run(arguments, console_here())
    except Exception as error:
        if not is_message(error):
            raise
        for line in str(error).split("\n"):
            print(f"lccp: {line}", file=sys.stderr)
        return 1


def console_here() -> "Console":
    """A console on stdout: as wide as the terminal or, if stdout is not a terminal, as wide as its content needs."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=not terminal, width=None if terminal else WIDE)


if __name__ == "__main__":
    sys.exit(main())
