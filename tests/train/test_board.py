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

from lccp_sim.analysis.findings import examine
from lccp_sim.analysis.metrics import METRICS, metric_of
from lccp_sim.analysis.report.verdict import COLUMNS, verdict, verdict_markdown
from lccp_sim.analysis.run import load_run
from lccp_sim.cli import main
from lccp_sim.config import Config
from lccp_sim.errors import ConfigError
from lccp_sim.records import overall_name, read_records
from lccp_sim.train.run import train
from lccp_sim.train.saved.run_directory import read_config, run_directory
from lccp_sim.train.window import tensorboard
from lccp_sim.train.window.tensorboard import charts, corpus_markdown, keys_of
from tests.train.conftest import blank_images
from tests.train.test_resume import at_step, before_checkpoint, cells, images, in_monitor, killed, scalars
from tests.train.test_stopping import DECAY, FEW, keys, saturated_from
from tests.train.tiny import BATCH, STEPS

TEXTS = ("what was run/config", "what was run/corpus", "verdict")


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here each run has its verdict, and no map is drawn."""
    monkeypatch.setattr("lccp_sim.train.window.logs.window_images", blank_images)


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
    found, shown = charts_in(read(finished)), set(scalars(finished))
    assert list(found) == ["behavioural", "probabilistic", "mechanistic", "training"]
    patterns = [(tier, tag) for tier, group in found.items() for tags in group.values() for tag in tags]
    tiers = {overall_name(r): r.tier for r in read_records(finished / "records.jsonl")[0]}
    for name in shown:
        assert [tier for tier, tag in patterns if re.match(tag, name)] == [tiers[name]], name  # as TensorBoard matches
    assert len(patterns) == len(shown) <= 60


def test_a_chart_has_one_quantity_in_one_unit_and_a_title_of_its_own(finished: Path) -> None:
    found = [chart for group in charts_in(read(finished)).values() for chart in group.items()]
    assert len({title for title, _ in found}) == len(found) > 20
    for title, tags in found:
        names = [re.sub(r"\\(.)", r"\1", tag).strip("^$") for tag in tags]
        assert metric_of(*min(names, key=len).split("/")).title == title
        assert len({name.replace("/sentence_", "/") for name in names}) == 1, title
        assert len({name.rpartition("_")[2] for name in names}) == 1, title
    assert dict(found)["heads > 0.1, count"] == ["^heads/retrieval_heads_count$"]
    assert dict(found)["needle hit, fraction of items"] == ["^needle/hit_frac$", "^needle/sentence_hit_frac$"]


def test_counts_of_what_a_number_rests_on_have_no_chart_and_stay_in_the_records(finished: Path) -> None:
    tallies = {each.key for each in METRICS if each.tallies}
    assert tallies == {
        "heads/answer_tokens_count", "heads/null_heads_count", "perplexity/key_tokens_count",
        "intervention/masked_heads_count", "train/pairs_count",
    }  # fmt: skip
    assert not {*tallies, "tokens"} & scalars(finished).keys()
    recorded = {overall_name(r) for r in read_records(finished / "records.jsonl")[0]}
    assert "heads/answer_tokens_count" in recorded and "heads/retrieval_heads_count" in scalars(finished)


def test_a_layout_is_by_tier_in_the_order_of_the_catalogue() -> None:
    rows = [("training", "train", "lr"), ("mechanistic", "mine", "depth"), ("probabilistic", "needle", "answer_ppl")]
    more = [("probabilistic", "needle", "sentence_hit_frac"), ("probabilistic", "needle", "hit_frac")]
    made = charts([*rows, *more, rows[0]])
    assert [(tier, list(group)) for tier, group in made.items()] == [
        ("probabilistic", ["needle hit, fraction of items", "needle perplexity"]),
        ("mechanistic", ["mine depth"]),
        ("training", ["learning rate"]),
    ]
    assert made["training"]["learning rate"] == ["Multiline", ["^train/lr$"]]


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
        "what was run/config": [0], "what was run/corpus": [0], "verdict": [STEPS],
    }  # fmt: skip
    config, corpus = (found[f"what was run/{name}"][0][1] for name in ("config", "corpus"))
    assert "rope:\n    base: 10000" in config and config.startswith("```yaml\nseed: 0\n")
    lines = corpus.splitlines()
    assert lines[0] == "| source | kind | share | documents | tokens | held out tokens | cut tokens |"
    assert lines[2].startswith("| prose | text_files |")


def test_the_verdict_is_the_table_of_the_report(finished: Path) -> None:
    [(_, text)] = texts(read(finished))["verdict"]
    assert text == verdict_markdown(verdict(examine(load_run(finished))))
    assert f"| {' | '.join(COLUMNS)} |" in text and "| needle hit |" in text
    assert min(texts(read(finished))) == "verdict", "TensorBoard opens the first by name"


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
    found = {name: [step for step, _ in points] for name, points in texts(events).items()}
    assert found == dict.fromkeys(TEXTS, [0]) | {"verdict": found["verdict"]}
    assert found["verdict"] == sorted(set(found["verdict"])) and found["verdict"][-1] == STEPS
    assert {"probabilistic", "training"} <= charts_in(events).keys()
    assert hyperparameters(events)[0]["optim.lr"] == 3e-3


def test_an_extended_run_has_the_verdict_of_each_end_and_of_a_sixth_window(
    run: Callable[..., Path],
) -> None:
    run({**FEW, "run.tokens": 7 * BATCH})
    events = read(run(FEW))
    assert [step for step, _ in texts(events)["verdict"]] == [7, 8, STEPS], "its end, the sixth window, its end"
    assert len(texts(events)["what was run/config"]) == 1 and charts_in(events)


@pytest.mark.parametrize(("changes", "end"), [(keys("stop"), 6), (DECAY, 9)], ids=["stop", "decay"])
def test_a_run_that_ends_early_has_its_verdict_and_a_chart_of_its_decisions(
    changes: dict, end: int, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lccp_sim.train.window.stopping.decide", saturated_from(6))
    directory = run(changes)
    events = read(directory)
    assert texts(events)["verdict"][-1][0] == end
    title = "monitored metrics that are saturated, fraction"
    assert charts_in(events)["training"][title] == ["^stopping/saturated_frac$"]
    assert set(hyperparameters(events)[1]) == set(scalars(directory))


def test_a_fault_in_the_verdict_costs_no_checkpoint(
    run: Callable[..., Path], say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Any) -> Any:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(tensorboard, "first_screen", fail)
    directory = run(FEW)
    assert (directory / "DONE").exists() and texts(read(directory))["verdict"][-1] == (STEPS, "No verdict: planted")
    assert "warning: no verdict for TensorBoard (planted)" in say.file.getvalue()


def test_measured_checkpoints_have_the_layout_too(run: Callable[..., Path]) -> None:
    directory = run(FEW)
    assert main(["measure", str(directory)]) == 0
    found = charts_in(read(directory / "measured"))
    beside = ["^needle/hit_frac$", "^needle/sentence_hit_frac$"]
    assert found["probabilistic"]["needle hit, fraction of items"] == beside and "training" not in found


def test_the_axis_is_tokens_where_it_is_asked_for(make: Callable[..., Config], say: Console) -> None:
    in_tokens = {**FEW, "run.tensorboard_axis": "tokens"}
    killed(config := make(in_tokens), say, at_step, 7, 120)
    directory = train(config, say)
    assert directory.name == run_directory(make(FEW), None).name, "a matter of display names no directory"
    records = read_records(directory / "records.jsonl")[0]
    expected = [r.tokens for r in records if overall_name(r) == "needle/hit_frac"]
    assert [place for place, _ in scalars(directory)["needle/hit_frac"]] == expected
    assert set(images(directory)["needle/hit"]) == set(expected)
    assert texts(read(directory))["verdict"][-1][0] == STEPS * BATCH
    assert {step for step, _ in cells(directory)} <= {r.step for r in records}, "others keep the steps"
    with pytest.raises(ConfigError, match="tensorboard_axis"):
        train(make(FEW), say)


def test_the_table_of_the_corpus_is_for_people() -> None:
    row = {"source": "a", "kind": "text", "share": 0.25, "documents": 5, "tokens": 12345678, "by_length": {}}
    assert corpus_markdown([row | {"held_out_tokens": 940, "cut_token_frac": 0.071}])[2:] == [
        "| a | text | 25 % | 5 | 12.3M | 940 | 7 % |"
    ]
