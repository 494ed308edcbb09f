"""Chains of runs: which phases a run comes from, what each bought, and what the window at which they fork foretells."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from lccp_sim.analysis.chain import chain_of, labels, phases_of
from lccp_sim.analysis.forks import PASS, PASS_FIRST, forks, least_error, monitor_predictions, spreads
from lccp_sim.analysis.report.after import (
    better,
    predicted_table,
    scores_table,
    signals_table,
    spreads_table,
    window_stages_table,
)
from lccp_sim.analysis.report.chain import LEAST_WIDTH, _changed, bought, curves_of_phases, of_chain, widths
from lccp_sim.analysis.run import load_run
from lccp_sim.analysis.stats.arms import Result
from lccp_sim.analysis.stats.curve import Estimate

WINDOWS = (0, 100, 200, 400, 800)
REWARDS = {100: 0.2, 200: 0.8}
COPY = "induction/second_copy_nll_nats"


def write(root: Path, name: str, start: str | None, values: dict[str, dict[int, float]], kind: str = "lm") -> Path:
    """A run directory whose records are `values` by metric and tokens; a step has 100 tokens."""
    rows = [
        {"step": t // 100, "tokens": t, "tier": "behavioural", "monitor": m, "metric": n, "value": v, "n": 9,
         "stderr": 0.1, "tags": {}}
        for key, curve in values.items() for t, v in curve.items() for m, n in [key.split("/")]
    ]  # fmt: skip
    path = root / name
    path.mkdir(parents=True)
    (path / "records.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda r: r["step"]))
    )
    (path / "config.yaml").write_text(yaml.safe_dump({"run": {"init_from": start}, "objective": {"kind": kind}}))
    return path


def study(root: Path, repeats: int = 2, noise: float = 0.0) -> list[dict[str, dict[int, Path]]]:
    """Of each repeat the last runs by arm and seed: RL halves the distance between windows that fine-tuning left.

    `monitor` is what the last pass@1 follows, in every seed; the perplexity follows log tokens alone.
    """
    rng = np.random.default_rng(0)
    found: list[dict[str, dict[int, Path]]] = [{} for _ in range(repeats)]
    for seed in range(3):
        good = dict(zip(WINDOWS, rng.permutation([0.1, 0.2, 0.3, 0.4, 0.5]).tolist(), strict=True))
        nll = {t: 4 - 0.3 * np.log(t + 100) for t in WINDOWS}
        write(root, f"lccp-s{seed}", None, {COPY: good, "perplexity/nll_nats": nll})
        for t in WINDOWS:
            for repeat in range(repeats):
                start = f"{root}/lccp-s{seed}/checkpoints/window-{t // 100:08d}.ckpt"
                sft, rl = (f"{kind}-s{seed}-{t}-{repeat}" for kind in ("sft", "rl"))
                last = 0.5 + good[t] / 2 + noise * rng.standard_normal()
                write(root, sft, start, {PASS: {0: 0.3, 100: good[t]}}, "sft")
                found[repeat].setdefault(f"w{t}", {})[seed] = write(
                    root, rl, f"{root}/{sft}", {PASS: {0: good[t], 200: last}, "train/reward": REWARDS}, "rl"
                )
    return found


def loaded(found):
    return [{arm: {s: load_run(p) for s, p in seeds.items()} for arm, seeds in each.items()} for each in found]


def test_a_run_knows_its_phases_also_where_all_runs_were_moved(tmp_path: Path) -> None:
    path = study(tmp_path / "here", 1)[0]["w200"][1]
    phases = phases_of(load_run(path))
    assert [each.kind for each in phases] == ["lm", "sft", "rl"]
    assert [each.tokens for each in phases] == [200, 100, 200] and [each.before for each in phases] == [0, 200, 300]
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = load_run(tmp_path / "there" / path.name)
    assert [each.run.path.name for each in phases_of(moved)] == [each.run.path.name for each in phases]
    assert len(chain_of([phases[0].run, moved])) == 0, "one of them is elsewhere"
    assert len(chain_of([load_run(tmp_path / "there" / "lccp-s1"), moved])) == 3


def test_an_interval_without_width_is_not_shown() -> None:
    assert _changed(Estimate(0.0, 0.0, 0.0)).endswith("(the same for every item)")
    assert _changed(Estimate(0.25, 0.0, 0.5)).endswith("(0 to +0.5)")


def test_what_is_not_there_and_a_circle_end_a_chain(tmp_path: Path) -> None:
    for name, start in (("a", "bundled:tiny-s0"), ("b", "gone/away"), ("c", f"{tmp_path}/d"), ("d", f"{tmp_path}/c")):
        write(tmp_path, name, start, {PASS: {0: 0.5}})
    assert [len(phases_of(load_run(tmp_path / name))) for name in "abcd"] == [1, 1, 2, 2]
    assert of_chain(phases_of(load_run(tmp_path / "a"))) == ([], [])


def test_a_phase_is_charged_with_its_own_windows_up_to_the_one_that_was_taken_over(tmp_path: Path) -> None:
    phases = phases_of(load_run(study(tmp_path, 1)[0]["w200"][0]))
    curves = curves_of_phases(phases)
    lccp, sft, rl = curves[PASS]
    assert lccp is None and bought(sft) is not None and bought(rl) is not None
    assert curves[COPY][0] is not None and curves[COPY][0].tokens_W.tolist() == [0, 100, 200]
    assert bought(rl).value == pytest.approx(rl.value_W[-1] - sft.value_W[-1])
    (drawing,), (told, table, signal) = of_chain(phases)
    assert drawing.png.startswith(b"\x89PNG") and [row[-1] for row in told.rows] == ["200 of 800", "its end", "its end"]
    assert [row[0] for row in table.rows] == ["pre-training", "pre-training", "fine-tuning", "RL"]
    assert all(row[4].startswith(("+", "-")) for row in table.rows if row[2] != row[3])
    assert [row[:3] for row in signal.rows if row[0] == "reward"] == [["reward", "0.2", "0.8"]]


def test_short_phases_are_wide_enough_to_read_and_long_ones_keep_their_order() -> None:
    edges = widths(np.array([0, 2_000_000, 2_030_000, 2_500_000]))
    assert edges[0] == 0 and edges[-1] == pytest.approx(1)
    share = np.diff(edges)
    assert share.min() >= LEAST_WIDTH / (1 + 2 * LEAST_WIDTH) and share.argmax() == 0
    assert widths(np.array([0, 1, 2])).tolist() == [0, 0.5, 1]
    assert len(widths(np.arange(9))) == 9


def test_phases_of_one_kind_are_told_apart(tmp_path: Path) -> None:
    base = write(tmp_path, "base", None, {PASS: {0: 0.1, 100: 0.2}})
    lccp = write(tmp_path, "lccp", str(base), {PASS: {0: 0.2, 100: 0.3}})
    assert labels(phases_of(load_run(lccp))) == ["pre-training (base)", "pre-training (lccp)"]
    config = yaml.safe_load((lccp / "config.yaml").read_text())
    config |= {"data": {"old_context_tokens": 8}, "run": config["run"] | {"context_tokens": 16}}
    (lccp / "config.yaml").write_text(yaml.safe_dump(config))
    assert labels(phases_of(load_run(lccp))) == ["pre-training", "LCCP"]


def test_the_monitor_that_the_last_pass_follows_foretells_it_in_seeds_left_out(tmp_path: Path) -> None:
    first, *again = loaded(study(tmp_path, noise=0.01))
    found = forks(first, again)
    assert found is not None and found.windows == {f"w{t}": t for t in WINDOWS}
    assert list(found.stages) == ["at the window", "after fine-tuning", "after RL"]
    assert all(len(own) == 2 for seeds in found.last.values() for own in seeds.values())
    rows = {row.monitor: row for row in monitor_predictions(found)}
    assert next(iter(rows)) == COPY and rows[COPY].wins == 3
    assert rows[COPY].ratio < 0.3 and rows["perplexity/nll_nats"].ratio == pytest.approx(1, abs=0.05)
    assert rows[PASS_FIRST].ratio is None, "pass@1 at the window is the same at all"
    assert least_error(found) == pytest.approx(0.01 * np.sqrt(2 / np.pi / 2), rel=0.4)
    assert least_error(found) < rows[COPY].mae_tokens
    assert [row.said for row in spreads(found)] == ["", "undecided", "narrows"], "all seeds alike before, no interval"
    for table in (window_stages_table(found), predicted_table(list(rows.values()), None), spreads_table(spreads(found)),
                  signals_table(found, first)):  # fmt: skip
        assert table.rows and all(len(row) == len(table.head) for row in table.rows)
    assert [row[:2] for row in signals_table(found, first).rows] == [[f"w{t}", "0.5"] for t in WINDOWS]


def test_arms_that_leave_no_run_at_several_windows_are_no_forks(tmp_path: Path) -> None:
    (runs,) = loaded(study(tmp_path, 1))
    assert forks({arm: seeds for arm, seeds in runs.items() if arm == "w0"}) is None
    assert forks({"a": {0: load_run(tmp_path / "lccp-s0")}, "b": {0: load_run(tmp_path / "lccp-s0")}}) is None


def test_an_ability_is_told_from_a_score_that_is_trained() -> None:
    def row(metric: str, value: float, rising: bool = True, floor: float | None = None) -> Result:
        apart = Estimate(value, value - 0.1, value + 0.1)
        return Result(metric, "x", {0: 1.0}, 1.0, None, 3, apart, 0.01, 0.01, rising, floor)

    score, hit, nll = row("heads/score", 0.5), row("needle/hit", 0.05), row("needle/nll", 0.3, rising=False)
    assert [better(each) for each in (score, hit, nll, row("a/b", 0.5, floor=0.6))] == [1, 0, -1, 0]
    text = row("perplexity/nll_nats", -0.3, rising=False)
    table = scores_table({("x", "control"): [score, hit, nll, text]}, ["heads/score"])
    said = ["heads/score", "none", "needle/nll", "perplexity/nll_nats", "none", "only the score"]
    assert table.rows == [["x", "control", *said]]
