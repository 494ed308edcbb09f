"""Loops that are not ours, for the tests: tiny random models, rows of tokens, and a Trainer around them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers as t
import yaml

from lccp_sim.cli import main
from lccp_sim.config import Config
from lccp_sim.configure.compose import check

STEPS, ROWS, LENGTH, ACCUMULATED = 6, 2, 32, 2
STEP_TOKENS = ROWS * LENGTH * ACCUMULATED
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
SIZES |= {"intermediate_size": 32, "vocab_size": 400, "max_position_embeddings": 512, "initializer_range": 0.3}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}


def tiny(kind: str) -> Any:
    """A random model with dropout: llama, or qwen3_moe with four experts."""
    torch.manual_seed(5)
    if kind == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**SIZES, attention_dropout=0.1))
    return t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**SIZES, **MOE, attention_dropout=0.1))


def fast_tokenizer(measuring: Path) -> Any:
    """The tokenizer of `measuring` as transformers has it."""
    backend = tokenizers.Tokenizer.from_file(str(measuring / "tokenizer.json"))
    return t.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|document|>", pad_token="<|document|>")


def rows() -> list[dict[str, Any]]:
    """Random texts with their labels."""
    drawn = torch.randint(2, 300, (2 * STEPS * ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in drawn]


def looking(measuring: Path) -> Config:
    """The config of the monitors."""
    return check(["run=look"], measuring / "configs")


def trainer(
    measuring: Path,
    out: Path,
    kind: str = "llama",
    callbacks: list[Any] | None = None,
    attach: Callable[[Any], object] = lambda trainer: None,
    **changes: Any,
) -> t.Trainer:
    """A Trainer of six steps that saves every second one; skips the test where accelerate is not installed."""
    pytest.importorskip("accelerate")
    settings: dict[str, Any] = {
        "output_dir": str(out), "max_steps": STEPS, "per_device_train_batch_size": ROWS, "logging_steps": 1,
        "gradient_accumulation_steps": ACCUMULATED, "save_steps": 2, "learning_rate": 1e-2, "report_to": [],
        "use_cpu": True, "disable_tqdm": True, "seed": 3,
    }  # fmt: skip
    made = t.Trainer(
        tiny(kind), t.TrainingArguments(**(settings | changes)), train_dataset=rows(), eval_dataset=rows()[:2],
        processing_class=fast_tokenizer(measuring), callbacks=callbacks,
    )  # fmt: skip
    attach(made)
    return made


def losses(made: t.Trainer) -> list[float]:
    """The losses that a Trainer logged."""
    return [row["loss"] for row in made.state.log_history if "loss" in row]


def measured_after(measuring: Path, folders: dict[int, Path], out: Path) -> str:
    """The records of `lccp measure` on checkpoints by their step."""
    listed = [{"path": str(path), "step": n, "tokens": n * STEP_TOKENS} for n, path in sorted(folders.items())]
    series = out.parent / f"{out.name}.yaml"
    series.write_text(yaml.safe_dump({"checkpoints": listed}))
    words = ["--config-dir", str(measuring / "configs"), "--out", str(out), "run=look"]
    assert main(["measure", str(series), *words]) == 0
    return (out / "records.jsonl").read_text()
