"""The one figure: three tiers against tokens.

Step 0 has no place on a log axis; it is drawn left of a break, joined by a dotted line. Every curve is drawn as
measured; the isotonic fit behind t95 is not drawn.
"""

from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from lccp_sim.analysis.bootstrap import Array
from lccp_sim.analysis.curves import Curve
from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.maps import head_map, load_map, needle_maps, positions
from lccp_sim.analysis.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, STYLE, Drawing, png
from lccp_sim.analysis.saturation import value_at
from lccp_sim.analysis.words import interval, tokens


def draw(found: Findings) -> list[Drawing]:
    """Every figure that the run's records allow, the figure of the three tiers first."""
    with matplotlib.rc_context(STYLE):
        drawings = (tiers(found), needle_maps(found), head_map(found), load_map(found), positions(found))
    return [drawing for drawing in drawings if drawing is not None]


def tiers(found: Findings) -> Drawing | None:
    """The three tiers against tokens on one log axis, with standard errors and t95; None below two windows."""
    last = found.steps_sft[-1] if found.steps_sft else 0
    exact = found.curve("probe", "exact_match_frac", sft_step=last)
    answer = found.curve("probe", "answer_nll_nats", sft_step=last)
    heads_total = len(found.run.select("heads", "copy_hard_frac", "layer", "head").drop_duplicates(["layer", "head"]))
    panels = [
        ("Behavioural: answers that are right", "fraction of items", [
            ("needle hit", BLUE, found.curve("needle", "hit_frac"), 1),
            ("probe, exact match", ORANGE, exact, 1),
        ]),
        ("Probabilistic: negative log-likelihood", "nats per token, log scale", [
            ("needle answer", BLUE, found.curve("needle", "answer_nll_nats"), 1),
            ("held-out text", GREEN, found.curve("perplexity", "nll_nats"), 1),
            ("probe answer", ORANGE, answer, 1),
        ]),
        ("Mechanistic: retrieval heads", "score or share, fraction", [
            ("mean score of the initial heads", BLUE, found.curve("heads", "initial_heads_mean_frac"), 1),
            ("share of heads above 0.1", PURPLE, found.curve("heads", "retrieval_heads_count"), max(heads_total, 1)),
        ]),
    ]  # fmt: skip
    grid_W = np.sort(found.run.records.tokens.unique()).astype(float)
    grid_W = np.array(
        [t for t in grid_W if any(c is not None and t in c.tokens_W for _, _, p in panels for _, _, c, _ in p)]
    )
    if len(grid_W) < 2:
        return None
    figure = Figure(figsize=(7.0, 7.2), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    hit = found.row("needle", "hit_frac")
    for ax, (title, unit, lines) in zip(axes, panels, strict=True):
        ax.set_title(title)
        ax.set_ylabel(unit)
        for label, colour, curve, divisor in lines:
            if curve is not None:
                _line(ax, found, curve, grid_W, label, colour, divisor)
        if hit and hit.t95:
            ax.axvline(hit.t95.value, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
        if "log" in unit:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_locator(NullLocator())
        else:
            ax.set_ylim(-0.03, 1.03)
        if any(curve is not None for _, _, curve, _ in lines):
            ax.legend(loc="lower right", bbox_to_anchor=(1.01, 0.98), ncols=3, handlelength=1.2, columnspacing=1.2)
        else:
            ax.text(0.5, 0.5, "not recorded in this run", transform=ax.transAxes, ha="center", color=GREY)
    _token_axis(axes[-1], grid_W)
    nll = found.row("needle", "answer_nll_nats")
    marks = "; ".join(
        f"{name} {interval(row.t95, tokens)}" for name, row in (("hit", hit), ("answer NLL", nll)) if row and row.t95
    )
    caption = (
        "Shaded: one standard error over items. Diamonds: t95, the tokens to 95 % of the curve's own improvement in "
        f"this run, with its 95 % interval{f' ({marks})' if marks else ''}. Dotted vertical: t95 of the hit. Step 0 "
        "lies left of the break. The needle hit is read off the same forward pass as the answer NLL."
        + (f" The probe is measured after {last} fine-tuning steps." if last else "")
    )
    alt = f"Three panels over {tokens(grid_W[-1])} training tokens: right answers, NLL, retrieval heads. {marks}"
    return Drawing("tiers", "Three tiers against training tokens", alt, caption, png(figure))


def _line(ax: Axes, found: Findings, curve: Curve, grid_W: Array, label: str, colour: str, divisor: float) -> None:
    """A curve with its standard errors, step 0 left of the break, and t95 with its interval."""
    place = _places(grid_W)
    x_W = np.array([place(t) for t in curve.tokens_W])
    value_W, stderr_W = curve.value_W / divisor, curve.stderr_W / divisor
    later = curve.tokens_W > 0
    ax.plot(x_W[later], value_W[later], color=colour, marker="o", markersize=3, label=label)
    if not later.all():
        ax.plot(x_W[:2], value_W[:2], ":", color=colour, linewidth=1)
        ax.plot(x_W[:1], value_W[:1], "o", color=colour, markersize=4, markerfacecolor="white")
    if np.isfinite(stderr_W).all():
        low_W = np.maximum(value_W - stderr_W, 0.3 * value_W.min() if curve.metric.endswith("_nats") else 0)
        ax.fill_between(x_W[later], low_W[later], (value_W + stderr_W)[later], color=colour, alpha=0.15, linewidth=0)
    row = found.row(curve.monitor, curve.metric, **curve.tags)
    if row and row.t95:
        y = value_at(curve.tokens_W, value_W, row.t95.value)
        if row.t95.low is not None and row.t95.high is not None:
            ax.plot(
                [place(row.t95.low), place(row.t95.high)],
                [y, y],
                color=colour,
                linewidth=4,
                alpha=0.45,
                solid_capstyle="butt",
            )
        ax.plot(
            place(row.t95.value),
            y,
            "D",
            color=colour,
            markersize=7,
            markeredgecolor="white",
            markeredgewidth=0.9,
            zorder=4,
        )


def _places(grid_W: Array) -> Callable[[float], float]:
    """Where a token count lies on the axis: itself from the first window on, before it linearly from step 0's place."""
    first = float(grid_W[grid_W > 0][0])
    return lambda count: count if count >= first else first * (0.5 + 0.5 * count / first)


def _token_axis(ax: Axes, grid_W: Array) -> None:
    """A log axis of tokens with a 0 left of a break."""
    place = _places(grid_W)
    later_W = grid_W[grid_W > 0]
    ax.set_xscale("log")
    ticks = [t for t in (m * 10.0**e for e in range(2, 15) for m in (1, 2, 5)) if later_W[0] <= t <= 1.05 * later_W[-1]]
    ticks = ticks if len(ticks) > 1 else sorted({later_W[0], later_W[-1]})
    zero = [0.0] if grid_W[0] == 0 else []
    ax.set_xticks([place(t) for t in zero + ticks], [tokens(t) for t in zero + ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlim(place(grid_W[0]) * 0.88, later_W[-1] * 1.12)
    ax.set_xlabel("training tokens of this run, log scale")
    if zero:
        gap = np.sqrt(place(0) * later_W[0])
        ax.text(gap, 0, "//", transform=ax.get_xaxis_transform(), ha="center", va="center", color="#444444", fontsize=9)
