"""Whether the study is sound: the base retrieves and copies, and the new context has something to recover.

Without it, training would measure how retrieval heads form, not how a long context is learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lccp_sim.analysis.table import RunData, matching
from lccp_sim.analysis.words import measured

BASE_HIT, COPY_RATIO, SHORT_HIT = 0.8, 0.25, 0.5  # asked of the base, and of step 0


@dataclass(frozen=True)
class Check:
    """One condition of the study at step 0. `met` is None where the run did not record what would decide it."""

    question: str
    answer: str
    met: bool | None


def unmet(checks: Sequence[Check]) -> str:
    """The conditions that are not met, with what was measured; "" where none is."""
    return "; ".join(f"{check.question}: {check.answer}" for check in checks if check.met is False)


def precondition(run: RunData) -> list[Check]:
    """The conditions, with what the run measured at step 0; none where the run does not lengthen the context.

    Lengths up to data.old_context_tokens are the base's own; longer ones are what the run has to learn. `base` are the
    run's own records of the base before the RoPE change.
    """
    old = run.setting("data.old_context_tokens", 0)
    if run.setting("run.context_tokens", 0) <= old:
        return []
    start = run.records[run.records.step == 0]
    base = start[start.monitor == "precondition"]
    hits = start[(start.monitor == "needle") & (start.metric == "hit_frac") & (start.names == "length,span,variant")]
    hits = matching(hits, {"span": "full", "variant": "single"})
    short = hits[hits.length <= old].nlargest(1, "length") if len(hits) else hits
    long = hits[hits.length > old].nlargest(1, "length") if len(hits) else hits
    hit, ratio = base[base.metric == "hit_frac"], base[base.metric == "copy_nll_ratio"]
    worse = None
    if len(short) and len(long):
        worse = bool(long.value.iloc[0] + 2 * np.nan_to_num(long.stderr.iloc[0]) < short.value.iloc[0])
    return [
        Check(f"The base retrieves at its own context (hit at least {BASE_HIT})", _said(hit), _holds(hit, BASE_HIT)),
        Check(
            f"The base copies an unmarked span (NLL of the second copy at most {COPY_RATIO} of the first)",
            _said(ratio),
            None if ratio.empty else bool(ratio.value.iloc[0] <= COPY_RATIO),
        ),
        Check(
            f"Short retrieval survives the start of this run (hit at least {SHORT_HIT} at step 0)",
            _said(short),
            _holds(short, SHORT_HIT),
        ),
        Check("Long retrieval is degraded at step 0 (2 standard errors below the short hit)", _said(long), worse),
    ]


def _said(rows: pd.DataFrame) -> str:
    """The first row in words."""
    if rows.empty:
        return "not recorded"
    row = rows.iloc[0]
    return f"{measured(row.value, row.stderr)} at {row.length:.0f} tokens"


def _holds(rows: pd.DataFrame, bound: float) -> bool | None:
    """Whether the first row reaches `bound`; None where there is no row."""
    return None if rows.empty else bool(rows.value.iloc[0] >= bound)
