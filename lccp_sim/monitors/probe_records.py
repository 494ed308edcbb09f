"""The records of a probe: means over questions, by length, task and seed, what fine-tuning gained, how seeds differ.

Every probe seed asks the same questions, so a question is averaged over the seeds first: `n` counts questions, and the
standard error is over questions alone. Questionable: the spread over seeds is therefore a record of its own.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from lccp_sim.monitors.values import Moment, Value, mean_and_stderr, summarise
from lccp_sim.records import Record

# metric -> what it gains by fine-tuning (+1: more is better), and its spread over seeds
GAINS = {"exact_match_frac": ("exact_match_gain_frac", 1), "answer_nll_nats": ("answer_nll_gain_nats", -1)}
SPREADS = {"exact_match_frac": "exact_match_seed_std_frac", "answer_nll_nats": "answer_nll_seed_std_nats"}


class Answered(NamedTuple):
    """Values tagged {seed, sft_step, task} (sft_step 0: before fine-tuning), and the tokens of each question by id."""

    values: list[Value]
    lengths: dict[str, int]


def probe_records(answered: Answered, moment: Moment, tier: str) -> list[Record]:
    """Records of one window, each metric in these cells.

    Averaged over seeds: {} (fine-tuned), {sft_step}, {sft_step, task}, {length, sft_step}, {length, sft_step, task}
    (`length`: the power of two that a question's tokens reach or stay below). Of each seed: {seed, sft_step}, {seed,
    sft_step, task}. Gains and spreads, of fine-tuned models: {}; the spread (standard deviation, ddof 1, n the seeds)
    needs two seeds.
    """
    values, steps = answered.values, max(value.tags["sft_step"] for value in answered.values)
    averaged = _over_seeds(values)

    def picked(*names: str) -> list[Record]:
        rows = values if "seed" in names else averaged
        return summarise(rows, moment, tier, lambda value: {name: value.tags[name] for name in names})

    def binned(*names: str) -> list[Record]:
        length = {item: 1 << (tokens - 1).bit_length() for item, tokens in answered.lengths.items()}
        kept = ("sft_step", *names)
        return summarise(
            averaged, moment, tier, lambda v: {"length": length[v.item]} | {name: v.tags[name] for name in kept}
        )

    records = summarise(averaged, moment, tier, lambda value: {} if value.tags["sft_step"] == steps else None)
    records += picked("sft_step") + picked("sft_step", "task") + binned() + binned("task")
    records += picked("seed", "sft_step") + picked("seed", "sft_step", "task")
    for metric, (gain, sign) in GAINS.items():
        before, after = (
            {value.item: value.value for value in averaged if value.metric == metric and value.tags["sft_step"] == step}
            for step in (0, steps)
        )
        gains = [sign * (after[item] - before[item]) for item in after]
        mean, stderr = mean_and_stderr(gains)
        records.append(Record(*moment, tier, "probe", gain, mean, len(gains), stderr))
    for metric, spread in SPREADS.items():
        means = [
            record.value
            for record in records
            if record.metric == metric and set(record.tags) == {"seed", "sft_step"} and record.tags["sft_step"] == steps
        ]
        if len(means) > 1:
            records.append(Record(*moment, tier, "probe", spread, float(np.std(means, ddof=1)), len(means)))
    return records


def _over_seeds(values: list[Value]) -> list[Value]:
    """One value per question, metric and fine-tuning step: the mean over seeds."""
    groups: dict[tuple, list[Value]] = defaultdict(list)
    for value in values:
        groups[value.metric, value.item, value.tags["sft_step"]].append(value)
    return [
        group[0]._replace(
            tags={name: tag for name, tag in group[0].tags.items() if name != "seed"},
            value=mean_and_stderr([value.value for value in group])[0],
        )
        for group in groups.values()
    ]
