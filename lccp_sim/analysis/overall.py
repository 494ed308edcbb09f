"""Rows over a whole monitor for records that hold its cells alone, as records from elsewhere may."""

import numpy as np
import pandas as pd

OVERALL = {
    "needle": ("hit_frac", "answer_nll_nats", "answer_ppl", "control_nll_nats", "gain_nats"),
    "perplexity": ("nll_nats", "ppl"),
}
COUNTED = {"variant": "single", "span": "full"}  # the cells that a whole needle monitor stands for


def with_overall(records: pd.DataFrame, warnings: list[str]) -> pd.DataFrame:
    """The records, and for a metric without rows of no tags the mean of its cells at each step, weighted by `n`.

    The cells are those of the fewest tags. Each metric averaged so is named in `warnings`.
    """
    added, said = [], []
    for monitor, metrics in OVERALL.items():
        for metric in metrics:
            rows = records[(records.monitor == monitor) & (records.metric == metric)]
            if rows.empty or (rows.names == "").any():
                continue
            for tag, value in COUNTED.items():
                rows = rows[rows[tag].isna() | (rows[tag] == value)] if tag in rows else rows
            names = min(rows.names.unique(), key=lambda names: (names.count(","), names), default="")
            rows = rows[rows.names == names]
            if len(rows):
                added.append(_averaged(rows))
                said.append(f"{monitor}/{metric} (by {names.replace(',', ', ')})")
    if not said:
        return records
    warnings.append(f"no overall records of {'; '.join(said)}: each is averaged over its cells, weighted by their n")
    result = pd.concat([records, *added], ignore_index=True)
    return result.astype({name: "category" for name in ("tier", "monitor", "metric", "names")})


def _averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a step of [steps, cells]; its standard error takes the cells as independent, NaN where one has none."""
    found = []
    for step, cells in rows.groupby("step"):
        n = cells.n.to_numpy(float)
        share = n / n.sum() if n.sum() else np.full(len(n), 1 / len(n))
        stderr = float(np.sqrt(((share * cells.stderr.to_numpy(float)) ** 2).sum()))
        first = cells.iloc[0]
        found.append(
            {
                "step": step,
                "tokens": first.tokens,
                "tier": first.tier,
                "monitor": first.monitor,
                "metric": first.metric,
                "value": float(share @ cells.value.to_numpy(float)),
                "n": int(n.sum()),
                "stderr": stderr,
                "names": "",
            }
        )
    return pd.DataFrame(found)
