"""What TensorBoard shows, read back from the event files: layout, hyperparameters, texts, each once."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lccp_sim.cli import main
from lccp_sim.config import Config
from lccp_sim.records import overall_name, read_records
from lccp_sim.train.run import train
from lccp_sim.train.saved.run_directory import read_config
from lccp_sim.train.window import tensorboard
from lccp_sim.train.window.tensorboard import charts, in_markdown, keys_of, markdown_table
from tests.train.test_resume import at_step, before_checkpoint, in_monitor, killed, scalars
from tests.train.test_stopping import DECAY, FEW, keys, saturated_from
from tests.train.tiny import BATCH, STEPS

TEXTS = ("config", "corpus", "verdict")


@pytest.fixture
def unjudged() -> None:
    """Not here: each run of this file has its verdict."""


def read(directory: Path) -> EventAccumulator:
    """As TensorBoard itself reads: unlike the accumulator of the documentation, this one cuts texts, too."""
    return EventAccumulator(str(directory / "tensorboard"), {"tensors": 0}).Reload()


def charts_in(events: EventAccumulator) -> dict[str, dict[str, list[str]]]:
    """{category: {chart: tags}} of the one layout there is. Fails unless the plugin would find exactly one."""
    assert list(events.PluginTagToContent("custom_scalars")) == ["custom_scalars__config__"]
    [event] = events.Tensors("custom_scalars__config__")
    found = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    return {group.title: {c.title: list(c.multiline.tag) for c in group.chart} for group in found.category}


def texts(events: EventAccumulator) -> dict[str, list[tuple[int, str]]]:
    """Steps and texts by name."""
    names = events.PluginTagToContent("text")
    found = {name: [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(name)] for name in names}
    return {name.removesuffix("/text_summary"): points for name, points in found.items()}


def hyperparameters(events: EventAccumulator) -> tuple[dict[str, Any], list[str], int]:
    """The keys of the session, the tags that the experiment names as metrics, and the session's status."""
    content = events.PluginTagToContent("hparams")
    data = {name: HParamsPluginData.FromString(value) for name, value in content.items()}
    start = data["_hparams_/session_start_info"].session_start_info.hparams
    metrics = [info.name.tag for info in data["_hparams_/experiment"].experiment.metric_infos]
    status = data["_hparams_/session_end_info"].session_end_info.status
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in start.items()}, metrics, status


def test_every_scalar_stands_in_one_chart_of_its_tier(finished: Path) -> None:
    found, shown = charts_in(read(finished)), set(scalars(finished)) - {"tokens"}
    assert list(found) == ["behavioural", "probabilistic", "mechanistic", "training"]
    patterns = [(tier, tag) for tier, group in found.items() for tags in group.values() for tag in tags]
    tiers = {overall_name(r): r.tier for r in read_records(finished / "records.jsonl")[0]}
    for name in shown:
        assert [tier for tier, tag in patterns if re.match(tag, name)] == [tiers[name]], name  # as TensorBoard matches
    assert len(patterns) == len(shown) <= 60
    for group in found.values():
        for title, tags in group.items():
            assert len({tag.rpartition("_")[2] for tag in tags}) == 1, title


def test_a_layout_groups_by_tier_monitor_and_unit() -> None:
    rows = [("training", "train", "lr"), ("mechanistic", "heads", "a_frac"), ("mechanistic", "heads", "b_frac")]
    assert charts([*rows, ("mechanistic", "heads", "n_count"), rows[1]]) == {
        "mechanistic": {
            "heads, frac": ["Multiline", ["^heads/a_frac$", "^heads/b_frac$"]],
            "heads/n_count": ["Multiline", ["^heads/n_count$"]],
        },
        "training": {"train/lr": ["Multiline", ["^train/lr$"]]},
    }


def test_hyperparameters_have_the_final_scalars_as_metrics(finished: Path) -> None:
    found, metrics, status = hyperparameters(read(finished))
    assert found["optim.lr"] == 3e-3 and found["model.rope.kind"] == "base" and found["seed"] == 0
    assert found["model.tie_embeddings"] == "true" and json.loads(found["data.sources.prose.paths"])
    assert not any(key.startswith(("monitors.", "run.root", "run.tokens", "run.loggers")) for key in found)
    assert found.keys() == keys_of(read_config(finished)).keys()
    assert set(metrics) == set(scalars(finished)) and status == 1  # of each, TensorBoard takes the last value


def test_the_texts_are_the_config_the_corpus_and_the_verdict(finished: Path) -> None:
    found = texts(read(finished))
    assert {name: [step for step, _ in points] for name, points in found.items()} == {
        "config": [0], "corpus": [0], "verdict": [STEPS],
    }  # fmt: skip
    assert "rope:\n    base: 10000" in found["config"][0][1] and found["config"][0][1].startswith("```yaml\nseed: 0\n")
    lines = found["corpus"][0][1].splitlines()
    assert lines[0].startswith("| source | kind | share | documents |") and lines[2].startswith(
        "| prose | text_files |"
    )
    said = found["verdict"][0][1]
    assert "The needle hit goes from 0 to 0" in said and "run is unfinished" not in said and "**Not shown:**" in said


@pytest.mark.parametrize(
    "where",
    [
        [(in_monitor, 0), (before_checkpoint, 0)],
        [(at_step, 2), (before_checkpoint, STEPS)],
        [(at_step, 7), (at_step, 9)],
    ],
    ids=["start", "end", "between"],
)
def test_a_resumed_run_loses_nothing_and_repeats_nothing(
    where: list, make: Callable[..., Config], say: Console
) -> None:
    config = make(FEW)
    for seconds, (plant, step) in zip((120, 60), where, strict=True):
        killed(config, say, plant, step, seconds)
    events = read(train(config, say))
    assert {name: len(points) for name, points in texts(events).items()} == dict.fromkeys(TEXTS, 1)
    assert {"probabilistic", "training"} <= charts_in(events).keys()
    assert hyperparameters(events)[0]["optim.lr"] == 3e-3


def test_an_extended_run_has_the_verdict_of_each_end(run: Callable[..., Path]) -> None:
    run({**FEW, "run.tokens": 7 * BATCH})
    events = read(run(FEW))
    assert [step for step, _ in texts(events)["verdict"]] == [7, STEPS]
    assert len(texts(events)["config"]) == 1 and charts_in(events)


@pytest.mark.parametrize(("changes", "end"), [(keys("stop"), 6), (DECAY, 9)], ids=["stop", "decay"])
def test_a_run_that_ends_early_has_its_verdict_and_a_chart_of_its_decisions(
    changes: dict, end: int, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lccp_sim.train.window.stopping.decide", saturated_from(6))
    directory = run(changes)
    events = read(directory)
    assert [step for step, _ in texts(events)["verdict"]] == [end]
    assert charts_in(events)["training"]["stopping/saturated_frac"] == ["^stopping/saturated_frac$"]
    assert set(hyperparameters(events)[1]) == set(scalars(directory))


def test_a_fault_in_the_verdict_costs_no_checkpoint(
    run: Callable[..., Path], say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(found: Any) -> Any:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(tensorboard, "verdict", fail)
    directory = run(FEW)
    assert (directory / "DONE").exists() and texts(read(directory))["verdict"] == [(STEPS, "No verdict: planted")]
    assert "warning: no verdict for TensorBoard (planted)" in say.file.getvalue()


def test_measured_checkpoints_have_the_layout_too(run: Callable[..., Path]) -> None:
    directory = run(FEW)
    assert main(["measure", str(directory)]) == 0
    found = charts_in(read(directory / "measured"))
    beside = ["^needle/hit_frac$", "^needle/sentence_hit_frac$"]
    assert found["probabilistic"]["needle, frac"] == beside and "training" not in found


def test_a_table_shows_what_is_plain_and_a_verdict_its_caution() -> None:
    assert markdown_table([{"source": "a", "share": 0.25, "by_length": {}, "tokens": 12345678}]) == [
        "| source | share | tokens |", "| --- | --- | --- |", "| a | 0.25 | 12345678 |",
    ]  # fmt: skip
    assert markdown_table([]) == ["|  |", "|  |"]
    from lccp_sim.analysis.report.verdict import Verdict

    said = in_markdown(Verdict(("One.", "Two.", "Three."), "Careful.", [("Scale", "Four.")], ["Five."], []))
    assert said == "One.\n\nTwo.\n\nThree.\n\nCareful.\n\n**Scale.** Four.\n\n**Not shown:**\n\n- Five."
