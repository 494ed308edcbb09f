"""What all figures share: colours, type, and a drawing as PNG bytes.

Colours are those of Okabe and Ito, told apart with any colour vision. Figures are made without pyplot, so no state is
global.
"""

import io
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676"
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


def png(figure: Figure) -> bytes:
    """The figure as PNG, at twice the resolution of a page, with no time or version in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()
