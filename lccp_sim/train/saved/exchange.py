"""Import from Hugging Face and export to it: `lccp import`, `lccp export`, and the model card.

An imported model is a finished run with no tokens, so every verb that takes a run accepts it. The other contents of a
folder (special tokens, chat template, generation settings) stay in the checkpoint through every run of a chain, and are
exported again.
"""

import dataclasses
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from lccp_sim import __version__
from lccp_sim.config import Config
from lccp_sim.configure.load import load_model, plain_config
from lccp_sim.data.tokenizer import bos_id, parse_tokenizer, tokenizer_hash
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.files import atomic_directory
from lccp_sim.models.foreign import hf
from lccp_sim.models.foreign.architectures import choose_architecture, write_config
from lccp_sim.models.foreign.weights import untied, write_weights
from lccp_sim.progress import Tell, silent
from lccp_sim.sums import change_sums
from lccp_sim.train.saved.checkpoint import VerifiedIO, read_checkpoint, resolve
from lccp_sim.train.saved.foreign import IDS, object_of, read_foreign, text_of
from lccp_sim.train.saved.run_directory import CONFIG, DONE
from lccp_sim.train.saved.weights_file import PREFIX, SUFFIX, write_weights_file

EXPORT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def import_checkpoint(path: Path, out: Path, dtype: str, measure: Config, tell: Tell = silent) -> str:
    """Make `out` a finished run with no tokens from `path`; return the message, which ends with the next command.

    `measure` is the config with which `lccp measure OUT` will measure it. `tell` gets the progress.
    """
    with building(out) as folder:
        content = read_foreign(path, EXPORT_DTYPES[dtype], tell=tell)
        tell(f"writing {out.name}", 0.0)
        facts, text = content["lccp"], content.pop("tokenizer.json")
        notes = content.pop("notes")
        context, bos = facts["source"]["context_tokens"], facts["config"]["data"]["tokenizer"]["bos_token"]
        data = dataclasses.replace(
            measure.data,
            old_context_tokens=context,
            tokenizer=dataclasses.replace(measure.data.tokenizer, bos_token=bos),
        )
        run = dataclasses.replace(
            measure.run, name=out.name, root=str(out.parent), context_tokens=context, batch_tokens=context,
            micro_batch_tokens=None, tokens=context,
        )  # fmt: skip
        plain = plain_config(dataclasses.replace(measure, run=run, model=load_model(facts["config"]), data=data))
        facts["config"] = plain
        VerifiedIO().save_checkpoint(content, folder / "checkpoints" / "window-00000000.ckpt")
        plain = plain | {"run": plain["run"] | {"tokens_before": 0}}
        _write(folder / "tokenizer.json", text)
        _write(folder / CONFIG, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
        _write(folder / "configs" / "model" / f"{out.name}.yaml", yaml.safe_dump(plain["model"], sort_keys=False))
        _write(folder / DONE, json.dumps({"tokens": 0}) + "\n")
    place, dense = shlex.quote(str(out)), plain["model"]["num_dense_layers"] == plain["model"]["num_layers"]
    command = (
        f"lccp train run=small_lccp model={out.name} --config-dir {place}/configs run.name={out.name}_lccp "
        f"run.init_from={place} run.context_tokens={2 * context} run.batch_tokens={16 * context} "
        f"run.micro_batch_tokens={2 * context} data.old_context_tokens={context} "
        f"model.rope.base={4 * plain['model']['rope']['base']:g}{' monitors.routing=null' if dense else ''}"
    )
    return "\n".join([*(f"note: {note}" for note in notes), f"{out}: imported; to train it on:", command])


def export_checkpoint(name: str, out: Path, dtype: str, tell: Tell = silent) -> str:
    """Write `name` (a finished run, a checkpoint) to `out` as a transformers folder; return what was written.

    An `out` that ends in .safetensors becomes lccp-sim's own file of weights (train/saved/weights_file.py). `tell` gets
    the progress. Raises ConfigError if no architecture computes the model, or the run has no tokenizer.
    """
    path = resolve(name, "export")
    refuse(hf.is_checkpoint(path), "export", name, "is a transformers checkpoint already; copy it")
    refuse(path.suffix == SUFFIX, "export", name, "is exported already; copy it")
    tell(f"reading {path.name}", 0.0)
    content = read_checkpoint(path)
    facts, run = content["lccp"], path.parent.parent
    text = text_of(run / "tokenizer.json")
    if tokenizer_hash(parse_tokenizer(text)) != facts["tokenizer"]:
        raise ConfigError(f"{run / 'tokenizer.json'}: not the tokenizer that {path} was trained with; restore that one")
    if out.suffix == SUFFIX:
        write_weights_file(content, text, out, EXPORT_DTYPES[dtype])
        return "weights for run.init_from"
    source: dict[str, Any] = facts.get("source") or {}
    state = {k.removeprefix(PREFIX): v for k, v in content["state_dict"].items() if k.startswith(PREFIX)}
    moved = [key for key, value in state.items() if key.endswith("bias_E") and bool(value.any())]
    if moved:
        raise ConfigError(
            f"{path}: {moved[0]} and others are not 0 (model.router.bias_update_rate), but no architecture that can be "
            "exported has a selection bias; this model can be measured here, not exported"
        )
    state, model = untied(state, dataclasses.replace(load_model(facts["config"]), vocab_size=facts["vocab_size"]))
    architecture = choose_architecture(model, source.get("model_type"))
    context = max(facts["config"]["run"]["context_tokens"], source.get("context_tokens", 0))
    ids, files = _special(facts, text, context)
    settings = write_config(architecture, model) | {"max_position_embeddings": context, "use_cache": True} | ids
    settings |= dict.fromkeys(("dtype", "torch_dtype"), str(EXPORT_DTYPES[dtype]).removeprefix("torch."))
    with building(out) as folder:
        size = write_weights(state, architecture, model, folder, EXPORT_DTYPES[dtype], tell=tell)
        for file, value in {"config.json": settings, **files}.items():
            _write(folder / file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        _write(folder / "tokenizer.json", text)
        report = object_of(run / "report" / "report.json")
        _write(folder / "README.md", model_card(out.name, settings, facts, report, path, size))
        change_sums(folder, known={each.name: None for each in folder.iterdir() if each.name != "README.md"})
    return architecture


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` at the end, or is removed after an error. Raises ConfigError if `out` exists."""
    taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    refuse(taken, "OUT", str(out), "exists; name a new folder, or remove it")
    with atomic_directory(out) as folder:
        yield folder


def _special(facts: dict[str, Any], text: str, context: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Ids of special tokens for config.json, and tokenizer_config.json and generation_config.json.

    An imported model keeps its own. In a run from scratch, the token that begins each document also ends the one
    before.
    """
    source = facts.get("source") or {"ids": {}, "files": {"tokenizer_config.json": {}, "generation_config.json": {}}}
    tokenizer = parse_tokenizer(text)
    ids, files = dict(source["ids"]), {name: dict(value) for name, value in source["files"].items()}
    if not ids:
        bos = bos_id(tokenizer, facts["config"]["data"]["tokenizer"]["bos_token"])
        ids = {"bos_token_id": bos, "eos_token_id": bos, "pad_token_id": None}
    names = {key.removesuffix("_id"): tokenizer.id_to_token(ids[key]) for key in IDS if isinstance(ids.get(key), int)}
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | names
    files["tokenizer_config.json"] = (files["tokenizer_config.json"] or own) | {"model_max_length": context}
    files["generation_config.json"] = files["generation_config.json"] or {k: v for k, v in ids.items() if v is not None}
    return ids, files


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def model_card(
    name: str, settings: dict[str, Any], facts: dict[str, Any], report: dict[str, Any], path: Path, size: int
) -> str:
    """The text of README.md. `report` is the run's report.json, empty if there is none."""
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

The licences of the base and of the training text apply to these weights, too.
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
        return "Nothing is claimed: the run had no report when this was exported (`lccp report RUN` writes one)."
    said = " ".join([*([verdict["caution"]] if verdict.get("caution") else []), *verdict["summary"]])
    return f"Computed from its records up to {report['tokens']:,} tokens: {said}"
