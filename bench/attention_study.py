"""What the study `attention` asks beyond its comparison of arms, from the packed runs.

    python -m bench.attention_study        # docs/studies/data/attention.tar.xz -> bench/results/attention_study.json

Prints the tables of docs/studies/attention.md. Values are means over seeds, with 95 % t intervals over seeds of paired
differences. A window that not every run has yet is left out.
"""

import itertools
import json
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bench.publish_study import PAGES, ROOT, loaded
from lccp_sim.analysis.run import RunData
from lccp_sim.files import write_atomic

BUDGETS = ("k8", "k16", "k32")
THEN = "_then_dense"
MONITORS = {
    "train/loss_nats": -1,
    "perplexity/nll_nats": -1,
    "needle/answer_nll_nats": -1,
    "needle/hit_frac": 1,
    "heads/initial_heads_mean_frac": 1,
}  # 1: more is better
MEASURED_TWICE = ("perplexity/nll_nats", "needle/answer_nll_nats", "needle/hit_frac", "induction/second_copy_nll_nats")
TARGETS = ("needle/answer_nll_nats", "needle/hit_frac")
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTH = 1024
# Where a tile ends inside a row of 1,024 tokens (budget / 8 tiles), and the depths between.
BORDERS = {"k16": ((0.5,), (0.25, 0.75)), "k32": ((0.25, 0.5, 0.75), (0.0, 1.0))}
Runs = Mapping[str, Mapping[int, RunData]]


def readings(run: RunData, name: str, **tags: Any) -> dict[int, float]:
    """A metric by tokens. The loss at a window is the mean of the steps since the window before."""
    rows = run.select(*name.split("/"), **tags)
    if name != "train/loss_nats":
        return dict(zip(rows.tokens.tolist(), rows.value.tolist(), strict=True))
    found: dict[int, float] = {}
    for before, window in itertools.pairwise(sorted(run.select("needle", "hit_frac").tokens.tolist())):
        found[window] = float(rows[(rows.tokens > before) & (rows.tokens <= window)].value.mean())
    return found


def interval(differences: Sequence[float]) -> dict[str, Any]:
    """Their mean with a 95 % t interval, and the values."""
    mean, n = float(np.mean(differences)), len(differences)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(differences, ddof=1) / n**0.5) if n > 1 else float("nan")
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": list(differences)}


def by_budget(runs: Runs, window: int, suffix: str) -> dict[str, Any]:
    """Each sparse arm less dense, and a smaller budget less a larger one, at one window, by metric."""

    def less(name: str, one: str, other: str) -> dict[str, Any]:
        return interval(
            [readings(runs[one][s], name)[window] - readings(runs[other][s], name)[window] for s in runs[one]]
        )

    return {
        name: {
            "dense": float(np.mean([readings(run, name)[window] for run in runs["dense"].values()])),
            **{arm: less(name, arm + suffix, "dense") for arm in BUDGETS},
            **{f"{a} - {b}": less(name, a + suffix, b + suffix) for a, b in itertools.combinations(BUDGETS, 2)},
        }
        for name in MONITORS
    }


def gaps(runs: Runs, windows: Sequence[int]) -> dict[str, Any]:
    """Training attention less dense attention of the same weights, by metric, arm and window."""

    def gap(run: RunData, name: str, window: int) -> float:
        span = {"span": run.span()} if name.startswith("needle/") else {}
        return readings(run, name, attention="training", **span)[window] - readings(run, name)[window]

    return {
        name: {
            arm: {w: interval([gap(run, name, w) for run in runs[arm + THEN].values()]) for w in windows}
            for arm in BUDGETS
        }
        for name in MEASURED_TWICE
    }


def order(runs: Runs, name: str, seed: int, window: int) -> tuple[str, ...]:
    """The budgets of one seed, best first."""
    return tuple(sorted(BUDGETS, key=lambda arm: -MONITORS[name] * readings(runs[arm + THEN][seed], name)[window]))


def first_in_order(runs: Runs, windows: Sequence[int], end: int) -> dict[str, Any]:
    """For each monitor the first window from which all seeds have the order that answer NLL has at the end."""
    seeds = list(runs["dense"])
    truth = {seed: order(runs, TARGETS[0], seed, end) for seed in seeds}
    found: dict[str, Any] = {"order at the end": {seed: " < ".join(truth[seed]) for seed in seeds}}
    for name in MONITORS:
        same = [all(order(runs, name, seed, window) == truth[seed] for seed in seeds) for window in windows]
        seeds_same = {
            window: sum(order(runs, name, seed, window) == truth[seed] for seed in seeds) for window in windows
        }
        first = next((w for i, w in enumerate(windows) if all(same[i:])), None)
        found[name] = {"first": first, "seeds in this order": seeds_same}
    return found


def predicted(runs: Runs, early: int, end: int) -> dict[str, Any]:
    """Mean absolute error over seeds left out: a line from each reading at `early` to the target at `end`."""
    seeds, arms = list(runs["dense"]), [arm + THEN for arm in BUDGETS]

    def values(name: str, window: int) -> np.ndarray:
        return np.array([[readings(runs[arm][seed], name)[window] for arm in arms] for seed in seeds])

    found: dict[str, Any] = {}
    for target in TARGETS:
        end_SA, early_SA = values(target, end), values(target, early)
        found[target] = {"nothing will change": float(np.abs(end_SA - early_SA).mean())}
        # The mean of the other seeds at the end: what is known without any reading.
        found[target]["mean of the other seeds"] = float(
            np.mean([np.abs(end_SA[i] - np.delete(end_SA, i, 0).mean()).mean() for i in range(len(seeds))])
        )
        for name in MONITORS:
            x_SA, errors = values(name, early), []
            for i in range(len(seeds)):
                slope, start = np.polyfit(np.delete(x_SA, i, 0).ravel(), np.delete(end_SA, i, 0).ravel(), 1)
                errors.append(float(np.abs(slope * x_SA[i] + start - end_SA[i]).mean()))
            found[target][name] = {"mean": float(np.mean(errors)), "by seed": errors}
    return found


def depths(runs: Runs, window: int) -> dict[str, Any]:
    """Hit and answer NLL of single needles in texts of LENGTH tokens by depth, and what borders of tiles change.

    A contrast is the mean of the depths at a border less that of the depths between. Where no tile ends, in the arm
    `dense`, it should be the same.
    """

    def at(run: RunData, metric: str, **tags: Any) -> dict[float, float]:
        rows = run.select("needle", metric, "depth", length=LENGTH, span=run.span(), variant="single", **tags)
        rows = rows[rows.tokens == window]
        return dict(zip(rows.depth.tolist(), rows.value.tolist(), strict=True))

    def contrast(each: Mapping[float, float], arm: str) -> float:
        near, far = (float(np.mean([each[depth] for depth in some])) for some in BORDERS[arm])
        return near - far

    found: dict[str, Any] = {}
    for metric in ("hit_frac", "answer_nll_nats"):
        read = {arm: [at(run, metric) for run in runs[arm].values()] for arm in ("dense", *BUDGETS)}
        trained = {arm: [at(run, metric, attention="training") for run in runs[arm + THEN].values()] for arm in BUDGETS}
        named = read | {f"{arm}, training attention": rows for arm, rows in trained.items() if all(rows)}
        found[metric] = {
            "by depth": {arm: [float(np.mean([r[d] for r in rows])) for d in DEPTHS] for arm, rows in named.items()},
            "at borders less between, beside the arm dense": {
                name: interval([contrast(r, arm) - contrast(d, arm) for r, d in zip(rows, read["dense"], strict=True)])
                for name, rows in named.items()
                if (arm := name.partition(",")[0]) in BORDERS
            },
        }
    return found


def text(each: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    return f"{each['mean']:+.3g} ({each['low']:+.3g} to {each['high']:+.3g})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def shown(said: Mapping[str, Any]) -> None:
    """Print the tables."""
    kilo: Callable[[int], str] = lambda tokens: f"{tokens / 1000:.0f}k"  # noqa: E731
    for window, found in said["less dense"].items():
        names = list(found["needle/hit_frac"])[1:]
        rows = [[name, f"{each['dense']:.4g}", *(text(each[arm]) for arm in names)] for name, each in found.items()]
        print(
            f"\n{window}: dense, budgets less dense, and less each other\n" + table(["metric", "dense", *names], rows)
        )
    windows = said["windows"][:-1]
    rows = [
        [name, arm, *(text(each[arm][window]) for window in windows)]
        for name, each in said["training less dense attention"].items()
        for arm in BUDGETS
    ]
    print("Training attention less dense attention\n" + table(["metric", "arm", *map(kilo, windows)], rows))
    print(json.dumps(said["first in the order of the end"], indent=1))
    for target, errors in said["predicted"].items():
        rows = [[k, f"{v['mean'] if isinstance(v, dict) else v:.3g}"] for k, v in errors.items()]
        print(table([f"from, to {target} at the end", "mean absolute error"], rows))
    for window, found in said["depths"].items():
        for metric, each in found.items():
            rows = [[arm, *(f"{value:.3g}" for value in values)] for arm, values in each["by depth"].items()]
            print(f"{metric} at {kilo(window)}\n" + table(["arm", *map(str, DEPTHS)], rows))
            borders = each["at borders less between, beside the arm dense"]
            print("; ".join(f"{arm}: {text(of)}" for arm, of in borders.items()))


def answers(runs: Runs) -> dict[str, Any]:
    """Everything, from the runs by arm and seed."""
    windows = sorted(
        set.intersection(*(set(readings(run, TARGETS[1])) for seeds in runs.values() for run in seeds.values())) - {0}
    )
    *before, end = windows
    switch = before[-1]
    return {
        "windows": windows,
        "less dense": {
            f"{switch}": by_budget(runs, switch, ""),
            f"{end}, never dense": by_budget(runs, end, ""),
            f"{end}, dense stage": by_budget(runs, end, THEN),
        },
        "training less dense attention": gaps(runs, before),
        "first in the order of the end": first_in_order(runs, windows, end),
        "predicted": predicted(runs, before[-2], end),
        "depths": {window: depths(runs, window) for window in (switch, end)},
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        with tarfile.open(PAGES / "data" / "attention.tar.xz") as archive:
            archive.extractall(made, filter="data")
        (runs,) = loaded(Path(made), json.loads((Path(made) / "study.json").read_text())["orders"])
    said = answers(runs)
    write_atomic(ROOT / "bench" / "results" / "attention_study.json", json.dumps(said, indent=1) + "\n")
    shown(said)


if __name__ == "__main__":
    main()
