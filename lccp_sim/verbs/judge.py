"""The verbs that judge measurements: `lccp gate` and `lccp compare`, which measures checkpoints first."""

import json
from argparse import ArgumentParser, Namespace
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from lccp_sim.errors import ConfigError, refuse
from lccp_sim.files import write_atomic
from lccp_sim.verbs import Verb, add_config_dir
from lccp_sim.verbs.checkpoints import config_of_measure

if TYPE_CHECKING:
    from rich.console import Console


def _add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to this file")


def _add_gate(parser: ArgumentParser) -> None:
    _add_json(parser)
    parser.add_argument("criteria", type=Path, nargs="?", default=Path("gate.yaml"), metavar="CRITERIA.yaml")
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="runs that differ only in their seed")
    parser.add_argument("--init", type=Path, metavar="RUN", help="write a first criteria file from this run's records")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the answer for a pull request")


def _add_compare(parser: ArgumentParser) -> None:
    _add_json(parser)
    parser.add_argument("a", type=Path, metavar="A", help="a run, the output of lccp measure, or a checkpoint")
    parser.add_argument("b", type=Path, metavar="B", help="another, or the same run with two --tokens")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="how to measure checkpoints")
    add_config_dir(parser)
    tokens = "the last windows up to this count, one for both or one each: 1.5M, or 1M 2M (default: the last)"
    parser.add_argument("--tokens", nargs="+", default=[], metavar="N", help=tokens)


def _gate(arguments: Namespace, console: "Console") -> int:
    from rich.table import Table

    from lccp_sim.analysis.judge.criteria import write_first
    from lccp_sim.analysis.judge.gate import answer_gate
    from lccp_sim.analysis.run import load_run

    path = arguments.criteria
    if arguments.init is not None:
        unused = [str(each) for each in (*arguments.runs, arguments.json, arguments.markdown) if each is not None]
        refuse(
            unused, "--init", str(arguments.init), f"writes {path} and answers nothing; leave out {' '.join(unused)}"
        )
        console.print(f"{write_first(arguments.init, path, date.today())}: written; edit the bounds", markup=False)
        return 0
    if not arguments.runs:
        raise ConfigError(f"gate: no run given to answer {path}; lccp gate {path} RUN...")
    found = answer_gate(path, [load_run(each) for each in arguments.runs])
    _write("--json", arguments.json, json.dumps(found.plain(), indent=1, allow_nan=False) + "\n")
    _write("--markdown", arguments.markdown, found.markdown())
    table = Table("criterion", "answer", "asked", "measured (95 % interval)", "why")
    for cells in found.rows():
        table.add_row(*map(_plain, cells))
    console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    console.print(f"{found.outcome}: {path}, {found.provenance}", markup=False)
    return found.status


def _compare(arguments: Namespace, console: "Console") -> int:
    from rich.table import Table

    from lccp_sim.analysis.judge.compare import compare_runs
    from lccp_sim.analysis.judge.intervals import parse_tokens
    from lccp_sim.analysis.run import load_run

    refuse(
        len(arguments.tokens) > 2, "--tokens", " ".join(arguments.tokens), "takes one count, or one each for A and B"
    )
    at = [parse_tokens(each, "--tokens") for each in arguments.tokens]
    a, b = _with_records([arguments.a, arguments.b], arguments, console)
    found = compare_runs(load_run(a), load_run(b), at)
    _write("--json", arguments.json, json.dumps(found.plain(), indent=1, allow_nan=False) + "\n")
    table = Table("metric", "A", "B", "B - A (95 % interval)", "answer", "items", "items needed")
    for cells in found.table():
        table.add_row(*map(_plain, cells))
    for line in found.head():
        console.print(line, markup=False)
    console.print(table)
    for line in found.foot():
        console.print(line, markup=False)
    return 0


def _with_records(paths: list[Path], arguments: Namespace, console: "Console") -> list[Path]:
    """The directories with the records of these paths; checkpoints are measured, unless they were before."""
    overrides = arguments.overrides
    bare = [path for path in paths if path.exists() and not (path / "records.jsonl").is_file()]
    if bare:  # torch is needed
        from lccp_sim.train.series import is_single_checkpoint, measure_once, measured_places

        bare = [path for path in bare if is_single_checkpoint(path)]
    rule = "says how to measure checkpoints, but both paths hold records already"
    refuse(overrides and not bare, "compare", " ".join(overrides), rule)
    if not bare:
        return paths
    external = cache(partial(config_of_measure, overrides, arguments.config_dir))
    outs = dict(zip(bare, measured_places(bare, external), strict=True))
    for path, out in outs.items():
        measure_once(path, out, overrides, external, console)
    return [outs.get(path, path) for path in paths]


def _write(option: str, path: Path | None, text: str) -> None:
    """Write a file that an option names, if it does. Raises ConfigError if that is not possible."""
    if path is None:
        return
    try:
        write_atomic(path, text)
    except OSError as error:
        raise ConfigError(
            f"{option} {path}: cannot be written ({error.strerror or error}); name another file"
        ) from None


def _plain(cell: str) -> str:
    """A cell that a table shows literally, including brackets."""
    from rich.markup import escape

    return escape(cell)


GATE_VERB = Verb(
    "check criteria that were written before a run: pass (exit 0), fail (1) or cannot be told (2)", _add_gate, _gate
)
COMPARE_VERB = Verb(
    "compare two runs or checkpoints item by item, and say which metrics differ: lccp compare A B",
    _add_compare,
    _compare,
)
