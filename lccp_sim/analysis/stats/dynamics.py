"""Stability of the copying heads: between windows, from the first window on, and towards the last.

Everything is computed from one array of scores [windows, layers, heads], by the definitions of `heads`. Design note:
"fixed" is judged in hindsight, from the last window's set, because no window can know that its set will last.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lccp_sim.analysis.run import RunData
from lccp_sim.analysis.stats.estimate import Array
from lccp_sim.analysis.stats.heads import HeadScores, initial_heads, rank_correlation, strongest, topk_overlap
from lccp_sim.config import RETRIEVES, top_k
from lccp_sim.records import Tag

SETS = ("needle", "longbio")  # the texts on which heads are scored


@dataclass(frozen=True)
class Stage:
    """Two windows compared: the number of k strongest heads that they share, and the rank correlation of all heads."""

    tokens: tuple[int, int]
    shared: int
    spearman: float | None


@dataclass(frozen=True)
class Dynamics:
    """The change of the heads of one set of texts over W windows.

    `stages`: consecutive windows. `initial`: the heads above 0.1 at the first window (or the strongest few).
    `surviving_W`: the share of them that is above 0.1; `kept_W`: the share that is among the k strongest. `final_W`:
    the share of the last window's k strongest heads that are among each window's k strongest; `fixed_at`: the tokens
    from which it is 1 at every window. `count_W`, `null_W`: the number of heads above 0.1, with the needle and with the
    permuted needle (None if not recorded). `halves`: the share of the last window's k strongest heads on which two
    halves of the items agree, an upper limit to expect between two windows; None without samples.
    """

    texts: str
    k: int
    heads: int
    tokens_W: Array
    stages: list[Stage]
    initial: list[tuple[int, int]]
    surviving_W: Array
    kept_W: Array
    final_W: Array
    fixed_at: int
    count_W: Array
    null_W: Array | None
    halves: float | None

    @property
    def chance(self) -> float:
        """The share of the k strongest heads that two unrelated rankings have in common, on average."""
        return self.k / self.heads


def dynamics(run: RunData, texts: str = "needle") -> Dynamics | None:
    """Compute the dynamics of the heads on needles or on LongBio; None with fewer than two windows of scores."""
    tags: dict[str, Tag] = {} if texts == "needle" else {"samples": texts}
    found = scores(run, "copy_hard_frac", tags)
    if found is None or len(found[0]) < 2:
        return None
    tokens_W, score_WLN = found
    null = scores(run, "copy_null_frac", tags)
    k, heads = top_k(score_WLN[0].size), score_WLN[0].size
    initial = initial_heads(score_WLN[0])
    at_initial_WI = score_WLN[:, initial[:, 0], initial[:, 1]]
    final_W = np.array([topk_overlap(score_LN, score_WLN[-1], k) for score_LN in score_WLN])
    moving = np.flatnonzero(final_W < 1)
    return Dynamics(
        texts=texts,
        k=k,
        heads=heads,
        tokens_W=tokens_W,
        stages=stages(tokens_W, score_WLN, range(len(tokens_W)), k),
        initial=[(int(layer), int(head)) for layer, head in initial],
        surviving_W=(at_initial_WI > RETRIEVES).mean(1),
        kept_W=np.array([_share(initial, strongest(score_LN, max(k, len(initial)))) for score_LN in score_WLN]),
        final_W=final_W,
        fixed_at=int(tokens_W[moving[-1] + 1 if moving.size else 0]),
        count_W=(score_WLN > RETRIEVES).sum((1, 2)).astype(float),
        null_W=None if null is None else (null[1] > RETRIEVES).sum((1, 2)).astype(float),
        halves=_halves(run, texts, k),
    )


def stages(tokens_W: Array, score_WLN: HeadScores, windows: range | list[int], k: int) -> list[Stage]:
    """Return one stage for each pair of neighbours in `windows`. Source: arXiv 2604.02650 table 5."""
    found = []
    for before, after in zip(windows[:-1], windows[1:], strict=True):
        a, b = score_WLN[before], score_WLN[after]
        shared = round(topk_overlap(a, b, k) * k)
        found.append(Stage((int(tokens_W[before]), int(tokens_W[after])), shared, rank_correlation(a, b)))
    return found


def like_the_paper(run: RunData, fractions: tuple[float, ...], texts: str = "needle") -> list[Stage]:
    """Return stages between the windows nearest to these fractions of the run's tokens; [] if two coincide."""
    found = scores(run, "copy_hard_frac", {} if texts == "needle" else {"samples": texts})
    if found is None:
        return []
    tokens_W, score_WLN = found
    windows = [int(np.argmin(np.abs(tokens_W - fraction * tokens_W[-1]))) for fraction in fractions]
    if len(set(windows)) < len(windows):
        return []
    return stages(tokens_W, score_WLN, windows, top_k(score_WLN[0].size))


def scores(run: RunData, metric: str, tags: dict[str, Tag]) -> tuple[Array, HeadScores] | None:
    """Return tokens [W] and scores [W, L, N] of the windows at which every head has a score; None if there are none.

    Heads without any record (a layer of another kind) count as 0, so that rows and columns are layers and heads.
    """
    rows = run.select("heads", metric, "layer", "head", **tags)
    if rows.empty:
        return None
    table = rows.pivot(index="tokens", columns=["layer", "head"], values="value").dropna()
    if table.empty:
        return None
    layer_H, head_H = (table.columns.get_level_values(name).to_numpy(int) for name in ("layer", "head"))
    score_WLN = np.zeros((len(table), layer_H.max() + 1, head_H.max() + 1))
    score_WLN[:, layer_H, head_H] = table.to_numpy(float)
    return table.index.to_numpy(float), score_WLN


def _share(heads: npt.NDArray[np.intp], among: npt.NDArray[np.intp]) -> float:
    """Return the share of `heads`, pairs [n, 2], that is in `among`."""
    return len({tuple(head) for head in heads} & {tuple(head) for head in among}) / len(heads)


def _halves(run: RunData, texts: str, k: int) -> float | None:
    """Return the overlap of the k strongest heads on even items with those on odd items, at the last window."""
    rows = run.items("heads", "copy_hard_frac")
    if rows.empty:
        return None
    kind = rows["samples"] if "samples" in rows else rows.value * np.nan
    rows = rows[kind.isna() if texts == "needle" else kind == texts]
    rows = rows[rows.step == rows.step.max()]
    table = rows.pivot_table(index="item_id", columns=["layer", "head"], values="value").sort_index()
    if len(table) < 4:
        return None
    even, odd = (table.iloc[start::2].mean().to_numpy(float)[None] for start in (0, 1))
    return topk_overlap(even, odd, k)
