"""Overall rows of a monitor and the answer span to which they refer: the one place that chooses the headline.

The headline of needles is the span of the value, for hit, NLL and perplexity alike. Records name their span. Records of
an earlier version may lack it, which means the full sentence. Records of other tools may hold cells only. Design note:
if any window has no value span, the entire run is judged by the sentence, because one curve must not mix two
quantities.
"""

import numpy as np
import pandas as pd

from lccp_sim.records import ANSWER, HEADLINE, SENTENCE

SPANNED = {  # monitors that record spans: their metrics, and the other tags of the rows that form the headline
    "needle": ((*ANSWER, "control_nll_nats", "gain_nats"), ("", "depth")),
    "intervention": ((*ANSWER, "causal_nll_nats"), ("", "arm")),
    "precondition": (("hit_frac",), ("length",)),
}
CELLED = {"needle": SPANNED["needle"][0], "perplexity": ("nll_nats", "ppl")}  # whose overall rows are means of cells
VARIANT = "single"  # the cells that the needle monitor's overall rows average


def with_overall(records: pd.DataFrame, warnings: list[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the records with an overall row (no tags) for each metric, and the answer span of these rows by monitor.

    For each monitor of SPANNED, rows of the headline span lose the tag's name, but keep its value: they become the
    overall rows. The headline is HEADLINE if every window has it, else SENTENCE with a warning in `warnings`. A metric
    without overall rows gets the mean of its cells at each step, weighted by `n`, over the cells with the fewest tags.
    `warnings` report this as well.
    """
    present = [monitor for monitor in SPANNED if (records.monitor == monitor).any()]
    if present and "span" not in records:
        records = records.assign(span=None)
    spans = {monitor: _span(records, monitor) for monitor in present}
    records, earlier = _named(records, spans)
    added, said = [], []
    for monitor, metrics in CELLED.items():
        for metric in metrics:
            rows = records[(records.monitor == monitor) & (records.metric == metric)]
            if monitor in spans:
                rows = rows[rows.span.isna() | (rows.span == spans[monitor])]
                rows = rows[rows.variant.isna() | (rows.variant == VARIANT)] if "variant" in rows else rows
            for name in ("", "depth") if monitor in earlier and metric in ANSWER else ("",):
                found, of = _averaged(rows, name)
                added += found
                said += [f"{monitor}/{metric} (by {of.replace(',', ', ')})"] if found and not name else []
    for monitor in (each for each in earlier if spans[each] == HEADLINE):
        warnings.append(
            f"{monitor}: the records are of an earlier version, whose overall rows refer to the full answer sentence; "
            "hit, NLL and perplexity here refer to the value's tokens"
        )
    sentence = [monitor for monitor, span in spans.items() if span == SENTENCE]
    if sentence:
        warnings.append(
            f"{', '.join(sentence)}: the records are of an earlier version, without the value's tokens at every "
            "window; hit, NLL and perplexity here refer to the full answer sentence"
        )
    if said:
        warnings.append(
            f"there are no overall records of {'; '.join(said)}: each is averaged over its cells, weighted by their n"
        )
    if not added:
        return records, spans
    result = pd.concat([records, *added], ignore_index=True)
    return result.astype({name: "category" for name in ("tier", "monitor", "metric", "names")}), spans


def _span(records: pd.DataFrame, monitor: str) -> str:
    """Choose the span that a monitor is judged on: HEADLINE if each of its metrics has it at each of its steps."""
    rows = records[(records.monitor == monitor) & records.metric.isin(SPANNED[monitor][0])]
    if "variant" in rows:
        rows = rows[rows.variant.isna() | (rows.variant == VARIANT)]
    there = (rows.span == HEADLINE).groupby([rows.metric.astype(str), rows.step]).any()
    return HEADLINE if there.all() and len(there) else SENTENCE


def _named(records: pd.DataFrame, spans: dict[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """Remove the span from the names of headline rows, and add it to all others.

    Also return the monitors that have rows without a span, as an earlier version wrote them.
    """
    records = records.copy()
    names = records.names.astype(object)
    earlier = []
    for monitor, span in spans.items():
        metrics, kinds = SPANNED[monitor]
        mine = (records.monitor == monitor) & records.metric.isin(metrics)
        for kind in kinds:
            spanned = ",".join(sorted(filter(None, (kind, "span"))))
            old = mine & (names == kind)
            if old.any():
                earlier.append(monitor)
                records.loc[old, "span"] = SENTENCE
                names[old] = spanned
            names[mine & (names == spanned) & (records.span == span)] = kind
    records["names"] = names.astype("category")
    return records, list(dict.fromkeys(earlier))


def _averaged(rows: pd.DataFrame, name: str) -> tuple[list[pd.DataFrame], str]:
    """Average cells into the rows that `rows` lacks, one per step (and value of the tag `name`, unless it is "").

    Also return the tags averaged over. Standard errors treat cells as independent, and are NaN if a cell has none.
    """
    rows = rows[~rows.step.isin(set(rows.step[rows.names == name]))]
    kept = [names for names in rows.names.unique() if not name or name in names.split(",")]
    of = min(kept, key=lambda names: (names.count(","), names), default="")
    found = []
    for _, cells in rows[rows.names == of].groupby(["step", *([name] if name else [])]):
        n = cells.n.to_numpy(float)
        share = n / n.sum() if n.sum() else np.full(len(n), 1 / len(n))
        stderr = float(np.sqrt(((share * cells.stderr.to_numpy(float)) ** 2).sum()))
        first = cells.iloc[0]
        kept_tags = {tag: first[tag] for tag in ("span", name) if tag}
        found.append(
            {
                "step": first.step,
                "tokens": first.tokens,
                "tier": first.tier,
                "monitor": first.monitor,
                "metric": first.metric,
                "value": float(share @ cells.value.to_numpy(float)),
                "n": int(n.sum()),
                "stderr": stderr,
                "names": name,
            }
            | kept_tags
        )
    return ([pd.DataFrame(found)] if found else []), of
