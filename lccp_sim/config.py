"""The dataclasses of a run: every key, its rule, and the message if a value breaks it.

Hydra only composes. Parts that come in variants (sources, position encodings, monitors) are dataclasses next to their
code, so this module imports only errors from the package. configure/parse.py builds them all from plain dictionaries.
"""

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from lccp_sim.errors import refuse

Count = Annotated[int, Ge(0)]
Size = Annotated[int, Gt(0)]
Fraction = Annotated[float, Ge(0.0), Le(1.0)]
NonNegative = Annotated[float, Ge(0.0)]


class Effect(Enum):
    """The effect of changing a key, declared with the key. Without one, the numbers change, so it is another run.

    Directory names, config comparisons, branching and tables are derived from this (`keys_with`).
    """

    FIXED = "what is written down: the run keeps it, and its directory is not named after it"
    PLACE = "where something lies"
    SPEED = "how the same numbers are computed and shown"
    LATER = "numbers that are not written yet"
    RATES = "the learning rates: a branch may have another key, but not another rate before it branched off"
    REACH = "which tokens a query sees: the same weights, as those that a run starts from, can be used"
    APART = "nothing that a model computes once it has its weights (RoPE, too: it is compared by itself)"


FREE = (Effect.PLACE, Effect.SPEED, Effect.LATER)  # may change while a run is there
RETRIEVES = 0.1  # a head with a higher copy score is a retrieval head (arXiv 2404.15574 sec. 2; 2604.02650 sec. 6)
TOP_FRAC = 0.03


@dataclass(frozen=True)
class RouterConfig:
    """How tokens choose experts, and how these are balanced: coefficients of two losses, rate of the bias (0: off).

    The `scores` of all experts choose the top k within the best `num_groups_kept` of `num_groups` groups. The chosen
    scores, `renormalise`d to sum 1 or unchanged, times `scale` are the weights. topk_softmax is a softmax over the
    chosen.
    """

    balance_loss: Annotated[NonNegative, Effect.APART] = 0.01
    z_loss: Annotated[NonNegative, Effect.APART] = 0.001
    bias_update_rate: Annotated[NonNegative, Effect.APART] = 0.0
    scores: Literal["softmax", "topk_softmax", "sigmoid"] = "softmax"
    renormalise: bool = True
    scale: Annotated[float, Gt(0)] = 1.0
    num_groups: Size = 1
    num_groups_kept: Size = 1

    def __post_init__(self) -> None:
        raw = self.scores == "topk_softmax" and not self.renormalise
        refuse(raw, "model.router.renormalise", False, "a softmax over the chosen sums to 1; set scores=softmax")
        kept = self.num_groups_kept
        rule = f"must be at most model.router.num_groups={self.num_groups}"
        refuse(kept > self.num_groups, "model.router.num_groups_kept", kept, rule)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the decoder. `rope` is a variant of models/positions.py, `attention` (of training) models/lighthouse.py.

    The first `num_dense_layers` layers have one SwiGLU of width `d_dense` instead of experts. If all layers do, the
    model is dense and ignores the keys about experts. With `window_tokens`, a query sees that many tokens, its own
    included, except in every `full_attention_every`-th layer. `vocab_size` (null: that of the tokenizer) may be larger
    than the tokenizer.
    """

    rope: Annotated[Any, Effect.APART]
    d_model: Size = 128
    num_layers: Size = 4
    num_heads: Size = 8
    num_kv_heads: Size = 8
    d_head: Size = 16
    num_experts: Size = 8
    num_experts_per_token: Size = 2
    d_expert: Size = 64
    num_shared_experts: Count = 1
    num_dense_layers: Count = 0
    d_dense: Size | None = None
    vocab_size: Size | None = None
    qk_norm: Literal["none", "before_rope", "after_rope", "full_width"] = "after_rope"
    qk_norm_gain: Annotated[float, Gt(0), Effect.APART] = 1.0
    qkv_bias: bool = False
    out_bias: bool = False
    window_tokens: Annotated[Size | None, Effect.REACH] = None
    full_attention_every: Annotated[Size | None, Effect.REACH] = None
    norm_eps: Annotated[float, Gt(0)] = 1e-5
    tie_embeddings: bool = True
    scale_embeddings: bool = False
    init_std: Annotated[Annotated[float, Gt(0)] | None, Effect.APART] = None
    previous_token_heads: Annotated[Count, Effect.APART] = 0
    router: RouterConfig = field(default_factory=RouterConfig)
    experts: Annotated[str, Effect.APART] = "auto"
    attention: Annotated[Any, Effect.APART] = None

    def __post_init__(self) -> None:
        def check(bad: object, key: str, rule: str) -> None:
            refuse(bad, f"model.{key}", getattr(self, key), rule)

        dense, router = self.num_dense_layers, self.router
        check(self.d_head % 2, "d_head", "must be even: RoPE rotates pairs")
        heads, experts, chosen = self.num_heads, self.num_experts, self.num_experts_per_token
        check(heads % self.num_kv_heads, "num_heads", f"must be a multiple of model.num_kv_heads={self.num_kv_heads}")
        check(chosen > experts, "num_experts_per_token", f"must be at most model.num_experts={experts}")
        check(self.previous_token_heads > heads, "previous_token_heads", f"must be at most model.num_heads={heads}")
        check(dense > self.num_layers, "num_dense_layers", f"must be at most model.num_layers={self.num_layers}")
        rule = f"goes with model.num_dense_layers={dense}; " + ("give the width" if dense else "remove it")
        check((self.d_dense is None) == (dense > 0), "d_dense", rule)
        lone = self.full_attention_every is not None and self.window_tokens is None
        check(lone, "full_attention_every", "every layer is full without model.window_tokens; remove it, or give that")
        if router.num_groups > 1:
            size = experts // router.num_groups
            rule = f"must divide model.num_experts={experts} into groups of two or more: the best two rank a group"
            refuse(experts % router.num_groups or size < 2, "model.router.num_groups", router.num_groups, rule)
            rule = f"must leave model.num_experts_per_token={chosen} of groups of {size} experts"
            few = router.num_groups_kept * size < chosen
            refuse(few, "model.router.num_groups_kept", router.num_groups_kept, rule)

    def window(self, layer: int) -> int | None:
        """The number of tokens that a query of this layer sees, its own included; None: all tokens up to it."""
        full = self.full_attention_every is not None and (layer + 1) % self.full_attention_every == 0
        return None if full else self.window_tokens

    def vocabulary(self, tokens: int) -> int:
        """Rows of the embedding for a tokenizer of `tokens`. Raises ConfigError where `vocab_size` is smaller."""
        rule = f"must be at least the tokenizer's {tokens}; null takes that"
        refuse(self.vocab_size is not None and self.vocab_size < tokens, "model.vocab_size", self.vocab_size, rule)
        return self.vocab_size or tokens


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule: linear warm-up, then constant, cosine (to final_lr_frac) or linear to zero.

    wsd (warm-up, stable, decay) is constant up to its last `decay_steps`, then linear to final_lr_frac.
    """

    lr: Annotated[float, Gt(0)]
    schedule: Annotated[Literal["constant", "cosine", "linear", "wsd"], Effect.RATES] = "constant"
    warmup_steps: Count = 0
    decay_steps: Annotated[Size | None, Effect.RATES] = None
    final_lr_frac: Annotated[Fraction, Effect.RATES] = 0.1
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    weight_decay: NonNegative = 0.1
    clip_norm: Annotated[float, Gt(0)] | None = 1.0

    def __post_init__(self) -> None:
        given, rule = self.decay_steps is not None, "goes with optim.schedule=wsd alone, which needs it"
        refuse(given != (self.schedule == "wsd"), "optim.decay_steps", self.decay_steps, rule)

    def factor(self, step: int, steps: int) -> float:
        """The factor on the peak learning rate for the update from `step` to `step + 1`, of `steps` in total."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        first = self.warmup_steps if self.decay_steps is None else steps - self.decay_steps
        done = min(1.0, max(0, step - first) / max(1, steps - first))
        if self.schedule == "linear":
            return 1.0 - done
        if self.schedule == "wsd":
            return 1.0 - (1 - self.final_lr_frac) * done
        return self.final_lr_frac + (1 - self.final_lr_frac) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class StoppingConfig:
    """The action of a run once the saturation rule (with `eps`) finds every metric in `watch` saturated.

    A metric is `monitor/metric`; for the probe, its value after the last fine-tuning step. If the run has a probe, its
    exact match must also be shown to stay within +-`probe_margin` (null: not required) over the last doubling of
    tokens. `warn` only prints a line, `stop` ends the run after the window, and `decay` lowers the learning rate
    linearly to zero over `decay_tokens` and then ends it.
    """

    watch: tuple[str, ...] = ("needle/answer_nll_nats",)
    eps: Annotated[float, Gt(0), Lt(1)] = 0.05
    probe_margin: Annotated[float, Gt(0)] | None = 0.05
    action: Literal["warn", "decay", "stop"] = "warn"
    decay_tokens: Size | None = None

    def __post_init__(self) -> None:
        given, decays = self.decay_tokens is not None, self.action == "decay"
        rule = "action decay needs it, and no other has it; " + (
            "remove it" if given else "give the tokens of the decay"
        )
        refuse(given != decays, "run.stopping.decay_tokens", self.decay_tokens, rule)
        refuse(not self.watch, "run.stopping.watch", [], "must name a metric, such as needle/answer_nll_nats")
        for name in self.watch:
            rule = "must be monitor/metric, each named once, such as needle/answer_nll_nats"
            refuse(not all(name.partition("/")) or self.watch.count(name) > 1, "run.stopping.watch", name, rule)


@dataclass(frozen=True)
class RunConfig:
    """One phase of training. `tokens` counts training positions over all ranks; `batch_tokens` is the global batch.

    `init_from` supplies the initial weights and, if `init_optimizer` is carried, AdamW's moments and step count.
    `branch_from` continues from another run's checkpoint (train/saved/branch.py). With several processes, each holds
    all weights or, with `shard`, its part of the weights and optimizer states. Then `ep` neighbours may divide the
    experts among them, and `cp` neighbours share the tokens of a row. A process ends if a collective takes longer than
    `timeout_minutes`. The first of every `recompute_every` blocks keeps only its input and runs again in the backward
    pass. Checkpoints (null) of sharded weights are folders, others files; `background` writes files from a copy in host
    memory while training continues.
    """

    name: Annotated[str, Effect.FIXED]
    context_tokens: Size
    batch_tokens: Size
    tokens: Annotated[Size, Effect.LATER]
    micro_batch_tokens: Annotated[Size | None, Effect.SPEED] = None
    init_from: Annotated[str | None, Effect.PLACE] = None  # the hash of the weights is in the directory's name
    init_optimizer: Annotated[Literal["fresh", "carried"], Effect.FIXED] = "fresh"
    branch_from: Annotated[str | None, Effect.PLACE] = None
    precondition: Annotated[bool, Effect.FIXED] = False
    root: Annotated[str, Effect.PLACE] = "runs"
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    accelerator: Annotated[Literal["auto", "cpu", "gpu"], Effect.SPEED] = "auto"
    deterministic: Annotated[bool, Effect.FIXED] = False
    threads: Annotated[Size | None, Effect.SPEED] = None
    recompute_every: Annotated[Size | None, Effect.SPEED] = None
    shard: Annotated[bool, Effect.SPEED] = False
    ep: Annotated[Size, Effect.SPEED] = 1
    cp: Annotated[Size, Effect.SPEED] = 1
    checkpoints: Annotated[Literal["file", "sharded", "background"] | None, Effect.SPEED] = None
    timeout_minutes: Annotated[float, Gt(0), Effect.SPEED] = 30.0
    log_every_steps: Annotated[Size, Effect.FIXED] = 10
    checkpoint_every_steps: Annotated[Size, Effect.SPEED] = 100
    loggers: Annotated[dict[str, Any], Effect.SPEED] = field(default_factory=dict)
    tensorboard_axis: Annotated[Literal["tokens"] | None, Effect.FIXED] = None  # null: optimizer steps
    stopping: Annotated[StoppingConfig | None, Effect.LATER] = None  # a decay names the directory, too

    def __post_init__(self) -> None:
        batch, micro = self.batch_tokens, self.micro_batch_tokens or self.batch_tokens
        rule = f"must be a multiple of run.context_tokens={self.context_tokens}"
        refuse(batch % self.context_tokens, "run.batch_tokens", batch, rule)
        bad = micro % self.context_tokens or batch % micro
        refuse(bad, "run.micro_batch_tokens", micro, f"{rule} and divide run.batch_tokens={batch}")
        for name, logger in self.loggers.items():
            path = logger.get("class") if isinstance(logger, Mapping) else None
            known = isinstance(path, str) and "." in path
            refuse(not known, f"run.loggers.{name}.class", path, "must be the dotted path of a Lightning logger")
        refuse(self.ep > 1 and not self.shard, "run.ep", self.ep, "splits the experts' weights; set run.shard=true")
        rule = "needs sharded weights; set run.shard=true"
        refuse(self.checkpoints == "sharded" and not self.shard, "run.checkpoints", "sharded", rule)
        refuse(self.cp > 1 and not self.shard, "run.cp", self.cp, rule)
        rule = "writes files of unsharded weights; set run.shard=false, or run.checkpoints to file or sharded"
        refuse(self.checkpoints == "background" and self.shard, "run.checkpoints", "background", rule)
        refuse("/" in self.name or not self.name, "run.name", self.name, "must be a plain name: it becomes a directory")

    @property
    def steps(self) -> int:
        """The number of optimizer steps. The last one may overshoot `tokens` by part of a batch."""
        return -(-self.tokens // self.batch_tokens)


@dataclass(frozen=True)
class MonitorsConfig:
    """The monitors of a run, by name, and the first window in tokens (null: only step 0 and the end).

    `watch` holds the dataclasses of monitors/. They see the model in `precision` (null: that of the run). Logits and
    attention scores are fp32 in either case. Attention is dense. With `attention` both, needle, perplexity and
    induction are also measured with the attention of training while it is sparse.
    """

    first_window_tokens: Size | None = None
    watch: dict[str, Any] = field(default_factory=dict)
    precision: Literal["fp32", "bf16"] | None = None
    attention: Literal["dense", "both"] = "dense"


@dataclass(frozen=True)
class Config:
    """All settings of a run. `data` is the dataclass of data/.

    `objective` is a variant of train/objectives: what a step learns (null: the next token of the mixture).
    """

    seed: Count
    run: RunConfig
    model: ModelConfig
    optim: OptimConfig
    data: Any
    monitors: MonitorsConfig
    objective: Any = None

    @property
    def watched_in_bf16(self) -> bool:
        """Whether the monitors see the model in bf16."""
        return (self.monitors.precision or self.run.precision) == "bf16"

    def plain(self) -> dict[str, Any]:
        """The resolved config as nested dictionaries of plain values, ready for YAML."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def top_k(num_heads: int) -> int:
    """The number of strongest heads: 3 % of `num_heads`, between 8 and 30 (arXiv 2604.02650 Table 5: 30 of 1024)."""
    return min(30, max(8, round(TOP_FRAC * num_heads)), num_heads)


def short_hash(value: object) -> str:
    """Eight hex digits of the SHA-256 of a plain value: the end of a run directory's name."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to one with dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def keys_with(cls: type, prefix: str, *effects: Effect) -> set[str]:
    """The dotted keys of a dataclass and its nested ones that have one of these effects, after `prefix`."""
    found: set[str] = set()
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if not {*effects}.isdisjoint(getattr(hint, "__metadata__", ())):
            found.add(prefix + name)
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found |= keys_with(hint, f"{prefix}{name}.", *effects)
    return found


def is_one_of(key: str, keys: Collection[str]) -> bool:
    """Whether a dotted key is one of `keys`, or lies inside one."""
    return any(f"{key}.".startswith(f"{each}.") for each in keys)
