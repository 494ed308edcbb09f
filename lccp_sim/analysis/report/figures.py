"""The one figure: three tiers against tokens; and the list of all figures.

Every curve is drawn as measured; the isotonic fit behind t95 is not drawn.
"""

from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.format import interval, judged, tokens
from lccp_sim.analysis.report import lines, maps, profiles
from lccp_sim.analysis.report.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    STYLE,
    Drawing,
    line,
    log_values,
    places,
    png,
    token_axis,
)
from lccp_sim.analysis.stats.curve import Curve
from lccp_sim.analysis.stats.estimate import Array
from lccp_sim.analysis.stats.saturation import value_at

PLOTS: dict[str, Callable[[Findings], Drawing | None]] = {
    "needle_by_length": lines.needle_by_length_figure,
    "needle_maps": maps.needle_maps_figure,
    "depths": profiles.depths_figure,
    "variants": profiles.variants_figure,
    "text": lines.text_figure,
    "positions": profiles.positions_figure,
    "heads": lines.heads_figure,
    "head_map": maps.head_map_figure,
    "intervention": lines.intervention_figure,
    "induction": lines.induction_figure,
    "probe": profiles.probe_figure,
    "load_map": maps.load_map_figure,
}


def draw(found: Findings) -> dict[str, Drawing]:
    """Every figure that the run's records allow, by name, the figure of the three tiers first."""
    with matplotlib.rc_context(STYLE):
        drawings = {"tiers": tiers_figure(found)} | {name: plot(found) for name, plot in PLOTS.items()}
    return {name: drawing for name, drawing in drawings.items() if drawing is not None}


def tiers_figure(found: Findings) -> Drawing | None:
    """The three tiers against tokens on one log axis, with standard errors and t95; None below two windows."""
    heads_total = found.heads["needle"].heads if "needle" in found.heads else 1
    rows = [
        ("Behavioural: answers that are right", "fraction of items", [
            ("needle hit", BLUE, found.curve("needle", "hit_frac"), 1),
            ("probe, exact match", ORANGE, found.curve("probe", "exact_match_frac"), 1),
        ]),
        ("Probabilistic: negative log-likelihood", "nats per token, log scale", [
            ("needle answer", BLUE, found.curve("needle", "answer_nll_nats"), 1),
            ("held-out text", GREEN, found.curve("perplexity", "nll_nats"), 1),
            ("probe answer", ORANGE, found.curve("probe", "answer_nll_nats"), 1),
        ]),
        ("Mechanistic: retrieval heads", "score or share, fraction", [
            ("mean score of the initial heads", BLUE, found.curve("heads", "initial_heads_mean_frac"), 1),
            ("share of heads above 0.1", PURPLE, found.curve("heads", "retrieval_heads_count"), heads_total),
        ]),
    ]  # fmt: skip
    drawn = [curve for _, _, several in rows for _, _, curve, _ in several if curve is not None]
    grid_W = np.unique(np.concatenate([curve.tokens_W for curve in drawn])) if drawn else np.zeros(1)
    if len(grid_W) < 2:
        return None
    figure = Figure(figsize=(7.0, 7.0), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    hit, nll = found.row("needle", "hit_frac"), found.row("needle", "answer_nll_nats")
    for ax, (title, unit, several) in zip(axes, rows, strict=True):
        ax.set_title(title)
        ax.set_ylabel(unit)
        for label, colour, curve, divisor in several:
            if curve is not None:
                line(ax, curve.tokens_W, curve.value_W / divisor, curve.stderr_W / divisor, grid_W,
                     label=label, color=colour)  # fmt: skip
                _mark(ax, found, curve, grid_W, colour, divisor)
        if hit and hit.t95:
            ax.axvline(hit.t95.value, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
        if "log" in unit:
            log_values(ax)
        else:
            ax.set_ylim(-0.03, 1.03)
        if any(curve is not None for _, _, curve, _ in several):
            ax.legend(loc="lower right", bbox_to_anchor=(1.01, 0.98), ncols=3, handlelength=1.2, columnspacing=1.2)
        else:
            ax.text(0.5, 0.5, "not recorded in this run", transform=ax.transAxes, ha="center", color=GREY)
    token_axis(axes[-1], grid_W)
    marks = "; ".join(
        f"{name} {interval(row.t95, tokens)}" for name, row in (("hit", hit), ("answer NLL", nll)) if row and row.t95
    )
    last = found.steps_sft[-1] if found.steps_sft else 0
    caption = (
        "Shaded: one standard error over items. Diamonds: t95, the tokens to 95 % of the curve's own improvement in "
        f"this run of {tokens(grid_W[-1])} tokens, with its 95 % interval{f' ({marks})' if marks else ''}; not a point "
        "of saturation. Dotted vertical: t95 of the hit. Step 0 lies left of the break. The needle hit is read off the "
        f"same forward pass as the answer NLL; both are of {judged(found.run)}."
        + (f" The probe is measured after {last} fine-tuning steps." if last else "")
    )
    alt = f"Three panels over {tokens(grid_W[-1])} training tokens: right answers, NLL, retrieval heads. {marks}"
    return Drawing("tiers", "Three tiers against training tokens", alt, caption, png(figure))


def _mark(ax: Axes, found: Findings, curve: Curve, grid_W: Array, colour: str, divisor: float) -> None:
    """The t95 of a curve, with its interval."""
    row, place = found.row(curve.monitor, curve.metric, **curve.tags), places(grid_W)
    if not row or not row.t95:
        return
    y = value_at(curve.tokens_W, curve.value_W / divisor, row.t95.value)
    if row.t95.low is not None and row.t95.high is not None:
        ends = [place(row.t95.low), place(row.t95.high)]
        ax.plot(ends, [y, y], color=colour, linewidth=4, alpha=0.45, solid_capstyle="butt")
    x = place(row.t95.value)
    ax.plot(x, y, "D", color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.9, zorder=4)
