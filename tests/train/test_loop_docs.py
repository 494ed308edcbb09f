"""docs/in_your_loop.md works as it stands: each of its blocks runs, in miniature, and has about ten lines."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import lightning as L
import pytest
import torch

from lccp_sim import cli
from lccp_sim.records import read_records
from tests.test_docs import ROOT, commands
from tests.train.others import fast_tokenizer, looking, rows, tiny

PAGE = (ROOT / "docs" / "in_your_loop.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
HOMES = {"Trainer": "out/lccp", "SFTTrainer": "out/lccp", "LoopSuite": "runs/mine", "MonitorCallback": "runs/theirs"}


class Module(L.LightningModule):
    """Somebody's module."""

    def __init__(self, net: Any):
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(input_ids=batch, labels=batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader([row["input_ids"] for row in rows()], batch_size=2)


@pytest.mark.parametrize(("block", "home"), list(zip(BLOCKS, HOMES, strict=True)), ids=list(HOMES))
def test_a_block_trains_and_leaves_records(
    block: str, home: str, measuring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With windows at the steps 0, 1 and 2 in place of 0, 100 and 200, and short texts."""
    if "Trainer" in home:
        pytest.importorskip("trl" if "SFT" in home else "accelerate")
    plain = cli.check

    def check(overrides: Sequence[str]) -> Any:
        plain(overrides)
        return looking(measuring)

    monkeypatch.setattr(cli, "check", check)
    monkeypatch.chdir(tmp_path)
    shutil.copy(measuring / "tokenizer.json", tmp_path)
    small = re.sub(r"\b(100|200|201)\b", lambda found: str(int(found[0]) // 100 + int(found[0]) % 100), block)
    for long, short in (("655360000", "512"), ("13107200", "131072"), ("6553600", "65536")):
        small = small.replace(long, short)
    small = small.replace("save_steps=1", "save_steps=1, use_cpu=True")
    small = small.replace('"all"', '"all", use_cpu=True, bf16=False')
    data: Any = rows()
    if "SFT" in home:
        data = datasets.Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in rows()])
    net = tiny("llama")
    given = {"model": net, "rows": data, "tokenizer": fast_tokenizer(measuring), "start": 0, "module": Module(net)}
    exec(compile(small, home, "exec"), given | {"train_step": lambda model: None})
    found = read_records(tmp_path / HOMES[home] / "records.jsonl")[0]
    steps = sorted({r.step for r in found})
    assert steps == ([0, 2] if "SFT" in home else [0, 1, 2])
    assert len([line for line in block.splitlines() if line and "import" not in line]) <= 10


def test_the_commands_name_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["watch", "--help"])
    known = capsys.readouterr().out
    words = [word for command in commands(PAGE) if command[1] == "watch" for word in command[2:]]
    words += re.findall(r"--[a-z-]+", "".join(re.findall(r"`lccp watch [^`]*`", PAGE)))
    assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", known))
