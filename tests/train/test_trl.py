"""The monitors in TRL's SFTTrainer, which puts a fused head in place of the model's forward."""

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from lccp_sim.models.foreign.adapter import Adapter
from lccp_sim.train.window.own_loop import Windows
from lccp_sim.train.window.trainer import TrainerMonitors
from tests.train.others import ACCUMULATED, ROWS, STEP_TOKENS, fast_tokenizer, losses, measured_after, rows, tiny
from tests.train.test_trainer import looking

trl = pytest.importorskip("trl")


def sft(measuring: Path, out: Path, kind: str, callbacks: list[Any], bf16: bool) -> Any:
    """An SFTTrainer of six steps that saves every second one."""
    settings = trl.SFTConfig(
        output_dir=str(out), max_steps=6, per_device_train_batch_size=ROWS, gradient_accumulation_steps=ACCUMULATED,
        logging_steps=1, save_steps=2, learning_rate=1e-2, report_to=[], use_cpu=True, bf16=bf16, disable_tqdm=True,
        seed=3, max_length=64,
    )  # fmt: skip
    data = datasets.Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in rows()])
    return trl.SFTTrainer(
        tiny(kind), settings, train_dataset=data, processing_class=fast_tokenizer(measuring), callbacks=callbacks
    )


@pytest.mark.parametrize(("kind", "bf16"), [("llama", False), ("qwen3_moe", True)])
def test_records_are_those_of_the_checkpoints_and_training_does_not_notice(
    kind: str, bf16: bool, measuring: Path, tmp_path: Path
) -> None:
    monitors = TrainerMonitors(
        looking(measuring), Windows(steps=[2, 4, 6]), tokens_per_step=STEP_TOKENS, say=lambda line: None
    )
    with_ = sft(measuring, tmp_path / "with", kind, [monitors], bf16)
    with_.train()
    alone = sft(measuring, tmp_path / "alone", kind, [], bf16)
    alone.train()
    assert losses(with_) == losses(alone) and len(losses(alone)) == 6
    for name, weight in alone.model.state_dict().items():
        assert torch.equal(weight, with_.model.state_dict()[name]), name
    folders = {n: tmp_path / "with" / f"checkpoint-{n}" for n in (2, 4, 6)}
    after = measured_after(measuring, folders, tmp_path / "after")
    assert after == (tmp_path / "with" / "lccp" / "records.jsonl").read_text()


def test_a_copy_of_its_model_computes_with_its_own_weights(measuring: Path, tmp_path: Path) -> None:
    """What the probe fine-tunes is a copy; the forward that TRL puts there is the original's."""
    model = Adapter(sft(measuring, tmp_path, "llama", [], False).model)
    fork = copy.deepcopy(model)
    with torch.no_grad():
        for weight in fork.parameters():
            weight.zero_()
        tokens_BT = torch.arange(8)[None] + 2
        assert model(tokens_BT).hidden_BTD.abs().sum() > 0
        assert fork(tokens_BT).hidden_BTD.abs().sum() == 0
