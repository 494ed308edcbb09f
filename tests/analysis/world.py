"""A simulated run directory whose curves are known: the truth that the analysis is asked to recover."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy.stats import norm

from lccp_sim.analysis.stats.heads import initial_heads, mean_score, retrieval_heads
from lccp_sim.files import append_lines
from lccp_sim.records import Record

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTHS = (128, 512, 1024)
SOURCES = ("code", "text")
LAYERS, HEADS, EXPERTS = 4, 8, 8
METRICS = ("hit_frac", "answer_nll_nats", "control_nll_nats", "gain_nats", "answer_ppl")
TASKS = ("city", "hobby")


@dataclass(frozen=True)
class World:
    """The planted curves: hit approaches its end exponentially, the answer NLL falls linearly in log tokens."""

    run_tokens: int = 2_000_000
    hit: tuple[float, float] = (0.1, 0.9)
    hit_scale: float = 100_000.0
    nll: tuple[float, float] = (4.0, 0.4)
    nll_scale: float = 50_000.0
    items: int = 8  # a cell
    windows: int = 14
    seed: int = 0
    without: tuple[str, ...] = ()  # monitors left out
    samples: bool = True
    done: bool = True
    earlier: bool = False  # records of the version before spans: overall rows have none, and are of the whole sentence

    @property
    def grid(self) -> list[int]:
        if self.windows == 1:
            return [0]
        return [0] + sorted({int(self.run_tokens * 2 ** (-j / 2)) for j in range(self.windows - 1)})

    def p(self, tokens: float) -> float:
        low, high = self.hit
        return low + (high - low) * (1 - math.exp(-tokens / self.hit_scale))

    def mu(self, tokens: float) -> float:
        first, last = self.nll
        return first - (first - last) * math.log1p(tokens / self.nll_scale) / math.log1p(
            self.run_tokens / self.nll_scale
        )

    @property
    def hit_t95(self) -> float:
        return -self.hit_scale * math.log(1 - 0.95 * (1 - math.exp(-self.run_tokens / self.hit_scale)))

    @property
    def nll_t95(self) -> float:
        return self.nll_scale * ((1 + self.run_tokens / self.nll_scale) ** 0.95 - 1)

    @property
    def factor(self) -> float:
        return self.mu(self.hit_t95) / self.mu(self.run_tokens)


class Writer:
    """Records and item samples of one run, collected window by window."""

    def __init__(self, world: World) -> None:
        self.world, self.rng = world, np.random.default_rng(world.seed)
        cells = [(depth, length) for depth in DEPTHS for length in LENGTHS]
        self.latent = {cell: self.rng.standard_normal((2, world.items)) for cell in cells}
        self.strength = self.rng.beta(0.3, 3.0, size=(LAYERS, HEADS))
        self.first = np.zeros((LAYERS, HEADS))
        self.records: list[Record] = []
        self.samples: list[dict] = []

    def add(self, step, tokens, tier, monitor, metric, values, **tags) -> None:
        values = np.atleast_1d(values)
        stderr = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
        self.records.append(
            Record(step, tokens, tier, monitor, metric, float(values.mean()), len(values), stderr, tags)
        )

    def window(self, step: int, tokens: int) -> None:
        self.samples = []
        for monitor in (
            "precondition",
            "needle",
            "heads",
            "induction",
            "perplexity",
            "probe",
            "routing",
            "intervention",
        ):
            if monitor not in self.world.without:
                getattr(self, monitor)(step, tokens)

    def precondition(self, step: int, tokens: int) -> None:
        if step == 0:
            for tags, value in self.spanned(0.9, 0.3):
                self.add(step, tokens, "mechanistic", "precondition", "hit_frac", value, length=128, **tags)
            self.add(step, tokens, "mechanistic", "precondition", "copy_nll_ratio", 0.1, length=128)

    def spanned(self, value, sentence) -> list[tuple[dict, object]]:
        """What stands in a record for the value's tokens, and for the whole sentence; or what stood there earlier."""
        return [({}, value)] if self.world.earlier else [({"span": "value"}, value), ({"span": "full"}, sentence)]

    def induction(self, step: int, tokens: int) -> None:
        for metric, value in (("first_copy_nll_nats", 9.5), ("second_copy_nll_nats", 2 * self.world.mu(tokens))):
            self.add(step, tokens, "mechanistic", "induction", metric, value + 0.1 * np.arange(3))

    def needle(self, step: int, tokens: int) -> None:
        span = "full" if self.world.earlier else "value"
        for variant, harder in (("single", 1.0), ("heldout", 1.3)):
            cells = {cell: self.cell(tokens, latent, harder) for cell, latent in self.latent.items()}
            for values in cells.values() if variant == "single" else ():
                for metric in ("control_nll_nats", "gain_nats"):
                    values[metric] = values[metric][:2]  # controls are scored for a part of the items
            for metric in METRICS if variant == "single" else (*METRICS[:2], "answer_ppl"):
                for (depth, length), values in cells.items():
                    tags = dict(depth=depth, length=length, span=span, variant=variant)
                    self.add(step, tokens, "probabilistic", "needle", metric, values[metric], **tags)
                    for i, value in enumerate(values[metric]):
                        self.sample("needle", metric, f"{variant}-{length}-{depth}-{i}", tags, value)
                for length in LENGTHS:
                    values_ = np.concatenate([v[metric] for (_, n), v in cells.items() if n == length])
                    tags = dict(length=length, span=span, variant=variant)
                    self.add(step, tokens, "probabilistic", "needle", metric, values_, **tags)
                for depth in DEPTHS if variant == "single" and metric not in METRICS[2:4] else ():
                    values_ = np.concatenate([v[metric] for (d, _), v in cells.items() if d == depth])
                    for tags, part in self.spanned(values_, of_sentence(metric, values_)):
                        self.add(step, tokens, "probabilistic", "needle", metric, part, depth=depth, **tags)
                if variant == "single":
                    whole = np.concatenate([v[metric] for v in cells.values()])
                    for tags, part in self.spanned(whole, of_sentence(metric, whole)):
                        self.add(step, tokens, "probabilistic", "needle", metric, part, **tags)

    def sample(self, monitor: str, metric: str, item_id: str, tags: dict, value: float) -> None:
        row = dict(monitor=monitor, metric=metric, item_id=item_id, tags=json.dumps(tags, sort_keys=True))
        self.samples.append(row | {"value": float(value)})

    def cell(self, tokens: int, latent: np.ndarray, harder: float) -> dict[str, np.ndarray]:
        """Items of a cell: what makes an item hard is mostly the item's own and stays through the run."""
        p, n = self.world.p(tokens) / harder, latent.shape[1]
        uniform = norm.cdf(0.9 * latent[0] + math.sqrt(1 - 0.81) * self.rng.standard_normal(n))
        nll = harder * self.world.mu(tokens) * np.exp(0.3 * latent[1] + 0.1 * self.rng.standard_normal(n) - 0.05)
        control = np.full(n, 6.0) + 0.1 * latent[1]
        hit = (uniform < p).astype(float)
        values = {"hit_frac": hit, "answer_nll_nats": nll, "control_nll_nats": control, "gain_nats": control - nll}
        return values | {"answer_ppl": np.exp(nll)}

    def heads(self, step: int, tokens: int) -> None:
        grown = np.clip(self.strength * (0.6 + 2 * (1 - math.exp(-tokens / 60_000))), 0, 1)
        items = [f"single-{length}-{depth}-{i}" for depth in DEPTHS for length in LENGTHS for i in range(2)]
        scores = self.rng.binomial(8, grown, size=(len(items), LAYERS, HEADS)) / 8  # eight answer tokens
        for layer, head in np.ndindex(LAYERS, HEADS):
            tags = dict(layer=layer, head=head)
            self.add(step, tokens, "mechanistic", "heads", "copy_hard_frac", scores[:, layer, head], **tags)
            self.add(step, tokens, "mechanistic", "heads", "copy_null_frac", 0.2 * (head == 0), **tags)
            bio = tags | {"samples": "longbio"}
            self.add(step, tokens, "mechanistic", "heads", "copy_hard_frac", scores[:2, layer, head], **bio)
            for item, score in zip(items, scores[:, layer, head], strict=True):
                self.sample("heads", "copy_hard_frac", item, tags, score)
                self.sample("heads", "copy_hard_frac", "longbio", tags | {"samples": "longbio"}, 1.0)  # other texts
        mean = scores.mean(0)
        self.first = mean if step == 0 else self.first
        initial = initial_heads(self.first)
        self.add(step, tokens, "mechanistic", "heads", "retrieval_heads_count", float(len(retrieval_heads(mean))))
        self.add(step, tokens, "mechanistic", "heads", "initial_heads_mean_frac", mean_score(mean, initial))
        self.add(step, tokens, "mechanistic", "heads", "induction_frac", 0.8)
        for against in ("first", "previous") if step else ():
            self.add(step, tokens, "mechanistic", "heads", "topk_overlap_frac", 0.9, against=against, k=8)
            self.add(step, tokens, "mechanistic", "heads", "spearman", 0.95, against=against, k=8)

    def perplexity(self, step: int, tokens: int) -> None:
        fall = 0.2 * math.log1p(tokens / 50_000)
        bases = (("nll_nats", 3.2), ("short_nll_nats", 2.9), ("long_short_gain_nats", 0.1), ("longppl_nats", 1.5))
        for metric, base in bases:
            values = {
                s: base + 0.3 * i - fall * (metric == "nll_nats") + 0.02 * np.arange(4) for i, s in enumerate(SOURCES)
            }
            for source, value in values.items():
                self.add(step, tokens, "probabilistic", "perplexity", metric, value, source=source)
                for i, number in enumerate(value):
                    self.sample("perplexity", metric, f"{source}-{i}", {"source": source}, number)
            self.add(step, tokens, "probabilistic", "perplexity", metric, np.concatenate(list(values.values())))
        for source in SOURCES:
            for k in range(4, 10):
                tags = dict(position=2**k, source=source)
                self.add(
                    step,
                    tokens,
                    "probabilistic",
                    "perplexity",
                    "nll_nats",
                    [4 - 0.1 * k - fall, 4.1 - 0.1 * k - fall],
                    **tags,
                )

    def probe(self, step: int, tokens: int) -> None:
        for sft_step in (0, 40):
            right = self.rng.random(40) < 0.05 + (0.1 if sft_step else 0)
            nll = (3.0 - 0.01 * sft_step) * math.exp(-tokens / 4e6) + 0.2 * self.rng.standard_normal(40)
            for metric, values in (("exact_match_frac", right.astype(float)), ("answer_nll_nats", nll)):
                self.add(step, tokens, "behavioural", "probe", metric, values, sft_step=sft_step)
                if sft_step:
                    self.add(step, tokens, "behavioural", "probe", metric, values)
                for i, task in enumerate(TASKS):
                    self.add(step, tokens, "behavioural", "probe", metric, values[i::2], sft_step=sft_step, task=task)
                    for seed in (0, 1):
                        tags = dict(seed=seed, sft_step=sft_step, task=task)
                        self.add(
                            step,
                            tokens,
                            "behavioural",
                            "probe",
                            metric,
                            values[20 * seed + i : 20 * seed + 20 : 2],
                            **tags,
                        )
                for i, value in enumerate(values):  # two probe seeds of twenty questions
                    tags = dict(seed=i // 20, sft_step=sft_step, task="hobby" if i % 2 else "city")
                    self.sample("probe", metric, str(i % 20), tags, value)

    def intervention(self, step: int, tokens: int) -> None:
        for arm, harm in (("none", 0.0), ("mask_top", 1.5), ("mask_random", 0.2), ("boost_top", 0.1)):
            nll = self.world.mu(tokens) + harm + 0.1 * np.arange(5)
            for metric, values in (("hit_frac", (nll < 1).astype(float)), ("answer_nll_nats", nll)):
                for tags, part in self.spanned(values, of_sentence(metric, values)):
                    self.add(step, tokens, "mechanistic", "intervention", metric, part, arm=arm, **tags)
        effect = 1.3 + 0.1 * np.arange(5)
        for tags, part in self.spanned(effect, 2 * effect):
            self.add(step, tokens, "mechanistic", "intervention", "causal_nll_nats", part, **tags)

    def routing(self, step: int, tokens: int) -> None:
        for layer in range(LAYERS):
            load = self.rng.dirichlet(np.full(EXPERTS, 20.0))
            for expert, share in enumerate(load):
                self.add(step, tokens, "training", "routing", "load_frac", share, layer=layer, expert=expert)
            self.add(step, tokens, "training", "routing", "load_max_frac", load.max(), layer=layer)


def of_sentence(metric: str, values: np.ndarray) -> np.ndarray:
    """What the whole sentence has where the value has `values`: a fifth of its hits, another level of all else."""
    return values * (np.arange(len(values)) % 5 == 0) if metric == "hit_frac" else values + 0.25


def write_run(path: Path, world: World) -> Path:
    """The run directory `path` of a simulated world."""
    writer = Writer(world)
    (path / "samples").mkdir(parents=True)
    timing = []
    for tokens in world.grid:
        step = tokens // 2048
        writer.window(step, tokens)
        if world.samples and writer.samples:
            pd.DataFrame(writer.samples).to_parquet(path / "samples" / f"{step:08d}.parquet")
        for what, seconds in (("train", 10.0), ("monitor:needle", 2.0), ("monitor:heads", 1.0), ("monitor:probe", 5.0)):
            timing.append(dict(step=step, tokens=tokens, what=what, seconds=seconds, forward_tokens=4096))
    append_lines(path / "records.jsonl", [record.line() for record in writer.records])
    append_lines(path / "timing.jsonl", [json.dumps(row) + "\n" for row in timing])
    config = {
        "seed": 0,
        "run": {"name": "tiny_lccp", "context_tokens": 1024, "tokens": world.run_tokens, "tokens_before": 700_000,
                "batch_tokens": 2048, "init_from": "runs/tiny_base-s0-00000000"},
        "data": {"old_context_tokens": 128, "sources": {s: {"kind": "text_files"} for s in SOURCES}},
        "model": {"num_layers": LAYERS, "num_heads": HEADS, "num_experts": EXPERTS},
    }  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [dict(source=s, documents=100, tokens=10**6, long_token_frac=0.7, rows={"long": 5}) for s in SOURCES]
    (path / "corpus.json").write_text(json.dumps({"hash": "0a1b", "warnings": [], "sources": rows}))
    if world.done:
        (path / "DONE").touch()
    return path
