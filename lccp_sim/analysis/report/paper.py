"""The statements of arXiv 2604.02650 and the results of this run, side by side.

Only numbers that the paper prints in its text or tables are used; its curves are not read off. Design note: a stage of
the paper is compared with the same share of the run's tokens (10 % is 20 B of 200 B), because token counts of such
different models are not comparable.
"""

import numpy as np

from lccp_sim.analysis.findings import Findings
from lccp_sim.analysis.format import interval, judged, number, percent, tokens
from lccp_sim.analysis.report.statements import change
from lccp_sim.analysis.report.tables import Table
from lccp_sim.analysis.stats.dynamics import like_the_paper
from lccp_sim.analysis.stats.rule import VERDICT_WORDS

PAPER = "arXiv 2604.02650"
TOTAL = 200  # billions of tokens in the paper's run
STAGES = (
    (0, 20, 24, 0.7316),
    (20, 50, 29, 0.9238),
    (50, 100, 28, 0.9164),
    (100, 150, 28, 0.8808),
    (150, 200, 28, 0.8921),
)
TOP = 30  # of 1024 heads
CORRELATIONS = {  # tables 3 and 4 (p values: 6 and 7): RULER, MRCR, LongBio, mean
    "needle/hit_frac": (0.8552, 0.8927, 0.4977, 0.7486),
    "needle/answer_ppl": (-0.9115, -0.9231, -0.6283, -0.8210),
    "heads/retrieval_heads_count": (0.8243, 0.8326, 0.5715, 0.7428),
    "heads/initial_heads_mean_frac": (0.8956, 0.8469, 0.6210, 0.7878),
}


def stages_table(found: Findings) -> Table:
    """Tabulate heads shared between stages and rank correlations: the paper's Table 5 and this run's values."""
    fractions = (0.0, *(after / TOTAL for _, after, _, _ in STAGES))
    made = {texts: like_the_paper(found.run, fractions, texts) for texts in found.heads}
    rows = []
    for number_of, (before, after, shared, rank) in enumerate(STAGES):
        cells = [f"{before} to {after} B", f"{shared} of {TOP} ({percent(shared / TOP)})", f"{rank:.4f}"]
        for texts, stages_of in made.items():
            if not stages_of:
                continue
            stage, k = stages_of[number_of], found.heads[texts].k
            ours = "not defined" if stage.spearman is None else f"{stage.spearman:.4f}"
            span = f"{tokens(stage.tokens[0])} to {tokens(stage.tokens[1])}"
            cells += [span, f"{stage.shared} of {k} ({percent(stage.shared / k)})", ours]
        rows.append(cells)
    kept = [texts for texts, stages_of in made.items() if stages_of]
    head = [f"{PAPER}, table 5", "shared", "Spearman"]
    head += [word for texts in kept for word in (f"this run, {texts}", "shared", "Spearman")]
    chance = "; ".join(f"{texts}: {percent(found.heads[texts].chance)}" for texts in kept)
    note = (
        f"Stages are at the windows nearest to the same shares of the run's tokens. By chance the paper's stages share "
        f"{percent(TOP / 1024, 1)}, ours {chance}; with few heads an overlap says less."
    )
    return Table("Stability of heads, the paper and this run", head, rows if kept else [], note)


def correlations_table(found: Findings) -> Table:
    """Tabulate Pearson's r of each monitor with the probe: the paper's Tables 3 and 4, ours, and ours without trend."""
    rows = []
    for name, (ruler, mrcr, longbio, mean) in CORRELATIONS.items():
        ours = []
        for kind in ("level", "partial", "after_hit"):
            row = next((c for c in found.correlations if (c.target, c.task, c.monitor, c.kind) == (
                "exact_match_frac", None, name, kind)), None)  # fmt: skip
            if row is None or row.pearson is None:
                ours.append("" if row is None else f"none: {row.reason}")
            else:
                between = (
                    ""
                    if row.pearson.fisher is None
                    else f" ({row.pearson.fisher[0]:.2f} to {row.pearson.fisher[1]:.2f})"
                )
                ours.append(f"{row.pearson.value:.2f}{between}, {row.points} points")
        if any(ours):
            rows.append([name, *(f"{r:.2f}" for r in (ruler, mrcr, longbio, mean)), *ours])
    head = ["monitor", f"{PAPER}: RULER", "MRCR", "LongBio", "mean", "this run: with the probe", "given log tokens"]
    head.append("after the hit's t95")
    note = (
        "Pearson's r with the fine-tuned probe (exact match), over windows; in parentheses 95 % intervals of Fisher's "
        "z, which assumes independent windows. Two series that both improve correlate whatever else they share, so "
        "the partial correlation says more. The paper has six points, and its needle metrics refer to the full answer "
        f"sentence; ours refer to {judged(found.run)}."
    )
    return Table("Correlation with the probe, the paper and this run", head, rows, note)


def claims_table(found: Findings) -> Table:
    """Tabulate the paper's statements with this run's results; empty if it has none."""
    rows = [row for row in (_hit(found), _ppl(found), _index(found), _peak(found), _heads(found), _law(found),
                            _depth(found), _interference(found)) if row]  # fmt: skip
    note = (
        "The paper extends an 80 B model from 32 K to 64 K over 200 B tokens and measures six checkpoints. Its figures "
        "are not read off. Percentages are shares of the run's tokens. The paper's needle score and perplexity refer "
        f"to the full answer sentence, those of this run to {judged(found.run)} unless stated otherwise."
    )
    return Table("The paper's statements, and this run", ["where", "quantity", PAPER, "this run"], rows, note, True)


def _share(found: Findings, count: float) -> str:
    return f"{tokens(count)} ({percent(count / max(found.run.tokens, 1))} of the run)"


def _hit(found: Findings) -> list[str] | None:
    row = found.row("needle", "hit_frac")
    if row is None:
        return None
    ours = f"{change(row)}; t95 {_share(found, row.t95.value)}" if row.t95 else f"{change(row)}; no t95"
    ours += whole_sentence(found, "hit_frac")
    return ["sec. 5", "needle score", "nearly complete at 20 B (10 %), 100 % from 50 B (25 %) on", ours]


def _ppl(found: Findings) -> list[str] | None:
    row, decision = found.row("needle", "answer_ppl"), found.decision("needle", "answer_ppl")
    nll = found.decision("needle", "answer_nll_nats")
    if row is None or decision is None:
        return None
    ours = f"{change(row)}; t95 {_share(found, row.t95.value)}" if row.t95 else f"{change(row)}; no t95"
    ours += f"; by the rule {VERDICT_WORDS[decision.verdict]}" + (
        f" (its NLL: {VERDICT_WORDS[nll.verdict]})" if nll else ""
    )
    ours += whole_sentence(found, "answer_ppl")
    return ["sec. 5", "needle perplexity", "falls until 150 B (75 %)", ours]


def whole_sentence(found: Findings, metric: str) -> str:
    """Describe the change on the full sentence, which the paper uses, to follow that on the value; "" if absent."""
    row = found.row("needle", metric, **found.run.sentence) if found.run.sentence else None
    return f"; full sentence {change(row)}" if row else ""


def _index(found: Findings) -> list[str] | None:
    gap = found.lag()
    if gap is None or gap.index is None:
        return None
    return ["sec. 5", "tokens of perplexity / tokens of hit", "150 / 50 to 150 / 20: 3 to 7.5, not stated as such",
            f"t95(NLL) / t95(hit) = {interval(gap.index)}"]  # fmt: skip


def _peak(found: Findings) -> list[str] | None:
    curve = found.curve("probe", "exact_match_frac")
    if curve is None:
        return None
    best = int(np.argmax(curve.value_W))
    ours = f"{number(curve.value_W[0])}, highest {number(curve.value_W[best])} at {_share(found, curve.tokens_W[best])}"
    return ["sec. 4", "probe after fine-tuning", "RULER QA 68.68 at 0 B, highest 79.44 at 100 B (50 %)", ours]


def _heads(found: Findings) -> list[str] | None:
    count, mean = found.row("heads", "retrieval_heads_count"), found.row("heads", "initial_heads_mean_frac")
    moved = found.heads.get("needle")
    if count is None or mean is None or moved is None:
        return None
    ours = f"{number(count.first)} to {number(count.last)} of {moved.heads} heads; "
    ours += f"mean score of the initial heads {change(mean)}"
    return ["sec. 6, fig. 5", "heads above 0.1; mean score of the initial heads", "both grow (curves only)", ours]


def _law(found: Findings) -> list[str] | None:
    fits = {fit.law: fit for fit in found.fits.get(("perplexity", "ppl", ()), [])}
    if "log" not in fits:
        return None
    best = min(fits.values(), key=lambda fit: fit.aicc)
    slope = fits["log"].parameters["A"] * np.log(2)
    ours = f"log law: {number(slope)} per doubling at late tokens; lowest AICc: {best.law.replace('_', ' ')}"
    if best.law != "log":
        ours += f", by {number(fits['log'].aicc - best.aicc)} below the log law's"
    return ["sec. 7.1", "law of held-out perplexity", "PPL = A log N + B, A < 0 (no values)", ours]


def _depth(found: Findings) -> list[str] | None:
    rows = found.run.select("needle", "answer_ppl", "depth")
    if rows.empty:
        return None
    said = []
    for step in (rows.step.min(), rows.step.max()):
        at = rows[rows.step == step].set_index("depth").value
        said.append(f"hardest at depth {at.idxmax():g}, {number(at.max() / at.min())} times the easiest")
    return ["sec. 7.2", "perplexity over depths", "30 to 80 % hardest at 0 B, flattened by training",
            f"at first {said[0]}; at the end {said[1]}"]  # fmt: skip


def _interference(found: Findings) -> list[str] | None:
    rows = found.run.select("needle", "answer_ppl", "length", variant="interference", span=found.run.span())
    if rows.empty:
        return None
    said = []
    for step in (rows.step.min(), rows.step.max()):
        at = rows[rows.step == step].sort_values("length").value.to_numpy()
        said.append(f"{number(at[0])} to {number(at[-1])}")
    return ["sec. 7.3", "perplexity, text before the needle growing", "grows with it at 0 B, flat after training",
            f"shortest to longest: at first {said[0]}; at the end {said[1]}"]  # fmt: skip
