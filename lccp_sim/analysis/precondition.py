"""Whether the study is sound: the base retrieves and copies, and the new context has something to recover.

Without it, training would measure how retrieval heads form, not how a long context is learned.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lccp_sim.analysis.table import RunData, load_run, matching
from lccp_sim.analysis.words import measured

BASE_HIT, SHORT_HIT, HEAD = (
    0.8,
    0.5,
    0.1,
)  # asked of the base at its end, of step 0, and of the strongest induction head


@dataclass(frozen=True)
class Check:
    """One condition of the study at step 0. `met` is None where the run did not record what would decide it."""

    question: str
    answer: str
    met: bool | None


def precondition(run: RunData) -> list[Check]:
    """Whether the base could retrieve and copy before training began, and whether there was something to recover.

    Lengths up to data.old_context_tokens are the base's own; longer ones are what the run has to learn.
    """
    old = run.setting("data.old_context_tokens", 0)
    start = run.records[run.records.step == 0]
    hits = start[(start.metric == "hit_frac") & (start.names == "length,span,variant")]
    hits = matching(hits, {"span": "full", "variant": "single"})
    induction = start[(start.metric == "induction_frac") & (start.names == "")]
    short = hits[hits.length <= old].nlargest(1, "length") if len(hits) else hits
    long = hits[hits.length > old].nlargest(1, "length") if len(hits) else hits
    base = _base_hit(run, old)
    worse = None
    if len(short) and len(long):
        noise = np.nan_to_num(long.stderr.iloc[0])
        worse = bool(long.value.iloc[0] + 2 * noise < short.value.iloc[0])
    return [
        Check(
            f"The base retrieves at its own context when it ends (hit at least {BASE_HIT})", *_at_least(base, BASE_HIT)
        ),
        Check(f"It still does at step 0 of this run (hit at least {SHORT_HIT})", *_at_least(short, SHORT_HIT)),
        Check(
            "Long retrieval is degraded at step 0 (2 standard errors below the short hit)", _at_least(long, 0)[0], worse
        ),
        Check(
            f"A head copies an unmarked repeated span at step 0 (induction at least {HEAD})",
            *_at_least(induction, HEAD),
        ),
    ]


def _at_least(rows: pd.DataFrame, bound: float) -> tuple[str, bool | None]:
    """The first row in words, and whether it reaches `bound`; None where there is no row."""
    if rows.empty:
        return "not recorded", None
    row = rows.iloc[0]
    place = f" at {row.length:.0f} tokens" if "length" in row.names.split(",") else ""
    return f"{measured(row.value, row.stderr)}{place}", bool(row.value >= bound)


def _base_hit(run: RunData, old: int) -> pd.DataFrame:
    """The last hit record of the run that this one started from, at its own context; empty where it cannot be found."""
    start = Path(str(run.setting("run.init_from", "")))
    for folder in (start, *start.parents, run.path.parent / start.name):
        if (folder / "records.jsonl").is_file() and folder.resolve() != run.path.resolve():
            rows = load_run(folder).select("needle", "hit_frac", "length", span="full", variant="single")
            return (
                rows[(rows.step == rows.step.max()) & (rows.length <= old)].nlargest(1, "length") if len(rows) else rows
            )
    return run.records.iloc[:0]
