"""Elements of all figures: colours, fonts, the token axis, a line with its errors, a map, and a drawing as PNG bytes.

The colours of Okabe and Ito can be distinguished with any colour vision. Figures are made without pyplot, so there is
no global state. Step 0 has no place on a log axis: it is drawn left of a break, joined by a dotted line.
"""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedFormatter, FixedLocator, LogLocator, NullLocator

from lccp_sim.analysis.format import tokens
from lccp_sim.analysis.stats.estimate import Array

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676"
SKY, YELLOW, BLACK = "#56B4E9", "#E69F00", "#222222"
DPI = 180
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, BLACK)
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#444444", "axes.linewidth": 0.7,
    "xtick.color": "#444444", "ytick.color": "#444444", "xtick.major.width": 0.7, "ytick.major.width": 0.7,
    "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.6,
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A figure as PNG bytes: `name` without suffix, `title`, the `alt` text and the `caption` below it."""

    name: str
    title: str
    alt: str
    caption: str
    png: bytes

    @property
    def width(self) -> int:
        """The width on a page in CSS pixels, 105 per inch, slightly larger than in print."""
        return round(int.from_bytes(self.png[16:20], "big") / DPI * 105)  # the PNG header contains the width


def png(figure: Figure) -> bytes:
    """Render the figure as PNG, at twice the resolution of a page, without time or version."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def panels(count: int, height: float = 2.7, width: float = 3.3, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Create a figure of panels side by side, and its axes [rows, count]."""
    figure = Figure(figsize=(max(4.4, width * count), height * rows), layout="constrained")
    return figure, figure.subplots(rows, count, squeeze=False, **options)


def shades(count: int) -> list[Any]:
    """Return `count` colours from light to dark, for ordered quantities."""
    from matplotlib import colormaps

    return [colormaps["viridis"](position) for position in np.linspace(0.85, 0.05, count)]


def line(ax: Axes, tokens_W: Array, value_W: Array, stderr_W: Array | None, grid_W: Array, **style: Any) -> None:
    """Draw a curve against tokens with one standard error around it, step 0 left of the break."""
    place = places(grid_W)
    x_W = np.array([place(t) for t in tokens_W])
    later = tokens_W > 0
    if not later.any():
        later = ~later
    ax.plot(x_W[later], value_W[later], marker="o", markersize=3, **style)
    colour = ax.lines[-1].get_color()
    if not later.all():
        ax.plot(x_W[:2], value_W[:2], ":", color=colour, linewidth=1)
        ax.plot(x_W[:1], value_W[:1], "o", color=colour, markersize=4, markerfacecolor="white")
    if stderr_W is not None and np.isfinite(stderr_W).all():
        low_W, high_W = value_W - stderr_W, value_W + stderr_W
        if (value_W > 0).all():
            low_W = np.maximum(low_W, 0.3 * value_W.min())  # so that a log axis is not stretched by an error bar
        ax.fill_between(x_W[later], low_W[later], high_W[later], color=colour, alpha=0.15, linewidth=0)


def places(grid_W: Array) -> Callable[[float], float]:
    """Return the map from tokens to axis positions: identity from the first window on, linear between step 0 and it."""
    first = float(grid_W[grid_W > 0][0]) if (grid_W > 0).any() else 1.0
    return lambda count: count if count >= first else first * (0.5 + 0.5 * count / first)


def token_axis(
    ax: Axes, grid_W: Array, label: str = "training tokens of this run, log scale", few: bool = False
) -> None:
    """Set up a log axis of tokens with a 0 left of a break."""
    place = places(grid_W)
    later_W = grid_W[grid_W > 0]
    if not len(later_W):
        ax.set_xticks([place(0)], ["0"])
        return
    ax.set_xscale("log")
    every: tuple[int, ...] = (1,) if later_W[-1] > 200 * later_W[0] else (1, 3) if few else (1, 2, 5)
    ticks = [t for t in (m * 10.0**e for e in range(2, 15) for m in every) if later_W[0] <= t <= 1.05 * later_W[-1]]
    ticks = ticks if len(ticks) > 1 else sorted({later_W[0], later_W[-1]})
    zero = [0.0] if grid_W[0] == 0 else []
    ax.xaxis.set_major_locator(FixedLocator([place(t) for t in zero + ticks]))
    ax.xaxis.set_major_formatter(FixedFormatter([tokens(t) for t in zero + ticks]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(place(grid_W[0]) * 0.88, later_W[-1] * 1.12)
    ax.set_xlabel(label)
    if zero:
        gap = np.sqrt(place(0) * later_W[0])
        ax.text(gap, 0, "//", transform=ax.get_xaxis_transform(), ha="center", va="center", color="#444444", fontsize=9)


def switches(ax: Axes, found: Iterable[float | None], grid_W: Array) -> None:
    """Draw a dashed line where each run switched to dense training attention (None: it did not)."""
    place = places(grid_W)
    for count in {count for count in found if count is not None}:
        ax.axvline(place(count), color=BLACK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=0)


def switch_note(found: Iterable[float | None]) -> str:
    """Write the caption of these lines; "" if no run has one."""
    named = ", ".join(tokens(count) for count in sorted({count for count in found if count is not None}))
    line = f" Training switched to dense attention at {named} tokens: dashed vertical line on axes of tokens."
    return line if named else ""


def log_values(ax: Axes) -> None:
    """Set up a log axis of values with plain numbers."""
    low, high = ax.get_ylim()
    ax.set_yscale("log")
    data = np.concatenate([np.asarray(drawn.get_ydata(), float) for drawn in ax.lines] or [np.array([low, high])])
    wide = data[data > 0].max() > 50 * data[data > 0].min() if (data > 0).any() else False
    ax.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())


def draw_map(ax: Axes, grid: pd.DataFrame, colours: str, limits: tuple[float, float]) -> AxesImage:
    """Draw a table as an image, with its numbers in the cells if they fit."""
    image = ax.imshow(
        grid.to_numpy(float), cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest"
    )
    for spine in ax.spines.values():
        spine.set_visible(False)
    for axis, labels in ((ax.xaxis, grid.columns), (ax.yaxis, grid.index)):
        every = -(-len(labels) // 12)
        names = [label if isinstance(label, str) else f"{label:g}" for label in labels[::every]]
        axis.set_ticks(range(0, len(labels), every), names, fontsize=8)
        axis.set_tick_params(length=0)
    if grid.shape[1] <= 8 and grid.shape[0] <= 12:
        for (i, j), value in np.ndenumerate(grid.to_numpy(float)):
            red, green, blue, _ = image.cmap(image.norm(value))
            ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
            text = f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
            ax.text(j, i, text if np.isfinite(value) else "", ha="center", va="center", fontsize=7, color=ink)
    return image
