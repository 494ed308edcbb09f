"""What a run promises: same config same bytes, no trace of monitors, no role of micro-batches, extension."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from rich.console import Console

from lccp_sim.config import Config, OptimConfig
from lccp_sim.configure.load import load_config, window_steps, windows_of
from lccp_sim.data.pools import Corpus, open_corpus
from lccp_sim.errors import ConfigError, NotFinite
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.models.transformer import Transformer, initialise
from lccp_sim.monitors import MONITORS
from lccp_sim.monitors.monitor import Monitor, Pass
from lccp_sim.monitors.values import Moment
from lccp_sim.records import Record, read_records
from lccp_sim.train.loop.module import LccpModule
from lccp_sim.train.objectives.lm import feed_of
from lccp_sim.train.parallel.sharding import clip
from lccp_sim.train.run import train
from lccp_sim.train.saved.run_directory import claim, run_directory
from lccp_sim.train.window import suite
from lccp_sim.train.window.suite import HeadHistory, MonitorSuite
from tests.train.tiny import BATCH, STEPS, WINDOWS, assert_same_run, final, records, samples

ALL = ("needle", "perplexity", "induction", "intervention", "heads", "routing", "probe")
UNWATCHED = {f"monitors.{name}": None for name in ALL}


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in records(directory).splitlines()]


@dataclass(frozen=True, kw_only=True)
class Size(Monitor):
    """A monitor of a plug-in: the norm of the hidden states over one held-out stretch of `context_tokens`."""

    context_tokens: int
    kind: Literal["size"] = "size"
    tier: ClassVar[str] = "mechanistic"

    def prepare(self, corpus: Corpus) -> np.ndarray:
        return np.asarray(corpus.held_out("prose")[0][: self.context_tokens], dtype=np.int64)

    def score(self, model: LanguageModel, items: np.ndarray) -> float:
        return float(model(torch.from_numpy(items)[None].to(model.device)).hidden_BTD.norm(dim=-1).mean())

    def passes(self) -> list[Pass]:
        return [Pass(1, self.context_tokens)]

    def aggregate(self, measured: float, moment: Moment) -> list[Record]:
        return [Record(*moment, self.tier, "size", "hidden_norm", measured, 1)]


def test_a_new_monitor_is_a_class_and_a_line_in_the_table(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MONITORS, "size", Size)
    directory = run({**UNWATCHED, "monitors.size": {"context_tokens": 32}})
    found = [row for row in rows(directory) if row["monitor"] == "size"]
    assert [row["step"] for row in found] == list(WINDOWS) and all(row["value"] > 0 for row in found)
    assert {row["metric"] for row in found} == {"hidden_norm"}
    charts = [path.read_text() for path in directory.glob("csv/**/metrics.csv")]
    assert any("size/hidden_norm" in chart for chart in charts), "the loggers have it, too"


def losses(directory: Path) -> dict[str, list[float]]:
    """The training records of a run by metric."""
    found: dict[str, list[float]] = {}
    for row in rows(directory):
        if row["monitor"] == "train":
            found.setdefault(row["metric"], []).append(row["value"])
    return found


def test_the_same_config_in_another_directory_writes_the_same_bytes(run: Callable[..., Path], finished: Path) -> None:
    again = run()
    assert again.name == finished.name and again != finished
    assert_same_run(again, finished)


def test_another_seed_writes_others(run: Callable[..., Path], finished: Path) -> None:
    assert records(run({"seed": 1})) != records(finished)


def test_another_order_reads_the_same_rows_of_the_same_text_in_another_order(make: Callable[..., Config]) -> None:
    configs = {order: make({"data.order_seed": order}) for order in (None, 0, 7)}
    corpora = {order: open_corpus(c.data, c.run.context_tokens, c.seed) for order, c in configs.items()}
    assert len({corpus.hash for corpus in corpora.values()}) == 1
    read = {}
    for order, corpus in corpora.items():
        feed, sizes = feed_of(corpus, configs[order]), [len(pool) for pool in corpus.pools]
        epoch = [i for i in range(400) if all((corpus.mixture.drawn(4 * (i + 1)) <= sizes).tolist())]
        read[order] = [row.tobytes() for i in epoch for row in feed.batch(i).tokens_BT]
    assert read[None] == read[0] != read[7] and len(read[7]) > 8
    places = {order: run_directory(config, None) for order, config in configs.items()}
    assert len(set(places.values())) == 3, "what is asked for is in the name"
    with pytest.raises(ConfigError, match="data.order_seed=-1"):
        make({"data.order_seed": -1})


def test_there_is_one_record_for_each_thing_measured(finished: Path) -> None:
    found = rows(finished)
    keys = [(row["step"], row["monitor"], row["metric"], json.dumps(row["tags"], sort_keys=True)) for row in found]
    assert len(keys) == len(set(keys))
    steps = {
        name: sorted({row["step"] for row in found if row["monitor"] == name})
        for name in {row["monitor"] for row in found}
    }
    assert steps["needle"] == steps["heads"] == steps["perplexity"] == steps["routing"] == WINDOWS
    assert steps["probe"] == steps["intervention"] == [0, 6, 12]
    assert sorted({row["step"] for row in found if row["tags"].get("samples") == "longbio"}) == [0, 4, 8, 12]
    assert steps["train"] == [2, 4, 6, 8, 10, 12]
    assert all(row["tokens"] == row["step"] * BATCH for row in found)


def test_the_norm_of_large_gradients_is_that_of_fp64_and_they_are_clipped_to_the_limit() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2**20)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.full((2**20,), 1e-2)  # squares that a sum in fp32 has lost 0.1 % of by the end
        weight.grad[0] = 30.0
    exact = torch.stack([weight.grad.double() for weight in weights]).norm().item()  # type: ignore[union-attr]
    norm = clip(weights, 1.0)
    assert norm.dtype == torch.float32 and norm.item() == pytest.approx(exact, rel=1e-7)
    clipped = torch.stack([weight.grad.double() for weight in weights]).norm().item()  # type: ignore[union-attr]
    assert clipped == pytest.approx(1.0, rel=1e-5)


def test_monitors_leave_no_trace_in_training(run: Callable[..., Path], finished: Path) -> None:
    unwatched = run(UNWATCHED)
    assert {row["monitor"] for row in rows(unwatched)} == {"train"}
    assert losses(unwatched) == losses(finished)
    mine, theirs = (
        torch.load(path / "checkpoints" / "last-00000010.ckpt", weights_only=True) for path in (unwatched, finished)
    )
    for key in mine["state_dict"]:
        assert torch.equal(mine["state_dict"][key], theirs["state_dict"][key])
    assert any(value.any() for key, value in mine["state_dict"].items() if "bias_E" in key)
    [mine], [theirs] = mine["optimizer_states"], theirs["optimizer_states"]
    for index, state in mine["state"].items():
        assert all(torch.equal(state[key], theirs["state"][index][key]) for key in state)
    assert mine["param_groups"] == theirs["param_groups"]


@pytest.mark.parametrize("training", [True, False])
def test_a_look_leaves_the_model_and_the_random_states_as_they_were(
    make: Callable[..., Config], training: bool
) -> None:
    config = make()
    corpus = open_corpus(config.data, config.run.context_tokens, config.seed)
    model = initialise(Transformer(config.model, corpus.vocab_size), 0)
    model.blocks[0].moe.eval()  # a part that differs from the whole must stay different
    model.train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    suite = MonitorSuite(config.monitors.watch, corpus, [0])
    seen = suite.measure(model, Moment(0, 0), HeadHistory([], [0]))
    assert {value.monitor for value in seen.values} == set(ALL) - {"routing"}
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0]) and np.array_equal(np.random.get_state()[1], states[1])
    assert model.training == training and torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert suite.measure(model, Moment(0, 0), HeadHistory([], [0])).records == seen.records


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_four_micro_batches_equal_one(packing: str, run: Callable[..., Path]) -> None:
    keys = {**UNWATCHED, "data.packing": packing}
    whole = run({**keys, "run.name": "whole"})
    parts = run({**keys, "run.name": "parts", "run.micro_batch_tokens": BATCH // 4})
    [prose] = [each for each in json.loads((whole / "corpus.json").read_text())["sources"] if each["source"] == "prose"]
    assert (prose["padding_frac"] > 0) == (packing == "best_fit")
    for metric, values in losses(whole).items():
        assert losses(parts)[metric] == pytest.approx(values, rel=1e-5, abs=1e-7)
    one, four = final(whole), final(parts)
    assert all(torch.allclose(one[key], four[key], rtol=0, atol=1e-5) for key in one)
    moved = {key: value for key, value in one.items() if "bias_E" in key}
    assert len(moved) == 2 and all(torch.equal(value, four[key]) and value.any() for key, value in moved.items())


def test_a_resumed_run_with_micro_batches_equals_the_uninterrupted_one(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**UNWATCHED, "run.micro_batch_tokens": BATCH // 2, "run.log_every_steps": 1}
    whole = run({**keys, "run.name": "whole"})
    plain = LccpModule.training_step

    def stop(self: LccpModule, batch: Any, index: int) -> Any:
        if self.global_step == 7 and index % 2:
            raise KeyError("stopped")
        return plain(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(LccpModule, "training_step", stop)
        with pytest.raises(KeyError, match="stopped"):
            run({**keys, "run.name": "parts"})
    assert records(run({**keys, "run.name": "parts"})) == records(whole)


def test_a_resumed_module_sees_the_batches_of_the_uninterrupted_one(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = LccpModule.training_step, []

    def keep(self: LccpModule, batch: Any, index: int) -> Any:
        seen.append((self.global_step, batch["tokens_BT"].tolist(), batch["target_count"], batch["names"]))
        if stop_at == self.global_step:
            raise KeyError("stopped")
        return plain(self, batch, index)

    monkeypatch.setattr(LccpModule, "training_step", keep)
    stop_at = 8
    with pytest.raises(KeyError, match="stopped"):
        run({**UNWATCHED, "monitors.first_window_tokens": None})
    stop_at = -1
    run({**UNWATCHED, "monitors.first_window_tokens": None})
    assert [step for step, *_ in seen] == [*range(9), *range(5, STEPS)]
    assert seen[5:9] == seen[9:13]
    assert len({str(batch) for _, batch, *_ in seen}) == STEPS


def test_the_monitors_see_the_model_in_the_precision_of_the_run_or_in_their_own(run: Callable[..., Path]) -> None:
    keys = {f"monitors.{name}": None for name in ("heads", "intervention", "routing")} | {"run.tokens": 2 * BATCH}

    def seen(**changes: str) -> dict[tuple, float]:
        given = {f"{group}.precision": value for group, value in changes.items()}
        found = read_records(run(keys | given | {"run.name": "-".join(changes)}) / "records.jsonl")[0]
        return {r.key: r.value for r in found if r.monitor != "train"}

    half, exact = seen(run="bf16"), seen(run="bf16", monitors="fp32")
    assert half.keys() == exact.keys()
    start = [key for key in half if key[0] == 0 and key[2].endswith("nll_nats")]  # of the same weights
    assert [half[key] for key in start] != [exact[key] for key in start]
    assert [half[key] for key in start] == pytest.approx([exact[key] for key in start], rel=0.01)
    assert seen(monitors="bf16").keys() == half.keys()
    with pytest.raises(ConfigError, match="monitors.precision='half': input should be 'fp32' or 'bf16'"):
        seen(monitors="half")


def scattered(records: list[Record], metric: str = "copy_hard_frac") -> dict[str, np.ndarray]:
    """Head scores that differ from window to window, in the place of those of a model that copies nothing yet."""
    found = {(record.step, record.tags.get("samples", "")) for record in records if record.metric == metric}
    return {name: np.random.default_rng((step, len(name))).random((2, 2)) for step, name in found}


def test_the_grid_of_an_extended_run_is_that_of_a_longer_one(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "head_scores", scattered)
    keys = {f"monitors.{name}": None for name in ("perplexity", "induction", "intervention", "routing", "probe")}
    longer = rows(run({**keys, "run.name": "longer"}))
    run({**keys, "run.tokens": 7 * BATCH})
    extended = rows(run(keys))
    assert [row for row in extended if row["step"] != 7] == longer
    assert {row["value"] for row in longer if row["tags"].get("against") == "previous"} > {1.0}


def test_more_tokens_extend_a_finished_run(
    make: Callable[..., Config], run: Callable[..., Path], finished: Path
) -> None:
    short = run({"run.tokens": 7 * BATCH})
    first = records(short)
    assert windows_of(make({"run.tokens": 7 * BATCH})) == [0, 3, 4, 6, 7]
    assert run() == short and json.loads((short / "DONE").read_text())["tokens"] == STEPS * BATCH
    assert records(short).startswith(first)
    assert [row for row in rows(short) if row["step"] != 7] == rows(finished)
    assert {name: data for name, data in samples(short).items() if "07" not in name} == samples(finished)
    assert all(torch.equal(value, final(finished)[key]) for key, value in final(short).items())


def test_what_changes_the_numbers_changes_the_directory(make: Callable[..., Config]) -> None:
    from lccp_sim.train.saved.run_directory import run_directory

    base = run_directory(make(), None)
    for key, value in {"optim.lr": 1e-4, "seed": 1, "model.d_expert": 32, "data.held_out_frac": 0.2}.items():
        assert run_directory(make({key: value}), None) != base
    for key, value in {
        "run.tokens": 99 * BATCH,
        "run.threads": 2,
        "data.cache": "elsewhere",
        "data.mirror": "elsewhere",
    }.items():
        assert run_directory(make({key: value}), None) == base
    cosine = {"optim.schedule": "cosine"}
    assert run_directory(make(cosine), None) != run_directory(make({**cosine, "run.tokens": 99 * BATCH}), None)
    assert run_directory(make(), "weights") != base


def test_a_loss_that_is_not_finite_stops_the_run_and_loses_nothing(
    run: Callable[..., Path], make: Callable[..., Config], say: Console, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LccpModule.training_step

    def poison(self: LccpModule, batch: Any, index: int) -> Any:
        if self.global_step == 9:
            self.model.norm.weight.data[0] = math.nan
        return plain(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(LccpModule, "training_step", poison)
        with pytest.raises(NotFinite) as caught:
            run()
    message = str(caught.value)
    assert "nan at step 10, on documents " in message and ".txt" in message and "\n" not in message
    assert "window-00000008.ckpt" in message
    assert_same_run(run(), finished)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_touched(
    run: Callable[..., Path], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LccpModule.training_step

    def poison(self: LccpModule, batch: Any, index: int) -> Any:
        loss = plain(self, batch, index)
        return loss * math.inf if self.global_step == 6 else loss

    with monkeypatch.context() as patch:
        patch.setattr(LccpModule, "training_step", poison)
        with pytest.raises(NotFinite, match="gradient norm is (inf|nan) at step 7, on documents .*window-00000006"):
            run()
    assert_same_run(run(), finished)


def test_the_learning_rate_follows_its_schedule(run: Callable[..., Path]) -> None:
    keys = {**UNWATCHED, "run.log_every_steps": 1, "optim.schedule": "cosine", "optim.final_lr_frac": 0.1}
    lr = losses(run(keys))["lr"]
    assert lr[:3] == pytest.approx([1e-3, 2e-3, 3e-3]) and lr[3] == pytest.approx(3e-3)
    assert lr[3:] == sorted(lr[3:], reverse=True) and 3e-4 < lr[-1] < 5e-4


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 0.25, 3: 1.0, 4: 1.0, 19: 1.0}),
        ("linear", {0: 0.25, 3: 1.0, 4: 1.0, 12: 0.5, 19: 1 / 16, 20: 0.0}),
        ("cosine", {0: 0.25, 4: 1.0, 12: 0.6, 20: 0.2, 25: 0.2}),
        ("wsd", {0: 0.25, 4: 1.0, 11: 1.0, 12: 1.0, 16: 0.6, 19: 0.3, 20: 0.2, 25: 0.2}),
    ],
)
def test_schedules_at_the_steps_that_matter(schedule: Any, expected: dict[int, float]) -> None:
    decay = 8 if schedule == "wsd" else None
    optim = OptimConfig(lr=1.0, schedule=schedule, warmup_steps=4, final_lr_frac=0.2, decay_steps=decay)
    assert {step: optim.factor(step, 20) for step in expected} == pytest.approx(expected)


def test_windows_lie_on_a_grid_of_tokens_that_runs_share() -> None:
    assert window_steps(1000, 100, 60) == [0, 10, 14, 20, 28, 40, 57, 60]
    assert window_steps(1000, 100, 40) == [0, 10, 14, 20, 28, 40]
    assert window_steps(1000, 200, 30) == [0, 5, 7, 10, 14, 20, 28, 30]
    assert window_steps(None, 100, 60) == [0, 60]
    assert window_steps(1, 100, 4) == [0, 1, 2, 3, 4]
    assert window_steps(10**9, 100, 4) == [0, 4]


def test_a_window_of_every_monitor_is_shown_in_one_line(say: Any, make: Callable[..., Config]) -> None:
    train(make({"run.tokens": BATCH}), say)
    [line] = [line for line in say.file.getvalue().splitlines() if line.startswith("step      1 ")]
    assert "256 tokens | hit " in line and "answer NLL" in line and "probe" in line


def test_the_config_of_a_run_is_on_disk_and_reads_back(finished: Path, make: Callable[..., Config]) -> None:
    import yaml

    plain = yaml.safe_load((finished / "config.yaml").read_text())
    assert plain["run"].pop("tokens_before") == 0
    plain["run"]["root"] = make().run.root
    assert load_config(plain) == make()


def test_times_are_kept_apart_from_records(finished: Path) -> None:
    timing = [json.loads(line) for line in (finished / "timing.jsonl").read_text().splitlines()]
    trained = [row for row in timing if row["what"] == "train"]
    assert [row["step"] for row in trained] == WINDOWS[1:]
    assert sum(row["forward_tokens"] for row in trained) == STEPS * BATCH
    assert {row["what"] for row in timing} == {
        "train",
        *(f"monitor:{name}" for name in ALL),
    }
    assert "seconds" not in records(finished).decode()


def test_what_a_killed_writer_left_in_part_goes_wherever_it_lies(tmp_path: Path) -> None:
    kept = tmp_path / "csv" / "from_step_00000000" / "metrics.csv"
    parts = [".config.yaml.7.tmp", "reference/.prose.npz.7.tmp", "csv/from_step_00000000/.metrics.csv.7.tmp"]
    folder = tmp_path / "checkpoints" / ".last-00000002.ckpt.tmp"
    for path in (kept, *(tmp_path / name for name in parts), folder / ".metadata.tmp"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with claim(tmp_path):
        assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == [kept]
        assert not folder.exists()
