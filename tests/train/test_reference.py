"""What the first window fixes holds for all later ones: after a kill, when measured again, and from another model."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lccp_sim.config import Config
from lccp_sim.data.pools import open_corpus
from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign.adapter import Adapter
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors.observing import evaluating
from lccp_sim.train.loop.module import LccpModule
from lccp_sim.train.run import train
from lccp_sim.train.series import measure
from tests.train.tiny import BATCH, WINDOWS, assert_same_run, final, records

OTHERS = {f"monitors.{name}": None for name in ("needle", "induction", "intervention", "heads", "routing", "probe")}
FROM = "monitors.perplexity.longppl.keys_from"


def keys(directory: Path) -> list[list[int]]:
    return np.load(directory / "reference" / "perplexity.npz")["keys"].tolist()


def named_by(model: LanguageModel, config: Config) -> list[list[int]]:
    """The keys that a model finds in the items of a config's perplexity monitor."""
    monitor = config.monitors.watch["perplexity"]
    items = monitor.prepare(open_corpus(config.data, config.run.context_tokens, config.seed))
    with evaluating(model):
        return monitor.reference(model, items)["keys"].tolist()


def at_window(directory: Path, config: Config, step: int) -> Transformer:
    model = Transformer(config.model, open_corpus(config.data, config.run.context_tokens, config.seed).vocab_size)
    state = {key.removeprefix("model."): value for key, value in final(directory, step).items()}
    model.load_state_dict(state)
    return model


def longppl(directory: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in records(directory).splitlines()]
    return {row["step"]: row["value"] for row in rows if row["metric"] == "longppl_nats" and not row["tags"]}


def stopped(config: Config, say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains until an error in step 7, and leaves the checkpoints of before."""
    plain = LccpModule.training_step

    def stop(self: LccpModule, *a: Any) -> Any:
        if self.global_step == 7:
            raise KeyError("stopped")
        return plain(self, *a)

    with monkeypatch.context() as patch:
        patch.setattr(LccpModule, "training_step", stop)
        with pytest.raises(KeyError, match="stopped"):
            train(config, say)


def test_the_keys_are_those_of_the_first_window(finished: Path, make: Callable[..., Config]) -> None:
    config = make()
    assert keys(finished) == named_by(at_window(finished, config, 0), config) != []
    assert keys(finished) != named_by(at_window(finished, config, 12), config)
    found = longppl(finished)
    assert list(found) == WINDOWS and len(set(found.values())) == len(WINDOWS)


@pytest.mark.parametrize("damage", ["missing", "cut", "of others"])
def test_a_run_does_not_go_on_with_other_keys(
    damage: str, make: Callable[..., Config], say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(OTHERS)
    stopped(config, say, monkeypatch)
    [path] = Path(config.run.root).glob("*/reference/perplexity.npz")
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        np.savez(path, keys=np.zeros((0, 2), dtype=np.int64), about=np.zeros(32, dtype=np.uint8))
    with pytest.raises(
        ConfigError, match=r"perplexity.npz: damaged" if damage == "cut" else r"missing, or made for different items"
    ):
        train(config, say)
    path.write_bytes(whole)
    assert len(longppl(train(config, say))) == len(WINDOWS)


def test_measured_again_a_run_keeps_its_keys(finished: Path, say: Any, tmp_path: Path) -> None:
    """The first window's checkpoint is gone, and one of the others is asked alone."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "checkpoints" / "window-00000000.ckpt").unlink()
    assert measure(run, tmp_path / "out", False, [], lambda: None, say) == 0
    own, again = longppl(finished), longppl(tmp_path / "out")
    assert {step: again[step] for step in WINDOWS[1:]} == {step: own[step] for step in WINDOWS[1:]}
    assert measure(run / "checkpoints" / "window-00000006.ckpt", tmp_path / "one", False, [], lambda: None, say) == 0
    assert longppl(tmp_path / "one") == {6: own[6]}


def test_without_them_the_first_that_is_measured_finds_new_ones(finished: Path, say: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(run / "reference")
    assert measure(run, tmp_path / "out", True, [], lambda: None, say) == 0
    assert keys(tmp_path / "out") == keys(finished)


def test_keys_may_come_from_another_run(
    make: Callable[..., Config], say: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**OTHERS, FROM: str(finished)}
    whole = train(make({**changes, "run.name": "whole"}), say)
    assert keys(whole) == named_by(at_window(finished, make(), 12), make()) != keys(finished)
    stopped(make(changes), say, monkeypatch)
    assert_same_run(train(make(changes), say), whole)


def test_keys_may_come_from_a_model_of_transformers(
    make: Callable[..., Config], say: Any, finished: Path, tmp_path: Path
) -> None:
    import transformers as t

    torch.manual_seed(3)
    llama = t.LlamaForCausalLM(
        t.LlamaConfig(
            vocab_size=400,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.3,
        )  # fmt: skip
    )
    folder = tmp_path / "llama"
    llama.save_pretrained(folder)
    tokenizer = t.PreTrainedTokenizerFast(tokenizer_file=str(finished / "tokenizer.json"), bos_token="<|document|>")
    tokenizer.save_pretrained(folder)
    config = make({**OTHERS, FROM: str(folder), "run.tokens": BATCH})
    assert keys(train(config, say)) == named_by(Adapter(llama), make()) != []


def test_keys_from_nowhere_or_in_another_language_are_refused(
    make: Callable[..., Config], say: Any, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"^monitors.perplexity.longppl.keys_from='no/run': matches nothing; train"):
        train(make({FROM: "no/run"}), say)
    assert not list((tmp_path / "runs").glob("*/config.yaml"))
    config = make({**OTHERS, FROM: str(finished), "run.tokens": BATCH})
    data = replace(config.data, tokenizer=replace(config.data.tokenizer, vocab_size=380))
    with pytest.raises(ConfigError, match=r"^monitors.perplexity.longppl.keys_from: .* has another tokenizer than"):
        train(replace(config, data=data), say)
