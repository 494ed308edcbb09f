"""The tables of a report, each as strings, so that the page and the Markdown show the same."""

from dataclasses import dataclass

import pandas as pd

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.words import interval, measured, number, percent, tokens

NAMES = {"long_token_frac": "tokens in long documents", "held_out_frac": "held out"}
WINDOWS = (  # column, unit, monitor, metric
    ("hit", "fraction", "needle", "hit_frac"),
    ("answer NLL", "nats", "needle", "answer_nll_nats"),
    ("control NLL", "nats", "needle", "control_nll_nats"),
    ("gain", "nats", "needle", "gain_nats"),
    ("heads > 0.1", "count", "heads", "retrieval_heads_count"),
    ("initial heads", "mean score", "heads", "initial_heads_mean_frac"),
    ("probe", "exact match", "probe", "exact_match_frac"),
    ("held-out NLL", "nats", "perplexity", "nll_nats"),
    ("short NLL", "nats", "perplexity", "short_nll_nats"),
)


@dataclass(frozen=True)
class Table:
    """A table of strings; `note` says what a reader must know to read it."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


def tables(found: Findings) -> list[Table]:
    """All tables that the run's files allow, in the order of the report."""
    made = (windows(found), improvement(found), by_length(found), corpus(found), costs(found))
    return [table for table in made if table.rows]


def windows(found: Findings) -> Table:
    """One row a window: every monitor's main metrics with their standard errors."""
    run = found.run
    columns, head = [], ["tokens"]
    for name, unit, monitor, metric in WINDOWS:
        probe = {"sft_step": found.steps_sft[-1]} if monitor == "probe" and found.steps_sft else {}
        rows = run.select(monitor, metric, **probe).set_index("tokens")
        if len(rows):
            columns.append(rows)
            head.append(f"{name}, {unit}")
    grid = sorted(set().union(*(rows.index for rows in columns)))
    cells = [[measured(rows.value[t], rows.stderr[t]) if t in rows.index else "" for rows in columns] for t in grid]
    note = "± one standard error over items. An empty cell: not measured at that window."
    return Table("Windows", head, [[tokens(t), *row] for t, row in zip(grid, cells, strict=True)], note)


def improvement(found: Findings) -> Table:
    """One row a metric: from where to where, and the tokens to 95 % of it."""
    rows = []
    for row in found.rows.values():
        if "length" in row.tags:
            continue
        name = " ".join([f"{row.monitor} {row.metric}", *(f"{k}={v}" for k, v in row.tags.items())])
        bracket = "" if row.bracket is None else " to ".join(map(tokens, row.bracket))
        reached = interval(row.t95, tokens) if row.t95 else f"none: {row.reason}"
        cells = [name, number(row.first), number(row.last), interval(row.improvement)]
        cells.append(interval(row.last_doubling) if row.last_doubling else "")
        rows.append([*cells, reached, bracket, row.interval])
    head = [
        "metric",
        "first",
        "last",
        "improvement",
        "in the last doubling",
        "t95, tokens",
        "between windows",
        "interval",
    ]
    note = (
        "t95: tokens to 95 % of the metric's own improvement in this run, from an isotonic fit; not a point of "
        "saturation. In brackets: 95 % intervals from resampled items. They do not cover what training itself would do "
        "with another seed. "
        "Intervals from standard errors treat windows as independent and are too wide. The last doubling is from half "
        "of the run's tokens to its end."
    )
    return Table(f"Improvement, of a run of {tokens(found.run.tokens)} tokens", head, rows, note)


def by_length(found: Findings) -> Table:
    """One row a variant, span and length of needle: hit and answer NLL, first and last, and their t95."""
    rows = []
    for row in found.rows.values():
        if row.monitor != "needle" or row.metric != "hit_frac" or "length" not in row.tags:
            continue
        cells = [str(row.tags["variant"]), str(row.tags["span"]), str(row.tags["length"])]
        for metric in ("hit_frac", "answer_nll_nats"):
            curve, moved = found.curve("needle", metric, **row.tags), found.row("needle", metric, **row.tags)
            if curve is None or moved is None:
                cells += [""] * 3
                continue
            cells += [measured(curve.value_W[i], curve.stderr_W[i]) for i in (0, -1)]
            cells.append(interval(moved.t95, tokens) if moved.t95 else "none")
        gap = found.lag(**row.tags)
        cells += [interval(gap.factor) if gap else "", number(gap.same_shape.value) if gap else ""]
        rows.append([*cells, interval(gap.index) if gap and gap.index else ""])
    head = ["needle", "span", "length", "hit, first", "last", "t95", "NLL, first", "last", "t95"]
    head += ["NLL at hit's t95 / at end", "if of hit's shape", "t95(NLL) / t95(hit)"]
    return Table("Needles by length", head, rows, "Hit in fractions, NLL in nats per token, t95 in tokens of this run.")


def corpus(found: Findings) -> Table:
    """The corpus table of the run."""
    frame = found.run.corpus
    frame = frame[[name for name in frame if not frame[name].map(lambda value: isinstance(value, dict | list)).any()]]
    head = [NAMES.get(str(name), str(name).replace("_", " ")) for name in frame.columns]
    rows = [[_cell(str(name), value) for name, value in row.items()] for _, row in frame.iterrows()]
    note = "Long documents are longer than the old context." if "long_token_frac" in frame else ""
    return Table("Corpus", head, rows, note)


def costs(found: Findings) -> Table:
    """Time and tokens of every monitor, as shares of those of training; the probe, which trains, apart from the others.

    A token of the probe's fine-tuning counts as three, one of training as one.
    """
    timing = found.run.timing
    seconds = timing.groupby("what").seconds.sum() if len(timing) else pd.Series(dtype=float)
    train = float(seconds.get("train", 0.0))
    if not train:
        return Table("Cost", [], [])
    monitors = seconds[[str(what).startswith("monitor:") for what in seconds.index]].sort_values(ascending=False)
    forward = timing.groupby("what").forward_tokens.sum()

    def row(name: str, value: float, sent: float) -> list[str]:
        shares = percent(value / train, 1), percent(sent / forward["train"], 1)
        return [name, f"{value:.1f}", shares[0], tokens(sent), shares[1]]

    rows = [["training", f"{train:.0f}", "", tokens(forward["train"]), ""]]
    rows += [row(str(what).removeprefix("monitor:"), value, forward[what]) for what, value in monitors.items()]
    rest = monitors.drop("monitor:probe", errors="ignore")
    rows.append(row("all monitors but the probe", rest.sum(), forward[rest.index].sum()))
    columns = ["what", "seconds", "share of training time", "forward tokens", "share of training tokens"]
    return Table("Cost", columns, rows)


def _cell(name: str, value: object) -> str:
    if isinstance(value, float) and name.endswith(("_frac", "share")):
        return percent(value, 1)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}" if float(value).is_integer() else number(float(value))
    return str(value)
