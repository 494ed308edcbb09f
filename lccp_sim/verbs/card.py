"""The model card of an exported checkpoint: what it is, what it was made from and how, and what its run showed."""

from pathlib import Path
from typing import Any

import yaml

from lccp_sim import __version__


def model_card(
    name: str, settings: dict[str, Any], facts: dict[str, Any], report: dict[str, Any], path: Path, size: int
) -> str:
    """The text of README.md. `report` is the run's report.json, or empty where nobody wrote one."""
    source, config = facts.get("source") or {}, facts["config"]
    run, optim, rope = config["run"], config["optim"], config["model"]["rope"]
    head = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["lccp-sim", "long-context"]}
    base = (
        f"`{source['name']}` ({source['model_type']})"
        if source
        else run.get("init_from") or "none, trained from scratch"
    )
    old = f"; the imported model had {_rope(source['rope'])} and {source['context_tokens']:,} tokens" if source else ""
    rows = {
        "architecture": f"`{settings['architectures'][0]}`, {size / 1e9:.3g} GB in {settings['dtype']}",
        "base": base,
        "training tokens": f"{facts['tokens']:,} in this run, {facts['tokens_before']:,} in the runs before it",
        "context": f"trained in rows of {run['context_tokens']:,} tokens",
        "RoPE": _rope(rope) + old,
        "data": ", ".join(
            f"{key} ({each['share']:g})" for key, each in config["data"]["sources"].items() if each["share"]
        ),
        "optimizer": f"AdamW, {optim['schedule']} lr {optim['lr']:g}, batches of {run['batch_tokens']:,} tokens",
        "made by": f"`lccp export` of lccp-sim {__version__}, from `{path.parent.parent.name}/checkpoints/{path.name}`",
    }
    if not facts["tokens"]:
        rows |= {"training tokens": f"{facts['tokens_before']:,}: imported and exported, not trained"}
        rows = {key: value for key, value in rows.items() if key not in ("context", "data", "optimizer")}
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---
# {name}

Made by long-context continual pre-training with lccp-sim. `AutoModelForCausalLM.from_pretrained` needs no other code.

| | |
|---|---|
{table}

## What the run showed
{_verdict(report)}

The licence of the base and of the training text hold for these weights, too.
"""


def _rope(rope: dict[str, Any]) -> str:
    rest = ", ".join(
        f"{key} {value}" for key, value in rope.items() if key not in ("kind", "base") and value is not None
    )
    kind = "" if rope["kind"] == "base" else f"{rope['kind']}, "
    return f"{kind}base {rope['base']:,.0f}{f', {rest}' if rest else ''}"


def _verdict(report: dict[str, Any]) -> str:
    verdict = report.get("verdict")
    if not verdict:
        return (
            "Nothing is claimed: there was no report of the run when this was exported (`lccp report RUN` writes one)."
        )
    said = " ".join([*([verdict["caution"]] if verdict.get("caution") else []), *verdict["summary"]])
    return f"Computed from its records up to {report['tokens']:,} tokens: {said}"
