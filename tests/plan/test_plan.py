"""The command `lccp plan`: the setting of the paper, the arithmetic of time, and what it refuses."""

import json
import re
from pathlib import Path

import pytest

from bench.plan_accuracy import KNOWN_ROPES, RESULT, tables
from lccp_sim.cli import main
from lccp_sim.plan.hardware import GPUS, hardware, parse_layout
from lccp_sim.plan.memory import Layout
from lccp_sim.plan.rope import KNOWN_MODELS

ROOT = Path(__file__).parents[2]
PAPER = ["plan", "run=paper", "--hardware", "h200", "--layout", "dp=2,ep=8,cp=8"]


def planned(words: list[str], path: Path) -> dict:
    assert main([*words, "--json", str(path / "plan.json")]) == 0
    return json.loads((path / "plan.json").read_text())


def test_the_paper_is_reproduced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned([*PAPER, "--claim", "4e23"], tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert plan["parameters"]["total"] == 80_393_183_232 and plan["parameters"]["active"] == 12_747_448_320
    # By hand: 6 flops for each active weight, the embedding as the head; 32 layers x 32 heads x 2 x 128 channels of
    # half the context, a multiply-add as two, three times.
    norms, tokens = 266_240 + 32 * 256, plan["tokens"]
    by_hand = 6 * (12_747_448_320 - norms) + 3 * 2 * 32 * 32 * 2 * 128 * 65537 / 2
    assert plan["flops"] == pytest.approx(by_hand * tokens, rel=1e-5) and plan["steps"] == 11_921
    assert plan["flops"] == pytest.approx(2.56e22, rel=0.01) and "15.6 times this plan's 2.56e+22" in said
    assert plan["rope"]["plain_base"] == pytest.approx(2e6, rel=1e-4)
    assert not plan["memory"]["fits"] and plan["memory"]["fits_checkpointed"]
    kept = json.loads((ROOT / "bench" / "results" / "plan_paper.json").read_text())
    assert plan == kept  # what docs/plan.md quotes
    assert all(line in said for line in (" ".join(line.split()) for line in plan["assumptions"]))


def test_time_is_flops_over_what_the_devices_are_assumed_to_do(tmp_path: Path) -> None:
    plan = planned([*PAPER, "--mfu", "0.5"], tmp_path)
    per, time = plan["flops_per_token"], plan["time"]
    assert time["tokens_per_second"] == pytest.approx(128 * 989e12 * 0.5 / per["training"])
    assert time["days"] == pytest.approx(plan["tokens"] / time["tokens_per_second"] / 86400)
    assert per["checkpointed"] - per["training"] == sum(per["forward"].values()) - per["forward"]["head"]
    shares = [monitor["share"] for monitor in plan["monitors"].values()]
    assert time["days_of_monitors"] == pytest.approx(sum(shares) * time["days"])


def test_a_small_run_is_planned_for_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(["plan", "run=smoke"], tmp_path)
    said = capsys.readouterr().out
    assert plan["hardware"]["name"] == "cpu" and plan["hardware"]["precision"] == "fp32" and plan["memory"]["fits"]
    assert plan["parameters"]["parts"]["embedding"] == 512 * 64
    assert "claimed" not in said and "bound of a plain base" in said


def test_other_shapes_are_counted_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned([*PAPER, "--counted", "deepseek_v3"], tmp_path)
    assert plan["parameters"]["total"] == 671_026_404_352 and not plan.keys() & {"memory", "monitors", "rope"}
    assert "deepseek_v3 (counted only)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--hardware", "h2000"], "--hardware='h2000': no such hardware; .*did you mean 'h200'"),
        (["--layout", "dp=2,epp=8"], "'epp' is none of dp, ep, cp; did you mean 'ep'"),
        (["--layout", "dp=0"], "dp must be a number of devices, 1 or more"),
        (["--layout", "dp=2,dp=4"], "dp is there twice"),
        (["--layout", "ep=7"], r"--layout ep=7: must divide model.num_experts=64"),
        (["--layout", "dp=3"], r"dp x ep = 3 must divide the 256 rows of run.batch_tokens=16777216"),
        (["--layout", "cp=3"], r"2 x cp must divide run.context_tokens=65536"),
        (
            ["--layout", "dp=256", "run.micro_batch_tokens=131072"],
            "run.micro_batch_tokens=131072: dp x ep = 256 groups",
        ),
        (["--mfu", "1.5"], "--mfu=1.5: must be above 0 and at most 1"),
        (["--counted", "gpt_oss"], "--counted gpt_oss: no such shape; there are gpt_oss_20b"),
        ([], r"needs 1,2\d\d.\d GiB even with checkpointing, and has .* to use; --layout dp=64,ep=1,cp=1 is enough"),
        (["--layout", "dp=64", "run.micro_batch_tokens=null"], "run.micro_batch_tokens=65536 is enough"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["plan", "run=paper"] + ([] if "--hardware" in words else ["--hardware", "h200"])
    assert main([*base, *words]) == 1
    [said] = capsys.readouterr().err.splitlines()
    assert re.search(line, said), said


def test_experts_cannot_be_split_where_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    dense = ["model.num_dense_layers=4", "model.d_dense=64", "monitors.routing=null", "--layout", "ep=2"]
    assert main(["plan", "run=tiny_lccp", *dense]) == 1
    assert "--layout ep=2: needs experts" in capsys.readouterr().err


def test_the_page_has_the_tables_of_the_bench() -> None:
    page = (ROOT / "docs" / "plan.md").read_text()
    results = json.loads(RESULT.read_text())
    assert [known.model for known in KNOWN_MODELS] == list(KNOWN_ROPES)
    assert all(table in page for table in tables(results))
    assert {line["ratio"] for line in results["flops"]} == {1.0}
    for checkpointed, low, high in ((False, "-4 %", "+8 %"), (True, "-7 %", "+14 %")):
        off = [line["ratio"] - 1 for line in results["memory"] if line["checkpointed"] == checkpointed]
        assert (f"{min(off):+.0%}", f"{max(off):+.0%}") == (low.replace(" ", ""), high.replace(" ", ""))
        assert f"{low} to {high}" in page


def test_layouts_and_devices() -> None:
    assert parse_layout("") == Layout() and parse_layout("cp=2,dp=8") == Layout(8, 1, 2)
    assert parse_layout("dp=2,ep=4,cp=8").devices == 64
    assert hardware("cpu", threads=3).bf16_flops == 3 * hardware("cpu", threads=1).bf16_flops
    assert all(name == device.name and device.usable < device.bytes for name, device in GPUS.items())
    assert hardware("h100").flops(bf16=True) > hardware("h100").flops(bf16=False)
