"""The command `lccp`: train, measure, report, study, plan, data, import, export, gate, compare, doctor.

Hydra only composes the config; nothing heavy is imported before the verb is known, so that `lccp --help` is instant.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lccp_sim.configure.compose import check
from lccp_sim.console import console_here
from lccp_sim.errors import ConfigError, is_message, refuse
from lccp_sim.verbs import judge

if TYPE_CHECKING:
    from lccp_sim.config import Config

VERBS = {
    "train": "run, resume or extend a training run: lccp train run=tiny_lccp seed=1 optim.lr=1e-3",
    "measure": "measure checkpoints after the fact: a run, a transformers folder, a GGUF file, a series (YAML)",
    "report": "write the report of a run, or compare several: one HTML page, figures, report.json, records.parquet",
    "study": "train and compare the arms of a study; without a name, list the studies",
    "plan": "what a run would take: weights, FLOPs, memory, days, the monitors' share; nothing is trained or read",
    "data": "prepare and show the corpus of a run without training: lccp data run=tiny_lccp",
    "import": "make an lccp-sim checkpoint from a Hugging Face folder or GGUF file: lccp import FOLDER OUT",
    "export": "write a run or checkpoint as a Hugging Face folder: lccp export RUN OUT",
    **judge.VERBS,
    "doctor": "show versions, devices and expert backends, and what is wrong with them",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 after one clear line about bad input, or 2 for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="lccp", description="Long-context continual pre-training, measured at three levels."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        if verb in ("train", "data", "plan"):
            sub.add_argument("overrides", nargs="*", metavar="key=value", help="what to change, run=NAME first")
            sub.add_argument("--config-dir", type=Path, help="a directory with groups of your own (run/, data/, ...)")
            if verb == "train":
                sub.add_argument("-m", "--multirun", action="store_true", help="a run for each value of key=a,b,c")
                sub.add_argument("--retry", action="store_true", help="in a sweep: also runs that failed before")
            if verb == "data":
                sub.add_argument("--compare-packings", action="store_true", help="both packings, side by side")
                sub.add_argument(
                    "--left-out", action="store_true", help="name each file and row that is not a document"
                )
            if verb == "plan":
                sub.add_argument(
                    "--hardware", default="cpu", help="cpu (this machine, the default), h100, h200 or a100"
                )
                sub.add_argument("--layout", default="", metavar="dp=8,ep=8,cp=1", help="shards; default: one device")
                sub.add_argument("--mfu", type=float, help="the assumed share of the peak, 0 to 1")
                sub.add_argument(
                    "--counted", metavar="SHAPE", help="count another model: gpt_oss_120b, deepseek_v3, ..."
                )
                sub.add_argument("--claim", type=float, metavar="FLOPS", help="a number of FLOPs to compare with")
                sub.add_argument(
                    "--dry-run", action="store_true", help="shard the model over the ranks, without memory"
                )
                sub.add_argument("--json", type=Path, metavar="FILE", help="write the plan there, too")
        elif verb == "measure":
            sub.add_argument("paths", nargs="+", metavar="PATH", help="what to measure, then key=value to change")
            sub.add_argument("--config-dir", type=Path, help="a directory with groups of your own (run/, data/, ...)")
            sub.add_argument("--out", type=Path, help="where to write (default: RUN/measured, or runs/NAME-measured)")
            sub.add_argument("--thorough", action="store_true", help="more texts: run=measure_thorough")
            sub.add_argument("--check", action="store_true", help="compare with the run's own records, value by value")
        elif verb == "report":
            sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs, or what lccp measure wrote")
            sub.add_argument(
                "--out", type=Path, help="where to write (default: RUN/report; several runs: next to the first)"
            )
            sub.add_argument("--brief", action="store_true", help="print the verdict and its table only; write nothing")
        elif verb in judge.VERBS:
            judge.add_arguments(verb, sub)
        elif verb == "study":
            sub.add_argument("names", nargs="*", metavar="NAME", help="a study, then launcher=joblib and the like")
            sub.add_argument("--smoke", action="store_true", help="a run of each arm in miniature, as a test")
            sub.add_argument("--retry", action="store_true", help="also train again what failed before")
            sub.add_argument("--repeats", type=int, help="runs of each arm and seed, with other orders of the data")
            sub.add_argument("--root", default="runs", help="where runs and the study's report go (default: runs)")
            sub.add_argument("--config-dir", type=Path, help="a directory with groups of your own (study/, run/, ...)")
        elif verb in ("import", "export"):
            known = "a Hugging Face folder, or a GGUF file" if verb == "import" else "a finished run, or a checkpoint"
            sub.add_argument("path", type=Path, metavar="PATH", help=known)
            sub.add_argument("out", type=Path, metavar="OUT", help="the folder to write, which must not exist")
            sub.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights (default: fp32)")
        else:
            sub.add_argument("--cache", type=Path, default=Path("~/.cache/lccp-sim"))
    arguments, rest = parser.parse_known_args(argv)
    words = next((getattr(arguments, name) for name in ("overrides", "paths") if hasattr(arguments, name)), None)
    if words is None or any(word.startswith("-") for word in rest):
        parser.parse_args(argv)  # says what is wrong, and ends
    else:
        words += rest  # key=value after an option
    try:
        return _run(arguments)
    except Exception as error:
        if not is_message(error):
            raise
        for line in str(error).split("\n"):
            print(f"lccp: {line}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    if arguments.verb == "doctor":
        from lccp_sim.verbs.doctor import doctor, show

        return show(doctor(arguments.cache.expanduser()))
    if arguments.verb == "report":
        from lccp_sim.analysis.report.compare_page import write_comparison
        from lccp_sim.analysis.report.run_page import brief_report, write_report

        runs, out = arguments.runs, arguments.out
        if arguments.brief:
            print("\n\n".join(f"{run}\n{brief_report(run)}" if len(runs) > 1 else brief_report(run) for run in runs))
        else:
            print(write_comparison(runs, out, print) if len(runs) > 1 else write_report(runs[0], out, print))
        return 0
    console = console_here()
    if arguments.verb in judge.VERBS:
        return judge.run(arguments, console)
    if arguments.verb in ("import", "export"):
        from lccp_sim.progress import shown
        from lccp_sim.verbs.hf import export_checkpoint, import_checkpoint

        path, out, dtype = arguments.path, arguments.out, arguments.dtype
        with shown(console) as tell:
            if arguments.verb == "import":
                said = import_checkpoint(path, out, dtype, check(["run=measure"]), tell)
            else:
                said = f"{out}: exported as {export_checkpoint(str(path), out, dtype, tell)}"
        print(said)
        return 0
    if arguments.verb == "study":
        from lccp_sim.verbs.study import list_studies, study
        from lccp_sim.verbs.sweep import launching

        names, launcher = launching(arguments.names)
        if not names:
            return list_studies(arguments.config_dir, console)
        options = arguments.smoke, arguments.retry, arguments.config_dir
        root, repeats = Path(arguments.root), arguments.repeats
        return max(study(name, root, launcher, *options, console, repeats) for name in names)
    if arguments.verb == "measure":
        from lccp_sim.train.loop.precision import bf16_is_native, settle
        from lccp_sim.verbs.measure import measure

        overrides = [word for word in arguments.paths if "=" in word and not Path(word).exists()]
        named = next((word for word in overrides if word.startswith("run=")), None)
        refuse(arguments.thorough and named, "--thorough", named, "it is run=measure_thorough itself; leave one out")
        overrides += ["run=measure_thorough"] if arguments.thorough else []
        paths = [Path(word) for word in arguments.paths if word not in overrides]
        if not paths:
            raise ConfigError("measure: no path given, only key=value; name what to measure")
        outs = [arguments.out / path.name if arguments.out and paths[1:] else arguments.out for path in paths]

        def external() -> "Config":
            shorter = [] if named or arguments.thorough else ["run=measure"]
            config = check([*shorter, *overrides], arguments.config_dir)
            return settle(config, bf16_is_native(config.run.accelerator))

        return max(
            measure(path, out, arguments.check, overrides, external, console)
            for path, out in zip(paths, outs, strict=True)
        )
    if arguments.verb == "train" and arguments.multirun:
        from lccp_sim.verbs.sweep import jobs_of, launching, print_outcomes, sweep

        words, launcher = launching(arguments.overrides)
        return print_outcomes(sweep(jobs_of(words), launcher, arguments.retry, arguments.config_dir), console)
    config = check(arguments.overrides, arguments.config_dir)
    if arguments.verb == "plan":
        from lccp_sim.verbs.plan import plan_verb

        plan_verb(arguments, config, console)
        return 0
    if arguments.verb == "data":
        from lccp_sim.train.corpus import show_data

        show_data(config, console, arguments.compare_packings, arguments.left_out)
        return 0
    from lccp_sim.train.run import train

    train(config, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
