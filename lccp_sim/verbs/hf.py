"""`lccp import` and `lccp export`: checkpoints from the form of Hugging Face and into it."""

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lccp_sim.configure.compose import check
from lccp_sim.verbs import Verb

if TYPE_CHECKING:
    from rich.console import Console


def _add_arguments(known: str, parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help=known)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write, which must not exist")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights (default: fp32)")


def _import(arguments: Namespace, console: "Console") -> int:
    from lccp_sim.progress import shown
    from lccp_sim.train.saved.exchange import import_checkpoint

    with shown(console) as tell:
        said = import_checkpoint(arguments.path, arguments.out, arguments.dtype, check(["run=measure"]), tell)
    print(said)
    return 0


def _export(arguments: Namespace, console: "Console") -> int:
    from lccp_sim.progress import shown
    from lccp_sim.train.saved.exchange import export_checkpoint

    with shown(console) as tell:
        form = export_checkpoint(str(arguments.path), arguments.out, arguments.dtype, tell)
    print(f"{arguments.out}: exported as {form}")
    return 0


IMPORT = Verb(
    "make a checkpoint of ours from a Hugging Face folder or GGUF file: lccp import FOLDER OUT",
    partial(_add_arguments, "a Hugging Face folder, or a GGUF file"),
    _import,
)
EXPORT = Verb(
    "write a run or checkpoint as a Hugging Face folder: lccp export RUN OUT",
    partial(_add_arguments, "a finished run, or a checkpoint"),
    _export,
)
