"""The page of a study: results by arm with differences from the reference, curves with bands, agreement of rankings.

It is built from finished runs only and needs only their configs. Design note: each run of an arm and seed is one point,
because intervals over items, as in the reports of runs, say nothing about another seed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from lccp_sim.analysis.findings import Findings, examine
from lccp_sim.analysis.forks import forks, least_error, monitor_predictions, spreads
from lccp_sim.analysis.format import interval, number, percent, setting, tokens
from lccp_sim.analysis.metrics import LOG, labelled, metric_of
from lccp_sim.analysis.report.after import (
    predicted_table,
    scores_table,
    signals_table,
    spreads_table,
    window_stages_table,
)
from lccp_sim.analysis.report.answers import answers
from lccp_sim.analysis.report.answers import table as answer_table
from lccp_sim.analysis.report.plots import (
    COLOURS,
    STYLE,
    Drawing,
    line,
    log_values,
    panels,
    png,
    switch_note,
    switches,
    token_axis,
)
from lccp_sim.analysis.report.precondition import precondition, unmet
from lccp_sim.analysis.report.replication import cost_table, needle_table, probe_over_seeds_table, stopping_costs
from lccp_sim.analysis.report.run_page import Section, write_page
from lccp_sim.analysis.report.tables import Table
from lccp_sim.analysis.run import RunData, differing, tidy, unlike
from lccp_sim.analysis.seeds import at_shared_windows, over_seeds
from lccp_sim.analysis.stats.arms import (
    Agreement,
    Curves,
    Moved,
    Result,
    Runs,
    agreements,
    curves_of,
    leverage,
    moved,
    results,
)
from lccp_sim.analysis.stats.cpt_law import replay
from lccp_sim.analysis.stats.curve import to_json
from lccp_sim.analysis.stats.rule import VERDICT_WORDS, decide
from lccp_sim.analysis.stats.saturation import progress
from lccp_sim.files import write_atomic


def write_study(
    name: str,
    texts: Sequence[str],
    reference: str,
    metrics: Sequence[str],
    runs: Runs,
    folder: Path,
    failed: Sequence[str],
    paper: bool = False,
    repeats: Sequence[Runs] = (),
    trained: Sequence[str] = (),
    controls: Mapping[str, str] | None = None,
) -> Path:
    """Write index.html, its Markdown, report.json, results.csv and records.parquet to `folder`; return the page's path.

    `texts`: the question and the note. `runs`: the finished runs by arm and seed. `failed`: a line for each run that
    did not finish. `paper`: with the answers of the reference arm to the paper's findings. `repeats`: the same arms and
    seeds with other orders of the data, one after another. `trained`: metrics that do not measure ability; `controls`:
    the arms against which these are judged, if not the reference.
    """
    curves = curves_of(runs, metrics)
    again = [curves_of(each, metrics) for each in repeats]
    rows, still = results(curves, reference, again), moved(curves, again)
    agreed, drawn = agreements(rows), [run for seeds in runs.values() for run in seeds.values()]
    table = pd.json_normalize(to_json(rows))
    told = (
        _by_seed(runs[reference], [each.get(reference, {}) for each in repeats]) if paper and reference in runs else []
    )
    found, costs = (answers(told), stopping_costs(told)) if told else ([], [])
    against = {arm: (controls or {}).get(arm, reference) for arm in runs if arm != reference} if trained else {}
    judged = {
        (arm, control): [row for row in results(curves, control, again) if row.arm == arm]
        for arm, control in against.items()
    }
    left = forks(runs, repeats)
    ahead, least, apart = (monitor_predictions(left), least_error(left), spreads(left)) if left else ([], None, [])
    after = (
        [window_stages_table(left), predicted_table(ahead, least), spreads_table(apart), signals_table(left, runs)]
        if left
        else []
    )
    with matplotlib.rc_context(STYLE):
        figure = arms_figure(curves, list(runs), [run.dense_from for run in drawn])
    made = [
        Section("The paper's findings", [], [answer_table(found, len(runs.get(reference, {})))]),
        Section("The cost of stopping", [], [cost_table(costs)]),
        Section("Needles and probe", [], [needle_table(told), probe_over_seeds_table(told)] if told else []),
        Section("After the window", [], after),
        Section("What training for heads moves", [], [scores_table(judged, trained)]),
        Section("The effect of data order", [], [_order(still, repeats)]),
        Section("Results", [], [_results(rows, metrics), _leverages(rows, metrics)]),
        Section("Saturation by arm", [], [_saturation(curves)]),
        Section("The effect of replay", [], [_replay(runs)]),
        Section("Do monitors rank the arms as the probe does?", [], [_agreements(agreed)] if len(runs) > 2 else []),
        Section("Runs", [], [_runs(runs), _shared(runs)]),
    ]
    weak = [
        f"{arm}, seed {seed}: the precondition is not met ({missing})."
        for arm, each in runs.items()
        for seed, run in each.items()
        if (missing := unmet(precondition(run)))
    ]
    seeds = sorted({seed for each in runs.values() for seed in each})
    page = {
        "name": name,
        "meta": [
            f"{len(runs)} arm{'s' * (len(runs) > 1)}",
            f"seeds {', '.join(map(str, seeds))}",
            f"reference {reference}" if len(runs) > 1 else "",
            f"{len(repeats) + 1} data orders" if repeats else "",
        ],
        "summary": [texts[0], *(_says(rows, reference) if len(runs) > 1 else []), *_stays(still)],
        "caution": " ".join([*failed, *weak]),
        "main": figure,
        "sections": [Section(s.title, [], kept) for s in made if (kept := [each for each in s.tables if each.rows])],
        "warnings": [*unlike(drawn), *(text for text in texts[1:] if text)],
    }
    data = {
        "study": name, "texts": list(texts), "reference": reference, "metrics": list(metrics), "paper": paper,
        "failed": list(failed), "trained": list(trained), "controls": dict(controls or {}),
        "precondition_not_met": weak,
        "results": to_json(rows), "agreements": to_json(agreed),
        "answers": to_json(found),
        "stopping": to_json(costs),
        "repeats": to_json(still),
        "after": to_json({"windows": left.windows, "stages": left.stages, "predicted": ahead, "least_error": least,
                          "spreads": apart}) if left else None,
        "leverage": {metric: leverage(rows, metric) for metric in metrics},
        "runs": _names(runs), "again": [_names(each) for each in repeats],
    }  # fmt: skip
    write_atomic(folder / "results.csv", table.to_csv(index=False))
    return write_page(folder, page, [figure] if figure else [], data, tidy(drawn))


def _names(runs: Runs) -> dict[str, dict[str, str]]:
    """Return the names of runs by arm and seed."""
    return {arm: {str(seed): run.name for seed, run in each.items()} for arm, each in runs.items()}


def _by_seed(first: Mapping[int, RunData], repeats: Sequence[Mapping[int, RunData]]) -> list[list[Findings]]:
    """Compute the findings of one arm's runs, by seed and data order."""
    return [[examine(run), *(examine(each[seed]) for each in repeats if seed in each)] for seed, run in first.items()]


def arms_figure(found: Curves, names: Sequence[str], turned: Sequence[int | None] = ()) -> Drawing | None:
    """Draw each metric in a panel, one line per arm: the mean over seeds with one standard error; None if no curve.

    `turned`: the tokens at which each run switched to dense attention, None if it did not.
    """
    shown = [
        metric for metric, arms in found.items() if any(len(c.tokens_W) > 1 for s in arms.values() for c in s.values())
    ]
    if not shown:
        return None
    grids = [c.tokens_W for metric in shown for seeds in found[metric].values() for c in seeds.values()]
    grid_W, columns = np.unique(np.concatenate(grids)), min(3, len(shown))
    figure, axes = panels(columns, height=2.5, width=3.2, rows=-(-len(shown) // columns))
    for ax in axes.ravel()[len(shown) :]:
        ax.set_axis_off()
    for ax, metric in zip(axes.ravel(), shown, strict=False):
        for place, arm in enumerate(names):
            curves = list(found[metric][arm].values())
            if not curves:
                continue
            tokens_W, value_SW = at_shared_windows(curves)
            stderr_W = value_SW.std(0, ddof=1) / len(curves) ** 0.5 if len(curves) > 1 else None
            line(ax, tokens_W, value_SW.mean(0), stderr_W, grid_W, color=COLOURS[place % len(COLOURS)])
        of = metric_of(*metric.split("/"))
        ax.set_title(of.title, fontsize=8.5, fontweight="normal")
        switches(ax, turned, grid_W)
        token_axis(ax, grid_W, "training tokens, log scale", few=True)
        if of.scale == LOG and all((np.asarray(each.get_ydata()) > 0).all() for each in ax.lines):
            log_values(ax)
    handles = [Line2D([], [], color=COLOURS[place % len(COLOURS)]) for place in range(len(names))]
    figure.legend(handles, list(names), loc="outside upper left", ncols=min(4, len(names)))
    caption = "Means over seeds; shaded: one standard error over seeds, if there are several." + switch_note(turned)
    return Drawing("arms", "Curves by arm", f"{len(shown)} metrics for arms {', '.join(names)}", caption, png(figure))


def _says(rows: Sequence[Result], reference: str) -> list[str]:
    """Write a sentence on differences from the reference beyond seeds, and one on the number of comparisons."""
    tested = [row for row in rows if row.p_holm is not None]
    clear = [row for row in tested if row.p_holm is not None and row.p_holm < 0.05 and not row.inside]
    said = [f"{row.arm} in {_label(row.metric)}, by {interval(row.difference)}" for row in clear]
    if not tested:
        return ["No arm shares two seeds with the reference, so differences cannot be compared with those of seeds."]
    found = "; ".join(said) if said else "none"
    order = " and beyond the effect of data order" if any(row.floor is not None for row in tested) else ""
    return [
        f"Differences from {reference} beyond the variation over seeds (p < 0.05, Holm over arms){order}: {found}.",
        f"There were {len(tested)} comparisons, of correlated metrics. A difference that was not found may exist.",
    ]


def _stays(still: Sequence[Moved]) -> list[str]:
    """Write a sentence on the metrics whose change data order alone can explain; none without repeats."""
    if not still:
        return []
    quiet = ", ".join(f"{_label(row.metric)} of {row.arm}" for row in still if not row.told)
    return [f"Metrics that changed over the run by no more than the effect of data order: {quiet or 'none'}."]


def _label(key: str) -> str:
    return metric_of(*key.split("/")).label


def _order(still: Sequence[Moved], repeats: Sequence[Runs]) -> Table:
    cells = []
    several = {arm for each in repeats for arm in each}
    of = "" if several >= {row.arm for row in still} else f" of {', '.join(sorted(several))} alone"
    for row in still:
        told = "yes" if row.told else "no: within the spread of repeats"
        cells.append([labelled(row.metric), row.arm, number(row.change), number(row.spread), number(row.floor), told])
    note = (
        f"Runs of one seed that differ only in the order of their data, {len(repeats) + 1} orders{of}. Change: from "
        "first to last window, mean over seeds. Spread: standard deviation of repeats at the end, pooled over seeds "
        "and arms. Noise limit: the largest such change from data order alone (95 %). A change within it does not "
        "count."
    )
    head = ["metric", "arm", "change", "spread of repeats", "noise limit", "changed"]
    return Table("Repeated runs", head, cells, note)


def _results(rows: Sequence[Result], metrics: Sequence[str]) -> Table:
    cells = []
    for row in sorted(rows, key=lambda row: metrics.index(row.metric)):
        spread = "" if row.spread is None else f" ± {row.spread:.2g}"
        apart = interval(row.difference) if row.difference else ""
        if row.floor is not None:
            apart += f"; data order alone {number(row.floor)}{', so none' if row.inside else ''}"
        p = "" if row.p_holm is None else number(row.p_holm)
        cells.append([labelled(row.metric), row.arm, f"{number(row.mean)}{spread}", str(len(row.values)), apart, p])
    note = (
        "Values at the end of the run: mean ± standard deviation over seeds. Difference: from the reference at the "
        "same seed, with the 95 % interval of a paired t test; p is adjusted by Holm over the arms. Three seeds leave "
        "two degrees of freedom."
    )
    head = ["metric", "arm", "end", "seeds", "difference from the reference", "p (Holm)"]
    return Table("Final values by arm", head, cells, note)


def _leverages(rows: Sequence[Result], metrics: Sequence[str]) -> Table:
    found = [(metric, leverage(rows, metric)) for metric in metrics]
    cells = [[labelled(metric), number(value)] for metric, value in found if value is not None]
    note = (
        "Standard deviation of arm means divided by that of seeds within arms. Above 1 the axis changes the metric "
        "more than a seed does."
    )
    return Table("The effect of the axis", ["metric", "arms / seeds"], cells, note)


def _saturation(found: Curves) -> Table:
    cells = []
    for metric, arms in found.items():
        for arm, seeds in arms.items():
            curves = list(seeds.values())
            curve = over_seeds(curves) or (curves[0] if curves else None)
            if curve is None:
                continue
            moved, decision = progress(curve), decide(curve)
            gain = interval(decision.gain) if decision.gain and np.isfinite(decision.gain.value) else ""
            t95 = (
                f"{interval(moved.t95, tokens)}" if moved.t95 else f"none: {moved.reason.code if moved.reason else ''}"
            )
            way = f"{number(moved.first)} to {number(moved.last)}"
            cells.append([labelled(metric), arm, VERDICT_WORDS[decision.verdict], way, gain, t95])
    note = (
        "Means over seeds. t95: tokens to 95 % of the arm's own improvement in its run, not a point of saturation. "
        "For the rule and the next doubling see docs/analysis.md. In parentheses: 95 % intervals over seeds and items."
    )
    return Table("By arm", ["metric", "arm", "rule", "first to last", "next doubling", "t95"], cells, note)


def _replay(runs: Runs) -> Table:
    """Tabulate the replay term of the CPT law, if arms differ only in their share of short text."""
    keys = differing([run for seeds in runs.values() for run in seeds.values()]).drop(columns="seed", errors="ignore")
    if set(keys) != {"data.long_frac"}:
        return Table("The replay term", [], [])
    found = curves_of(runs, ["perplexity/short_nll_nats"])["perplexity/short_nll_nats"]
    arms = []
    for arm, seeds in found.items():
        curves = list(seeds.values())
        if curves:
            share = 1 - float(next(iter(runs[arm].values())).setting("data.long_frac"))
            arms.append((share, over_seeds(curves) or curves[0]))
    fitted = replay(arms) if len(arms) > 1 else None
    if fitted is None:
        return Table("The replay term", [], [])
    rows = [[percent(share), interval(when, tokens)] for share, when in zip(fitted.shares, fitted.tokens, strict=True)]
    note = (
        "One CPT law (arXiv 2505.07796 eq. 4) is fitted to the short-context NLL of all arms. Its shift is "
        f"B exp(-kappa r), where r is the share of short text: kappa {interval(fitted.kappa)}, B "
        f"{interval(fitted.shift)} nats. Turning length: tokens until the NLL is back at its value of step 0 (0: it "
        "never rose; never: not within ten such runs). Short text may come from other sources than long text, so this "
        "is the share of a mixture."
    )
    return Table("The replay term", ["short text", "turning length"], rows, note)


def _agreements(found: Sequence[Agreement]) -> Table:
    cells = []
    for each in found:
        tau = f"none: {each.reason}" if each.tau is None else f"{each.tau:.2f}"
        cells.append(
            [
                labelled(each.monitor),
                labelled(each.probe),
                tau,
                "" if each.p is None else number(each.p),
                str(each.arms),
            ]
        )
    note = (
        "Kendall's tau of the arm means, better first: 1 if the monitor ranks the arms as the probe does. Few arms say "
        "little: with four arms only identical rankings have p below 0.1."
    )
    return Table("Rank agreement", ["monitor", "probe", "tau", "p", "arms"], cells, note)


def _runs(runs: Runs) -> Table:
    drawn = [(arm, seed, run) for arm, seeds in runs.items() for seed, run in seeds.items()]
    keys = differing([run for _, _, run in drawn]) if drawn else pd.DataFrame()
    keys = keys.drop(columns="seed", errors="ignore")
    cells = []
    for (arm, seed, run), (_, settings) in zip(drawn, keys.iterrows(), strict=True):
        cells.append([arm, str(seed), run.name, tokens(run.tokens), *map(setting, settings)])
    head = ["arm", "seed", "run", "tokens", *map(str, keys.columns)]
    return Table("Runs", head, cells, "The last columns are the config keys in which the runs differ.")


def _shared(runs: Runs) -> Table:
    """Tabulate whether the arms of a seed read the same batches: the same corpus, batch and context."""
    cells = []
    for seed in sorted({seed for seeds in runs.values() for seed in seeds}):
        kinds = {arm: _batches(seeds[seed]) for arm, seeds in runs.items() if seed in seeds}
        groups = [", ".join(arm for arm in kinds if kinds[arm] == kind) for kind in dict.fromkeys(kinds.values())]
        cells.append([str(seed), "yes" if len(groups) == 1 else "no", "; ".join(groups)])
    note = "Arms of one seed with the same corpus, context and batch read the same batches in the same order."
    head = ["seed", "all arms", "arms that share them"]
    return Table("The same batches?", head, cells if len(runs) > 1 else [], note)


def _batches(run: RunData) -> tuple[str, ...]:
    """Return the settings that determine a run's batches: its corpus (pools and shares), context, batch and order."""
    corpus = json.loads((run.path / "corpus.json").read_text())["hash"]
    keys = ("run.context_tokens", "run.batch_tokens", "data.order_seed")
    return corpus, *(str(run.setting(key)) for key in keys)
