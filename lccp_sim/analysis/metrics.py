"""The catalogue of metrics: one row for each number that a monitor records, used by everything that reads records.

A metric without a row (of a monitor that was added) is interpreted by its unit suffix, see `metric_of`.
docs/monitors.md defines each metric; a test checks that its tables and this catalogue have the same names.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lccp_sim.records import OF_SENTENCE

UP, DOWN, NEITHER = "up", "down", ""
LINEAR, LOG, LOGIT, SIGNED = "linear", "log", "logit", "signed"
PLACES = {
    "page": "tables of overall metrics: progress, law and verdict",
    "signal": "the first screen",
    "forecast": "forecasts and the table of laws",
    "beside": "compared with the probe: correlations, predictions",
    "target": "the probe's metrics in these comparisons",
    "windows": "the table of every window",
    "overlay": "curves of several runs in one figure",
}


@dataclass(frozen=True)
class Metric:
    """The description of one metric.

    `key`: monitor/metric. `label`: its name in tables and figures. `better`: "up", "down", or "" if neither. `scale`:
    "logit" for shares of items (0 to 1), "log" for positive numbers drawn on a log axis, "linear" for numbers that are
    not negative, "signed" for any number. `group`: metrics of a monitor with the same group share their items and are
    resampled together; "" if resampled alone. `shown`: words of PLACES.
    """

    key: str
    label: str
    unit: str
    better: str
    scale: str
    group: str = ""
    shown: str = ""

    @property
    def monitor(self) -> str:
        """The part of the key before the slash."""
        return self.key.partition("/")[0]

    @property
    def name(self) -> str:
        """The part of the key after the slash: the record's field `metric`."""
        return self.key.partition("/")[2]

    @property
    def title(self) -> str:
        """Label and unit, for a column or a panel."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def tallies(self) -> bool:
        """Whether it only counts what other numbers are computed from, so that no chart shows it."""
        return self.unit == "count" and self.better == NEITHER

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """The smallest and largest possible values; None where there is no bound."""
        return {LOGIT: (0, 1), SIGNED: (None, None)}.get(self.scale, (0, None))


NATS, ITEMS = "nats per token", "fraction of items"
METRICS = (
    Metric("needle/hit_frac", "needle hit", ITEMS, UP, LOGIT, "answer",
           "page signal forecast beside windows overlay"),
    Metric("needle/answer_nll_nats", "answer NLL", NATS, DOWN, LOG, "answer",
           "page signal forecast beside windows overlay"),
    Metric("needle/control_nll_nats", "control NLL", NATS, DOWN, LOG, "control", "page windows"),
    Metric("needle/gain_nats", "gain over the control", NATS, UP, SIGNED, "control", "page"),
    Metric("needle/answer_ppl", "needle perplexity", "", DOWN, LOG, "", "page beside windows overlay"),
    Metric("needle/alone_nll_nats", "NLL without haystack", NATS, DOWN, LOG),
    Metric("needle/alone_gain_nats", "gain without haystack", NATS, UP, SIGNED),
    Metric("needle/recovery_frac", "recovery in the haystack", "ratio", UP, SIGNED),
    Metric("probe/exact_match_frac", "probe, exact match", "fraction of questions", UP, LOGIT, "",
           "page signal target windows overlay"),
    Metric("probe/canonical_pass_at_1_frac", "probe, canonical Pass@1", "fraction of questions", UP, LOGIT, "", "page"),
    Metric("probe/canonical_pass_at_3_frac", "probe, canonical Pass@3", "fraction of questions", UP, LOGIT, "", "page"),
    Metric("probe/recall_frac", "probe, recall", "fraction of references", UP, LOGIT, "", "page"),
    Metric("probe/answer_nll_nats", "probe, answer NLL", NATS, DOWN, LOG, "", "page target overlay"),
    Metric("probe/exact_match_gain_frac", "exact match gained by fine-tuning", "", UP, SIGNED, "", "page"),
    Metric("probe/answer_nll_gain_nats", "answer NLL gained by fine-tuning", NATS, UP, SIGNED, "", "page"),
    Metric("probe/pass_at_3_frac", "probe, sampled Pass@3", "fraction of questions", UP, LOGIT),
    Metric("probe/similarity_frac", "probe, similarity", "fraction", UP, LOGIT),
    Metric("probe/exact_match_seed_std_frac", "exact match, spread over probe seeds", "", NEITHER, LINEAR),
    Metric("probe/answer_nll_seed_std_nats", "answer NLL, spread over probe seeds", NATS, NEITHER, LINEAR),
    Metric("answers/pass_at_1_frac", "sampled answers, pass@1", "fraction of samples", UP, LOGIT, "", "page overlay"),
    Metric("answers/pass_at_8_frac", "sampled answers, pass@8", "fraction of questions", UP, LOGIT, "", "page overlay"),
    Metric("answers/place_frac", "sampled answers, place", "F2 of words", UP, LOGIT, "", "page"),
    Metric("answers/entropy_nats", "sampled answers, entropy", NATS, NEITHER, LINEAR),
    Metric("heads/retrieval_heads_count", "heads > 0.1", "count", UP, LINEAR, "heads",
           "page beside windows overlay"),
    Metric("heads/initial_heads_mean_frac", "initial heads", "mean score", UP, LOGIT, "heads",
           "page signal forecast beside windows overlay"),
    Metric("heads/induction_frac", "strongest induction head", "fraction", UP, LOGIT, "", "page"),
    Metric("heads/hit_frac", "hit on LongBio", ITEMS, UP, LOGIT, "answer"),
    Metric("heads/answer_nll_nats", "answer NLL on LongBio", NATS, DOWN, LOG, "answer"),
    Metric("heads/null_heads_count", "heads > 0.1 by chance", "count", NEITHER, LINEAR),
    Metric("heads/answer_tokens_count", "answer tokens behind a score", "count", NEITHER, LINEAR),
    Metric("heads/copy_hard_frac", "hard copy score", "fraction", UP, LOGIT),
    Metric("heads/copy_null_frac", "hard copy score by chance", "fraction", NEITHER, LOGIT),
    Metric("heads/copy_soft_frac", "soft copy score", "fraction", UP, LOGIT),
    Metric("heads/needle_mass_frac", "attention on the needle", "fraction", UP, LOGIT),
    Metric("heads/sink_mass_frac", "attention on position 0", "fraction", NEITHER, LOGIT),
    Metric("heads/topk_overlap_frac", "strongest heads shared", "fraction", NEITHER, LOGIT),
    Metric("heads/spearman", "rank correlation of heads", "", NEITHER, SIGNED),
    Metric("heads/previous_token_frac", "attention on the token before", "fraction", NEITHER, LOGIT),
    Metric("perplexity/nll_nats", "held-out NLL", NATS, DOWN, LINEAR, "",
           "page signal forecast beside windows overlay"),
    Metric("perplexity/ppl", "held-out perplexity", "", DOWN, LINEAR, "", "page"),
    Metric("perplexity/short_nll_nats", "short-context NLL", NATS, DOWN, LINEAR, "",
           "page signal beside windows overlay"),
    Metric("perplexity/long_short_gain_nats", "gain of the long context", NATS, UP, SIGNED, "", "page"),
    Metric("perplexity/longppl_nats", "LongPPL", "nats per key token", DOWN, LINEAR, "",
           "page forecast beside windows overlay"),
    Metric("perplexity/longppl", "LongPPL, exponential", "", DOWN, LINEAR, "", "page"),
    Metric("perplexity/key_tokens_count", "key tokens", "count", NEITHER, LINEAR),
    Metric("induction/first_copy_nll_nats", "first copy NLL", NATS, DOWN, LOG, "", "page"),
    Metric("induction/second_copy_nll_nats", "second copy NLL", NATS, DOWN, LOG, "", "page forecast beside overlay"),
    Metric("induction/second_copy_hit_frac", "second copy, tokens right", "fraction", UP, LOGIT, "", "page"),
    Metric("intervention/causal_nll_nats", "causal effect of the strongest heads", "nats", UP, SIGNED, "", "page"),
    Metric("intervention/hit_frac", "hit with heads masked or boosted", ITEMS, UP, LOGIT, "answer"),
    Metric("intervention/answer_nll_nats", "answer NLL with heads masked or boosted", NATS, DOWN, LOG, "answer"),
    Metric("intervention/answer_ppl", "perplexity with heads masked or boosted", "", DOWN, LOG),
    Metric("intervention/masked_heads_count", "heads masked", "count", NEITHER, LINEAR),
    Metric("intervention/same_layers_frac", "random heads in layers of the strongest", "fraction", NEITHER, LOGIT),
    Metric("precondition/hit_frac", "hit of the base", ITEMS, UP, LOGIT),
    Metric("precondition/first_copy_nll_nats", "first copy NLL of the base", NATS, DOWN, LOG),
    Metric("precondition/second_copy_nll_nats", "second copy NLL of the base", NATS, DOWN, LOG),
    Metric("precondition/copy_nll_ratio", "second over first copy", "ratio", DOWN, LINEAR),
    Metric("routing/load_frac", "load of an expert", "fraction of rows", NEITHER, LOGIT),
    Metric("routing/load_max_frac", "largest load", "fraction of rows", DOWN, LOGIT),
    Metric("routing/load_entropy_nats", "entropy of the load", "nats", UP, LINEAR),
    Metric("routing/dead_experts_count", "experts without a row", "count", DOWN, LINEAR),
    Metric("stopping/saturated_frac", "monitored metrics that are saturated", "fraction", NEITHER, LOGIT),
    Metric("stopping/doubling_gain_nats", "gain of the next doubling", "nats", NEITHER, SIGNED),
    Metric("stopping/doubling_gain_frac", "gain of the next doubling", "fraction", NEITHER, SIGNED),
    Metric("train/loss_nats", "training loss", NATS, DOWN, LINEAR),
    Metric("train/aux_loss", "router losses", "", DOWN, LINEAR),
    Metric("train/lr", "learning rate", "", NEITHER, LINEAR),
    Metric("train/grad_norm", "gradient norm", "", NEITHER, LINEAR),
    Metric("train/dense_attention_frac", "layers with dense attention", "fraction", NEITHER, LOGIT),
    Metric("train/contrast_loss_nats", "contrast of heads, loss", "nats per pair", DOWN, LINEAR),
    Metric("train/chosen_wins_frac", "pairs whose margin is above 0", "fraction", UP, LOGIT),
    Metric("train/pairs_count", "pairs that differ", "count", NEITHER, LINEAR),
    Metric("train/reward", "reward", "", UP, SIGNED),
    Metric("train/answer_reward_frac", "reward for the answer", "fraction", UP, LOGIT),
    Metric("train/place_reward_frac", "reward for the place", "fraction", UP, LOGIT),
    Metric("train/silent_groups_frac", "groups without signal", "fraction", DOWN, LOGIT),
    Metric("train/entropy_nats", "entropy of the samples", NATS, NEITHER, LINEAR),
    Metric("train/sampled_tokens_count", "length of the samples", "tokens", NEITHER, LINEAR),
)  # fmt: skip
CATALOGUE = {each.key: each for each in METRICS}
BY_UNIT = {"nats": (DOWN, LINEAR), "frac": (UP, LOGIT)}  # direction and scale of a metric without a row, by suffix


def metric_of(monitor: str, name: str) -> Metric:
    """Return the row of a metric. Without a row, its unit suffix decides: nats improve downwards, all else upwards.

    `name` may be the loggers' name for the full answer sentence; the label then says so.
    """
    key = f"{monitor}/{name.removeprefix(OF_SENTENCE)}"
    unit = name.rpartition("_")[2]
    better, scale = BY_UNIT.get(unit, (UP, LINEAR))
    if (row := CATALOGUE.get(key)) is None:
        return Metric(key, f"{monitor} {name}", unit if unit in BY_UNIT else "", better, scale)
    return replace(row, label=f"{row.label} of the full sentence") if name.startswith(OF_SENTENCE) else row


def labelled(key: str) -> str:
    """Return the label of a metric with its key: "needle hit (needle/hit_frac)"."""
    return f"{metric_of(*key.split('/')).label} ({key})"


def shown(place: str, monitor: str = "") -> Iterator[Metric]:
    """Yield the metrics shown at a place of PLACES, of one monitor or of all, in the order of the catalogue."""
    return (each for each in METRICS if place in each.shown.split() and monitor in ("", each.monitor))


def groups(place: str, monitor: str) -> list[tuple[str, ...]]:
    """Return the names of a monitor's metrics at a place; metrics in one tuple are resampled together."""
    found: dict[str, tuple[str, ...]] = {}
    for each in shown(place, monitor):
        name = each.group or each.key
        found[name] = (*found.get(name, ()), each.name)
    return list(found.values())
