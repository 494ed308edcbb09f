"""The architectures of `transformers` that match lccp-sim's under other names, each a row of ARCHITECTURES.

There is no list of unsupported settings: they are found by writing config.json and reading it back.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lccp_sim.config import Effect, ModelConfig, keys_with
from lccp_sim.configure.parse import parse, parse_kind
from lccp_sim.errors import ConfigError, nearest, refuse
from lccp_sim.models.foreign.rope_settings import read_rope, write_rope
from lccp_sim.models.positions import POSITIONS

Settings = dict[str, Any]
# Our key -> theirs. If there are several, all are written and the first present is read (transformers 4 and 5 differ).
COMMON_FIELDS: dict[str, tuple[str, ...]] = {
    "d_model": ("hidden_size",),
    "num_layers": ("num_hidden_layers",),
    "num_heads": ("num_attention_heads",),
    "num_kv_heads": ("num_key_value_heads",),
    "d_head": ("head_dim",),
    "norm_eps": ("rms_norm_eps",),
    "tie_embeddings": ("tie_word_embeddings",),
    "vocab_size": ("vocab_size",),
    "qkv_bias": ("attention_bias",),
    "out_bias": ("attention_bias",),
}
DENSE_FIELDS = COMMON_FIELDS | {"d_dense": ("intermediate_size",)}
EXPERT_FIELDS = COMMON_FIELDS | {
    "num_experts": ("num_experts", "num_local_experts"),
    "num_experts_per_token": ("num_experts_per_tok",),
    "d_expert": ("intermediate_size",),
}
RENORMALISE = {"router.renormalise": ("norm_topk_prob",)}


@dataclass(frozen=True)
class Architecture:
    """One architecture: the class of its causal LM, our keys by its names, and the keys for which it knows one value.

    `must`: keys of config.json that must have this value if present. `assumed`: the values that transformers assumes
    for missing keys. `names`: the modules of a layer that differ from NAMES.
    """

    class_name: str
    fields: Mapping[str, tuple[str, ...]]
    fixed: Mapping[str, Any]
    must: Mapping[str, Any] = field(default_factory=dict)
    assumed: Mapping[str, Any] = field(default_factory=dict)
    theta: float = 1e4
    windows: bool = False
    alpha: bool = False
    names: Mapping[str, str] = field(default_factory=dict)


ARCHITECTURES: dict[str, Architecture] = {
    "hunyuan_v1_moe": Architecture(
        "HunYuanMoEV1ForCausalLM",
        EXPERT_FIELDS | {"num_experts_per_token": ("moe_topk", "num_experts_per_tok")},
        {"qk_norm": "after_rope", "num_shared_experts": 1},
        {"use_qk_norm": True, "num_shared_expert": 1, "use_cla": False, "use_mla": False, "moe_layer_num_skipped": 0},
        alpha=True,
        names={"q_norm": "query_layernorm", "k_norm": "key_layernorm", "router": "mlp.gate.wg"},
    ),
    "olmoe": Architecture(
        "OlmoeForCausalLM",
        EXPERT_FIELDS | RENORMALISE | {"d_head": ()},
        {"qk_norm": "full_width", "num_shared_experts": 0},
        {"clip_qkv": None},
    ),
    "qwen3_moe": Architecture(
        "Qwen3MoeForCausalLM",
        EXPERT_FIELDS | RENORMALISE | {"d_expert": ("moe_intermediate_size",), "d_dense": ("intermediate_size",)},
        {"qk_norm": "before_rope", "num_shared_experts": 0},
        {"decoder_sparse_step": 1},
        {"rms_norm_eps": 1e-6},
        windows=True,
    ),
    "mixtral": Architecture(
        "MixtralForCausalLM",
        EXPERT_FIELDS,
        {"qk_norm": "none", "num_shared_experts": 0, "qkv_bias": False, "out_bias": False},
        assumed={"use_sliding_window": True},
        theta=1e6,
        windows=True,
        names={"router": "block_sparse_moe.gate", "experts": "block_sparse_moe.experts"}
        | {"gate": "w1", "up": "w3", "down": "w2"},
    ),
    "llama": Architecture(
        "LlamaForCausalLM", DENSE_FIELDS, {"qk_norm": "none"}, {"mlp_bias": False}, {"rms_norm_eps": 1e-6}
    ),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        DENSE_FIELDS,
        {"qk_norm": "before_rope"},
        {},
        {"rms_norm_eps": 1e-6, "head_dim": 128},
        windows=True,
    ),
}
MUST = {"hidden_act": "silu", "quantization_config": None, "partial_rotary_factor": 1.0}
ASSUMED = {"rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attention_bias": False, "norm_topk_prob": False}
BALANCE = "router_aux_loss_coef"
COUNTS = {"num_layers", "d_model", "num_heads", "num_experts_per_token"}
OPTIONAL_FIELDS = {"num_kv_heads", "d_head", "d_dense"}
OF_EXPERTS = {"num_experts", "num_experts_per_token", "num_shared_experts", "d_expert"}  # unused by a dense model


def read_settings(settings: Settings, where: str) -> tuple[str, ModelConfig]:
    """The architecture's name and our config of the config.json at `where`, its vocabulary included.

    Raises ConfigError if the architecture is unknown, a key is missing, or a value is not supported.
    """
    try:
        name = str(settings.get("model_type"))
        if name not in ARCHITECTURES:
            known = f"can be imported: {', '.join(ARCHITECTURES)}{nearest(name, ARCHITECTURES)}"
            raise ConfigError(f"{where}: model_type={name!r}: {known}")
        return name, _read(settings, ARCHITECTURES[name], where)
    except (TypeError, AttributeError, IndexError, ArithmeticError) as error:  # a word for a number, a list for a group
        raise ConfigError(f"{where}: damaged (a value has the wrong type); fetch it again") from error


def _read(settings: Settings, row: Architecture, where: str) -> ModelConfig:
    settings = ASSUMED | dict(row.assumed) | settings
    for key, value in {**MUST, **row.must}.items():
        found = _one(settings.get(key, value))
        refuse(found != value, f"{where}: {key}", found, f"must be {value!r} to be imported")
    tree: dict[str, Any] = {"router": {}}
    for ours, theirs in row.fields.items():
        values = [_one(settings[key]) for key in theirs if settings.get(key) is not None]
        if not values and ours not in OPTIONAL_FIELDS | row.fixed.keys():
            raise ConfigError(f"{where}: has no {' nor '.join(theirs)}; put the complete config.json there")
        if values:
            whole = ours not in COUNTS or type(values[0]) is int
            refuse(not whole, f"{where}: {' or '.join(theirs)}", values[0], "must be an integer")
            refuse(
                isinstance(values[0], str),
                f"{where}: {' or '.join(theirs)}",
                values[0],
                "must be a number, true or false",
            )
            (tree["router"] if "." in ours else tree)[ours.removeprefix("router.")] = values[0]
    tree |= row.fixed
    if "num_experts" in tree and settings.get(BALANCE) is not None:  # theirs counts each of the k slots of a token
        tree["router"]["balance_loss"] = settings[BALANCE] * tree["num_experts_per_token"]
    tree.setdefault("num_kv_heads", tree["num_heads"])
    tree.setdefault("d_head", tree["d_model"] // tree["num_heads"])
    layers = tree["num_layers"]
    dense = (settings.get("mlp_only_layers") or []) if "num_experts" in row.fields else list(range(layers))
    refuse(dense != list(range(len(dense))), f"{where}: mlp_only_layers", dense, "must be the first layers, in order")
    tree["num_dense_layers"] = len(dense)
    if not dense:
        tree.pop("d_dense", None)
    tree |= _window(settings, row, layers, where)
    rope = read_rope(settings, where, row.theta, row.alpha)
    try:
        tree["rope"] = parse_kind(POSITIONS, rope, "rope")
        return parse(ModelConfig, tree, "model")
    except ConfigError as error:
        raise ConfigError(f"{where}: {'; '.join(error.problems)}") from None


def write_config(name: str, config: ModelConfig) -> Settings:
    """The config.json of a config, as far as an architecture can express it."""
    row, flat = ARCHITECTURES[name], function_of(config)
    settings = {"model_type": name, "architectures": [row.class_name], "hidden_act": "silu", **row.must}
    for ours, theirs in row.fields.items():
        if flat.get(ours) is not None:
            settings |= dict.fromkeys(theirs, flat[ours])
    if "num_experts" in row.fields:
        settings[BALANCE] = config.router.balance_loss / config.num_experts_per_token
    if "num_experts" in row.fields and "d_dense" in row.fields:
        settings["mlp_only_layers"] = list(range(config.num_dense_layers))
    if row.windows:
        sliding = [config.window(layer) is not None for layer in range(config.num_layers)]
        settings |= {"sliding_window": config.window_tokens, "use_sliding_window": any(sliding), "max_window_layers": 0}
        if "num_experts" not in row.fields:
            settings["layer_types"] = [f"{'sliding' if each else 'full'}_attention" for each in sliding]
    return settings | write_rope(config.rope, config.d_head, row.alpha)


def choose_architecture(config: ModelConfig, preferred: str | None = None) -> str:
    """The name of an architecture equivalent to `config`. Raises ConfigError with the keys that the nearest lacks."""
    lacks = {name: missing(name, config) for name in sorted(ARCHITECTURES, key=lambda name: name != preferred)}
    best = min(lacks, key=lambda name: len(lacks[name]))
    if lacks[best]:
        raise ConfigError(
            f"no architecture of transformers computes this model; the nearest, {best}, has no "
            f"{', '.join(lacks[best])}; such a model can be trained and measured, not exported"
        )
    return best


def missing(name: str, config: ModelConfig) -> list[str]:
    """The keys of `config`, with their values, that an architecture does not have."""
    if name == "llama" and config.d_model % config.num_heads:
        return [f"model.d_model={config.d_model} that is not a multiple of model.num_heads={config.num_heads}"]
    want = function_of(config)
    try:
        got = function_of(read_settings(write_config(name, config), name)[1])
    except ConfigError:  # it lacks keys that an architecture with (or without) experts requires
        got = {}
    return [f"model.{key}={want[key]!r}" for key in want if got.get(key, ...) != want[key]]


def function_of(config: ModelConfig) -> dict[str, Any]:
    """The dotted keys that determine the function of a model, except RoPE. Equal functions have equal keys."""
    flat = dataclasses.asdict(config)
    flat |= {f"router.{key}": value for key, value in flat.pop("router").items()}
    if config.router.scores == "topk_softmax":  # the same numbers as a softmax over all, renormalised
        flat["router.scores"] = "softmax"
    if config.num_dense_layers == config.num_layers:
        flat = {key: value for key, value in flat.items() if key not in OF_EXPERTS and "router." not in key}
    apart = keys_with(ModelConfig, "", Effect.APART)
    return {key: value for key, value in flat.items() if key not in apart}


def _window(settings: Settings, row: Architecture, layers: int, where: str) -> dict[str, int]:
    """window_tokens and full_attention_every, or nothing."""
    window = settings.get("sliding_window") if settings.get("use_sliding_window") or not row.windows else None
    if window is None:
        return {}
    refuse(not row.windows, f"{where}: sliding_window", window, "must be null to be imported")
    first = 0 if "num_experts" in row.fields else settings.get("max_window_layers", 28)
    types = settings.get("layer_types") or ["full"] * first + ["sliding"] * (layers - first)
    full = [layer for layer in range(layers) if types[layer].startswith("full")]
    if len(full) == layers:
        return {}
    every = full[0] + 1 if full else None
    regular = every is None or full == list(range(every - 1, layers, every))
    refuse(not regular, f"{where}: layer_types", types, "must be full in every n-th layer to be imported")
    return {"window_tokens": window} | ({"full_attention_every": every} if every else {})


def _one(value: Any) -> Any:
    """The value that a list has in every layer, else the value unchanged."""
    same = isinstance(value, list) and value and all(each == value[0] for each in value)
    return value[0] if same else value
