"""What arXiv 2604.02650 prints about correlations with its fine-tuned probe, and what these numbers can carry.

    python bench/paper_numbers.py

writes bench/results/shared_trend.json and prints the tables of docs/paper.md. From the printed coefficients: p values,
Fisher intervals, and Williams's test over what the paper does not report, the correlation of two monitors with each
other. By simulation: how large a correlation gets by chance when two monotone series at the paper's six checkpoints
share nothing but their direction. `steps`: sums of independent exponential increments. `saturating`:
1 - exp(-tokens / scale), scales log-uniform from 10 to 200 billion tokens, each series with its own, and noise of 5 %
of its range, so that a series may go back a little.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t

from lccp_sim.analysis.stats.correlation import LEVEL, correlation_p, fisher_interval, williams
from lccp_sim.files import write_atomic

RESULT = Path(__file__).parent / "results" / "shared_trend.json"
PAIRS, NOISE = 100_000, 0.05
Array = npt.NDArray[np.float64]

TOKENS_B = (0.0, 20.0, 50.0, 100.0, 150.0, 200.0)  # Table 5
N = len(TOKENS_B)
BENCHMARKS = ("RULER", "MRCR", "LongBio")
CORRELATIONS = {  # monitor -> (r, p) by benchmark; Tables 3, 4, 6, 7
    "NIAH score": ((0.8552, 0.0299), (0.8927, 0.0166), (0.4977, 0.3151)),
    "NIAH PPL": ((-0.9115, 0.0114), (-0.9231, 0.0087), (-0.6283, 0.1816)),
    "retrieval heads": ((0.8243, 0.0436), (0.8326, 0.0397), (0.5715, 0.2361)),
    "mean retrieval score": ((0.8956, 0.0158), (0.8469, 0.0334), (0.6210, 0.1882)),
}
ASSUMED = np.linspace(0.70, 0.98, 57)  # |corr(NIAH score, NIAH PPL)|: not reported
KINDS = ("steps", "saturating")
NAMES = {"level": "as they are", "differences": "slopes between checkpoints", "partial": "given log tokens"}


def critical_r(df: int) -> float:
    """Return the |r| above which `correlation_p` is below 1 - LEVEL."""
    bound = t.isf((1 - LEVEL) / 2, df)
    return float(bound / math.sqrt(df + bound * bound))


def steps(rng: np.random.Generator, pairs: int) -> Array:
    """Series [pairs, W] that rise by independent exponential amounts."""
    increment_PW = rng.exponential(size=(pairs, len(TOKENS_B)))
    increment_PW[:, 0] = 0
    return increment_PW.cumsum(1)


def saturating(rng: np.random.Generator, pairs: int) -> Array:
    """Series [pairs, W] that approach a level, each at its own pace, with noise."""
    scale_P1 = np.exp(rng.uniform(np.log(10), np.log(200), size=(pairs, 1)))
    rise_PW = 1 - np.exp(-np.array(TOKENS_B) / scale_P1)
    return rise_PW / rise_PW[:, -1:] + NOISE * rng.standard_normal(rise_PW.shape)


def without_trend(value_PW: Array) -> dict[str, tuple[Array, int]]:
    """The series as they are, as slopes between checkpoints and as residuals on log tokens, with what df they lose."""
    log_W = np.log(np.array(TOKENS_B) + TOKENS_B[1])
    design_W2 = np.stack([np.ones_like(log_W), log_W], 1)
    residual_PW = value_PW - value_PW @ (design_W2 @ np.linalg.pinv(design_W2)).T
    return {"level": (value_PW, 0), "differences": (np.diff(value_PW) / np.diff(log_W), 1), "partial": (residual_PW, 1)}


def correlate(a_PW: Array, b_PW: Array) -> Array:
    """Pearson's r [P] of each row of a with the same row of b."""
    a_PW, b_PW = (x_PW - x_PW.mean(1, keepdims=True) for x_PW in (a_PW, b_PW))
    return (a_PW * b_PW).sum(1) / np.sqrt((a_PW**2).sum(1) * (b_PW**2).sum(1))


def by_chance(pairs: int = PAIRS, seed: int = 0) -> dict[str, Any]:
    """The numbers of the file, by kind of series and of coefficient."""
    result: dict[str, Any] = {"pairs": pairs, "seed": seed, "noise": NOISE, "tokens_billions": list(TOKENS_B)}
    for make in (steps, saturating):
        rng = np.random.default_rng(seed)
        first, second = without_trend(make(rng, pairs)), without_trend(make(rng, pairs))
        rows = {}
        for name, (a_PW, lost) in first.items():
            r_P = np.abs(correlate(a_PW, second[name][0]))
            quantiles = dict(zip(("q05", "median", "q95"), np.quantile(r_P, [0.05, 0.5, 0.95]), strict=True))
            passing = (r_P > critical_r(len(TOKENS_B) - 2 - lost)).mean()
            rows[name] = {key: round(float(value), 4) for key, value in quantiles.items()}
            rows[name]["share_below_p_05"] = round(float(passing), 4)
            if name == "level":
                rows[name]["share_at_least_printed"] = {
                    monitor: [round(float((r_P >= abs(r)).mean()), 4) for r, _ in printed]
                    for monitor, printed in CORRELATIONS.items()
                }
        result[make.__name__] = rows
    return result


def coefficients() -> str:
    """The Markdown table of the printed r and p, the p of a t-test with n = 6, and the Fisher interval."""
    trend = json.loads(RESULT.read_text())
    lines = [
        "| monitor | benchmark | r | p, printed | p, t-test, n = 6 | 95 % interval (Fisher) | by chance: steps | by chance: saturating |",  # noqa: E501
        "|---|---|---|---|---|---|---|---|",
    ]
    for monitor, printed in CORRELATIONS.items():
        for number, (r, p) in enumerate(printed):
            low, high = fisher_interval(r, N - 2) or (r, r)
            chance = [trend[kind]["level"]["share_at_least_printed"][monitor][number] for kind in KINDS]
            cells = [monitor, BENCHMARKS[number], f"{r:.4f}", f"{p:.4f}", f"{correlation_p(r, N - 2):.4f}"]
            cells += [f"{low:.2f} to {high:.2f}", *(f"{100 * share:.0f} %" for share in chance)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def williams_range(benchmark: int) -> tuple[float, float]:
    """The smallest and largest p of Williams's test, |r| of NIAH PPL against that of NIAH score, over `ASSUMED`."""
    score, ppl = CORRELATIONS["NIAH score"][benchmark][0], -CORRELATIONS["NIAH PPL"][benchmark][0]
    tests = [williams(ppl, score, float(r_ab), N) for r_ab in ASSUMED]
    p_values = [test[1] for test in tests if test is not None]
    return min(p_values), max(p_values)


def comparison() -> str:
    """The Markdown table of Williams's test on NIAH PPL against NIAH score."""
    lines = ["| benchmark | abs. r, PPL | abs. r, score | p of Williams's test |", "|---|---|---|---|"]
    for number, benchmark in enumerate(BENCHMARKS):
        low, high = williams_range(number)
        ppl, score = (abs(CORRELATIONS[name][number][0]) for name in ("NIAH PPL", "NIAH score"))
        lines.append(f"| {benchmark} | {ppl:.4f} | {score:.4f} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines)


def shared_trend() -> str:
    """The Markdown table of correlations between independent monotone series."""
    trend = json.loads(RESULT.read_text())
    lines = ["| series | coefficient | median abs. r | 95 % quantile | p < .05 |", "|---|---|---|---|---|"]
    for kind in KINDS:
        for name, row in trend[kind].items():
            share = f"{100 * row['share_below_p_05']:.0f} %"
            lines.append(f"| {kind} | {NAMES[name]} | {row['median']:.2f} | {row['q95']:.2f} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    write_atomic(RESULT, json.dumps(by_chance(), indent=1) + "\n")
    print(coefficients(), comparison(), shared_trend(), sep="\n\n")
