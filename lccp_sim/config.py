"""The dataclasses of a run, and the one function that turns plain dictionaries into them.

Hydra only composes; the rules and every message live here. Parts that come in variants (sources, position encodings,
monitors) are dataclasses beside their code, chosen by a `kind` key from a table that the caller passes in, so that this
module imports nothing of ours.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt

T = TypeVar("T")
Count = Annotated[int, Ge(0)]
Size = Annotated[int, Gt(0)]
Fraction = Annotated[float, Ge(0.0), Le(1.0)]
Coefficient = Annotated[float, Ge(0.0)]
RETRIEVES = 0.1  # a head with a higher copy score is a retrieval head (arXiv 2404.15574 sec. 2; 2604.02650 sec. 6)
TOP_FRAC = 0.03


class ConfigError(ValueError):
    """One line that names the key, the value, the rule and the remedy."""


@dataclass(frozen=True)
class RouterConfig:
    """Load balancing of the experts: coefficients of the two losses, and the rate of the bias update (0: off)."""

    balance_loss: Coefficient = 0.01
    z_loss: Coefficient = 0.001
    bias_update_rate: Coefficient = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the decoder. `rope` is a variant of models/positions.py; the vocabulary comes from the tokenizer."""

    rope: Any
    d_model: Size = 128
    num_layers: Size = 4
    num_heads: Size = 8
    num_kv_heads: Size = 8
    d_head: Size = 16
    num_experts: Size = 8
    num_experts_per_token: Size = 2
    d_expert: Size = 64
    num_shared_experts: Count = 1
    qk_norm: Literal["none", "before_rope", "after_rope"] = "after_rope"
    qk_norm_gain: Annotated[float, Gt(0)] = 1.0
    norm_eps: Annotated[float, Gt(0)] = 1e-5
    tie_embeddings: bool = True
    scale_embeddings: bool = False
    init_std: Annotated[float, Gt(0)] | None = None
    previous_token_heads: Count = 0
    router: RouterConfig = field(default_factory=RouterConfig)
    experts: str = "auto"

    def __post_init__(self) -> None:
        refuse(self.d_head % 2, "model.d_head", self.d_head, "must be even: RoPE rotates pairs")
        refuse(
            self.num_heads % self.num_kv_heads,
            "model.num_heads",
            self.num_heads,
            f"must be a multiple of model.num_kv_heads={self.num_kv_heads}",
        )
        refuse(
            self.num_experts_per_token > self.num_experts,
            "model.num_experts_per_token",
            self.num_experts_per_token,
            f"must be at most model.num_experts={self.num_experts}",
        )
        refuse(
            self.previous_token_heads > self.num_heads,
            "model.previous_token_heads",
            self.previous_token_heads,
            f"must be at most model.num_heads={self.num_heads}",
        )

    def shapes(self) -> dict[str, Any]:
        """The keys that decide the shape of a weight: a run can only start from weights that agree in them."""
        free = {"rope", "router", "experts", "init_std", "previous_token_heads", "qk_norm_gain", "norm_eps"}
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in free}


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule: linear warm-up, then constant, cosine (to final_lr_frac) or linear to zero.

    wsd (warm-up, stable, decay) is constant up to its last `decay_steps`, then linear to final_lr_frac.
    """

    lr: Annotated[float, Gt(0)]
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "constant"
    warmup_steps: Count = 0
    decay_steps: Size | None = None
    final_lr_frac: Fraction = 0.1
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    weight_decay: Coefficient = 0.1
    clip_norm: Annotated[float, Gt(0)] | None = 1.0

    def __post_init__(self) -> None:
        given, needs = self.decay_steps is not None, self.schedule == "wsd"
        rule = "schedule wsd needs it, and no other has it; " + (
            "remove it" if given else "give the steps of the decay"
        )
        refuse(given != needs, "optim.decay_steps", self.decay_steps, rule)

    def factor(self, step: int, steps: int) -> float:
        """The factor on the peak learning rate for the update that takes `step` to `step + 1`, of `steps` in all."""
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
    """What a run does once the saturation rule (analysis/rule.py, with `eps`) finds every metric of `watch` saturated.

    A metric is `monitor/metric`; of the probe, after its last fine-tuning step. Where the run has a probe, its exact
    match must also be shown to stay within +-`probe_margin` (null: not asked) over the last doubling of tokens. warn
    only says so, stop ends the run after the window, decay takes the learning rate linearly to zero over
    `decay_tokens`, and then ends it.
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

    `init_from` gives the first weights. `branch_from`, a checkpoint of a run that is the same up to there, saves
    training that part again: train/branch.py.
    """

    name: str
    context_tokens: Size
    batch_tokens: Size
    tokens: Size
    micro_batch_tokens: Size | None = None
    init_from: str | None = None
    branch_from: str | None = None
    precondition: bool = False
    root: str = "runs"
    precision: Literal["fp32", "bf16"] = "fp32"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    deterministic: bool = False
    threads: Size | None = None
    log_every_steps: Size = 10
    checkpoint_every_steps: Size = 100
    loggers: dict[str, Any] = field(default_factory=dict)
    stopping: StoppingConfig | None = None

    def __post_init__(self) -> None:
        batch, micro = self.batch_tokens, self.micro_batch_tokens or self.batch_tokens
        refuse(
            self.batch_tokens % self.context_tokens,
            "run.batch_tokens",
            self.batch_tokens,
            f"must be a multiple of run.context_tokens={self.context_tokens}",
        )
        refuse(
            micro % self.context_tokens or self.batch_tokens % micro,
            "run.micro_batch_tokens",
            micro,
            f"must be a multiple of run.context_tokens={self.context_tokens} and divide run.batch_tokens={batch}",
        )
        for name, logger in self.loggers.items():
            path = logger.get("class") if isinstance(logger, Mapping) else None
            known = isinstance(path, str) and "." in path
            refuse(not known, f"run.loggers.{name}.class", path, "must be the dotted path of a Lightning logger")
        refuse("/" in self.name or not self.name, "run.name", self.name, "must be a plain name: it becomes a directory")

    @property
    def steps(self) -> int:
        """Optimizer steps of the run: the last one may overshoot `tokens` by a part of a batch."""
        return -(-self.tokens // self.batch_tokens)


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on. `data` and `monitors` are the dataclasses of those packages."""

    seed: Count
    run: RunConfig
    model: ModelConfig
    optim: OptimConfig
    data: Any
    monitors: Any

    def plain(self) -> dict[str, Any]:
        """The resolved config as nested dictionaries of plain values, ready for YAML."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def top_k(num_heads: int) -> int:
    """How many heads are the strongest: 3 % of `num_heads`, within 8..30 (arXiv 2604.02650 Table 5: 30 of 1024)."""
    return min(30, max(8, round(TOP_FRAC * num_heads)), num_heads)


def refuse(bad: object, key: str, value: object, rule: str) -> None:
    """None, or ConfigError with the key, the value and the rule where `bad` is true."""
    if bad:
        raise ConfigError(f"{key}={value!r}: {rule}")


def parse(cls: type[T], plain: object, where: str) -> T:
    """An instance of the dataclass `cls` from plain values. Raises ConfigError: every wrong key and value, a line each.

    A wrong key is answered with the nearest right one. `where` is the dotted place of `plain` in the whole config.
    """
    from pydantic import TypeAdapter, ValidationError

    wrong = _unknown_keys(cls, plain, where)
    if wrong:
        raise ConfigError("\n".join(wrong))
    try:
        return TypeAdapter(cls).validate_python(plain)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            place = ".".join([where, *(str(part) for part in problem["loc"])])
            cause = problem.get("ctx", {}).get("error")
            if isinstance(cause, ConfigError):
                placed = "." in str(cause).partition("=")[0]  # a variant does not know where it stands
                lines.append(str(cause) if placed else f"{where}.{cause}")
            elif problem["type"].startswith("missing"):
                lines.append(f"{place}: this key is required")
            else:
                lines.append(f"{place.removesuffix('.[key]')}={problem['input']!r}: {problem['msg'].lower()}")
        raise ConfigError("\n".join(lines)) from None


def parse_kind(kinds: Mapping[str, type[T]], plain: object, where: str) -> T:
    """The variant of `kinds` that the `kind` key of `plain` names. Raises ConfigError with the nearest right kind."""
    if not isinstance(plain, Mapping) or "kind" not in plain:
        raise ConfigError(f"{where}: needs a `kind`, one of {', '.join(kinds)}")
    kind = plain["kind"]
    if kind not in kinds:
        raise ConfigError(f"{where}.kind={kind!r}: one of {', '.join(kinds)}{nearest(str(kind), kinds)}")
    return parse(kinds[kind], plain, where)


def _unknown_keys(cls: Any, plain: object, where: str) -> list[str]:
    """A line for each key of `plain` that the dataclass does not have, nested dataclasses included."""
    if not isinstance(plain, Mapping):
        return [f"{where}={plain!r}: must be a group of keys"]
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    lines = [f"{where}.{key}: no such key{nearest(str(key), names)}" for key in plain if key not in names]
    for name in names:
        inner = hints[name]
        options = typing.get_args(inner) if isinstance(inner, types.UnionType) else (inner,)
        for option in options:
            if dataclasses.is_dataclass(option) and isinstance(plain.get(name), Mapping):
                lines += _unknown_keys(option, plain[name], f"{where}.{name}")
    return lines


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar of `names`, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def short_hash(value: object) -> str:
    """Eight hex digits of the SHA-256 of a plain value: the end of a run directory's name."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one of dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
