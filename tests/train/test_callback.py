"""The monitors in a Trainer and around a LightningModule that are not ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers as t
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from lccp_sim.analysis.run import load_run
from lccp_sim.cli import main
from lccp_sim.configure.compose import check
from lccp_sim.errors import ConfigError
from lccp_sim.models.language_model import Attended, LanguageModel
from lccp_sim.records import overall_name, read_records
from lccp_sim.train.window.callback import MonitorCallback
from lccp_sim.train.window.suite import NO_HEADS
from tests.train.foreign import folder

STEPS, ROWS, LENGTH = 6, 2, 32
WINDOWS = [0, 2, 6]


class Bigram(LanguageModel):
    """A model that is nobody's: one layer of one causal head over embeddings, written as its owner likes."""

    num_layers, num_heads, vocab_size = 1, 1, 400

    def __init__(self) -> None:
        super().__init__()
        self.table, self.read = nn.Embedding(400, 16), nn.Linear(16, 400)
        self.tap: Any = None
        self.gate: Any = None

    def forward(self, tokens_BT: Tensor) -> Any:
        x_BTD = self.table(tokens_BT)
        if self.tap:
            self.tap(0, Attended(x_BTD[:, :, None], x_BTD[:, :, None], 0.25))
        y_BTD = F.scaled_dot_product_attention(x_BTD, x_BTD, x_BTD, is_causal=True, scale=0.25)
        if self.gate is not None:
            y_BTD = y_BTD * self.gate[0, 0]
        return type("Out", (), {"hidden_BTD": x_BTD + y_BTD})

    def logits(self, hidden_RD: Tensor) -> Tensor:
        return self.read(hidden_RD).float()

    def set_tap(self, tap: Any) -> None:
        self.tap = tap

    def set_gate(self, gate_LN: Any) -> None:
        self.gate = gate_LN


class Foreign(L.LightningModule):
    """Somebody's own module, with dropout, an automatic optimizer and a loader of batches in random order."""

    def __init__(self, kind: str = "llama"):
        super().__init__()
        torch.manual_seed(5)
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
        sizes |= {"intermediate_size": 32, "vocab_size": 400, "attention_dropout": 0.1}
        if kind == "bigram":
            self.net: nn.Module = Bigram()
        elif kind == "llama":
            self.net = t.LlamaForCausalLM(t.LlamaConfig(**sizes))
        else:
            self.net = t.MambaForCausalLM(
                t.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=400, state_size=4)
            )
        self.losses: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if isinstance(self.net, LanguageModel):
            logits = self.net.logits(self.net(batch[:, :-1]).hidden_BTD)
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        else:
            loss = self.net(input_ids=batch, labels=batch).loss
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def train_dataloader(self) -> Any:
        rows = torch.randint(2, 300, (2 * STEPS * ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
        return torch.utils.data.DataLoader(rows, batch_size=ROWS, shuffle=False)


@pytest.fixture
def fit(measuring: Path, tmp_path: Path) -> Callable[..., Foreign]:
    """A function that trains a Foreign module, with the monitors or without, and returns it."""

    def run(
        kind: str = "llama",
        watched: bool = True,
        steps: int = STEPS,
        name: str = "out",
        resume: str | None = None,
        say: Callable[[str], None] = lambda line: None,
        seed: int = 0,
        tokens: int = 2 * ROWS * LENGTH,
    ) -> Foreign:
        module = Foreign(kind)
        callbacks: list[L.Callback] = [
            ModelCheckpoint(tmp_path / f"{name}-kept", every_n_train_steps=1, save_top_k=-1, filename="{step}")
        ]
        if watched:
            keys = ["monitors.perplexity.items=2", f"monitors.needle.seed={seed}"]
            config = check(["run=look", *keys], measuring / "configs")
            callbacks.insert(0, MonitorCallback.of(
                config, tmp_path / name, measuring / "tokenizer.json", WINDOWS, tokens,
                model=lambda module: module.net, say=say,
            ))  # fmt: skip
        torch.manual_seed(9)
        trainer = L.Trainer(
            max_steps=steps, accumulate_grad_batches=2, callbacks=callbacks, accelerator="cpu",
            enable_progress_bar=False,
            logger=L.pytorch.loggers.TensorBoardLogger(tmp_path / name, name="tensorboard", version=""),
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, ckpt_path=resume, weights_only=False if resume else None)
        return module

    return run


@pytest.mark.parametrize("kind", ["llama", "bigram"])
def test_it_records_at_its_windows_and_changes_nothing(kind: str, fit: Callable[..., Foreign], tmp_path: Path) -> None:
    watched, alone = fit(kind), fit(kind, watched=False, name="alone")
    assert watched.losses == alone.losses and len(alone.losses) == 2 * STEPS
    for mine, theirs in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    found = read_records(tmp_path / "out" / "records.jsonl")[0]
    assert sorted({(r.step, r.tokens) for r in found}) == [(w, w * 128) for w in WINDOWS]
    assert {r.monitor for r in found} == {"needle", "perplexity", "induction", "heads"}
    assert len({r.key for r in found}) == len(found)
    assert len(list((tmp_path / "out" / "samples").glob("*.parquet"))) == len(WINDOWS)
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    scalars = {e.step: e.value for e in events.Scalars("needle/answer_nll_nats")}
    assert scalars == pytest.approx({
        r.step: r.value for r in found if overall_name(r) == "needle/answer_nll_nats"
    })  # fmt: skip
    assert main(["report", str(tmp_path / "out")]) == 0
    if kind == "llama":
        assert watched.net.config._attn_implementation == "sdpa"  # as it was


def test_a_model_without_heads_is_watched_and_it_is_said_once(fit: Callable[..., Foreign], tmp_path: Path) -> None:
    said: list[str] = []
    fit("mamba", say=said.append)
    assert said.count(NO_HEADS) == 1 and said[0] == NO_HEADS
    found = read_records(tmp_path / "out" / "records.jsonl")[0]
    assert sorted({r.step for r in found}) == WINDOWS
    assert {r.monitor for r in found} == {"needle", "perplexity", "induction"}


def test_a_resumed_fit_writes_the_same_records(fit: Callable[..., Foreign], tmp_path: Path) -> None:
    fit()
    fit(name="parts", steps=3)
    fit(name="parts", resume=str(tmp_path / "parts-kept" / "step=3.ckpt"))
    whole, parts = ((tmp_path / name / "records.jsonl").read_text() for name in ("out", "parts"))
    steps = [{json.loads(line)["step"] for line in text.splitlines()} for text in (whole, parts)]
    assert steps[0] == steps[1] == set(WINDOWS)
    before = [[line for line in text.splitlines() if json.loads(line)["step"] < 3] for text in (whole, parts)]
    assert before[0] == before[1]


def test_in_the_loop_equals_after_the_fact(
    fit: Callable[..., Foreign],
    measuring: Path,
    tmp_path: Path,
) -> None:
    """The weights of the windows, saved as transformers does and listed as a series, give the very same values."""
    fit()
    listed = []
    for step in WINDOWS:
        path = folder(measuring, tmp_path / f"step{step}")
        net = Foreign().net
        if step:
            kept = torch.load(tmp_path / "out-kept" / f"step={step}.ckpt", weights_only=False)["state_dict"]
            net.load_state_dict({key.removeprefix("net."): value for key, value in kept.items()})
        assert isinstance(net, t.PreTrainedModel)
        net.save_pretrained(path)
        listed.append({"path": path.name, "tokens": step * 128, "step": step})
    (tmp_path / "series.yaml").write_text(yaml.safe_dump({"checkpoints": listed}))
    words = ["--config-dir", str(measuring / "configs"), "--out", str(tmp_path / "after"), "run=look"]
    assert main(["measure", str(tmp_path / "series.yaml"), *words, "monitors.perplexity.items=2"]) == 0
    assert (tmp_path / "after" / "records.jsonl").read_text() == (tmp_path / "out" / "records.jsonl").read_text()


def test_records_of_another_run_are_not_lost(fit: Callable[..., Foreign], tmp_path: Path) -> None:
    fit(steps=1)
    before = (tmp_path / "out" / "records.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="out: holds records already; resume with ckpt_path, or name another"):
        fit(steps=1)
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == before


def test_the_end_is_marked_and_going_on_with_other_settings_is_refused(
    fit: Callable[..., Foreign], tmp_path: Path
) -> None:
    fit(steps=2)
    assert load_run(tmp_path / "out").ended and load_run(tmp_path / "out").measured
    kept, before = str(tmp_path / "out-kept" / "step=2.ckpt"), (tmp_path / "out" / "records.jsonl").read_bytes()
    others = (({"seed": 7}, "needle.seed .0 there, 7 now"), ({"tokens": 64}, "tokens_per_step=64: "))
    for changed, said in others:
        with pytest.raises(ConfigError, match=said):
            fit(steps=3, resume=kept, **changed)
        assert (tmp_path / "out" / "records.jsonl").read_bytes() == before


def test_what_is_no_language_model_is_refused(fit: Callable[..., Foreign], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Foreign, "net", nn.Linear(2, 2), raising=False)
    plain = Foreign.__init__
    monkeypatch.setattr(
        Foreign, "__init__", lambda self, kind: (plain(self, kind), setattr(self, "net", nn.Linear(2, 2)))[0]
    )
    with pytest.raises(ConfigError, match="the model is neither a transformers model nor a LanguageModel"):
        fit()


def test_a_tokenizer_without_a_known_beginning_needs_its_name(measuring: Path, tmp_path: Path) -> None:
    trained = tokenizers.Tokenizer.from_file(str(measuring / "tokenizer.json"))
    plain = trained.to_str().replace("<|document|>", "<start-of-text>")
    (tmp_path / "other.json").write_text(plain)
    config = check(["run=look"], measuring / "configs")
    args = (config, tmp_path / "out", tmp_path / "other.json", [0], 128)
    with pytest.raises(ConfigError, match="set data.tokenizer.bos_token"):
        MonitorCallback.of(*args)
    MonitorCallback.of(*args, bos_token="<start-of-text>")
