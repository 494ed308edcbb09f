"""The maps of a window as images for TensorBoard: needle by length and depth, probe by task and length, heads.

Needles are judged by the headline span, the tokens of the value.
All heads share one image: those scored on other texts than needles stand to the right of those scored on needles.
"""

import numpy as np

from lccp_sim.records import HEADLINE, Record

CELL_PIXELS = 24


def window_images(records: list[Record]) -> dict[str, np.ndarray]:
    """Images [height, width, 3] uint8 by name; dark is low, bright is high, the colours end at fixed values."""
    from matplotlib import colormaps

    images = {}
    for name, metric, axes, top in (
        ("needle/hit", "hit_frac", ("depth", "length"), 1.0),
        ("needle/answer_nll", "answer_nll_nats", ("depth", "length"), 8.0),
        ("heads/copy_hard", "copy_hard_frac", ("layer", "head"), 1.0),
        ("probe/exact_match", "exact_match_frac", ("task", "length"), 1.0),
    ):
        found = [r for r in records if r.metric == metric and set(axes) <= set(r.tags)]
        tuned = max((int(r.tags.get("sft_step", 0)) for r in found), default=0)
        shown = {"span": HEADLINE, "sft_step": tuned}
        cells = [r for r in found if all(r.tags.get(tag, value) == value for tag, value in shown.items())]
        if cells:
            grid = _grid(cells, axes) / top
            pixels = (colormaps["viridis"](grid.clip(0, 1))[..., :3] * 255).astype(np.uint8)
            images[name] = pixels.repeat(CELL_PIXELS, 0).repeat(CELL_PIXELS, 1)
    return images


def _grid(records: list[Record], axes: tuple[str, str]) -> np.ndarray:
    """Values as [rows, columns], in the order of the tags, one set of samples after another; 0 without a record."""
    places = [(r.tags[axes[0]], (str(r.tags.get("samples", "")), r.tags[axes[1]])) for r in records]
    rows, columns = sorted({row for row, _ in places}), sorted({column for _, column in places})
    grid = np.zeros((len(rows), len(columns)))
    for (row, column), r in zip(places, records, strict=True):
        grid[rows.index(row), columns.index(column)] = r.value
    return grid
