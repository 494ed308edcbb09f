"""The monitors in a plain loop: `suite.measure(model, step, tokens)` where its owner likes."""

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lccp_sim.analysis.run import load_run
from lccp_sim.cli import main
from lccp_sim.configure.compose import check
from lccp_sim.errors import ConfigError
from lccp_sim.monitors.values import Moment
from lccp_sim.records import read_records
from lccp_sim.sums import check_sums, read_sums
from lccp_sim.train.parallel.ranks import joined
from lccp_sim.train.window.own_loop import LoopSuite, Windows
from tests.train.others import fast_tokenizer, looking, measured_after, tiny
from tests.train.test_parallel import ended, start

TOKENS = 128  # of a step: those of `measured_after`


def suite_of(measuring: Path, out: Path, windows: Windows | None = None, **given: Any) -> LoopSuite:
    return LoopSuite(looking(measuring), out, measuring / "tokenizer.json", windows, say=lambda line: None, **given)


def loop(model: Any, suite: LoopSuite | None, first: int = 0, last: int = 4, keep: Path | None = None) -> list[float]:
    """The losses of a loop with dropout that saves each step, and measures where the suite says."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = torch.randint(2, 300, (8, 2, 32), generator=torch.Generator().manual_seed(1))
    model.train()
    losses = []
    for step in range(first, last + 1):
        torch.manual_seed(step)
        if suite is not None and suite.due(step, step * TOKENS):
            suite.measure(model, step, step * TOKENS)
        if keep is not None:
            model.save_pretrained(keep / f"{step}")
        torch.rand(1)
        loss = model(input_ids=rows[step], labels=rows[step]).loss
        loss.backward()
        losses.append(loss.item())
        if step < last:
            optimizer.step()
        optimizer.zero_grad()
    return losses


def test_the_loop_does_not_notice_and_the_records_are_those_of_its_checkpoints(
    measuring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = suite_of(measuring, tmp_path / "out", Windows(steps=[0, 2, 4]))
    watched, alone = tiny("llama"), tiny("llama")
    watched.lm_head.eval()  # a mode of its own
    assert loop(watched, suite, keep=tmp_path / "kept") == loop(alone, None)
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))
    for step in (0, 2, 4):
        fast_tokenizer(measuring).save_pretrained(tmp_path / "kept" / f"{step}")
    after = measured_after(measuring, {n: tmp_path / "kept" / f"{n}" for n in (0, 2, 4)}, tmp_path / "after")
    assert (tmp_path / "out" / "records.jsonl").read_text() == after
    assert (tmp_path / "out" / "measured.yaml").read_bytes() == (tmp_path / "after" / "measured.yaml").read_bytes()
    assert main(["compare", str(tmp_path / "out"), str(tmp_path / "after")]) == 0  # though one tokenizer is a copy
    assert "tokenizers" not in capsys.readouterr().out


def test_modes_gradients_and_random_states_are_left_as_they_were(measuring: Path, tmp_path: Path) -> None:
    model = tiny("llama").train()
    model.lm_head.eval()
    model(input_ids=torch.ones(1, 8, dtype=torch.int64), labels=torch.ones(1, 8, dtype=torch.int64)).loss.backward()
    modes = [module.training for module in model.modules()]
    gradients = [weight.grad.clone() for weight in model.parameters()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    suite_of(measuring, tmp_path / "out").measure(model, 1, 128)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b.grad) for a, b in zip(gradients, model.parameters(), strict=True))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_a_resumed_loop_writes_the_same_records(measuring: Path, tmp_path: Path) -> None:
    """Killed in the middle of the window at step 4, it goes on from a checkpoint of step 2."""
    windows = Windows(steps=[0, 2, 4])
    loop(tiny("llama"), suite_of(measuring, tmp_path / "whole", windows))
    model = tiny("llama")
    loop(model, suite_of(measuring, tmp_path / "parts", windows), last=2)
    whole = (tmp_path / "whole" / "records.jsonl").read_text()
    torn = [line for line in whole.splitlines(keepends=True) if '"step": 4,' in line]
    with (tmp_path / "parts" / "records.jsonl").open("a") as file:
        file.write("".join(torn[:3]) + torn[3][:20])
    again = suite_of(measuring, tmp_path / "parts", windows, start=4)  # its window was not written to the end
    assert again.last.step == 2 and not again.due(2, 256) and again.due(4, 512)
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = torch.randint(2, 300, (8, 2, 32), generator=torch.Generator().manual_seed(1))
    for step in (2, 3):
        torch.manual_seed(step)
        torch.rand(1)
        model(input_ids=rows[step], labels=rows[step]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    again.measure(model, 4, 512)
    assert (tmp_path / "parts" / "records.jsonl").read_text() == whole
    assert again.measure(model, 4, 512) == []


def test_a_window_has_its_sums_and_resuming_keeps_them_true(measuring: Path, tmp_path: Path) -> None:
    suite, model = suite_of(measuring, tmp_path), tiny("llama")
    for step in (0, 2, 4):
        suite.measure(model, step, step * TOKENS)
    known = read_sums(tmp_path)
    assert {"records.jsonl", "timing.jsonl", "samples/00000004.parquet"} <= known.keys()
    again = suite_of(measuring, tmp_path, start=2)
    check_sums(tmp_path)
    assert known.keys() - read_sums(tmp_path).keys() == {"samples/00000004.parquet"}
    again.measure(model, 4, 4 * TOKENS)
    assert {name: sums for name, sums in read_sums(tmp_path).items() if name != "timing.jsonl"} == {
        name: sums for name, sums in known.items() if name != "timing.jsonl"
    }
    records = tmp_path / "records.jsonl"
    records.write_text(records.read_text().replace('"value": ', '"value": 1', 1))
    with pytest.raises(ConfigError, match="records.jsonl: is damaged or was edited"):
        suite_of(measuring, tmp_path, start=4)


def test_windows_at_tokens_are_due_once_and_others_when_asked(measuring: Path, tmp_path: Path) -> None:
    suite, model = suite_of(measuring, tmp_path / "out", Windows(tokens=[0, 100, 250])), tiny("llama")
    due = []
    for step, tokens in enumerate((0, 60, 120, 180, 300)):
        if suite.due(step, tokens):
            due.append(step)
            suite.measure(model, step, tokens)
    suite.measure(model, 9, 900)
    assert due == [0, 2, 4]
    found = read_records(tmp_path / "out" / "records.jsonl")[0]
    assert sorted({r.step for r in found}) == [0, 2, 4, 9]
    assert {r.tags["against"] for r in found if r.step == 9 and r.metric == "spearman"} == {"previous", "first"}


def test_bad_calls_are_one_line(measuring: Path, tmp_path: Path) -> None:
    suite, model = suite_of(measuring, tmp_path / "out"), tiny("llama")
    suite.measure(model, 2, 256)
    with pytest.raises(ConfigError, match="comes after step 2 with 256 tokens; both must grow; after a restart"):
        suite.measure(model, 1, 128)
    with pytest.raises(ConfigError, match="tokens=2: must be the tokens of all 3 steps so far"):
        suite.due(3, 2)
    with pytest.raises(ConfigError, match=r"holds records already; give the step to go on from \(start=STEP\)"):
        suite_of(measuring, tmp_path / "out")
    with pytest.raises(ConfigError, match="start=-1: must be the step of the checkpoint to go on from, or 0"):
        suite_of(measuring, tmp_path / "out", start=-1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    with pytest.raises(ConfigError, match="run: is a run of lccp-sim, whose records would be lost"):
        suite_of(measuring, tmp_path / "run")
    with pytest.raises(ConfigError, match="steps and tokens are both given; name one"):
        Windows([1], [2])
    with pytest.raises(ConfigError, match=r"tokens=\[-1\] must be integers >= 0"):
        Windows(tokens=[-1])


def test_going_on_with_other_settings_is_refused_and_nothing_is_dropped(measuring: Path, tmp_path: Path) -> None:
    suite, model = suite_of(measuring, tmp_path, Windows(steps=[2, 4])), tiny("llama")
    for step in (2, 4):
        suite.measure(model, step, step * TOKENS)
    kept = (tmp_path / "records.jsonl").read_bytes()
    other = check(["run=look", "monitors.needle.seed=7"], measuring / "configs")
    with pytest.raises(
        ConfigError, match="other settings: monitors.needle.seed .0 there, 7 now.; give the same"
    ) as said:
        LoopSuite(other, tmp_path, measuring / "tokenizer.json", start=2)
    assert "\n" not in str(said.value) and (tmp_path / "records.jsonl").read_bytes() == kept
    again = suite_of(measuring, tmp_path, Windows(steps=[2, 4]), start=2)
    with pytest.raises(ConfigError, match="tokens=128: .* has 256 at step 2; was it begun with other tokens per step"):
        again.due(2, 128)


def test_close_marks_the_end_and_going_on_removes_the_mark(measuring: Path, tmp_path: Path) -> None:
    suite, model = suite_of(measuring, tmp_path), tiny("llama")
    suite.measure(model, 2, 256)
    assert not load_run(tmp_path).ended
    suite.close()
    assert load_run(tmp_path).ended
    suite_of(measuring, tmp_path, start=2)
    assert not load_run(tmp_path).ended


def test_many_windows_are_found_without_counting_them_all() -> None:
    windows = Windows(tokens=range(0, 2_000_000, 2))
    assert [windows.reached(Moment(step, step)) for step in (-1, 0, 1, 2, 1_999_999)] == [0, 1, 1, 2, 1_000_000]
    assert windows.count == 1_000_000
    started = time.perf_counter()
    for step in range(1000):
        windows.reached(Moment(step, step))
    assert time.perf_counter() - started < 1, "each of the steps would count a million"


def test_sharded_weights_are_refused_in_one_line(measuring: Path, tmp_path: Path) -> None:
    suite, model = suite_of(measuring, tmp_path / "out"), tiny("llama")
    next(model.parameters()).ds_id = 0  # as ZeRO-3 marks what it took apart
    with pytest.raises(ConfigError, match="sharded .* save checkpoints and run `lccp watch FOLDER`"):
        suite.measure(model, 2, 256)


def test_under_ddp_rank_0_measures_and_all_know(measuring: Path, tmp_path: Path) -> None:
    """Two processes; the records are those of one, and an error of rank 0 ends both."""
    suite_of(measuring, tmp_path / "one").measure(tiny("llama"), 1, 128)
    config = looking(measuring)

    def work(config: Any) -> None:
        with joined(config) as ranks:
            model = torch.nn.parallel.DistributedDataParallel(tiny("llama"))
            suite = suite_of(measuring, tmp_path / "two", Windows(steps=[1]))
            assert suite.due(1, 128) and len(suite.measure(model, 1, 128)) > 100 and not suite.due(1, 128)
            refused = pytest.raises(SystemExit) if ranks.rank else pytest.raises(ConfigError, match="holds records al")
            with refused:
                suite_of(measuring, tmp_path / "two")

    assert ended(start(config, 2, work=work)) == [0, 0]
    assert (tmp_path / "two" / "records.jsonl").read_text() == (tmp_path / "one" / "records.jsonl").read_text()
