"""Random checkpoints of `transformers`, as it saves them: one of each architecture, and the variants that it allows."""

from pathlib import Path
from typing import Any

import torch
import transformers as t

V, CONTEXT = 96, 64
SIZES = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "initializer_range": 0.2}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
MOE = {"num_experts": 4, "num_experts_per_tok": 2}
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "hunyuan_v1_moe": ("HunYuanMoEV1", {"head_dim": 8, "num_experts": 4, "moe_topk": 2, "tie_word_embeddings": True}),
    "hunyuan_v1_moe, bias": ("HunYuanMoEV1", {"head_dim": 16, "num_experts": 4, "moe_topk": 3, "attention_bias": True}),
    "olmoe": ("Olmoe", MOE),
    "olmoe, renormalised": ("Olmoe", MOE | {"norm_topk_prob": True}),
    "qwen3_moe": ("Qwen3Moe", MOE | {"head_dim": 16, "moe_intermediate_size": 16, "norm_topk_prob": True}),
    "qwen3_moe, dense first": ("Qwen3Moe", MOE | {"moe_intermediate_size": 16, "mlp_only_layers": [0]}),
    "qwen3_moe, window": (
        "Qwen3Moe", MOE | {"moe_intermediate_size": 16, "use_sliding_window": True, "sliding_window": 20}
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "head_dim": 8}),
    "mixtral, window": ("Mixtral", {"num_local_experts": 4, "head_dim": 16, "sliding_window": 20}),
    "llama": ("Llama", {}),
    "llama, tied and bias": ("Llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3, window": (
        "Qwen3", {"head_dim": 8, "use_sliding_window": True, "sliding_window": 20, "layer_types": LAYERS}
    ),
}  # fmt: skip
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, all keys": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0, "beta_slow": 2.0,
        "attention_factor": 1.3, "truncate": False,
    },
}  # fmt: skip
ALPHA = {"rope_type": "dynamic", "factor": 1.0, "alpha": 50.0}


def build(variant: str, rope: dict[str, Any] | None = None) -> Any:
    """A random model in fp32 in which every number matters, norms and biases included."""
    family, changes = VARIANTS[variant]
    parameters = {"rope_theta": 5000.0} | (rope or ROPES["default"])
    config = getattr(t, f"{family}Config")(**(SIZES | changes), rope_parameters=parameters)
    torch.manual_seed(1)
    model = getattr(t, f"{family}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
        elif "bias" in name:
            parameter.data.normal_(std=0.2)
    return model


def save(path: Path, variant: str, rope: dict[str, Any] | None = None, **how: Any) -> Any:
    """The model of `build`, after it was saved to `path`."""
    model = build(variant, rope)
    model.save_pretrained(path, **how)
    return model
