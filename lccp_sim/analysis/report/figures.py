"""Every figure of a run: the three tiers against training tokens, then one per quantity; `draw` makes all of them.

A panel has one quantity, never two scales. Curves are drawn as measured, with their standard errors; the isotonic fit
behind t95 is not drawn. Figures of single windows are in `profiles`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.format import interval, judged, tokens
from lccp_sim.analysis.metrics import LOG, LOGIT
from lccp_sim.analysis.report import profiles
from lccp_sim.analysis.report.plots import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    STYLE,
    Drawing,
    line,
    log_values,
    panels,
    places,
    png,
    shades,
    switch_note,
    switches,
    token_axis,
)
from lccp_sim.analysis.stats.curve import Curve
from lccp_sim.analysis.stats.estimate import Array
from lccp_sim.analysis.stats.saturation import value_at


def draw(found: Findings) -> dict[str, Drawing]:
    """Draw every figure that the run's records allow, by name, the figure of the three tiers first."""
    with matplotlib.rc_context(STYLE):
        drawings = {"tiers": tiers_figure(found)} | {name: plot(found) for name, plot in PLOTS.items()}
    note = switch_note([found.run.dense_from])
    drawn = {name: drawing for name, drawing in drawings.items() if drawing is not None}
    return {name: replace(drawing, caption=drawing.caption + note) for name, drawing in drawn.items()}


def tiers_figure(found: Findings) -> Drawing | None:
    """Draw the three tiers against tokens on one log axis, with standard errors and t95; None below two windows."""
    heads_total = found.heads["needle"].heads if "needle" in found.heads else 1
    rows = [
        ("Behavioural: correct answers", "fraction of items", [
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
        switches(ax, [found.run.dense_from], grid_W)
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
        "of saturation. Dotted vertical line: t95 of the hit. Step 0 is left of the break. The needle hit and the "
        f"answer NLL come from the same forward pass; both refer to {judged(found.run)}."
        + (f" The probe is measured after {last} fine-tuning steps." if last else "")
    )
    alt = f"Three panels over {tokens(grid_W[-1])} training tokens: correct answers, NLL, retrieval heads. {marks}"
    return Drawing("tiers", "Three tiers against training tokens", alt, caption, png(figure))


def _mark(ax: Axes, found: Findings, curve: Curve, grid_W: Array, colour: str, divisor: float) -> None:
    """Mark the t95 of a curve, with its interval."""
    row, place = found.row(curve.monitor, curve.metric, **curve.tags), places(grid_W)
    if not row or not row.t95:
        return
    y = value_at(curve.tokens_W, curve.value_W / divisor, row.t95.value)
    if row.t95.low is not None and row.t95.high is not None:
        ends = [place(row.t95.low), place(row.t95.high)]
        ax.plot(ends, [y, y], color=colour, linewidth=4, alpha=0.45, solid_capstyle="butt")
    x = place(row.t95.value)
    ax.plot(x, y, "D", color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.9, zorder=4)


Line = tuple[str, Any, Curve | None]
AXIS = "training tokens, log scale"


def needle_by_length_figure(found: Findings) -> Drawing | None:
    """Draw needle hit and needle perplexity, the paper's quantity, for each length of single needles."""
    rows = found.by_length("single")
    if not rows:
        return None
    colours = shades(len(rows))

    def of(metric: str) -> list[Line]:
        return [
            (f"{row.tags['length']:,} tokens", colour, found.curve("needle", metric, **row.tags))
            for row, colour in zip(rows, colours, strict=True)
        ]

    drawn = [("hit, fraction of items", of("hit_frac"))]
    drawn.append(("perplexity of the answer, log scale", of("answer_ppl")))
    drawn.append(("NLL of the answer, nats per token", of("answer_nll_nats")))
    caption = (
        f"Single needles of trained templates, on {judged(found.run)}. Perplexity is exp of an item's mean NLL, "
        "averaged over items, as in arXiv 2604.02650 sec. 5. Near 1 it is equivalent to the NLL; where it is large, a "
        "few items dominate it. Shaded: one standard error."
    )
    alt = f"Needle hit, perplexity and NLL against training tokens for {len(rows)} context lengths"
    return _figure(found, "needle_by_length", "Needle hit and perplexity by length", alt, caption, drawn)


def text_figure(found: Findings) -> Drawing | None:
    """Draw the NLL of held-out text, in long and short contexts and on key tokens (LongPPL), overall and by source."""
    whole: list[Line] = [
        ("full context", BLUE, found.curve("perplexity", "nll_nats")),
        ("old context", GREY, found.curve("perplexity", "short_nll_nats")),
        ("key tokens (LongPPL)", ORANGE, found.curve("perplexity", "longppl_nats")),
    ]
    sources = sorted({str(row.tags["source"]) for row in found.rows.values() if "source" in row.tags})
    colours = (BLUE, ORANGE, GREEN, PURPLE, BLACK)

    def by_source(metric: str) -> list[Line]:
        named = zip(sources, colours, strict=False)
        return [(source, colour, found.curve("perplexity", metric, source=source)) for source, colour in named]

    drawn = [("held-out NLL, nats per token", whole)]
    drawn.append(("LongPPL, nats per key token", by_source("longppl_nats")))
    drawn.append(("gain of the long context, nats", by_source("long_short_gain_nats")))
    caption = (
        "Left: the same targets with the full context and in windows of the old context length. Key tokens are those "
        "that the long context made likely when they were selected (arXiv 2410.23771), so an early rise is an effect "
        "of the selection, not a deterioration. Right: NLL in short windows minus NLL in the full context; above 0 "
        "the long context helps."
    )
    alt = "NLL of held-out text, on key tokens, and the gain of the long context against training tokens"
    return _figure(found, "text", "Held-out text", alt, caption, drawn)


def heads_figure(found: Findings) -> Drawing | None:
    """Draw retrieval heads on needles and on LongBio: their number, and strength and survival of the initial heads."""
    if not found.heads:
        return None
    counted: list[Line] = []
    strong: list[Line] = []
    stable: list[Line] = []
    for texts, colour in (("needle", BLUE), ("longbio", ORANGE)):
        tags: dict[str, Any] = {} if texts == "needle" else {"samples": texts}
        moved = found.heads.get(texts)
        name = "needles" if texts == "needle" else "LongBio"
        counted.append((name, colour, found.curve("heads", "retrieval_heads_count", **tags)))
        strong.append((name, colour, found.curve("heads", "initial_heads_mean_frac", **tags)))
        if moved is not None:
            if moved.null_W is not None and len(moved.null_W) == len(moved.tokens_W):
                counted.append((f"{name}, by chance", "#999999" if texts == "needle" else "#E8B48C", _as_curve(
                    moved.tokens_W, moved.null_W)))  # fmt: skip
            stable.append((f"{name}: initial heads above 0.1", colour, _as_curve(moved.tokens_W, moved.surviving_W)))
            shade = PURPLE if texts == "needle" else GREEN
            stable.append((f"{name}: in the last top {moved.k}", shade, _as_curve(moved.tokens_W, moved.final_W)))
    drawn = [("heads above 0.1, count", counted), ("mean score of the initial heads", strong)]
    drawn.append(("share of heads", stable))
    caption = (
        "Heads with a hard copy score above 0.1 (arXiv 2604.02650, sec. 6 and fig. 5), on needles and on the "
        "biographies of LongBio. By chance: the same rows scored against a permuted needle; if this is not far below, "
        "0.1 is too low a threshold. Right: the share of the first window's heads that are still above 0.1, and the "
        "share of the last window's strongest heads that were already among the strongest."
    )
    if found.run.setting("model.attention"):
        caption += " Scores are measured with dense attention, whatever attention training uses."
    alt = "Number of retrieval heads, mean score of the initial heads, and their survival against training tokens"
    return _figure(found, "heads", "Retrieval heads over the run", alt, caption, drawn)


def intervention_figure(found: Findings) -> Drawing | None:
    """Draw hit and NLL with heads masked or boosted, and the effect of the strongest heads relative to random heads."""
    names = {"none": "all heads", "mask_top": "strongest masked", "mask_random": "random masked"}
    names["boost_top"] = "strongest boosted"
    colours = dict(zip(names, (BLACK, ORANGE, GREY, GREEN), strict=True))

    def arms(metric: str) -> list[Line]:
        return [(word, colours[arm], found.curve("intervention", metric, arm=arm)) for arm, word in names.items()]

    drawn = [("hit, fraction of items", arms("hit_frac")), ("answer NLL, nats per token", arms("answer_nll_nats"))]
    drawn.append(("causal effect, nats", [("", PURPLE, found.curve("intervention", "causal_nll_nats"))]))
    caption = (
        "The strongest heads are selected on one half of the needles and measured on the other, on "
        f"{judged(found.run, 'intervention')}. Causal effect: NLL with these heads masked minus NLL with as many "
        "random heads of the same layers masked; above 0 the answer depends on them more than on other heads. In a "
        "small model the strongest heads are a large share of all heads."
    )
    alt = "Needle hit and NLL with heads masked or boosted, and the causal effect, against training tokens"
    return _figure(found, "intervention", "Interventions on heads", alt, caption, drawn)


def induction_figure(found: Findings) -> Drawing | None:
    """Draw copying without a question: NLL of both copies, hits of the second, the strongest induction head."""
    copies: list[Line] = [
        ("first copy", GREY, found.curve("induction", "first_copy_nll_nats")),
        ("second copy", BLUE, found.curve("induction", "second_copy_nll_nats")),
    ]
    right = found.curve("induction", "second_copy_hit_frac")
    drawn = [("NLL, nats per token, log scale", copies)]
    drawn.append(("second copy, fraction of tokens right", [("", BLUE, right)]))
    drawn.append(("strongest induction head", [("", PURPLE, found.curve("heads", "induction_frac"))]))
    caption = "A span of random tokens that occurs twice in held-out text, without a question and without a template."
    return _figure(
        found, "induction", "Copying without a question", "Copying of random spans against tokens", caption, drawn
    )


def _figure(
    found: Findings, name: str, title: str, alt: str, caption: str, drawn: list[tuple[str, list[Line]]]
) -> Drawing | None:
    """Draw the panels that have a curve of at least two windows, side by side; None if none has."""
    kept = []
    for unit, several in drawn:
        curves = [(label, colour, curve) for label, colour, curve in several if curve is not None]
        if any(len(curve.tokens_W) > 1 for _, _, curve in curves):
            kept.append((unit, curves))
    if not kept:
        return None
    grid_W = np.unique(np.concatenate([curve.tokens_W for _, curves in kept for _, _, curve in curves]))
    figure, axes = panels(len(kept), height=3.1)
    for ax, (unit, curves) in zip(axes[0], kept, strict=True):
        _panel(ax, unit, curves, grid_W)
        switches(ax, [found.run.dense_from], grid_W)
    named = {tuple(label for label, _, _ in curves) for _, curves in kept}
    if len(named) == 1 and len(kept) > 1:  # the same lines everywhere: one legend, outside the panels
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=6, fontsize=8)
    else:
        for ax in axes[0]:
            if any(ax.get_legend_handles_labels()[1]):
                ax.legend(fontsize=7.5, loc="best")
    return Drawing(name, title, alt, caption, png(figure))


def _panel(ax: Axes, unit: str, curves: list[tuple[str, Any, Curve]], grid_W: Array) -> None:
    for label, colour, curve in curves:
        line(ax, curve.tokens_W, curve.value_W, curve.stderr_W, grid_W, label=label, color=colour)
    ax.set_title(unit, fontsize=9, fontweight="normal")
    if all(curve.row.scale == LOG and (curve.value_W > 0).all() for _, _, curve in curves):
        log_values(ax)
    elif curves[0][2].row.scale == LOGIT:
        ax.set_ylim(-0.03, 1.03)
    elif min(curve.value_W.min() for _, _, curve in curves) < 0 < max(curve.value_W.max() for _, _, curve in curves):
        ax.axhline(0, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    token_axis(ax, grid_W, AXIS, few=True)


def _as_curve(tokens_W: Array, value_W: Array) -> Curve:
    return Curve(
        "heads", "share_frac" if value_W.max() <= 1 else "count", {}, tokens_W, value_W, np.full(len(value_W), np.nan)
    )


PLOTS: dict[str, Callable[[Findings], Drawing | None]] = {
    "needle_by_length": needle_by_length_figure,
    "needle_maps": profiles.needle_maps_figure,
    "depths": profiles.depths_figure,
    "variants": profiles.variants_figure,
    "text": text_figure,
    "positions": profiles.positions_figure,
    "heads": heads_figure,
    "head_map": profiles.head_map_figure,
    "intervention": intervention_figure,
    "induction": induction_figure,
    "probe": profiles.probe_figure,
    "load_map": profiles.load_map_figure,
}
