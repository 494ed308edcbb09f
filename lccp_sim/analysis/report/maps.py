"""Maps of one window beside another: needle by length and depth, heads on needles and on LongBio, experts.

The windows of a row share one colour scale, or a reader would compare colours that mean different numbers.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.format import judged, tokens
from lccp_sim.analysis.metrics import UP, metric_of
from lccp_sim.analysis.report.plots import Drawing, png


def needle_maps_figure(found: Findings) -> Drawing | None:
    """Hit and answer NLL over length and depth, at the first, the middle and the last window."""
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
            image = _map(ax, at.pivot(index="depth", columns="length", values="value"), colours, limits)
            ax.set_title(f"{each.label} after {tokens(at.tokens.iloc[0])} tokens")
        axes[row, 0].set_ylabel("depth of the needle")
        figure.colorbar(image, ax=axes[row], label=each.title, shrink=0.9, pad=0.015).outline.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("context length in tokens")
    caption = (
        f"Single needles of trained templates; of {judged(found.run)}. Depth 0 is the start of the context. Each "
        "row has one colour scale."
    )
    alt = "Maps of needle hit and answer NLL by context length and needle depth at " + ", ".join(
        f"step {s}" for s in chosen
    )
    return Drawing("needle_maps", "Needle by length and depth", alt, caption, png(figure))


def head_map_figure(found: Findings) -> Drawing | None:
    """Hard copy score of every head at the first and the last window, on needles and, below, on LongBio."""
    table = found.run.select("heads", "copy_hard_frac", "layer", "head")
    other = found.run.select("heads", "copy_hard_frac", "layer", "head", "samples")
    caption = (
        "Fraction of answer tokens that a head copies: its largest attention weight lies on that token in the needle."
        + (" Below: on sentences about people, as in LongBio." if len(other) else "")
    )
    unit = "hard copy score, fraction"
    named = {"needles": table, "LongBio": other} if len(other) else {"": table}
    return _first_last(named, ("layer", "head"), "Retrieval heads", "head_map", unit, (0.0, 1.0), caption)


def load_map_figure(found: Findings) -> Drawing | None:
    """Load of every expert relative to an even share, at the first and the last window."""
    table = found.run.select("routing", "load_frac", "layer", "expert")
    if table.empty:
        return None
    table = table.assign(value=table.value * table.expert.nunique())
    limits = (0.0, max(2.0, float(table.value.max())))
    caption = "1 is an even share; 0 is a dead expert. The scale ends at the largest load of any window."
    named = {"": table}
    return _first_last(named, ("layer", "expert"), "Expert load", "load_map", "times an even share", limits, caption)


def _first_last(
    tables: dict[str, pd.DataFrame],
    names: tuple[str, str],
    title: str,
    file: str,
    unit: str,
    limits: tuple[float, float],
    caption: str,
) -> Drawing | None:
    """A row of maps for each table, its first window beside its last."""
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
            image = _map(ax, at.pivot(index=row, columns=column, values="value"), "viridis", limits)
            ax.set_title(f"{name}{' ' if name else ''}after {tokens(at.tokens.iloc[0])} tokens")
        axes[number, 0].set_ylabel(row)
    for ax in axes[-1]:
        ax.set_xlabel(column)
    figure.colorbar(image, ax=axes, label=unit, shrink=0.9, pad=0.015).outline.set_visible(False)
    return Drawing(file, title, f"Map of {unit} by {row} and {column}, first and last window", caption, png(figure))


def _map(ax: Axes, grid: pd.DataFrame, colours: str, limits: tuple[float, float]) -> AxesImage:
    """The image of a table, with its numbers in the cells where they fit."""
    image = ax.imshow(
        grid.to_numpy(float), cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest"
    )
    for spine in ax.spines.values():
        spine.set_visible(False)
    for axis, labels in ((ax.xaxis, grid.columns), (ax.yaxis, grid.index)):
        every = -(-len(labels) // 12)
        axis.set_ticks(range(0, len(labels), every), [f"{label:g}" for label in labels[::every]], fontsize=8)
        axis.set_tick_params(length=0)
    if grid.shape[1] <= 8 and grid.shape[0] <= 12:
        for (i, j), value in np.ndenumerate(grid.to_numpy(float)):
            red, green, blue, _ = image.cmap(image.norm(value))
            ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
            text = f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
            ax.text(j, i, text if np.isfinite(value) else "", ha="center", va="center", fontsize=7, color=ink)
    return image
