"""The sidecar beside a job that saves checkpoints: half-written, deleted, out of order, of another shape."""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers as t
from rich.console import Console

from lccp_sim.analysis.run import load_run
from lccp_sim.cli import main
from lccp_sim.configure.compose import check
from lccp_sim.configure.load import load_config, plain_config
from lccp_sim.errors import ConfigError
from lccp_sim.records import read_records
from lccp_sim.train.saved.journal import Journal
from lccp_sim.verbs import sidecar as verb
from lccp_sim.verbs.sidecar import ITEM_SHARES, PATIENCE, Followed, watch, with_items
from tests.train.foreign import folder as saved
from tests.train.others import STEP_TOKENS, looking, measured_after, trainer

Act = Callable[[], object]


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The report takes seconds; one test has it."""
    if "report" not in request.node.name:
        monkeypatch.setattr(verb, "write_report", lambda out, tell: None)


class Job:
    """Another job: what it does between the glances of a sidecar, and what that says."""

    def __init__(self, measuring: Path, root: Path):
        self.measuring, self.root, self.folder = measuring, root, root / "job"
        self.folder.mkdir()
        self.console = Console(file=io.StringIO(), width=400, highlight=False)
        self.clock = 0.0

    @property
    def said(self) -> str:
        assert isinstance(self.console.file, io.StringIO)
        return self.console.file.getvalue()

    def kept(self, step: int, **changes: Any) -> Path:
        """A whole checkpoint elsewhere, with the weights of its step."""
        path = self.root / "kept" / f"checkpoint-{step}"
        return path if path.exists() else saved(self.measuring, path, seed=step, **changes)

    def save(self, step: int, name: str = "checkpoint-{}", **changes: Any) -> None:
        """Save one at once."""
        shutil.copytree(self.kept(step, **changes), self.folder / name.format(step), dirs_exist_ok=True)

    def begin(self, step: int) -> None:
        """Save half of one."""
        path = self.folder / f"checkpoint-{step}"
        shutil.copytree(self.kept(step), path)
        weights = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])

    def delete(self, step: int) -> None:
        shutil.rmtree(self.folder / f"checkpoint-{step}")

    def watched(self, *acts: Act, out: str = "out", **given: Any) -> int:
        """The exit status of a sidecar during these acts; three glances follow each, and it ends with the last."""
        script: Iterator[Act] = iter([act for each in acts for act in (each, int, int)])

        def wait(seconds: float) -> None:
            self.clock += seconds
            try:
                act = next(script)
            except StopIteration:
                raise KeyboardInterrupt from None
            act()

        given = {"tokens_per_step": STEP_TOKENS} | given
        followed = Followed(self.folder, looking(self.measuring), **given)
        return watch(followed, self.root / out, self.console, wait, lambda: self.clock)

    def records(self, out: str = "out") -> str:
        return (self.root / out / "records.jsonl").read_text()

    def expected(self, *steps: int) -> str:
        """The records of `lccp measure` on these checkpoints."""
        return measured_after(self.measuring, {n: self.kept(n) for n in steps}, self.root / "after")


@pytest.fixture
def job(measuring: Path, tmp_path: Path) -> Job:
    return Job(measuring, tmp_path)


def test_each_is_measured_once_it_is_whole_in_step_order_and_nothing_is_touched(job: Job) -> None:
    """10 is there at the start; 30 is whole before 20; 5 comes too late; 40 is deleted half-written, and 10 at last."""
    job.save(10)
    before: dict[str, Any] = {}

    def remember() -> None:
        before.update({str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in job.folder.rglob("*")})

    status = job.watched(
        int, lambda: job.begin(20), lambda: job.save(30), lambda: job.save(20), lambda: job.save(5),
        lambda: job.begin(40), lambda: job.delete(40), remember, lambda: job.delete(10), int,
    )  # fmt: skip
    assert status == 0 and job.records() == job.expected(10, 20, 30)
    assert "checkpoint-5: left out: too late, step 30 is measured already" in job.said
    assert "checkpoint-40: left out: deleted before it was measured" in job.said
    after = {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in job.folder.rglob("*")}
    assert after.items() <= before.items() and "stopped; the same command continues from here" in job.said
    for name in ("measured.yaml", "tokenizer.json"):
        assert (job.root / "out" / name).read_bytes() == (job.root / "after" / name).read_bytes()


def test_when_it_falls_behind_the_newest_goes_first_and_the_skipped_are_named(job: Job) -> None:
    job.save(10)
    job.watched(int, lambda: [job.save(n) for n in (20, 30, 40)], int)
    assert {r.step for r in read_records(job.root / "out" / "records.jsonl")[0]} == {10, 40}
    for n in (20, 30):
        assert f"checkpoint-{n}: left out: skipped, because checkpoint-40 is newer and waits, too" in job.said


def test_killed_and_restarted_it_writes_the_same_records(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it writes the window of 20; 30 appears while it is down."""
    job.save(10)
    plain = Journal.write_window

    def torn(self: Journal, step: int, records: Any, values: Any, timing: Any) -> None:
        if step == 20:
            self.write(records[:3])
            (self.directory / "records.jsonl").open("a").write('{"step": 20, "tok')
            raise SystemExit
        plain(self, step, records, values, timing)

    monkeypatch.setattr(Journal, "write_window", torn)
    with pytest.raises(SystemExit):
        job.watched(int, lambda: job.save(20), int)
    monkeypatch.undo()
    monkeypatch.setattr(verb, "write_report", lambda out, tell: None)
    job.save(30)
    job.watched(int, int)
    assert job.records() == job.expected(10, 20, 30)
    times = [json.loads(line) for line in (job.root / "out" / "timing.jsonl").read_text().splitlines()]
    assert len({(row["step"], row["what"]) for row in times}) == len(times)
    with pytest.raises(ConfigError, match="out: was begun with another tokens_per_step .128 there, 64 now.; give the"):
        job.watched(tokens_per_step=64)


def test_another_shape_is_left_out_also_after_a_restart(job: Job) -> None:
    job.save(10)
    job.watched(int, lambda: job.save(20, num_hidden_layers=1), int)
    job.save(30, num_hidden_layers=3)
    job.watched(int, int)
    assert {r.step for r in read_records(job.root / "out" / "records.jsonl")[0]} == {10}
    assert "checkpoint-20: left out: " in job.said and job.said.count("has another architecture") == 2
    job.save(40, hidden_size=48, head_dim=8)  # as many layers, heads and tokens
    job.watched(int, int)
    assert "checkpoint-40: left out: " in job.said and job.said.count("has another architecture") == 3
    assert {r.step for r in read_records(job.root / "out" / "records.jsonl")[0]} == {10}


def test_another_tokenizer_is_left_out(job: Job) -> None:
    job.save(10)

    def other() -> None:
        job.save(20)
        path = job.folder / "checkpoint-20" / "tokenizer.json"
        text = json.loads(path.read_text())
        text["model"]["merges"] = text["model"]["merges"][:-1]
        path.write_text(json.dumps(text))

    job.watched(int, other, int)
    assert "checkpoint-20: left out: " in job.said and "has another tokenizer than the first" in job.said
    assert {r.step for r in read_records(job.root / "out" / "records.jsonl")[0]} == {10}


@pytest.mark.parametrize("seen", ['"abc"', "null", "1e400", "[]", "-1"])
def test_a_state_of_other_types_states_no_tokens(job: Job, seen: str) -> None:
    job.save(10)
    state = f'{{"num_input_tokens_seen": {seen}, "max_steps": {seen}, "global_step": 10}}'
    (job.folder / "checkpoint-10" / "trainer_state.json").write_text(state)
    with pytest.raises(ConfigError, match="10 are unknown: trainer_state.json .* num_input_tokens_seen"):
        job.watched(int, int, tokens_per_step=None)
    job.watched(int, int)
    assert not (job.root / "out" / "DONE").exists()


def test_of_two_of_one_step_the_other_is_named_also_after_a_restart(job: Job) -> None:
    job.save(10)
    job.save(20, "checkpoint-{}-old")
    job.save(20)
    assert job.watched(*[int] * 4, until=20) == 1
    said = "checkpoint-20-old: left out: step 20 is measured already, from checkpoint-20\n"
    assert job.said.count(said) == 1 and job.records() == job.expected(10, 20)
    [row] = json.loads((job.root / "out" / "watched.json").read_text())["left_out"]
    assert row["checkpoint"] == "checkpoint-20-old"
    shutil.rmtree(job.folder / "checkpoint-20")
    job.save(20, "a-{}")
    job.watched(int, int)
    assert "a-20: left out: step 20 is measured already, from checkpoint-20\n" in job.said
    assert job.records() == job.expected(10, 20)


def test_when_it_falls_behind_two_of_one_step_are_one(job: Job) -> None:
    job.save(10)
    job.watched(int, lambda: [job.save(n, name) for n in (20, 30) for name in ("checkpoint-{}", "old-checkpoint-{}")])
    assert "checkpoint-20: left out: skipped, because checkpoint-30 is newer" in job.said
    assert "old-checkpoint-30: left out: step 30 is measured already, from checkpoint-30\n" in job.said


def test_one_that_never_becomes_whole_is_named_once(job: Job) -> None:
    job.begin(10)
    job.watched(int, lambda: setattr(job, "clock", job.clock + PATIENCE), int, lambda: job.save(20), int)
    assert job.said.count("checkpoint-10: left out: never became complete (") == 1 and "damaged" in job.said
    assert {r.step for r in read_records(job.root / "out" / "records.jsonl")[0]} == {20}


def test_one_that_cannot_be_read_is_named_at_once_and_later_ones_do_not_wait_for_long(job: Job) -> None:
    """Two minutes, in which an earlier one may still become complete; then it is named and left out."""
    job.save(10)
    path = job.folder / "checkpoint-20"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"no weights at all")
    job.watched(int)
    assert job.said.count("checkpoint-20: cannot be read yet (") == 1
    assert "tried again while it changes, and for 30 min, or 2 min once a later one is complete" in job.said
    job.watched(lambda: job.save(30), *[int] * 4)
    assert {r.step for r in read_records(job.root / "out" / "records.jsonl")[0]} == {10, 30}
    assert job.said.count("checkpoint-20: left out: never became complete (") == 1


def test_once_ends_and_tells_by_its_status(job: Job) -> None:
    with pytest.raises(ConfigError, match="job: holds no checkpoint yet .* leave out --once to wait for one") as caught:
        job.watched(once=True)
    assert "\n" not in str(caught.value) and not (job.root / "out").exists()
    for step in (10, 15):
        job.save(step)
        for file in (job.folder / f"checkpoint-{step}").iterdir():
            os.utime(file, (0, 0))
    assert job.watched(once=True) == 0 and job.clock == 0, "nothing to wait for"
    assert job.records() == job.expected(10, 15)
    job.begin(20)
    assert job.watched(*[int] * 9, once=True) == 1
    assert "stopped" not in job.said and "checkpoint-20: left out: never became complete" in job.said
    assert job.watched(once=True) == 1 and job.said.count("checkpoint-20: left out before: never became complete") == 1
    assert job.watched(until=20) == 1 and job.said.count("checkpoint-20: left out before: never became complete") == 2


def test_the_end_is_marked_if_it_is_told_or_the_trainer_says_so(job: Job) -> None:
    job.save(10)
    job.watched(int)
    assert not load_run(job.root / "out").ended
    assert job.watched(int, lambda: job.save(20), *[int] * 9, until=20) == 0, "it ends by itself"
    assert load_run(job.root / "out").ended and "stopped" not in job.said.partition("checkpoint-20")[2]
    job.save(30)
    job.watched(int)
    assert not load_run(job.root / "out").ended, "it went on"
    job.save(40)
    state = {"global_step": 40, "max_steps": 40}
    (job.folder / "checkpoint-40" / "trainer_state.json").write_text(json.dumps(state))
    job.watched(int)
    assert load_run(job.root / "out").ended


def test_shards_with_an_index_and_other_names(job: Job) -> None:
    """A shard that is still missing is waited for."""
    whole = job.root / "kept" / "checkpoint-10"
    saved(job.measuring, whole, seed=10)
    t.AutoModelForCausalLM.from_pretrained(whole).save_pretrained(job.root / "shards", max_shard_size="40KB")
    shards = sorted((job.root / "shards").glob("*.safetensors"))
    assert len(shards) > 1
    path = job.folder / "global_step10"
    path.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(whole / name, path)
    for each in (job.root / "shards").iterdir():
        if each != shards[-1]:
            shutil.copy(each, path)
    done: list[bool] = []
    job.watched(
        int, lambda: done.append((job.root / "out" / "records.jsonl").exists()), lambda: shutil.copy(shards[-1], path),
        int,
    )  # fmt: skip
    assert done == [False] and job.records() == job.expected(10)


@pytest.mark.parametrize("inside", ["", "pytorch_model_fsdp_0"])
def test_a_folder_of_torch_distributed_with_a_stated_config(inside: str, job: Job) -> None:
    weights = t.AutoModelForCausalLM.from_pretrained(job.kept(10)).state_dict()
    path = job.folder / "step-10" / inside
    state: dict[str, Any] = {"model": weights, "optimizer": {"state": {"exp_avg": torch.ones(3)}}, "step": 10}
    dcp.save(state, checkpoint_id=path, no_dist=True)
    if inside:
        dcp.save(state["optimizer"], checkpoint_id=path.parent / "optimizer_0", no_dist=True)
    index = (path / ".metadata").read_bytes()
    (path / ".metadata").unlink()  # is written last
    job.watched(int, lambda: (path / ".metadata").write_bytes(index), int, model=job.kept(10))
    assert job.records() == job.expected(10)
    with pytest.raises(ConfigError, match="step-10: holds tensors without a config.json .* name a folder .* --model"):
        job.watched(int, out="other")


def test_tokens_come_from_the_state_of_the_trainer(job: Job) -> None:
    for n in (10, 20):
        job.save(n)
        (job.folder / f"checkpoint-{n}" / "trainer_state.json").write_text(
            json.dumps({"global_step": n, "num_input_tokens_seen": n * 7})
        )
    job.watched(int, int, tokens_per_step=None)
    assert {(r.step, r.tokens) for r in read_records(job.root / "out" / "records.jsonl")[0]} == {(10, 70), (20, 140)}


def test_a_budget_is_chosen_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the estimate a quarter of the items fits; a restarted sidecar does not ask again."""
    monkeypatch.setattr(verb, "expected_seconds", lambda watch, seconds: {"all": 60.0 * watch["needle"].items})
    job.save(10)
    job.watched(int, minutes=2.0)
    monkeypatch.setattr(verb, "timed", lambda *given: pytest.fail("asked again"))
    job.save(20)
    job.watched(int, minutes=2.0)
    assert "budget: 0.5 of the items, about 2 min a checkpoint" in job.said
    found = [r for r in read_records(job.root / "out" / "records.jsonl")[0] if r.metric == "hit_frac" and not r.tags]
    assert len({r.n for r in found}) <= 1
    assert "items: 2" in (job.root / "out" / "measured.yaml").read_text()


@pytest.mark.parametrize("run", ["measure", "measure_thorough", "tiny_lccp", "small_lccp"])
@pytest.mark.parametrize("share", ITEM_SHARES)
def test_a_share_of_the_shipped_items_is_legal(run: str, share: float) -> None:
    config = check([f"run={run}"])
    fewer = with_items(config, share)
    load_config(plain_config(fewer))  # the config that is written is accepted again
    for name, monitor in config.monitors.watch.items():
        if hasattr(monitor, "items"):
            least = max(2, share * monitor.items)
            most = least + 2 * getattr(monitor, "depths", 1)
            assert least <= fewer.monitors.watch[name].items <= min(most, monitor.items)


@pytest.mark.parametrize(
    ("prepare", "given", "said"),
    [
        (
            lambda job: None,
            {"tokens_per_step": None},
            "checkpoint-10: the tokens of step 10 are unknown: trainer_state.json has no count .*; give --tokens-",
        ),
        (
            lambda job: _without(job, "tokenizer.json", "tokenizer_config.json"),
            {},
            "holds no readable tokenizer",
        ),
        (lambda job: None, {"minutes": 1e-9}, "--minutes=1e-09: 0.125 of the items take about"),
        (
            lambda job: (job.root / "out").mkdir(),
            {"out": "job/out"},
            "job, which is never written to; name a directory",
        ),
        (lambda job: (job.root / "out").write_text(""), {}, "--out .*/out: is a file; name a directory"),
        (lambda job: None, {"model": Path("nowhere")}, "--model nowhere: no such folder; name one with config.json"),
    ],
)
def test_bad_input_is_one_line(prepare: Any, given: dict[str, Any], said: str, job: Job) -> None:
    job.save(10)
    prepare(job)
    with pytest.raises(ConfigError, match=said) as caught:
        job.watched(int, int, **given)
    assert "\n" not in str(caught.value)


def _without(job: Job, *names: str) -> None:
    for name in names:
        (job.folder / "checkpoint-10" / name).unlink()


def test_no_folder_and_records_of_another(job: Job, measuring: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such folder; name the one in which checkpoints are saved"):
        watch(Followed(job.root / "nowhere", looking(measuring)), None, job.console)
    job.save(10)
    job.expected(10)
    with pytest.raises(ConfigError, match="after: holds other records; name another directory"):
        job.watched(out="after")


def test_beside_a_trainer_that_rotates_its_checkpoints_with_a_live_report(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar that glances in the middle of saving and after it, while only the last checkpoint is kept."""
    config = looking(job.measuring)
    followed = Followed(job.folder, config, STEP_TOKENS)
    (job.root / "out").mkdir()
    monkeypatch.setattr(verb, "GLANCE", 0.0)
    sidecar = verb.Sidecar(followed, job.root / "out", job.console)

    class Beside(t.TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            path = job.folder / f"checkpoint-{state.global_step}"
            shutil.copytree(path, job.root / "kept" / path.name)
            for _ in range(2):
                state_of = torch.get_rng_state()
                sidecar.glance()
                torch.set_rng_state(state_of)

    trainer(job.measuring, job.folder, callbacks=[Beside()], save_total_limit=1).train()
    assert [path.name for path in job.folder.glob("checkpoint-*")] == ["checkpoint-6"]
    assert job.records() == job.expected(2, 4, 6)
    assert (job.root / "out" / "report" / "index.html").is_file()


def test_the_command(job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verb, "GLANCE", 0.0)
    job.save(10)
    words = ["watch", str(job.folder), "--once", "--out", str(job.root / "out"), "run=look"]
    words += ["--config-dir", str(job.measuring / "configs")]
    capsys.readouterr()
    assert main([*words, "--tokens-per-step", "0"]) == 1
    assert capsys.readouterr().err == "lccp: --tokens-per-step=0: must be greater than 0\n"
    assert main([*words, "--minutes", "nan"]) == 1
    assert capsys.readouterr().err == "lccp: --minutes=nan: must be greater than 0\n"
    assert main([*words, "--tokens-per-step", str(STEP_TOKENS)]) == 0
    assert "following its checkpoints; records in" in capsys.readouterr().out
    assert job.records() == job.expected(10)
