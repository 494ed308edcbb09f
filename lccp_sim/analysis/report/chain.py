"""A chain of runs: its phases on one axis of tokens, and the gain of each.

Design note: phases may measure other items (another number of needles), so a curve may jump at the start of a phase.
The gain of a phase is therefore computed within it, between its own first and last window.
"""

from collections.abc import Sequence
from dataclasses import replace

import matplotlib
import numpy as np
from matplotlib.lines import Line2D

from lccp_sim.analysis.chain import Phase, labels
from lccp_sim.analysis.format import interval, number, tokens
from lccp_sim.analysis.metrics import DOWN, LOG, metric_of, shown
from lccp_sim.analysis.report.plots import COLOURS, STYLE, Drawing, log_values, panels, png
from lccp_sim.analysis.report.tables import Table
from lccp_sim.analysis.stats.curve import Curve, Estimate, whole_curve

MOST_PANELS = 6
LEAST_WIDTH = 0.25  # of an axis: narrower phases could not be read, nor the labels at their borders
SIGNALS = (
    "reward", "answer_reward_frac", "place_reward_frac", "silent_groups_frac", "entropy_nats", "sampled_tokens_count",
)  # fmt: skip


def of_chain(phases: Sequence[Phase]) -> tuple[list[Drawing], list[Table]]:
    """The figure and the tables of a chain; nothing for a run that does not start from another run."""
    if len(phases) < 2:
        return [], []
    curves = curves_of_phases(phases)
    figure = chain_figure(phases, curves)
    made = [phases_table(phases), bought_table(phases, curves), signal_table(phases)]
    return [figure] if figure else [], [table for table in made if table.rows]


def curves_of_phases(phases: Sequence[Phase]) -> dict[str, list[Curve | None]]:
    """The curve of each metric in every phase that measures it, up to the window from which the next phase started."""
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


def _changed(change: Estimate) -> str:
    """The change with its interval. An interval without width only means that all items agree."""
    if change.low is not None and change.low == change.high:
        return f"{signed(change.value)} (the same for every item)"
    return interval(change, signed)


def phases_table(phases: Sequence[Phase]) -> Table:
    """One row per phase: its run, its objective, and its range of tokens."""
    rows = [
        [label, each.run.name, tokens(each.tokens), tokens(each.before), _left(each)]
        for label, each in zip(labels(phases), phases, strict=True)
    ]
    note = "Tokens of RL count full rows, though samples are shorter. Before: tokens of the phases before it."
    return Table("Phases", ["phase", "run", "tokens", "before", "left at"], rows, note, words=True)


def bought_table(phases: Sequence[Phase], curves: dict[str, list[Curve | None]]) -> Table:
    """One row for each metric that a phase measured: from its first to its last window, and the change."""
    rows = []
    for place, label in enumerate(labels(phases)):
        for name, of_phase in curves.items():
            if (curve := of_phase[place]) is None:
                continue
            of, change = metric_of(*name.split("/")), bought(curve)
            title = f"{of.title} (lower is better)" if of.better == DOWN else of.title
            first, last = (number(float(curve.value_W[at])) for at in (0, -1))
            rows.append([label, title, first, last, "only one window" if change is None else _changed(change)])
    note = (
        "The first and the last window of a phase, and the change between them; in parentheses its 95 % interval over "
        "items, which does not cover other seeds. Phases may measure other items, so do not compare the end of one "
        "phase with the start of the next."
    )
    return Table("What each phase bought", ["phase", "metric", "first", "last", "change"], rows, note, words=True)


def signal_table(phases: Sequence[Phase]) -> Table:
    """Rewards, signal and entropy of the last phase with samples: the means of its first and its last quarter."""
    found = [phase.run for phase in phases if phase.kind == "rl"]
    rows = []
    for metric in SIGNALS if found else ():
        value_T = found[-1].select("train", metric).value.to_numpy()
        if len(value_T):
            quarter = -(-len(value_T) // 4)
            first, last = value_T[:quarter].mean(), value_T[-quarter:].mean()
            rows.append([metric_of("train", metric).title, number(first), number(last), str(quarter)])
    note = (
        "Means over the logged steps at the start and at the end of RL. Groups without signal have equal rewards, so "
        "nothing is learnt from them. If pass@1 did not rise: with many such groups, or an entropy near 0, there is "
        "little to learn from. If the reward for the place rises alone, the model quotes more but answers no better."
    )
    return Table("What RL learnt from", ["training record", "first quarter", "last quarter", "steps"], rows, note)


def signed(value: float) -> str:
    """Format a change with its sign."""
    return f"+{number(value)}" if value > 0 else number(value)


def chain_figure(phases: Sequence[Phase], curves: dict[str, list[Curve | None]]) -> Drawing | None:
    """Each metric in a panel over all tokens of the chain, one colour per phase, metrics of the last phase first."""
    names = sorted(curves, key=lambda name: curves[name][-1] is None)[:MOST_PANELS]
    if not names:
        return None
    columns = min(3, len(names))
    ends = np.array([0, *(phase.before + phase.tokens for phase in phases)])
    edges = widths(ends)
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(columns, height=2.5, width=3.2, rows=-(-len(names) // columns))
        for ax in axes.ravel()[len(names) :]:
            ax.set_axis_off()
        for ax, name in zip(axes.ravel(), names, strict=False):
            for place, (phase, curve) in enumerate(zip(phases, curves[name], strict=True)):
                colour = COLOURS[place % len(COLOURS)]
                ax.axvspan(edges[place], edges[place + 1], color=colour, alpha=0.06, linewidth=0)
                if curve is not None:
                    x_W = np.interp(phase.before + curve.tokens_W, ends, edges)
                    ax.plot(x_W, curve.value_W, color=colour, marker="o", markersize=3)
            of = metric_of(*name.split("/"))
            ax.set_title(of.title, fontsize=8.5, fontweight="normal")
            ax.set_xticks(edges, [tokens(end) for end in ends])
            ax.set_xlabel("training tokens of all phases")
            if of.scale == LOG and all((np.asarray(each.get_ydata()) > 0).all() for each in ax.lines):
                log_values(ax)
        handles = [
            Line2D([], [], color=COLOURS[i % len(COLOURS)], marker="o", markersize=3) for i in range(len(phases))
        ]
        figure.legend(handles, labels(phases), loc="outside upper left", ncols=4)
        image = png(figure)
    said = ", ".join(
        f"{label} ({tokens(each.tokens)} tokens)" for label, each in zip(labels(phases), phases, strict=True)
    )
    caption = (
        f"Phases: {said}. A point is a window. The axis is linear within a phase; a short phase is drawn wider than "
        "its share of the tokens. A curve may jump where a phase begins, because the phase may measure other items."
    )
    alt = f"{len(names)} metrics over the phases {said}"
    return Drawing("chain", "All phases on one axis of tokens", alt, caption, image)


def widths(ends: np.ndarray) -> np.ndarray:
    """Return the borders between phases, 0 to 1: in proportion to tokens, but at least LEAST_WIDTH apart."""
    share = np.diff(ends) / ends[-1]
    wide = np.maximum(share, min(LEAST_WIDTH, 1 / len(share)))
    return np.concatenate(([0.0], np.cumsum(wide / wide.sum())))


def _left(phase: Phase) -> str:
    return "its end" if phase.tokens == phase.run.tokens else f"{tokens(phase.tokens)} of {tokens(phase.run.tokens)}"


def _until(curve: Curve | None, end: int) -> Curve | None:
    """The curve without the windows after `end` tokens."""
    if curve is None or not (kept_W := curve.tokens_W <= end).any():
        return None
    draws_RW = None if curve.draws_RW is None else curve.draws_RW[:, kept_W]
    cut = {name: getattr(curve, name)[kept_W] for name in ("tokens_W", "value_W", "stderr_W")}
    return replace(curve, draws_RW=draws_RW, **cut)
