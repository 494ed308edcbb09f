"""The monitors in `transformers.Trainer`: the records of `lccp measure`, and a training that does not notice."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lccp_sim.analysis.run import load_run
from lccp_sim.cli import main
from lccp_sim.configure.compose import check
from lccp_sim.errors import ConfigError
from lccp_sim.records import overall_name, read_records
from lccp_sim.train.window.own_loop import Windows
from lccp_sim.train.window.trainer import TrainerMonitors
from tests.train.others import STEP_TOKENS, fast_tokenizer, looking, losses, measured_after, tiny, trainer

WINDOWS = Windows(steps=[0, 2, 4, 6])
quiet: Any = {"say": lambda line: None}


def watched(measuring: Path, **changes: Any) -> TrainerMonitors:
    given = {"config": looking(measuring), "windows": WINDOWS, "tokens_per_step": STEP_TOKENS}
    return TrainerMonitors(**(given | quiet | changes))


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_records_are_those_of_the_checkpoints_and_training_does_not_notice(
    kind: str, precision: str, measuring: Path, tmp_path: Path
) -> None:
    """bf16 is autocast: checkpoints hold fp32 weights, and monitors measure in the precision of their config."""
    changes = {"bf16": precision == "bf16"}
    tiny(kind).save_pretrained(tmp_path / "with" / "checkpoint-0")
    fast_tokenizer(measuring).save_pretrained(tmp_path / "with" / "checkpoint-0")
    with_ = trainer(measuring, tmp_path / "with", kind, [watched(measuring)], **changes)
    with_.train()
    alone = trainer(measuring, tmp_path / "alone", kind, **changes)
    alone.train()
    assert losses(with_) == losses(alone) and len(losses(alone)) == 6
    for name, weight in alone.model.state_dict().items():
        assert torch.equal(weight, with_.model.state_dict()[name]), name
    folders = {n: tmp_path / "with" / f"checkpoint-{n}" for n in (0, 2, 4, 6)}
    after = measured_after(measuring, folders, tmp_path / "after")
    assert after == (tmp_path / "with" / "lccp" / "records.jsonl").read_text()
    assert {json.loads(line)["step"] for line in after.splitlines()} == {0, 2, 4, 6}


def test_resumed_with_the_best_model_at_the_end_it_writes_the_same_records(measuring: Path, tmp_path: Path) -> None:
    """A first part that went on after its checkpoint: what it wrote later is dropped."""
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    whole = trainer(measuring, tmp_path / "whole", callbacks=[watched(measuring)], **best)
    whole.train()
    trainer(measuring, tmp_path / "parts", callbacks=[watched(measuring)], **best).train()
    (tmp_path / "parts" / "lccp" / "records.jsonl").open("ab").write(b'{"step": 7')
    again = trainer(measuring, tmp_path / "parts", callbacks=[watched(measuring)], **best)
    again.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-4"))
    assert losses(again) == losses(whole)
    for name in ("records.jsonl", "measured.yaml", "tokenizer.json"):
        parts, one = (tmp_path / each / "lccp" / name for each in ("parts", "whole"))
        assert parts.read_bytes() == one.read_bytes(), name
    times = [json.loads(line) for line in (tmp_path / "parts" / "lccp" / "timing.jsonl").read_text().splitlines()]
    assert len({(row["step"], row["what"]) for row in times}) == len(times)
    with pytest.raises(ConfigError, match="lccp: holds records already; give the step to go on from"):
        trainer(measuring, tmp_path / "parts", callbacks=[watched(measuring)]).train()
    records, folder = (tmp_path / "parts" / "lccp" / "records.jsonl").read_bytes(), tmp_path / "parts"
    for changed, said in (
        (
            {"tokens_per_step": 2 * STEP_TOKENS},
            f"tokens_per_step={2 * STEP_TOKENS}: .* begun with others, 768 tokens at",
        ),
        (
            {"config": check(["run=look", "monitors.needle.seed=7"], measuring / "configs")},
            "monitors.needle.seed .0 there",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            trainer(measuring, folder, callbacks=[watched(measuring, **changed)], **best).train(
                resume_from_checkpoint=str(folder / "checkpoint-6")
            )
        assert (folder / "lccp" / "records.jsonl").read_bytes() == records
    assert main(["report", str(tmp_path / "parts" / "lccp")]) == 0


def test_tokens_that_the_trainer_counts_make_windows_and_its_loggers_show_them(measuring: Path, tmp_path: Path) -> None:
    """A window lies at the first step that has trained on its tokens; one more is asked for."""
    monitors = watched(measuring, windows=Windows(tokens=[0, STEP_TOKENS + 1, 3 * STEP_TOKENS]), tokens_per_step=None)

    class Asking(t.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 4:
                monitors.ask()

    counted = {"include_num_input_tokens_seen": "all", "report_to": ["tensorboard"], "save_steps": 100}
    made = trainer(measuring, tmp_path / "out", callbacks=[Asking()], attach=monitors.attach, **counted)
    made.train()
    found = read_records(tmp_path / "out" / "lccp" / "records.jsonl")[0]
    assert sorted({(r.step, r.tokens) for r in found}) == [(n, n * STEP_TOKENS) for n in (0, 2, 3, 5)]
    [events] = (tmp_path / "out" / "runs").rglob("events*")
    shown = EventAccumulator(str(events)).Reload().Scalars("train/needle/answer_nll_nats")
    values = {r.step: r.value for r in found if overall_name(r) == "needle/answer_nll_nats"}
    assert {event.step: event.value for event in shown} == pytest.approx(values)
    assert len(losses(made)) == 6 and "needle/answer_nll_nats" not in {k for row in made.state.log_history for k in row}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens_per_step": None}, "no tokens are known for a step: give tokens_per_step"),
        ({"tokenizer": "nowhere.json"}, "tokenizer nowhere.json is not a file"),
    ],
)
def test_bad_input_is_one_line_before_the_first_step(
    changes: dict[str, Any], said: str, measuring: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        trainer(measuring, tmp_path / "out", callbacks=[watched(measuring, **changes)]).train()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "lccp").exists()


def test_tokens_per_step_below_1_are_refused_where_they_are_given(measuring: Path) -> None:
    with pytest.raises(ConfigError, match="tokens_per_step=0: must be the tokens of an optimizer step"):
        watched(measuring, tokens_per_step=0)


def test_the_end_is_marked_when_training_ends_and_not_when_it_crashes(measuring: Path, tmp_path: Path) -> None:
    """A gate at the end asks for this mark."""

    class Crashing(t.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 5:
                raise ZeroDivisionError

    short = Windows(steps=[0, 4])
    with pytest.raises(ZeroDivisionError):
        trainer(measuring, tmp_path, callbacks=[watched(measuring, windows=short), Crashing()]).train()
    path = tmp_path / "gate.yaml"
    path.write_text("written: 2020-01-31\ncriteria: {a: {metric: needle/answer_nll_nats, at_most: 99, by: value}}")
    words = ["gate", str(path), str(tmp_path / "lccp")]
    assert not load_run(tmp_path / "lccp").ended and main(words) == 2
    trainer(measuring, tmp_path, callbacks=[watched(measuring, windows=short)]).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-4")
    )
    assert load_run(tmp_path / "lccp").ended and main(words) == 0


def test_a_trainer_without_a_tokenizer_needs_one(measuring: Path, tmp_path: Path) -> None:
    made = trainer(measuring, tmp_path / "out", callbacks=[watched(measuring)])
    made.processing_class = made.callback_handler.processing_class = None
    with pytest.raises(ConfigError, match="tokenizer: none was given; name a tokenizer.json, or a folder"):
        made.train()
