"""`lccp plan`: the cost of a run, counted from its config."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from lccp_sim.configure.compose import check
from lccp_sim.errors import refuse
from lccp_sim.files import write_atomic
from lccp_sim.verbs import Verb, add_overrides

if TYPE_CHECKING:
    from rich.console import Console


def _add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument("--hardware", default="cpu", help="cpu (this machine, the default), h100, h200 or a100")
    parser.add_argument("--layout", default="", metavar="dp=8,ep=8,cp=1", help="shards; default: one device")
    parser.add_argument("--mfu", type=float, help="the assumed share of the peak, 0 to 1")
    parser.add_argument("--counted", metavar="SHAPE", help="count another model: gpt_oss_120b, deepseek_v3, ...")
    parser.add_argument("--claim", type=float, metavar="FLOPS", help="a number of FLOPs to compare with")
    parser.add_argument("--dry-run", action="store_true", help="shard the model over the ranks, without memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan there, too")


def _run(arguments: Namespace, console: "Console") -> int:
    config = check(arguments.overrides, arguments.config_dir)  # before torch is imported
    from lccp_sim.configure.load import windows_of
    from lccp_sim.data.tokenizer import read_tokenizer
    from lccp_sim.plan.hardware import hardware, parse_layout
    from lccp_sim.plan.plan import check_fits, plan_counted, plan_run
    from lccp_sim.plan.show import show_dry, show_plan
    from lccp_sim.train.loop import precision

    layout, dry = parse_layout(arguments.layout), None
    if arguments.dry_run:
        from lccp_sim.train.dry_run import agrees, dry_run, laid_out

        refuse(arguments.counted, "--dry-run", arguments.counted, "nothing here builds a model that is counted only")
        laid_out(config, layout)  # training's own refusal comes before plan's
    device = hardware(arguments.hardware, config.run.threads, arguments.mfu)
    native = device.name != "cpu" or bool(precision.bf16_units())
    device = device if native else device._replace(bf16_flops=device.fp32_flops / precision.SLOWER)
    config = precision.settle(config, native)
    tokenizer, vocabulary = config.data.tokenizer, config.model.vocab_size or 0
    if arguments.counted:
        plan = plan_counted(config, arguments.counted, device, layout)
    else:
        if not vocabulary and tokenizer.kind == "file":
            vocabulary = read_tokenizer(Path(tokenizer.path).expanduser()).get_vocab_size()
        vocabulary = vocabulary or tokenizer.vocab_size
        plan = plan_run(config, vocabulary, windows_of(config), device, layout)
    show_plan(plan, console, arguments.claim)
    if arguments.dry_run:
        plan["dry_run"] = dry = dry_run(config, vocabulary, layout, plan)
        show_dry(dry, console)
    if arguments.json:
        write_atomic(arguments.json, json.dumps(plan, indent=1) + "\n")
    if dry:
        agrees(dry)
    if not arguments.counted:
        precision.check_bf16(config, native)
        check_fits(config, vocabulary, device, layout)
    return 0


PLAN_VERB = Verb(
    "count what a run would take: weights, FLOPs, memory, days, the monitors' share; nothing is trained or read",
    _add_arguments,
    _run,
)
