"""A chain of runs: its phases on one axis of tokens, and what each bought.

Design note: phases may measure other items (another number of needles), so a curve may jump where a
phase begins; what a phase bought is therefore taken inside it, between its own first and last window.
"""

from collections.abc import Sequence
from dataclasses import replace

import matplotlib
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lccp_sim.analysis.chain import Phase
from lccp_sim.analysis.format import interval, number, tokens
from lccp_sim.analysis.metrics import LOG, metric_of, shown
from lccp_sim.analysis.report.plots import COLOURS, STYLE, Drawing, log_values, panels, png
from lccp_sim.analysis.report.tables import Table
from lccp_sim.analysis.stats.curve import Curve, Estimate, whole_curve

MOST_PANELS = 6


def of_chain(phases: Sequence[Phase]) -> tuple[list[Drawing], list[Table]]:
    """The figure and the tables of a chain; none for a run that comes from no other."""
    if len(phases) < 2:
        return [], []
    curves = curves_of_phases(phases)
    figure = chain_figure(phases, curves)
    return [figure] if figure else [], [phases_table(phases), bought_table(phases, curves)]


def curves_of_phases(phases: Sequence[Phase]) -> dict[str, list[Curve | None]]:
    """Of each metric that some phase measures its curve in every phase, up to the window that was taken over."""
    found = {
        each.key: [_until(whole_curve(phase.run, each.key), phase.tokens) for phase in phases]
        for each in shown("overlay")
    }
    return {name: curves for name, curves in found.items() if any(curve is not None for curve in curves)}


def bought(curve: Curve | None) -> Estimate | None:
    """The change from the first to the last window, with its interval over items; None for a single window."""
    if curve is None or len(curve.tokens_W) < 2:
        return None
    draws_R = None if curve.draws_RW is None else curve.draws_RW[:, -1] - curve.draws_RW[:, 0]
    return Estimate.of(float(curve.value_W[-1] - curve.value_W[0]), draws_R)


def phases_table(phases: Sequence[Phase]) -> Table:
    """One row a phase: its run, what it learns, where it lies."""
    rows = [[each.label, each.run.name, tokens(each.tokens), tokens(each.before), _left(each)] for each in phases]
    note = "Tokens of RL count full rows, though samples are shorter. Before: tokens of the phases before it."
    return Table("Phases", ["phase", "run", "tokens", "before", "left at"], rows, note, words=True)


def bought_table(phases: Sequence[Phase], curves: dict[str, list[Curve | None]]) -> Table:
    """One row a metric, a column a phase: from its first to its last window, and the change."""
    rows = []
    for name, of_phase in curves.items():
        cells = []
        for curve in of_phase:
            change = bought(curve)
            if curve is None:
                cells.append("not measured")
            elif change is None:
                cells.append(f"{number(float(curve.value_W[0]))} at its only window")
            else:
                way = f"{number(float(curve.value_W[0]))} to {number(float(curve.value_W[-1]))}"
                cells.append(f"{way}: {interval(change)}")
        rows.append([metric_of(*name.split("/")).title, *cells])
    note = (
        "Change inside a phase, in brackets its 95 % interval over items, which says nothing about another seed. "
        "Phases may have other items, so do not compare the end of one with the start of the next."
    )
    return Table("What each phase bought", ["metric", *(each.label for each in phases)], rows, note)


def chain_figure(phases: Sequence[Phase], curves: dict[str, list[Curve | None]]) -> Drawing | None:
    """Each metric in a panel over all tokens of the chain, a colour a phase; first what the last phase measures."""
    names = sorted(curves, key=lambda name: curves[name][-1] is None)[:MOST_PANELS]
    if not names:
        return None
    columns = min(3, len(names))
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(columns, height=2.5, width=3.2, rows=-(-len(names) // columns))
        for ax in axes.ravel()[len(names) :]:
            ax.set_axis_off()
        for ax, name in zip(axes.ravel(), names, strict=False):
            for place, (phase, curve) in enumerate(zip(phases, curves[name], strict=True)):
                colour = COLOURS[place % len(COLOURS)]
                ax.axvspan(phase.before, phase.before + phase.tokens, color=colour, alpha=0.06, linewidth=0)
                if curve is not None:
                    ax.plot(phase.before + curve.tokens_W, curve.value_W, color=colour, marker="o", markersize=3)
            of = metric_of(*name.split("/"))
            ax.set_title(of.title, fontsize=8.5, fontweight="normal")
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.xaxis.set_major_formatter(lambda count, _: tokens(count))
            ax.set_xlabel("tokens of all phases")
            if of.scale == LOG and all((np.asarray(each.get_ydata()) > 0).all() for each in ax.lines):
                log_values(ax)
        handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)]) for i in range(len(phases))]
        figure.legend(handles, [each.label for each in phases], loc="outside upper left", ncols=4)
        image = png(figure)
    said = ", ".join(f"{each.label} ({tokens(each.tokens)} tokens)" for each in phases)
    caption = f"Phases: {said}. A point is a window. A curve may jump where a phase begins, as its items may be others."
    alt = f"{len(names)} metrics over the phases {said}"
    return Drawing("chain", "All phases on one axis of tokens", alt, caption, image)


def _left(phase: Phase) -> str:
    return "its end" if phase.tokens == phase.run.tokens else f"{tokens(phase.tokens)} of {tokens(phase.run.tokens)}"


def _until(curve: Curve | None, end: int) -> Curve | None:
    """The curve without the windows after `end` tokens."""
    if curve is None or not (kept_W := curve.tokens_W <= end).any():
        return None
    draws_RW = None if curve.draws_RW is None else curve.draws_RW[:, kept_W]
    cut = {name: getattr(curve, name)[kept_W] for name in ("tokens_W", "value_W", "stderr_W")}
    return replace(curve, draws_RW=draws_RW, **cut)
