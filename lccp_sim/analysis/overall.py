"""Rows over a whole monitor, and of which span of the answer they are: the one place where a headline is chosen.

The headline of needles is the span of the value, for hit, NLL and perplexity alike. Records say the span. Those of an
earlier version had rows without one, which meant the whole sentence; records from elsewhere may hold cells alone.
Questionable: where some window has no value span, the whole run is judged by the sentence, because a curve of two
quantities is none.
"""

import numpy as np
import pandas as pd

from lccp_sim.records import HEADLINE, SENTENCE

ANSWER = ("hit_frac", "answer_nll_nats", "answer_ppl")
SPANNED = {  # monitors that record spans: their metrics, and the other tags of the rows that a headline is read from
    "needle": ((*ANSWER, "control_nll_nats", "gain_nats"), ("", "depth")),
    "intervention": ((*ANSWER, "causal_nll_nats"), ("", "arm")),
    "precondition": (("hit_frac",), ("length",)),
}
CELLED = {"needle": SPANNED["needle"][0], "perplexity": ("nll_nats", "ppl")}  # whose overall rows are means of cells
VARIANT = "single"  # the cells that a whole needle monitor stands for


def with_overall(records: pd.DataFrame, warnings: list[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """The records with a row of no tags for each whole monitor, and the span of the answer that such rows are of.

    Of each monitor of SPANNED the rows of the headline span lose that tag's name, not its value: they stand for the
    monitor. It is HEADLINE where every window has it, else SENTENCE; then this is said in `warnings`. A metric without
    rows of no tags gets the mean of its cells at each step, weighted by `n`: those of the fewest tags. That is said,
    too.
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
            f"{monitor}: records of an earlier version, whose overall rows are of the whole answer sentence; hit, NLL "
            "and perplexity here are of the value's tokens"
        )
    sentence = [monitor for monitor, span in spans.items() if span == SENTENCE]
    if sentence:
        warnings.append(
            f"{', '.join(sentence)}: records of an earlier version, without the value's tokens at every window; hit, "
            "NLL and perplexity here are of the whole answer sentence"
        )
    if said:
        warnings.append(
            f"no overall records of {'; '.join(said)}: each is averaged over its cells, weighted by their n"
        )
    if not added:
        return records, spans
    result = pd.concat([records, *added], ignore_index=True)
    return result.astype({name: "category" for name in ("tier", "monitor", "metric", "names")}), spans


def _span(records: pd.DataFrame, monitor: str) -> str:
    """The span that a monitor is judged by: HEADLINE where each of its metrics has it at each of its steps."""
    rows = records[(records.monitor == monitor) & records.metric.isin(SPANNED[monitor][0])]
    if "variant" in rows:
        rows = rows[rows.variant.isna() | (rows.variant == VARIANT)]
    there = (rows.span == HEADLINE).groupby([rows.metric.astype(str), rows.step]).any()
    return HEADLINE if there.all() and len(there) else SENTENCE


def _named(records: pd.DataFrame, spans: dict[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """The records with rows of the headline span named without it and all others with it.

    Beside them the monitors that have rows without a span, as an earlier version wrote them.
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
    """One row a step, and a value of the tag `name` if it is not "", where `rows` has none; and the tags averaged over.

    Standard errors take the cells as independent; they are NaN where a cell has none.
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
