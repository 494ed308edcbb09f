"""Studies: every shipped one is sound and runs in miniature; a study goes on where it was, and lists what failed."""

import json
import shutil
import tarfile
from pathlib import Path

import pandas as pd
import pytest
import yaml
from rich.console import Console

import lccp_sim.train.run as running
from bench.publish_study import pack
from bench.publish_study import page as publish
from lccp_sim.analysis.report.run_page import write_report
from lccp_sim.cli import main
from lccp_sim.configure.compose import check
from lccp_sim.errors import ConfigError
from lccp_sim.train.saved.run_directory import run_directory
from lccp_sim.verbs.study import Stages, Study, read_study, shape_of_study, studies
from lccp_sim.verbs.sweep import RunOutcome

NAMES = "attention balance context extension heads masking mixture post replicate rope scale schedule".split()
QUIET = Console(quiet=True)
RATES = {"low": 1e-3, "high": 2e-3}
FEW = ["run.tokens=2048", "monitors.perplexity=null"]


def test_the_studies_are_those_that_the_documents_name():
    assert list(studies()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_study_is_of_known_keys_and_of_different_runs(name):
    study = read_study(name)
    assert study.question.endswith("?") and len(study.arms) <= 7 and study.seeds == [0, 1, 2]
    places = set()
    for arm, words in study.arms.items():
        for base in study.base:
            check([f"run={base}", *shape_of_study(words)])
        start = f"run.init_from={'between' if arm in study.between else f'base-{study.windows.get(arm)}'}"
        config = check([f"run={study.run}", *study.common, *words, start])
        for run in study.then:
            check([f"run={run}", *study.common, *words])
        places.add(run_directory(config, config.run.init_from))
    assert len(places) == len(study.arms)
    for words in study.between.values():
        check([f"run={study.run}", *study.common, *words])


def test_every_study_runs_in_miniature(tmp_path, capsys):
    assert main(["study", *NAMES, "--smoke", "--root", str(tmp_path)]) == 0
    for name in NAMES:
        report = json.loads((tmp_path / "studies" / f"{name}-smoke" / "report.json").read_text())
        assert set(report["runs"]) == set(read_study(name).arms) and not report["failed"]
        assert {row["metric"] for row in report["results"]} >= {"needle/answer_nll_nats"}
    post, heads = (
        json.loads((tmp_path / "studies" / f"{n}-smoke" / "report.json").read_text()) for n in ("post", "heads")
    )
    assert list(post["after"]["stages"]) == ["at the window", "after fine-tuning", "after RL"]
    assert sorted(post["after"]["windows"].values()) == [0, 1024, 2048, 3072, 4096, 6144] and heads["after"] is None
    reinforced = next(run for run in tmp_path.glob("smoke_post-*") if "kind: rl" in (run / "config.yaml").read_text())
    page = write_report(reinforced, tmp_path / "page").read_text()
    assert "What each phase bought" in page and (tmp_path / "page" / "chain.png").exists()
    for name in ("post", "heads"):
        published_again(f"{name}-smoke", tmp_path)
    assert len(list(tmp_path.glob("smoke_study-*"))) < sum(len(read_study(name).arms) for name in NAMES), "shared arms"


def published_again(name: str, root: Path) -> None:
    """Fail unless the page of a study of chains can be made from its packed runs alone."""
    home = root / "published"
    with tarfile.open(pack(name, root, home / "data")) as archive:
        kinds = {path.split("/")[0].split("-")[0] for path in archive.getnames() if "/" in path}
        configs = [archive.extractfile(path).read().decode() for path in archive.getnames() if "config.yaml" in path]
    assert kinds == ({"smoke_post"} if name == "post-smoke" else {"smoke_sft"})
    assert not any(str(root) in config for config in configs)
    shutil.move(root, hidden := root.parent / f"{root.name}-hidden")
    try:
        home = hidden / "published"
        (home / f"{name}.md").write_text("# Design\n")
        page = publish(name, home / "data", home, home / "results").read_text()
        kept = (home / "results" / f"study_{name}.json").read_text()
        made = hidden / "studies" / name
        assert json.loads(kept) == json.loads((made / "report.json").read_text())
    finally:
        shutil.move(hidden, root)
    answers = {"post-smoke": "\n## After the window\n", "heads-smoke": "\n## What training for heads moves\n"}[name]
    kept_section = (root / "studies" / name / "report.md").read_text().partition(answers)[2].partition("\n## ")[0]
    rows = [line for line in kept_section.splitlines() if line.startswith("|")]
    assert len(rows) > 6 and all(line in page for line in rows)
    assert ("| smoke_post | 13 |" in page) == (name == "post-smoke"), "many runs are a row a phase"


def write(folder: Path, **keys: object) -> Path:
    """A config directory with one study, `mine`, of two arms and two seeds on bases of seconds."""
    plain = {
        "question": "Does the rate matter?", "run": "smoke_study", "base": ["smoke_study"], "reference": "low",
        "common": FEW, "arms": {arm: ["run.name=lccp", f"optim.lr={lr}"] for arm, lr in RATES.items()},
        "seeds": [0, 1], "metrics": ["needle/hit_frac", "needle/answer_nll_nats"],
    }  # fmt: skip
    (folder / "study").mkdir(parents=True)
    (folder / "study" / "mine.yaml").write_text(json.dumps(plain | keys))
    return folder


def stages(config_dir: Path, root: Path, retry: bool = False) -> Stages:
    return Stages(read_study("mine", config_dir), root, [], retry, config_dir, QUIET)


def table(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "studies" / "mine" / "results.csv")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config directory, and the root of its study that nothing disturbed."""
    config_dir, root = write(tmp_path_factory.mktemp("configs")), tmp_path_factory.mktemp("whole")
    assert main(["study", "mine", "--config-dir", str(config_dir), "--root", str(root)]) == 0
    return config_dir, root


def test_each_seed_has_a_base_that_its_arms_share(whole):
    _, root = whole
    assert len(list(root.glob("lccp-s*"))) == 4 and len(list(root.glob("smoke_study-s*"))) == 2
    report = json.loads((root / "studies" / "mine" / "report.json").read_text())
    assert {arm: sorted(seeds) for arm, seeds in report["runs"].items()} == {"low": ["0", "1"], "high": ["0", "1"]}
    markdown = (root / "studies" / "mine" / "report.md").read_text()
    assert "| 0 | yes | low, high |" in markdown, "arms of a seed read the same batches"


def test_a_study_that_was_killed_three_times_gives_the_same_table(whole, tmp_path, monkeypatch):
    config_dir, root = whole
    begun, train = [], running._train

    def killed(config, *args):
        begun.append(config)
        if len(begun) in (2, 4, 6):
            raise KeyboardInterrupt
        return train(config, *args)

    monkeypatch.setattr(running, "_train", killed)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            main(["study", "mine", "--config-dir", str(config_dir), "--root", str(tmp_path)])
    assert main(["study", "mine", "--config-dir", str(config_dir), "--root", str(tmp_path)]) == 0
    pd.testing.assert_frame_equal(table(tmp_path), table(root))


def test_a_second_time_nothing_is_trained_and_the_table_is_the_same(whole, monkeypatch):
    config_dir, root = whole
    before = table(root)
    monkeypatch.setattr(running, "_fit", lambda *args: pytest.fail("nothing is left to train"))
    assert main(["study", "mine", "--config-dir", str(config_dir), "--root", str(root)]) == 0
    pd.testing.assert_frame_equal(table(root), before)


def test_repeats_train_each_arm_again_with_an_order_of_its_own_and_share_the_bases(whole, tmp_path):
    config_dir, root = whole
    shutil.copytree(root, tmp_path / "root", dirs_exist_ok=True)
    arguments = ["--config-dir", str(config_dir), "--root", str(tmp_path / "root")]
    assert main(["study", "mine", "--repeats", "2", *arguments]) == 0
    assert len(list((tmp_path / "root").glob("lccp-s*"))) == 8
    assert len(list((tmp_path / "root").glob("smoke_study-s*"))) == 2, "of a base there is one a seed"
    configs = [yaml.safe_load(path.read_text()) for path in (tmp_path / "root").glob("lccp-s*/config.yaml")]
    orders = sorted((config["seed"], config["data"]["order_seed"] or 0) for config in configs)
    assert orders == sorted([(0, 0), (0, 1000), (1, 0), (1, 1001)] * 2)
    report = json.loads((tmp_path / "root" / "studies" / "mine" / "report.json").read_text())
    assert {row["arm"] for row in report["repeats"]} == {"low", "high"}
    floors = [row["floor"] for row in report["results"] if row["difference"]]
    assert len(floors) == 2 and None not in floors and max(floors) > 0
    with pytest.raises(ConfigError, match="study.repeats=0: must be at least 1"):
        Study("?", "r", {"a": []}, "a", [], repeats=0)


def test_repeats_may_be_of_some_arms_alone(tmp_path, monkeypatch):
    config_dir = write(tmp_path, repeats=3, repeated=["low"], then=["smoke_sft"])
    monkeypatch.setattr("lccp_sim.verbs.study.sweep", lambda jobs, *rest: [
        RunOutcome(job, "finished", f"{tmp_path}/{place}") for place, job in enumerate(jobs)])  # fmt: skip
    work = Stages(read_study("mine", config_dir), tmp_path, [], False, config_dir, QUIET)
    first, *again = work.train()
    assert [sorted(first), *map(sorted, again)] == [["high", "low"], ["high", "low"], ["high", "low"]]
    assert [[len(each["low"]), len(each["high"])] for each in (first, *again)] == [[2, 2], [2, 0], [2, 0]]
    assert work.schedule.runs == 2 * (1 + 4 + 4), "bases, arms and what they go on through"


def test_an_arm_that_fails_is_listed_and_the_study_goes_on(whole, tmp_path, monkeypatch):
    config_dir, root = whole
    shutil.copytree(root, tmp_path / "root", dirs_exist_ok=True)
    for path in (tmp_path / "root").glob("lccp-s1-*"):
        shutil.rmtree(path)
    train = running._train

    def full(config, *args):
        if config.seed == 1 and config.optim.lr == 2e-3 and config.run.name == "lccp":
            raise OSError(28, "No space left on device")
        return train(config, *args)

    monkeypatch.setattr(running, "_train", full)
    work = stages(config_dir, tmp_path / "root")
    (done,) = work.train()
    assert {arm: sorted(seeds) for arm, seeds in done.items()} == {"low": [0, 1], "high": [0]}
    (line,) = work.failed
    assert "optim.lr=0.002" in line and "No space left on device" in line


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"arms": {}}, "study.arms.*empty axis"),
        ({"reference": "middle"}, "study.reference='middle': must be one of the arms low, high"),
        ({"seeds": [0, 0]}, "study.seeds"),
        ({"metrics": ["hit"]}, "study.metrics='hit': must be monitor/metric"),
        ({"between": {"lo": []}}, "study.between"),
        (
            {"windows": {"low": 2000}},
            "study.windows.low=2000: is no window of smoke_study, which has them at 0, 2048",
        ),
        ({"windows": {"low": 0}, "base": []}, "study.windows=.*: are those of a run; name it in study.base"),
        ({"then": ["smoke_r"]}, "run=smoke_r: no such config"),
        ({"trained": ["heads/spearman"]}, "study.trained=.*: must be some of study.metrics"),
        ({"controls": {"low": "middle"}}, "study.controls=.*: must name arms, which are low, high"),
        ({"repeated": ["middle"]}, "study.repeated=.*: must name arms, which are low, high"),
        ({"questions": "?"}, "did you mean 'question'"),
        ({"arms": {"low": ["optim.lrr=1"], "high": []}}, "did you mean 'lr'"),
        ({"arms": {"low": [], "high": ["run.threads=1"]}, "base": []}, "are one run; leave one out"),
        ({"run": "smoke_studdy", "base": []}, "run=smoke_studdy: no such config"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_starts(keys, why, tmp_path):
    config_dir = write(tmp_path, **keys)
    with pytest.raises(ConfigError, match=why):
        stages(config_dir, tmp_path / "runs").train()
    assert not list((tmp_path / "runs").glob("*-s*"))


def test_an_unknown_study_is_answered_with_those_there_are(capsys):
    assert main(["study", "repliacte"]) == 1
    error = capsys.readouterr().err
    assert "did you mean 'replicate'" in error and "mixture" in error
    assert main(["study"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in NAMES)


def test_the_shape_of_an_arm_goes_to_its_base_and_its_rope_does_not():
    words = ["model.d_model=64", "model.rope.base=1e6", "optim.lr=1", "model={a: 1}", "run.tokens=1"]
    assert shape_of_study(words) == ["model.d_model=64", "model={a: 1}"]
    assert Study("?", "r", {"a": words}, "a", []).small().base == []


def test_a_packed_study_gives_its_page_again_and_keeps_what_was_written_above(whole, tmp_path) -> None:
    _, root = whole
    archive = pack("mine", root, tmp_path / "data")
    assert archive.read_bytes() == pack("mine", root, tmp_path / "again").read_bytes()
    with tarfile.open(archive) as packed:
        names = packed.getnames()
        configs = [packed.extractfile(name).read().decode() for name in names if name.endswith("config.yaml")]
    assert len(configs) == 4 and not any(str(root) in config.split("init_from")[0] for config in configs)
    assert not any("checkpoints" in name for name in names)
    (tmp_path / "mine.md").write_text("# mine\n\nFixed before.\n")
    first = publish("mine", tmp_path / "data", tmp_path, tmp_path / "results").read_text()
    assert first.startswith("# mine\n\nFixed before.\n\n## Results\n") and (tmp_path / "mine.png").exists()
    assert publish("mine", tmp_path / "data", tmp_path, tmp_path / "results").read_text() == first
    kept, made = (json.loads(path.read_text()) for path in (
        tmp_path / "results" / "study_mine.json", root / "studies" / "mine" / "report.json"))  # fmt: skip
    assert kept["results"] == made["results"] and kept["answers"] == made["answers"]
