"""Whether the fine-tuned probe has stopped moving: the same questions, at its last window and at half its tokens.

The probe has few windows and few questions, so the saturation rule usually has too few points. They do support a paired
test that it did *not* change. Design note: the margin is absolute, five points of exact match. A probe with few
questions cannot show such a small change whatever the model does; the result says so.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student

from lccp_sim.analysis.format import number, tokens
from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.curve import Absent, Estimate
from lccp_sim.analysis.stats.estimate import Array, item_values
from lccp_sim.errors import ConfigError

MARGIN = 0.05
METRIC = "exact_match_frac"


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of the probe's exact match between two windows, at least a doubling of tokens apart.

    `holds`: whether the change is shown to be within +-`margin`. `change`: its mean over `items` questions with the
    90 % interval (not 95 %) that must lie within the margin; None if `reason` is given.
    """

    before_tokens: int | None
    after_tokens: int | None
    items: int
    change: Estimate | None
    margin: float
    holds: bool
    reason: Absent | None

    def said(self) -> str:
        """The result as a clause."""
        if self.change is None:
            return f"the probe cannot be shown to be stable to within {number(self.margin)}: {self.reason}"
        word = "is stable" if self.holds else "is not shown to be stable"
        between = f"from {tokens(self.before_tokens or 0)} to {tokens(self.after_tokens or 0)} tokens"
        low, high = self.change.low or 0.0, self.change.high or 0.0
        moved = f"{number(self.change.value)} (90 % interval {number(low)} to {number(high)}, {self.items} questions)"
        return f"{between} the probe {word} to within {number(self.margin)}: its exact match changes by {moved}"


def probe_stays(run: RunData, margin: float = MARGIN) -> Equivalence | None:
    """Run the test on the probe of a run, after its last fine-tuning step; None if the run has no probe."""
    rows = run.select("probe", METRIC, "sft_step")
    if rows.empty:
        return None
    tags = {"sft_step": int(rows.sft_step.max())}
    windows = rows[rows.sft_step == tags["sft_step"]].drop_duplicates("step").set_index("step").tokens.sort_index()
    none = Equivalence(None, None, 0, None, margin, False, None)
    early = windows.iloc[:-1][windows.iloc[:-1] <= windows.iloc[-1] / 2]  # at step 0 half of no tokens is no tokens
    if early.empty:
        return replace(none, reason=Absent("no window of the probe lies at half its last window's tokens or before"))
    found = item_values(run, "probe", [METRIC], [int(early.index[-1]), int(windows.index[-1])], tags)
    if found is None or len(found[1]) < 2:
        return replace(none, reason=Absent("no samples of the probe at these windows"))
    before_I, after_I = found[0][METRIC].T
    holds, change = equivalent(before_I, after_I, margin)
    return Equivalence(int(early.iloc[-1]), int(windows.iloc[-1]), len(before_I), change, margin, holds, None)


def equivalent(before_I: Array, after_I: Array, margin: float) -> tuple[bool, Estimate]:
    """Test whether items changed by less than `margin`; also return the mean change with its 90 % interval (not 95 %).

    Two one-sided t tests at 5 % on paired differences: equivalent if the interval lies within +-margin. If 0/1 items
    show no change at all, the t interval would be a point; the interval is then the share p of items that could have
    changed unseen, (1 - p)^n = 5 %. Source: Schuirmann 1987 (J. Pharmacokinet. Biopharm. 15). Raises ConfigError for
    fewer than two pairs, numbers that are not finite, or a margin that is not positive.
    """
    before_I, after_I = np.asarray(before_I, float), np.asarray(after_I, float)
    if before_I.shape != after_I.shape or before_I.ndim != 1 or len(before_I) < 2:
        raise ConfigError(f"equivalence needs at least two pairs: got {before_I.shape} and {after_I.shape} values")
    if not (np.isfinite([before_I, after_I]).all() and margin > 0):
        raise ConfigError(f"equivalence needs finite values and a positive margin (it is {margin})")
    change_I, n = after_I - before_I, len(before_I)
    half = student.ppf(0.95, n - 1) * change_I.std(ddof=1) / np.sqrt(n)
    if not change_I.any() and np.isin(before_I, (0, 1)).all():
        half = 1 - 0.05 ** (1 / n)
    estimate = Estimate(float(change_I.mean()), float(change_I.mean() - half), float(change_I.mean() + half))
    return bool(estimate.above(-margin) and estimate.below(margin)), estimate
