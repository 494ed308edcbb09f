"""Parts of a study's page for arms that branch off one run at several windows, and for arms that train a score."""

from collections.abc import Mapping, Sequence

import numpy as np

from lccp_sim.analysis.forks import PASS_FIRST, Forks, over_few
from lccp_sim.analysis.forks import Spread as StageSpread
from lccp_sim.analysis.format import interval, number, tokens
from lccp_sim.analysis.metrics import labelled, metric_of
from lccp_sim.analysis.report.chain import SIGNALS
from lccp_sim.analysis.report.tables import Table
from lccp_sim.analysis.stats.arms import Result, Runs
from lccp_sim.analysis.stats.prediction import Prediction


def window_stages_table(found: Forks) -> Table:
    """pass@1 by window and stage: means over seeds, with intervals over them."""
    rows = []
    for arm, window in sorted(found.windows.items(), key=lambda each: each[1]):
        cells = [
            interval(over_few(np.array([np.mean(own) for own in values[arm].values()]))) if arm in values else ""
            for values in found.stages.values()
        ]
        rows.append([arm, tokens(window), *cells])
    note = (
        "Sampled answers to held-out questions, the same ones everywhere. Means over seeds with 95 % t intervals; a "
        "seed's value is the mean of its repeats. Two of six intervals may well overlap and their arms differ: the "
        "paired differences are under Results."
    )
    return Table("pass@1 by window", ["arm", "LCCP tokens", *found.stages], rows, note)


def signals_table(found: Forks, runs: Runs) -> Table:
    """The training signal of RL by arm: means over all logged steps and seeds."""
    rows = []
    for arm in sorted(runs, key=lambda arm: found.windows[arm]):
        means = [[run.select("train", each).value.mean() for each in SIGNALS] for run in runs[arm].values()]
        if np.isfinite(mean := np.mean(means, axis=0)).any():
            rows.append([arm, *("" if np.isnan(value) else number(value) for value in mean)])
    note = (
        "Means over the logged steps of RL and over seeds. Groups without signal have equal rewards, so nothing is "
        "learnt from them."
    )
    return Table("What RL learnt from", ["arm", *(metric_of("train", each).label for each in SIGNALS)], rows, note)


def predicted_table(found: Sequence[Prediction], least: float | None) -> Table:
    """How well each monitor, read at the window, predicts the final pass@1 in held-out seeds."""
    rows = []
    for row in found:
        name = "pass@1 at the window" if row.monitor == PASS_FIRST else labelled(row.monitor)
        if row.ratio is None or row.mae is None or row.mae_tokens is None:
            rows.append([name, str(row.windows), "", "", "", str(row.reason)])
            continue
        mae, alone = number(row.mae), number(row.mae_tokens)
        rows.append([name, str(row.windows), mae, alone, number(row.ratio), f"{row.wins} of {row.runs} seeds"])
    noise = (
        f" Repeats of fine-tuning and RL alone give {number(least)}." if least is not None else " There are no repeats."
    )
    note = (
        "Mean absolute error of the last pass@1, by a line fitted on the other seeds: from the monitor, and from log "
        "tokens alone. Below 1 the monitor helps. With three seeds a win in all of them has probability 1/8 by chance, "
        f"and this is one monitor of many.{noise}"
    )
    head = ["monitor at the window", "windows", "error", "from log tokens", "ratio", "better in"]
    return Table("What predicts it", head, rows, note)


def spreads_table(found: Sequence[StageSpread]) -> Table:
    """Whether a phase narrows or widens the differences between windows."""
    rows = [
        [
            row.stage,
            number(row.mean),
            ", ".join(number(value) for value in row.by_seed.values()),
            "" if row.noise is None else number(row.noise),
            "" if row.change is None else interval(row.change),
            row.said,
        ]
        for row in found
    ]
    note = (
        "Standard deviation of pass@1 over windows, in each seed. Change: to the stage before, paired by seed, with "
        "its 95 % t interval. Near a pass@1 of 1 windows come together because there is no room above. Spread of "
        "repeats: what another order of the data does; it is a part of the standard deviation."
    )
    head = ["stage", "over windows", "by seed", "spread of repeats", "change", "differences"]
    return Table("Does it wash out or widen?", head, rows, note)


def scores_table(judged: Mapping[tuple[str, str], Sequence[Result]], trained: Sequence[str]) -> Table:
    """Which trained scores, abilities and held-out text got better or worse; `judged`: rows of (arm, its control)."""
    cells = []
    for (arm, control), rows in judged.items():
        kinds: dict[str, list[Result]] = {"score": [], "ability": [], "text": []}
        for row in rows:
            text = row.metric.startswith("perplexity/")
            kinds["score" if row.metric in trained else "text" if text else "ability"].append(row)
        said = [
            ", ".join(row.metric for row in kinds[kind] if better(row) == way) or "none"
            for kind, way in (("score", 1), ("ability", 1), ("ability", -1), ("text", 1), ("text", -1))
        ]
        verdict = "ability" if said[1] != "none" else "only the score" if said[0] != "none" else "neither is shown"
        cells.append([arm, control, *said, verdict])
    note = (
        "Against the control at the same seed: the 95 % interval of the paired difference excludes 0, and where there "
        "are repeats the difference is larger than they reach. Not adjusted for the number of metrics. Scores are what "
        f"some arm is trained on, or near to it ({', '.join(trained)}); they show no ability. Nor does held-out text, "
        "which says what the training cost."
    )
    head = ["arm", "control", "scores up", "abilities up", "abilities down", "text better", "text worse", "moved"]
    return Table("Ability, or only the score?", head, cells, note, words=True)


def better(row: Result) -> int:
    """1 if an arm's metric is better than the control's, -1 if it is worse, 0 if neither is shown."""
    apart = row.difference
    if apart is None or row.inside or not (apart.above(0) or apart.below(0)):
        return 0
    return 1 if apart.above(0) == row.rising else -1
