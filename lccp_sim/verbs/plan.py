"""`lccp plan`: what a run would take, counted from its config."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lccp_sim.configure.load import windows_of
from lccp_sim.data.tokenizer import read_tokenizer
from lccp_sim.errors import refuse
from lccp_sim.files import write_atomic
from lccp_sim.plan.hardware import hardware, parse_layout
from lccp_sim.plan.plan import check_fits, plan_counted, plan_run
from lccp_sim.plan.show import show_dry, show_plan
from lccp_sim.train.loop import precision
from lccp_sim.train.loop.precision import SLOWER, check_bf16, settle

if TYPE_CHECKING:
    from rich.console import Console

    from lccp_sim.config import Config


def plan_verb(arguments: argparse.Namespace, config: "Config", console: "Console") -> None:
    """Prints the plan, writes it where asked, and ends with ConfigError where a device has too little memory."""
    layout, dry = parse_layout(arguments.layout), None
    if arguments.dry_run:
        from lccp_sim.train.dry_run import agrees, dry_run, laid_out

        refuse(arguments.counted, "--dry-run", arguments.counted, "nothing here builds a model that is counted only")
        laid_out(config, layout)  # in the words of training, before any of plan's
    device = hardware(arguments.hardware, config.run.threads, arguments.mfu)
    native = device.name != "cpu" or bool(precision.bf16_units())
    device = device if native else device._replace(bf16_flops=device.fp32_flops / SLOWER)
    config = settle(config, native)
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
        check_bf16(config, native)
        check_fits(config, vocabulary, device, layout)
