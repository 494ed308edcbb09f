"""Numbers as a person reads them. Every sentence, table and figure takes its numbers through here."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from lccp_sim.analysis.run import RunData
from lccp_sim.records import HEADLINE, SENTENCE, Tag

SPANS = {HEADLINE: "the value's tokens", SENTENCE: "the whole answer sentence"}


def tokens(count: float) -> str:
    """A count of tokens as a person reads it: 940, 31k, 1.25M, 200B; what lies beyond every horizon, as "never"."""
    if np.isinf(count):
        return "never"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def number(value: float) -> str:
    """Three significant digits, without an exponent where a person would write none; rounding noise is 0."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) > 1e-9 else "0"


class Spread(Protocol):
    """What has a value and may have an interval."""

    @property
    def value(self) -> float:
        """The estimate."""

    @property
    def low(self) -> float | None:
        """The lower end; None without an interval."""

    @property
    def high(self) -> float | None:
        """The upper end."""


def interval(estimate: Spread | None, form: Callable[[float], str] = number) -> str:
    """An estimate with its interval in brackets: "2.9 (2.5 to 3.4)"."""
    if estimate is None:
        return "not defined"
    if estimate.low is None or estimate.high is None:
        return f"{form(estimate.value)} (no interval)"
    return f"{form(estimate.value)} ({form(estimate.low)} to {form(estimate.high)})"


def percent(share: float, digits: int = 0) -> str:
    """A share as a percentage: "95 %"."""
    return f"{100 * share:.{digits}f} %"


def measured(value: float, stderr: float) -> str:
    """A value with its standard error, where there is one: "0.82 ± 0.03"."""
    return number(value) if np.isnan(stderr) else f"{number(value)} ± {stderr:.2g}"


def tagged(monitor: str, metric: str, tags: Mapping[str, Tag]) -> str:
    """A curve's name: "needle hit_frac length=512"."""
    return " ".join([f"{monitor} {metric}", *(f"{key}={value}" for key, value in sorted(tags.items()))])


def judged(run: RunData, monitor: str = "needle") -> str:
    """The tokens of an answer that a monitor's hit, NLL and perplexity are of, where nothing else is said."""
    return SPANS[run.span(monitor)]


def setting(value: Any) -> str:
    """A config value in a table; nothing where the config has none."""
    return "" if value is None or value != value else str(value)
