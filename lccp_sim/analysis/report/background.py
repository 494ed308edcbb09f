"""Tables of what a run stands on: its corpus, and what its monitors cost."""

import pandas as pd

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.format import number, percent, tokens
from lccp_sim.analysis.report.tables import Table

NAMES = {"long_token_frac": "tokens in long documents", "held_out_frac": "held out"}


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
