"""Recovery: the share of a needle's gain that survives in a haystack, comparable between models of different NLL.

recovery = (NLL without needle - NLL in the haystack) / (NLL without needle - NLL of the needle with no haystack), over
the same needles. Design note: it is a ratio of two means, not a mean of ratios, because one needle with a gain near 0
would dominate a mean of ratios with noise.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import sqrt

import numpy as np

from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.needle_items import NeedleItem
from lccp_sim.monitors.observing import Spans, map_batches, score_spans
from lccp_sim.monitors.values import Moment, Value
from lccp_sim.records import Record, Tag

LEAST_NATS = 0.1  # smallest mean gain without haystack: below it, the ratio is meaningless
LEAST_ERRORS = 2.0  # how many of its standard errors that gain must be above 0, for the same reason


def recovery(gains: Sequence[float], alone: Sequence[float]) -> tuple[float, float] | None:
    """Compute the ratio of the mean gains and its standard error over items (delta method, paired); None if undefined.

    It is undefined with fewer than two items, or if the mean gain without haystack is below `LEAST_NATS` or below
    `LEAST_ERRORS` of its standard errors. 1: the haystack costs nothing. 0: the needle is not found at all.
    """
    gain_I, alone_I = np.array(gains), np.array(alone)
    if len(alone_I) < 2:
        return None
    worth, error = float(alone_I.mean()), float(alone_I.std(ddof=1)) / sqrt(len(alone_I))
    if worth < max(LEAST_NATS, LEAST_ERRORS * error):
        return None
    ratio = float(gain_I.mean()) / worth
    return ratio, float((gain_I - ratio * alone_I).std(ddof=1)) / sqrt(len(alone_I)) / worth


def alone_values(
    model: LanguageModel, items: Sequence[NeedleItem], values: Sequence[Value], tokens_per_forward: int
) -> Iterator[Value]:
    """Measure each needle that has a control without any haystack: the NLL of its answer, and the gain there.

    `values` hold the controls' NLL. Each needle takes one more forward, over needle, question and answer only.
    """
    control = {(v.item, v.tags["span"]): v for v in values if v.metric == "control_nll_nats"}
    chosen = [(item, item.alone) for item in items if item.control is not None and item.alone is not None]

    def look(group: list[int]) -> Spans:
        texts = [chosen[i][1] for i in group]
        lengths = [chosen[i][0].answer[1] - chosen[i][0].answer[0] for i in group]
        return score_spans(model, texts, [(len(t) - n, len(t)) for t, n in zip(texts, lengths, strict=True)])

    for group, spans in map_batches(model, [len(text) for _, text in chosen], tokens_per_forward, look):
        for i, (item, _) in enumerate(chosen[which] for which in group):
            nll = spans.nll[i, spans.mask[i]]
            for span, mask in (("full", np.ones_like(item.value_mask)), ("value", item.value_mask)):
                without, alone = control[item.id, span], float(nll[mask].mean())
                yield without._replace(metric="alone_nll_nats", value=alone)
                yield without._replace(metric="alone_gain_nats", value=without.value - alone)


def recovery_records(values: Sequence[Value], moment: Moment, tier: str) -> list[Record]:
    """Return `recovery_frac` records with the tags {span} and {length, span, variant}, where it is defined."""
    records = []
    for names in (("span",), ("length", "span", "variant")):
        found: dict[tuple[Tag, ...], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
        for value in values:
            if value.metric in ("gain_nats", "alone_gain_nats"):
                found[tuple(value.tags[name] for name in names)][value.metric][value.item] = value.value
        for tags, gains in found.items():
            alone = gains["alone_gain_nats"]
            made = recovery([gains["gain_nats"][item] for item in alone], list(alone.values()))
            if made is not None:
                cell = dict(zip(names, tags, strict=True))
                records.append(Record(*moment, tier, "needle", "recovery_frac", made[0], len(alone), made[1], cell))
    return records
