"""Figures of single windows, by depth, length, position, task and head: early windows compared with the last.

Early windows are grey and dashed and the last window is blue everywhere; windows between them are drawn if there is
room. The maps of a row share one colour scale, so that equal colours mean equal numbers.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.format import judged, tokens
from lccp_sim.analysis.metrics import LOGIT, SIGNED, UP, metric_of
from lccp_sim.analysis.report.plots import BLUE, GREY, SKY, Drawing, draw_map, log_values, panels, png

PANELS = {  # the order of the panels, and their names
    "single": "single needle",
    "heldout": "template never trained",
    "distractor": "among distractors",
    "multikey": "among other keys",
    "interference": "fixed distance to the question",
}
ANSWER_METRICS = tuple(metric_of("needle", name) for name in ("hit_frac", "answer_ppl"))


def depths_figure(found: Findings) -> Drawing | None:
    """Draw the profile over depths, averaged over all lengths, at the first, a middle and the last window."""
    tables = [(each, table) for each in ANSWER_METRICS if len(table := found.run.select("needle", each.name, "depth"))]
    if not tables:
        return None
    figure, axes = panels(len(tables), height=3.0)
    for ax, (each, table) in zip(axes[0], tables, strict=True):
        _windows(ax, table, "depth")
        ax.set_title(each.title, fontsize=9, fontweight="normal")
        ax.set_xlabel("depth of the needle, 0 is the start")
        if each.scale == LOGIT:
            ax.set_ylim(-0.03, 1.03)
        else:
            log_values(ax)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=8)
    caption = (
        f"Single needles, mean over all lengths, on {judged(found.run)} (arXiv 2604.02650 sec. 7.2: depths of 30 to "
        "80 % are worst at first, and training flattens the profile). The mean includes short lengths, at which depth "
        "matters little."
    )
    return Drawing("depths", "Needle by depth", "Needle hit and perplexity by depth", caption, png(figure))


def variants_figure(found: Findings) -> Drawing | None:
    """Draw hit and perplexity by context length for each variant, at the first and the last window."""

    def of(metric: str) -> pd.DataFrame:
        return found.run.select("needle", metric, "length", "variant", span=found.run.span())

    tables = [of("answer_nll_nats") if (table := of(each.name)).empty else table for each in ANSWER_METRICS]
    if any(table.empty for table in tables):
        return None
    names = [name for name in PANELS if name in set(tables[0].variant)]
    figure, axes = panels(len(names), height=2.5, width=2.3, rows=2, sharex=True, sharey="row")
    for column, name in enumerate(names):
        for row, table in enumerate(tables):
            _windows(axes[row, column], table[table.variant == name], "length", middle=False)
            axes[row, column].set_xscale("log", base=2)
            axes[row, column].xaxis.set_major_formatter("{x:.0f}")
            axes[row, column].tick_params(axis="x", labelsize=7.5)
        axes[0, column].set_title(PANELS[name], fontsize=8.5)
        axes[1, column].set_xlabel("context length, tokens")
    for row, (table, each) in enumerate(zip(tables, ANSWER_METRICS, strict=True)):
        axes[row, 0].set_ylabel(each.title if (table.metric != "answer_nll_nats").all() else "NLL, nats per token")
    axes[0, 0].set_ylim(-0.03, 1.03)
    log_values(axes[1, 0])
    axes[0, 0].legend(title="after", title_fontsize=8, fontsize=7.5)
    caption = (
        f"On {judged(found.run)}. Shaded: one standard error. With a fixed distance between needle and question, only "
        "the text before the needle grows (arXiv 2604.02650 sec. 7.3: at first perplexity grows with it, and training "
        "removes this). Do not compare perplexities between variants."
    )
    alt = f"Needle hit and perplexity by length for {', '.join(PANELS[name] for name in names)}"
    return Drawing("variants", "Needle by variant", alt, caption, png(figure))


def positions_figure(found: Findings) -> Drawing | None:
    """Draw held-out NLL and the gain of the long context by position, at the first and last window, by source."""
    kinds = [metric_of("perplexity", name) for name in ("nll_nats", "long_short_gain_nats")]
    tables = [(each, found.run.select("perplexity", each.name, "position", "source")) for each in kinds]
    tables = [(each, table) for each, table in tables if len(table)]
    if not tables:
        return None
    sources = sorted(set(tables[0][1].source))
    figure, axes = panels(len(sources), 2.6, 2.9, rows=len(tables), sharex=True, sharey="row")
    old = found.run.setting("data.old_context_tokens")
    for row, (each, table) in enumerate(tables):
        for ax, source in zip(axes[row], sources, strict=True):
            _windows(ax, table[table.source == source], "position", middle=False)
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:.0f}")
            if old:
                ax.axvline(old, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
            if each.scale == SIGNED:
                ax.axhline(0, color=GREY, linewidth=0.6)
        axes[row, 0].set_ylabel(each.title)
    for ax, source in zip(axes[0], sources, strict=True):
        ax.set_title(str(source))
    for ax in axes[-1]:
        ax.set_xlabel("position, tokens")
        ax.tick_params(axis="x", labelsize=7.5)
    axes[0, 0].legend(title="after", title_fontsize=8, fontsize=7.5)
    caption = (
        "Positions are grouped by powers of two. Dotted: the old context length. Shaded: one standard error. The gain "
        "is NLL in short windows minus NLL with the full context, so it is 0 by definition within the first window."
    )
    alt = f"NLL and long-context gain by position for {', '.join(map(str, sources))} at the first and the last window"
    return Drawing("positions", "Held-out text by position", alt, caption, png(figure))


def probe_figure(found: Findings) -> Drawing | None:
    """Draw exact match of the fine-tuned probe by task, at the first and the last window, with each probe seed."""
    if not found.steps_sft:
        return None
    last = {"sft_step": found.steps_sft[-1]}
    table = found.run.select("probe", "exact_match_frac", "task", **last)
    if table.empty:
        return None
    seeds = found.run.select("probe", "exact_match_frac", "seed", "task", **last)
    tasks = sorted(set(table.task))
    figure, axes = panels(2, height=max(2.2, 0.33 * len(tasks) + 1.1), width=3.6, sharey=True)
    place = {task: len(tasks) - 1 - number for number, task in enumerate(tasks)}
    for step, colour, shift in _first_last(table, (GREY, BLUE), (0.13, -0.13)):
        at = table[table.step == step].set_index("task")
        y = np.array([place[task] for task in at.index]) + shift
        label = f"{tokens(at.tokens.iloc[0])} tokens"
        error = at.stderr.to_numpy(float) if at.stderr.notna().all() else None
        axes[0, 0].errorbar(at.value, y, xerr=error, fmt="o", color=colour, markersize=4, linewidth=1, label=label)
        by_seed = seeds[seeds.step == step]
        y = np.array([place[task] for task in by_seed.task]) + shift
        axes[0, 1].scatter(by_seed.value, y, s=16, color=colour, alpha=0.6, linewidths=0, label=label)
    axes[0, 0].set_yticks(list(place.values()), [task.replace("_", " ") for task in place])
    axes[0, 0].legend(title="after", title_fontsize=8, fontsize=7.5)
    axes[0, 0].set_title("mean over probe seeds", fontsize=9, fontweight="normal")
    axes[0, 1].set_title("each probe seed", fontsize=9, fontweight="normal")
    for ax in axes[0]:
        ax.set_xlim(-0.04, 1.04)
        ax.set_xlabel("exact match, fraction of questions")
        ax.grid(axis="y", color="#e5e5e0", linewidth=0.6)
    asked = " to ".join(sorted({str(table.n.min()), str(table.n.max())}, key=int))
    caption = (
        f"After {last['sft_step']} fine-tuning steps. Bars: one standard error over the questions of a task ({asked}). "
        "The probe seed orders the fine-tuning batches; it is not a training seed."
    )
    alt = f"Exact match of {len(tasks)} tasks at the first and the last window, mean and by probe seed"
    return Drawing("probe", "Fine-tuned probe by task", alt, caption, png(figure))


def _windows(ax: Axes, table: pd.DataFrame, name: str, middle: bool = True) -> None:
    """Draw the curve over `name` at the first, a middle and the last window, with standard errors."""
    steps = sorted(set(table.step))
    if not steps:
        return
    chosen: list[tuple[Any, str, str]] = [(steps[0], GREY, "--"), (steps[-1], BLUE, "-")]
    if middle and len(steps) > 2:
        chosen.insert(1, (steps[len(steps) // 2], SKY, "-"))
    for step, colour, style in dict.fromkeys(chosen):
        at = table[table.step == step].sort_values(name)
        x, value, stderr = (at[column].to_numpy(float) for column in (name, "value", "stderr"))
        label = f"{tokens(at.tokens.iloc[0])} tokens"
        ax.plot(x, value, style, color=colour, marker="o", markersize=3, label=label)
        if np.isfinite(stderr).all():
            low = value - stderr
            if (value > 0).all():
                low = np.maximum(low, 0.5 * value)
            ax.fill_between(x, low, value + stderr, color=colour, alpha=0.15, linewidth=0)


def _first_last(
    table: pd.DataFrame, colours: tuple[str, str], shifts: tuple[float, float]
) -> list[tuple[Any, str, float]]:
    """Return the first and the last step with their colours and shifts; only one if they are the same."""
    first, last = table.step.min(), table.step.max()
    if first == last:
        return [(last, colours[1], 0.0)]
    return [(first, colours[0], shifts[0]), (last, colours[1], shifts[1])]


def needle_maps_figure(found: Findings) -> Drawing | None:
    """Draw maps of hit and answer NLL over length and depth, at the first, the middle and the last window."""
    names, tags = ("depth", "length"), {"span": found.run.span(), "variant": "single"}
    metrics = [metric_of("needle", name) for name in ("hit_frac", "answer_nll_nats")]
    tables = [found.run.select("needle", each.name, *names, **tags) for each in metrics]
    if any(table.empty for table in tables):
        return None
    steps = sorted(tables[0].step.unique())
    chosen = list(dict.fromkeys([steps[0], steps[len(steps) // 2], steps[-1]]))
    figure = Figure(figsize=(1.5 + 2.5 * len(chosen), 5.4), layout="constrained")
    axes = figure.subplots(2, len(chosen), squeeze=False, sharex=True, sharey=True)
    for row, (table, each) in enumerate(zip(tables, metrics, strict=True)):
        limits = 0.0, each.bounds[1] or float(table[table.step.isin(chosen)].value.max())
        colours = "viridis" if each.better == UP else "viridis_r"
        for ax, step in zip(axes[row], chosen, strict=True):
            at = table[table.step == step]
            image = draw_map(ax, at.pivot(index="depth", columns="length", values="value"), colours, limits)
            ax.set_title(f"{each.label} after {tokens(at.tokens.iloc[0])} tokens")
        axes[row, 0].set_ylabel("depth of the needle")
        figure.colorbar(image, ax=axes[row], label=each.title, shrink=0.9, pad=0.015).outline.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("context length in tokens")
    caption = (
        f"Single needles of trained templates, on {judged(found.run)}. Depth 0 is the start of the context. Each row "
        "has one colour scale."
    )
    alt = "Maps of needle hit and answer NLL by context length and needle depth at " + ", ".join(
        f"step {s}" for s in chosen
    )
    return Drawing("needle_maps", "Needle by length and depth", alt, caption, png(figure))


def head_map_figure(found: Findings) -> Drawing | None:
    """Draw the hard copy score of every head at the first and the last window, on needles and on LongBio (below)."""
    table = found.run.select("heads", "copy_hard_frac", "layer", "head")
    other = found.run.select("heads", "copy_hard_frac", "layer", "head", "samples")
    caption = (
        "Fraction of answer tokens that a head copies: its largest attention weight is on that token in the needle."
        + (" Below: on the biographies of LongBio." if len(other) else "")
    )
    unit = "hard copy score, fraction"
    named = {"needles": table, "LongBio": other} if len(other) else {"": table}
    return _maps_figure(named, ("layer", "head"), "Retrieval heads", "head_map", unit, (0.0, 1.0), caption)


def load_map_figure(found: Findings) -> Drawing | None:
    """Draw the load of every expert relative to an even share, at the first and the last window."""
    table = found.run.select("routing", "load_frac", "layer", "expert")
    if table.empty:
        return None
    table = table.assign(value=table.value * table.expert.nunique())
    limits = (0.0, max(2.0, float(table.value.max())))
    caption = "1 is an even share; 0 is a dead expert. The scale ends at the largest load of any window."
    named = {"": table}
    return _maps_figure(named, ("layer", "expert"), "Expert load", "load_map", "times an even share", limits, caption)


def _maps_figure(
    tables: dict[str, pd.DataFrame],
    names: tuple[str, str],
    title: str,
    file: str,
    unit: str,
    limits: tuple[float, float],
    caption: str,
) -> Drawing | None:
    """Draw a row of maps for each table: its first window and its last."""
    if any(table.empty for table in tables.values()):
        return None
    row, column = names
    columns = max(min(2, table.step.nunique()) for table in tables.values())
    height = float(np.clip(0.35 * next(iter(tables.values()))[row].nunique() + 1.2, 2.0, 7))
    figure = Figure(figsize=(1.2 + 3.1 * columns, height * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), columns, squeeze=False, sharey=True, sharex=True)
    for number, (name, table) in enumerate(tables.items()):
        steps = list(dict.fromkeys([table.step.min(), table.step.max()]))
        for ax in axes[number, len(steps) :]:
            ax.set_axis_off()
        for ax, step in zip(axes[number], steps, strict=False):
            at = table[table.step == step]
            image = draw_map(ax, at.pivot(index=row, columns=column, values="value"), "viridis", limits)
            ax.set_title(f"{name}{' ' if name else ''}after {tokens(at.tokens.iloc[0])} tokens")
        axes[number, 0].set_ylabel(row)
    for ax in axes[-1]:
        ax.set_xlabel(column)
    figure.colorbar(image, ax=axes, label=unit, shrink=0.9, pad=0.015).outline.set_visible(False)
    return Drawing(file, title, f"Map of {unit} by {row} and {column}, first and last window", caption, png(figure))
