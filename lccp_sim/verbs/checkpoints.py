"""The verbs of checkpoints: `lccp measure`, `lccp watch`, `lccp import` and `lccp export`."""

from argparse import ArgumentParser, Namespace
from functools import cache, partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from lccp_sim.configure.compose import check
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.verbs import Verb, add_config_dir

if TYPE_CHECKING:
    from rich.console import Console

    from lccp_sim.config import Config


def _add_measure(parser: ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="what to measure, then key=value to change")
    add_config_dir(parser)
    parser.add_argument("--out", type=Path, help="where to write (default: RUN/measured, or runs/NAME-measured)")
    parser.add_argument("--thorough", action="store_true", help="more texts: run=measure_thorough")
    parser.add_argument("--check", action="store_true", help="compare with the run's own records, value by value")


def config_of_measure(overrides: list[str], config_dir: Path | None) -> "Config":
    """The config for checkpoints that do not belong to a run: run=measure, unless the overrides name another."""
    from lccp_sim.train.loop.precision import bf16_is_native, settle

    named = any(word.startswith("run=") for word in overrides)
    config = check([*([] if named else ["run=measure"]), *overrides], config_dir)
    return settle(config, bf16_is_native(config.run.accelerator))


def _measure(arguments: Namespace, console: "Console") -> int:
    from lccp_sim.train.series import measure, measured_places

    overrides = [word for word in arguments.paths if "=" in word and not Path(word).exists()]
    named = next((word for word in overrides if word.startswith("run=")), None)
    refuse(arguments.thorough and named, "--thorough", named, "it is run=measure_thorough itself; leave one out")
    overrides += ["run=measure_thorough"] if arguments.thorough else []
    paths = [Path(word) for word in arguments.paths if word not in overrides]
    if not paths:
        raise ConfigError("measure: no path given, only key=value; name what to measure")
    external = cache(partial(config_of_measure, overrides, arguments.config_dir))
    named_outs = [arguments.out / path.name if paths[1:] else arguments.out for path in paths if arguments.out]
    rule = "two paths have one name, and would be written to one place; measure them one at a time"
    refuse(len(set(named_outs)) < len(named_outs), "--out", str(arguments.out), rule)
    outs = named_outs or measured_places(paths, external)
    return max(
        measure(path, out, arguments.check, overrides, external, console) for path, out in zip(paths, outs, strict=True)
    )


def _add_watch(parser: ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="the folder in which another job saves its checkpoints"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what to change, as for lccp measure")
    add_config_dir(parser)
    parser.add_argument("--out", type=Path, help="where to write (default: runs/FOLDER-watched)")
    parser.add_argument("--tokens-per-step", type=int, metavar="N", help="default: from trainer_state.json")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="folder with config.json and tokenizer.json")
    parser.add_argument("--minutes", type=float, metavar="M", help="the longest a checkpoint may take: fewer texts")
    parser.add_argument("--once", action="store_true", help="measure the present checkpoints, and end")
    parser.add_argument("--until", type=int, metavar="STEP", help="the last step of the training: end after it")


def _watch(arguments: Namespace, console: "Console") -> int:
    from lccp_sim.verbs.sidecar import Followed, watch

    for option in ("tokens_per_step", "minutes", "until"):
        given = getattr(arguments, option)
        refuse(
            given is not None and not 0 < given < inf, f"--{option.replace('_', '-')}", given, "must be greater than 0"
        )
    config = config_of_measure(arguments.overrides, arguments.config_dir)
    counted, model, minutes = arguments.tokens_per_step, arguments.model, arguments.minutes
    followed = Followed(arguments.folder, config, counted, model, minutes, arguments.once, arguments.until)
    return watch(followed, arguments.out, console)


def _add_exchange(known: str, parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help=known)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write, which must not exist")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights (default: fp32)")


def _import(arguments: Namespace, console: "Console") -> int:
    from lccp_sim.progress import shown_on
    from lccp_sim.train.saved.exchange import import_checkpoint

    with shown_on(console) as tell:
        said = import_checkpoint(arguments.path, arguments.out, arguments.dtype, check(["run=measure"]), tell)
    print(said)
    return 0


def _export(arguments: Namespace, console: "Console") -> int:
    from lccp_sim.progress import shown_on
    from lccp_sim.train.saved.exchange import export_checkpoint

    with shown_on(console) as tell:
        form = export_checkpoint(str(arguments.path), arguments.out, arguments.dtype, tell)
    print(f"{arguments.out}: exported as {form}")
    return 0


MEASURE_VERB = Verb(
    "measure checkpoints after the fact: a run, a transformers folder, a GGUF file, a series (YAML)",
    _add_measure,
    _measure,
)
WATCH_VERB = Verb(
    "measure the checkpoints of another job as it saves them: lccp watch FOLDER --tokens-per-step N",
    _add_watch,
    _watch,
)
IMPORT_VERB = Verb(
    "make an lccp-sim checkpoint from a Hugging Face folder or GGUF file: lccp import FOLDER OUT",
    partial(_add_exchange, "a Hugging Face folder, or a GGUF file"),
    _import,
)
EXPORT_VERB = Verb(
    "write a run or checkpoint as a Hugging Face folder: lccp export RUN OUT",
    partial(_add_exchange, "a finished run, or a checkpoint"),
    _export,
)
