"""Numbers formatted for people. Every sentence, table and figure formats its numbers here."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from lccp_sim.analysis.run import RunData
from lccp_sim.records import HEADLINE, SENTENCE, Tag

SPANS = {HEADLINE: "the value's tokens", SENTENCE: "the full answer sentence"}


def tokens(count: float) -> str:
    """Format a count of tokens: 940, 31k, 1.25M, 200B; infinity, beyond every horizon, is "never"."""
    if np.isinf(count):
        return "never"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def number(value: float) -> str:
    """Format three significant digits, with an exponent only for small values; rounding noise becomes 0."""
    if abs(value) <= 1e-9:
        return "0"
    short = f"{value:.3g}"
    return f"{float(short):.0f}" if 1000 <= abs(value) < np.inf else short


def number_apart(value: float, bound: float) -> str:
    """Format with three significant digits, or as many as show on which side of a bound the value is."""
    forms = (number(value), *(f"{float(f'{value:.{digits}g}'):.15g}" for digits in range(4, 16)))
    return next((form for form in forms if np.sign(float(form) - bound) == np.sign(value - bound)), repr(float(value)))


class HasInterval(Protocol):
    """A value that may have an interval."""

    @property
    def value(self) -> float:
        """The estimate."""

    @property
    def low(self) -> float | None:
        """The lower end; None if there is no interval."""

    @property
    def high(self) -> float | None:
        """The upper end; None if there is no interval."""


def interval(estimate: HasInterval | None, form: Callable[[float], str] = number) -> str:
    """Format an estimate with its interval in parentheses: "2.9 (2.5 to 3.4)"."""
    if estimate is None:
        return "not defined"
    if estimate.low is None or estimate.high is None:
        return f"{form(estimate.value)} (no interval)"
    return f"{form(estimate.value)} ({form(estimate.low)} to {form(estimate.high)})"


def percent(share: float, digits: int = 0) -> str:
    """Format a share as a percentage: "95 %"."""
    return f"{100 * share:.{digits}f} %"


def measured(value: float, stderr: float) -> str:
    """Format a value with its standard error, if there is one: "0.82 ± 0.03"."""
    return number(value) if np.isnan(stderr) else f"{number(value)} ± {stderr:.2g}"


def tagged(monitor: str, metric: str, tags: Mapping[str, Tag]) -> str:
    """Return the name of a curve: "needle hit_frac length=512"."""
    return " ".join([f"{monitor} {metric}", *(f"{key}={value}" for key, value in sorted(tags.items()))])


def judged(run: RunData, monitor: str = "needle") -> str:
    """Describe the answer tokens to which a monitor's hit, NLL and perplexity refer by default."""
    return SPANS[run.span(monitor)]


def setting(value: Any) -> str:
    """Format a config value for a table; empty if the config has none."""
    return "" if value is None or value != value else str(value)
