"""The precondition of a sound study: the base retrieves and copies, and the new context has something to recover.

Without it, training would show how retrieval heads form, not how a long context is learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lccp_sim.analysis.format import judged, measured, number
from lccp_sim.analysis.overall import VARIANT
from lccp_sim.analysis.run import RunData
from lccp_sim.records import SENTENCE, Tag

BASE_HIT, COPY_RATIO, SHORT_HIT = 0.8, 0.25, 0.5  # required of the base, and of step 0


@dataclass(frozen=True)
class Check:
    """One condition at step 0. `met` is None if the run did not record what decides it."""

    question: str
    answer: str
    met: bool | None


def unmet(checks: Sequence[Check]) -> str:
    """Describe the conditions that are not met, with the measurements; "" if all are met."""
    return "; ".join(f"{check.question}: {check.answer}" for check in checks if check.met is False)


def precondition(run: RunData) -> list[Check]:
    """Check the conditions at step 0; none if the run does not extend the context.

    Hits refer to the headline span, with those of the full sentence in parentheses. Lengths up to
    data.old_context_tokens belong to the base; longer ones are what the run has to learn. The monitor `precondition`
    measures the base before the RoPE change.
    """
    old = run.setting("data.old_context_tokens", 0)
    of_base, of_run = (f"hit on {judged(run, monitor)}" for monitor in ("precondition", "needle"))
    if run.setting("run.context_tokens", 0) <= old:
        return []
    hit, ratio = (_first(run, "precondition", metric) for metric in ("hit_frac", "copy_nll_ratio"))
    hits = _first(run, "needle", "hit_frac", span=run.span(), variant=VARIANT)
    sentences = _first(run, "needle", "hit_frac", span=SENTENCE, variant=VARIANT) if run.sentence else hits.iloc[:0]
    short = hits[hits.length <= old].nlargest(1, "length") if len(hits) else hits
    long = hits[hits.length > old].nlargest(1, "length") if len(hits) else hits
    worse = None
    if len(short) and len(long):
        worse = bool(long.value.iloc[0] + 2 * np.nan_to_num(long.stderr.iloc[0]) < short.value.iloc[0])
    return [
        Check(
            f"The base retrieves at its own context ({of_base} at least {BASE_HIT})",
            _said(hit, _first(run, "precondition", "hit_frac", span=SENTENCE)),
            _holds(hit, BASE_HIT),
        ),
        Check(
            f"The base copies an unmarked span (NLL of the second copy at most {COPY_RATIO} of the first)",
            _said(ratio),
            None if ratio.empty else bool(ratio.value.iloc[0] <= COPY_RATIO),
        ),
        Check(
            f"Short retrieval survives the start of this run ({of_run} at least {SHORT_HIT} at step 0)",
            _said(short, sentences),
            _holds(short, SHORT_HIT),
        ),
        Check(
            "Long retrieval is degraded at step 0 (at least 2 standard errors below the short hit)",
            _said(long, sentences),
            worse,
        ),
    ]


def _first(run: RunData, monitor: str, metric: str, **tags: Tag) -> pd.DataFrame:
    """Return a metric's records by length at step 0."""
    rows = run.select(monitor, metric, "length", **tags)
    return rows[rows.step == 0]


def _said(rows: pd.DataFrame, sentences: pd.DataFrame | None = None) -> str:
    """Describe the first row, with the hit on the full sentence, from `sentences`, at the same length."""
    if rows.empty:
        return "not recorded"
    row = rows.iloc[0]
    text = f"{measured(row.value, row.stderr)} at {row.length:.0f} tokens"
    beside = [] if sentences is None else sentences.value[sentences.length == row.length].tolist()
    return f"{text} (full sentence {number(beside[0])})" if beside else text


def _holds(rows: pd.DataFrame, bound: float) -> bool | None:
    """Whether the first row reaches `bound`; None if there is no row."""
    return None if rows.empty else bool(rows.value.iloc[0] >= bound)
