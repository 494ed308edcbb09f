"""A first criteria file from the records of a run: a start to be edited, not a judgement.

Each bound lies two half-widths of the interval on the lenient side of what the run shows at its end, rounded that way,
so that a run as good passes with its whole interval in most cases.
"""

from datetime import date
from math import ceil, floor, isfinite, log10
from pathlib import Path

from lccp_sim.analysis.format import interval, tokens
from lccp_sim.analysis.judge.intervals import Of
from lccp_sim.analysis.judge.lookup import item_curve
from lccp_sim.analysis.run import RunData, load_run
from lccp_sim.analysis.stats.curve import Estimate
from lccp_sim.errors import ConfigError, refuse
from lccp_sim.files import write_atomic

ASKED: dict[str, tuple[str, Of, str]] = {
    "finds the needle": ("needle/hit_frac", "value", "at_least"),
    "is surer of the needle than at first": ("needle/answer_nll_nats", "factor", "at_most"),
    "answers after fine-tuning": ("probe/exact_match_frac", "value", "at_least"),
    "has heads that retrieve": ("heads/retrieval_heads_count", "value", "at_least"),
    "keeps held-out text": ("perplexity/nll_nats", "change", "at_most"),
    "keeps short context": ("perplexity/short_nll_nats", "change", "at_most"),
}


def write_first(run_path: Path, path: Path, today: date) -> Path:
    """The path of a new criteria file with what `run_path` shows. ConfigError where it exists or nothing can be asked.

    A metric without an interval is left out, and so is a share whose bound would ask for nothing.
    """
    refuse(path.exists(), "--init", str(path), "exists already; name another file, or remove it")
    run = load_run(run_path)
    blocks = [block for name, asked in ASKED.items() if (block := _block(run, name, *asked))]
    if not blocks:
        raise ConfigError(f"{run.path}: no metric that a first gate asks about has an interval; write {path} by hand")
    head = (
        f"# What {run.name} shows, as a start. Set the bounds that the next run must keep, before it begins.\n"
        f"# Keys: metric, tags, of, at_least or at_most, at, by, over; docs/gate.md has them all.\n"
        f"written: {today.isoformat()}\nseeds: 1\ncriteria:\n"
    )
    write_atomic(path, head + "".join(blocks))
    return path


def _block(run: RunData, name: str, metric: str, of: Of, side: str) -> str:
    """The lines of one criterion; "" where the run has no interval for it."""
    found = item_curve(run, metric)
    if found is None:
        return ""
    last = len(found.curve.value_W) - 1
    of = of if last else "value"
    estimate = found.estimate(last, of)
    bound = _bound(estimate, side)
    if bound is None or (metric.endswith("_frac") and side == "at_least" and bound <= 0):
        return ""
    shown = f"{interval(estimate)} at {tokens(float(found.curve.tokens_W[-1]))} tokens"
    between = "" if of == "value" else f"    of: {of}\n"
    return f"  {name}:\n    metric: {metric}\n{between}    {side}: {bound:g}  # {run.name}: {shown}\n"


def _bound(estimate: Estimate, side: str) -> float | None:
    """Two half-widths off the value on the lenient side, rounded that way; None without an interval."""
    if estimate.low is None or estimate.high is None or not isfinite(estimate.value):
        return None
    half = max(estimate.value - estimate.low, 1e-9) if side == "at_least" else max(estimate.high - estimate.value, 1e-9)
    place = floor(log10(half))
    bound = estimate.value - 2 * half if side == "at_least" else estimate.value + 2 * half
    rounded = (floor if side == "at_least" else ceil)(bound / 10**place)
    return round(rounded * 10**place, max(0, -place))
