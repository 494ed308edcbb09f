"""The maps of a window as images for TensorBoard: needle by depth and length, probe by task and length, heads.

Needles are scored on the headline span, the tokens of the value, with dense attention. Heads have a map for each set of
texts. The colours of a map have the same limits at every window, so that its slider shows the changes.
"""

import numpy as np
import pandas as pd

from lccp_sim.analysis.format import tokens
from lccp_sim.analysis.metrics import CATALOGUE, DOWN, Metric
from lccp_sim.records import HEADLINE, Record

MAPS = {  # metric -> tags of rows and columns, and the largest value of the colour scale
    "needle/hit_frac": ("depth", "length", 1.0),
    "needle/answer_nll_nats": ("depth", "length", 8.0),
    "heads/copy_hard_frac": ("layer", "head", 1.0),
    "probe/exact_match_frac": ("task", "length", 1.0),
}
TENSORBOARD_DPI = 110


def window_maps(records: list[Record]) -> dict[str, tuple[Metric, pd.DataFrame]]:
    """{image name: (metric, grid)}, with rows and columns named by their tags."""
    maps = {}
    for key, (row, column, _) in MAPS.items():
        found = [r for r in records if f"{r.monitor}/{r.metric}" == key and {row, column} <= r.tags.keys()]
        tuned = max((int(r.tags.get("sft_step", 0)) for r in found), default=0)
        shown = {"span": HEADLINE, "sft_step": tuned, "attention": "dense"}  # where a record has the tag
        cells = [r for r in found if all(r.tags.get(tag, value) == value for tag, value in shown.items())]
        for texts in sorted({str(r.tags.get("samples", "")) for r in cells}):
            name = "_".join(filter(None, (key.rpartition("_")[0], texts)))
            these = [r for r in cells if str(r.tags.get("samples", "")) == texts]
            table = pd.DataFrame([{row: r.tags[row], column: r.tags[column], "value": r.value} for r in these])
            maps[name] = CATALOGUE[key], table.pivot(index=row, columns=column, values="value")
    return maps


def window_images(records: list[Record]) -> dict[str, np.ndarray]:
    """Images [height, width, 3] uint8 by name: a map with its axes, its scale, and the tokens of its window."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from lccp_sim.analysis.report.plots import STYLE, draw_map

    images = {}
    for name, (metric, grid) in window_maps(records).items():
        wide, high = np.minimum((0.55 * grid.shape[1], 0.35 * grid.shape[0]), 7.0).clip(1.8)  # inches
        left = 0.8 + 0.06 * max(len(str(label)) for label in grid.index)
        with rc_context(STYLE):
            width, height = left + wide + 1.2, high + 1.0
            figure = Figure(figsize=(width, height), dpi=TENSORBOARD_DPI)
            ax = figure.add_axes((left / width, 0.6 / height, wide / width, high / height))
            bar = figure.add_axes(((left + wide + 0.15) / width, 0.6 / height, 0.15 / width, high / height))
            colours = "viridis_r" if metric.better == DOWN else "viridis"
            image = draw_map(ax, grid, colours, (0.0, MAPS[metric.key][2]))
            texts = name.removeprefix(metric.key.rpartition("_")[0]).replace("_", " on ")
            ax.set_title(f"{metric.label}{texts} after {tokens(records[0].tokens)} tokens")
            ax.set_xlabel({"length": "context length in tokens"}.get(str(grid.columns.name), str(grid.columns.name)))
            ax.set_ylabel({"depth": "depth, 0 is the start"}.get(str(grid.index.name), str(grid.index.name)))
            figure.colorbar(image, cax=bar, label=metric.unit).outline.set_visible(False)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
        images[name] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return images
