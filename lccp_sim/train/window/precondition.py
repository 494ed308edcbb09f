"""Is the base a base? Measured before step 0, with the RoPE that the base was trained with.

LCCP amplifies retrieval that pre-training made. A base that cannot retrieve in its own context, or cannot copy an
unmarked span, would show how heads form instead; the run says so, records it, and goes on.
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

UNEVEN = 1.5  # times the base's largest load: from here on the new length loads experts otherwise


def check_precondition(
    model: Transformer, corpus: Corpus, suite: MonitorSuite, start: Start, console: Console
) -> list[Record]:
    """Records of monitor `precondition` at step 0, where there is a base and a needle and an induction monitor.

    hit_frac: needles at the base's own context length, of the value (which counts) and of the whole sentence.
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
        f"{hit.n} needles (needed {BASE_HIT}; the whole sentence in {sentence.value:.2f}) and copies an unmarked span: "
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
    """Gives the model the RoPE that its base was trained with, for a while."""
    here = model.frequencies, model.rope_scale
    model.frequencies, model.rope_scale = start.model.rope.frequencies(model.config.d_head)
    try:
        yield
    finally:
        model.frequencies, model.rope_scale = here


def check_load(
    model: Transformer, corpus: Corpus, suite: MonitorSuite, start: Start, context: int, console: Console
) -> None:
    """Says how the experts share the load at the new context length, before step 1; a warning where they do not.

    Measured on texts of the routing monitor, so nothing is said without it. Beside it stands the load of the base at
    its own length: a router that is even there may starve experts at positions that it has never seen.
    """
    routing = next((m for m in suite.monitors.values() if isinstance(m, Routing)), None)
    if routing is None:
        return

    def load(length: int) -> tuple[float, int]:
        """The largest load over an even share, and the experts without a token, at a length."""
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
        note = "the router does not carry over to this length; look at routing/load_max_frac before you train for long"
        console.print(f"warning: expert load before step 1: {said}; {note}", style="yellow", markup=False)
    else:
        console.print(f"expert load before step 1: {said}", markup=False)
