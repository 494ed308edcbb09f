"""The precondition of LCCP: is the base usable? It is measured before step 0, with the base's own RoPE.

LCCP amplifies retrieval that pre-training produced. With a base that cannot retrieve in its own context, or cannot copy
an unmarked span, the run would show how heads form instead. The run reports and records this, and continues.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from lccp_sim.analysis.report.precondition import BASE_HIT, COPY_RATIO
from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors import Induction, Needle, Routing
from lccp_sim.monitors.observing import evaluating
from lccp_sim.monitors.values import Moment
from lccp_sim.records import Record, overall_name
from lccp_sim.train.saved.init import Start
from lccp_sim.train.window.suite import MonitorSuite

UNEVEN = 1.5  # largest load over the base's: above it, the new length counts as loading experts differently


def check_precondition(
    model: Transformer, corpus: Corpus, suite: MonitorSuite, start: Start, console: Console
) -> list[Record]:
    """Records of monitor `precondition` at step 0, if there are a base, a needle monitor and an induction monitor.

    hit_frac: needles at the base's own context length, for the value (which counts) and for the full sentence.
    copy_nll_ratio: NLL of the second copy of a random span over that of the first.
    """
    needle = next((m for m in suite.monitors.values() if isinstance(m, Needle)), None)
    induction = next((m for m in suite.monitors.values() if isinstance(m, Induction)), None)
    if start.content is None or needle is None or induction is None:
        return []
    old = start.content["lccp"]["config"]["run"]["context_tokens"]
    needle = dataclasses.replace(needle, lengths=(old,), variants={}, heads=False)
    induction = dataclasses.replace(induction, lengths=(old,))
    try:
        needles, repeats = needle.prepare(corpus), induction.prepare(corpus)
    except ConfigError as error:
        raise ConfigError(f"run.precondition, at the base's context of {old} tokens: {error}") from None
    moment = Moment(0, 0)
    with as_base(model, start), evaluating(model, suite.bf16):
        seen = needle.aggregate(needle.score(model, needles), moment)
        seen += induction.aggregate(induction.score(model, repeats), moment)
    whole = {name: record for record in seen if (name := overall_name(record)) is not None}
    hit, sentence = whole["needle/hit_frac"], whole["needle/sentence_hit_frac"]
    first, second = whole["induction/first_copy_nll_nats"], whole["induction/second_copy_nll_nats"]
    ratio = second.value / first.value
    verdict = "met" if hit.value >= BASE_HIT and ratio <= COPY_RATIO else "NOT met"
    console.print(
        f"precondition {verdict}: the base, at its own context of {old} tokens, hits the value in {hit.value:.2f} of "
        f"{hit.n} needles (needed {BASE_HIT}; the full sentence in {sentence.value:.2f}) and copies an unmarked span: "
        f"NLL {first.value:.2f} at first, {second.value:.2f} at the second copy (ratio {ratio:.2f}, needed "
        f"{COPY_RATIO} or less)"
    )
    ratio_of = Record(*moment, "mechanistic", "precondition", "copy_nll_ratio", ratio, second.n)
    return [
        dataclasses.replace(r, tier=ratio_of.tier, monitor=ratio_of.monitor, tags={"length": old, **r.tags})
        for r in (hit, sentence, ratio_of, first, second)
    ]


@contextmanager
def as_base(model: Transformer, start: Start) -> Iterator[None]:
    """Within the context, give the model the RoPE with which its base was trained."""
    here = model.frequencies, model.rope_scale
    model.frequencies, model.rope_scale = start.model.rope.frequencies(model.config.d_head)
    try:
        yield
    finally:
        model.frequencies, model.rope_scale = here


def check_load(
    model: Transformer, corpus: Corpus, suite: MonitorSuite, start: Start, context: int, console: Console
) -> None:
    """Print how the experts share the load at the new context length before step 1; warn if the load is uneven.

    It is measured on texts of the routing monitor, so without that monitor nothing is printed. The base's load at its
    own length is printed for comparison: a router that is even there may starve experts at positions that it has never
    seen.
    """
    routing = next((m for m in suite.monitors.values() if isinstance(m, Routing)), None)
    if routing is None:
        return

    def load(length: int) -> tuple[float, int]:
        """The largest load over an even share, and the number of experts without a token, at a length."""
        at = dataclasses.replace(routing, context_tokens=length)
        items = at.prepare(corpus)
        with evaluating(model, suite.bf16):
            share_LE = [count_E / count_E.sum() for count_E in at.score(model, items) if count_E.any()]
        return max(float(each.max() * len(each)) for each in share_LE), sum(int((e == 0).sum()) for e in share_LE)

    try:
        largest, dead = load(context)
        before, dead_before, base = 1.0, 0, ""
        if start.content is not None:
            old = start.content["lccp"]["config"]["run"]["context_tokens"]
            with as_base(model, start):
                before, dead_before = load(old)
            base = f"; the base, at its own {old}: {before:.2f} times, {dead_before}"
    except ConfigError as error:
        console.print(f"expert load before step 1: not measured ({error})", markup=False)
        return
    said = f"at {context} tokens the largest is {largest:.2f} times an even one, {dead} experts have no token{base}"
    if dead > dead_before or (start.content is not None and largest > UNEVEN * before):
        note = "the router does not carry over to this length; check routing/load_max_frac before a long run"
        console.print(f"warning: expert load before step 1: {said}; {note}", style="yellow", markup=False)
    else:
        console.print(f"expert load before step 1: {said}", markup=False)
