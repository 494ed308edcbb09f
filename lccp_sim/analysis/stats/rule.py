"""The saturation rule: can the next doubling of tokens still bring more than a small share of the gain so far?

A law without an asymptote never saturates, so the rule asks about the next doubling. A curve is saturated if the upper
95 % limit of the predicted gain from N to 2 N is below `eps` of the gain so far, at two consecutive windows, each
judged by the data up to it. Design note: the share is of the gain so far, so that even a log law is saturated after 1 /
eps doublings beyond its offset; at eps = 0.05 no study is that long.
"""

from dataclasses import dataclass, replace
from itertools import chain, takewhile
from math import isnan

from kneed import KneeLocator

from lccp_sim.analysis.format import interval, number, tokens
from lccp_sim.analysis.stats.curve import Curve, Estimate
from lccp_sim.analysis.stats.equivalence import Equivalence
from lccp_sim.analysis.stats.laws import LAW_WINDOWS, gain_per_doubling, laws_of, windows_needed
from lccp_sim.errors import ConfigError

EPS = 0.05
VERDICTS = ("saturated", "improving", "not told apart", "not enough points")
VERDICT_WORDS = dict(
    zip(VERDICTS, ("saturated", "improving", "undecided", "too few points"), strict=True)
)  # to readers


@dataclass(frozen=True)
class Decision:
    """The rule's decision at the end of a curve.

    `verdict`: one of VERDICTS. `since_tokens`: the first of the consecutive windows, at least two, at which the rule
    holds. `gain`: predicted improvement by the next doubling. `gain_so_far`: improvement from the first window to the
    last. Both are positive for better, in the metric's unit. `law`: the best law. `reasons`: sentences with numbers.
    """

    verdict: str
    since_tokens: int | None
    gain: Estimate | None
    gain_so_far: float
    law: str | None
    reasons: list[str]


@dataclass(frozen=True)
class Look:
    """The state at one window: the predicted gain of the next doubling and the gain so far, with their intervals."""

    tokens: int
    gain: Estimate
    gain_so_far: Estimate

    def holds(self, eps: float) -> bool:
        """Whether there was a gain beyond noise, and the upper limit of the next doubling is below `eps` of it."""
        return _improved(self.gain_so_far) and self.gain.below(eps * self.gain_so_far.value)


def looks(curve: Curve) -> list[Look]:
    """Summarise each window from the sixth on, given only the windows up to it."""
    return [_look(curve, number) for number in range(LAW_WINDOWS, len(curve.tokens_W) + 1)]


def decide(curve: Curve, eps: float = EPS, probe: Equivalence | None = None) -> Decision:
    """Apply the rule at the end of a curve; if `probe` is given, it must also hold for "saturated".

    Raises ConfigError unless 0 < eps < 1.
    """
    if not 0 < eps < 1:
        raise ConfigError(f"eps is {eps}; it must be a share of the gain so far, above 0 and below 1, such as 0.05")
    sign = 1.0 if curve.rising else -1.0
    windows, so_far = len(curve.tokens_W), sign * float(curve.value_W[-1] - curve.value_W[0])
    if windows < windows_needed(curve):
        needed = f"{windows_needed(curve)}{' because the rate falls' * curve.areas.annealed}"
        said = f"{windows} window{'s' * (windows != 1)}; the rule needs at least {needed}"
        return Decision("not enough points", None, None, so_far, None, [said])
    last, before = _look(curve, windows), (_look(curve, n) for n in range(windows - 1, LAW_WINDOWS - 1, -1))
    held = list(takewhile(lambda look: look.holds(eps), chain([last], before)))  # only as far as necessary
    law, row = laws_of(curve)[0].law, len(held)
    bound = eps * so_far
    reasons = [f"over {windows} windows the best law is {law}"]
    if curve.rate is not None:
        reasons.append(f"the law uses the forward area, with an annealing term, because {curve.rate.said()}")
    if not _improved(last.gain_so_far):
        reasons.append(f"the gain so far, {so_far:.3g}, is within noise, so there is nothing that could have saturated")
        return Decision("not told apart", None, last.gain, so_far, law, reasons)
    reasons.append(
        f"the next doubling is predicted to bring {last.gain.value:.3g} ({last.gain.low:.3g} to {last.gain.high:.3g}); "
        f"the bound is {eps:.3g} of the gain so far ({so_far:.3g}), {bound:.3g}"
    )
    since = int(held[-1].tokens) if row >= 2 else None
    if since is not None:
        reasons.append(f"the upper limit is below the bound at {row} consecutive windows, from {since} tokens on")
    elif row == 1:
        reasons.append("the upper limit is below the bound only at the last window; two consecutive ones are needed")
    if probe is not None:
        reasons.append(probe.said())
    if since is not None and (probe is None or probe.holds):
        return Decision("saturated", since, last.gain, so_far, law, reasons)
    verdict = "improving" if last.gain.above(bound) else "not told apart"
    return Decision(verdict, since, last.gain, so_far, law, reasons)


def decided(decision: Decision, eps: float) -> str:
    """Format the rule's verdict with its two numbers: "improving, 0.05 (0.04 to 0.06), threshold 0.03"."""
    if decision.gain is None or isnan(decision.gain.value):
        return decision.verdict
    if decision.gain_so_far <= 0:
        return f"{VERDICT_WORDS[decision.verdict]}, because there is no gain so far"
    since = "" if decision.since_tokens is None else f" from {tokens(decision.since_tokens)} tokens on"
    bound = number(eps * decision.gain_so_far)
    return f"{VERDICT_WORDS[decision.verdict]}{since} (next doubling {interval(decision.gain)}, threshold {bound})"


def kneedle(curve: Curve) -> int | None:
    """Find the tokens at Kneedle's knee (sensitivity 1, linear axes), or None; a baseline to warn with, not to use.

    Kneedle maximises the distance from the chord over the given windows, so a log law always has a knee, and a longer
    run has a later one. Source: Satopaa et al. 2011 (ICDCSW), implemented by `kneed`.
    """
    moved = (curve.value_W[-1] - curve.value_W[0]) * (1 if curve.rising else -1)
    if len(curve.tokens_W) < 3 or moved <= 0:
        return None
    shape, way = ("concave", "increasing") if curve.rising else ("convex", "decreasing")
    knee = KneeLocator(curve.tokens_W, curve.value_W, S=1.0, curve=shape, direction=way).knee
    return None if knee is None else int(knee)


def _look(curve: Curve, windows: int) -> Look:
    draws_RW = None if curve.draws_RW is None else curve.draws_RW[:, :windows]
    part = replace(
        curve,
        tokens_W=curve.tokens_W[:windows],
        value_W=curve.value_W[:windows],
        stderr_W=curve.stderr_W[:windows],
        draws_RW=draws_RW,
    )
    sign = 1.0 if curve.rising else -1.0
    draws_R = None if draws_RW is None else sign * (draws_RW[:, -1] - draws_RW[:, 0])
    so_far = Estimate.of(sign * (part.value_W[-1] - part.value_W[0]), draws_R)
    return Look(int(part.tokens_W[-1]), gain_per_doubling(part), so_far)


def _improved(gain: Estimate) -> bool:
    return gain.above(0) if gain.low is not None else gain.value > 0
