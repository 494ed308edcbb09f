"""Any causal LM of `transformers` as a random tiny model: its default config, with its numbers made small by name."""

import copy
import json
import re
from typing import Any

import torch
import transformers

PARAMETERS = 40_000_000  # at most
LAYERS, WIDTH, HEADS, HEAD = 4, 64, 4, 16
# What a number of a config becomes, by its name; the first pattern that is found holds. Numbers may only shrink.
RULES = (
    (r"^(bos|eos|pad|sep|cls|decoder_start|\w+)_token_(id|index)$", None),
    (r"vocab|codebook_size|_table_size", 0),  # 0: the vocabulary
    (r"window|chunk|local_attention|block_size|index_topk$", 16),
    (r"layer_period$|per_attn_res_block$", 2),
    (r"layer_offset$|^num_kv_shared_layers$|layer_index_start$|first_k_dense_replace|num_dense_layers", 1),
    (r"layer_index_end$", 3),
    (r"layers$|n_layer$|^depth$|num_blocks$", LAYERS),
    (r"(kv|key_value)_heads|query_groups|num_kv_heads|num_key_heads|^multi_query_group", 2),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads|linear_num_heads", 8),
    (r"heads|n_head$|heads_per_layer", HEADS),
    (r"experts_per_tok|topk_group|moe_topk|top_k$|moe_k$|n_group$|num_expert_group", 2),
    (r"expert_num$|n_routed|num_local_experts|num_experts|n_experts", 8),
    (r"rotary_dim|rope_head_dim", 8),
    (r"^qk_head_dim", 24),
    (r"head_dim|d_head|dim_head|headdim|kv_channels|head_size|^d_kv$|lora_rank|lowrank|_rank$", HEAD),
    (r"n_groups|o_groups", 2),
    (r"state_size|d_state", 16),
    (r"hidden_size|n_embd|d_model|^emb_dim|dim_model_base|embedding_size|word_embed_proj|^ple_embed|lru_width", WIDTH),
    (r"inner|intermediate|ffn|d_ff|dim_ff|^dff$|mlp_dim|feed_forward|d_ssm", 2 * WIDTH),
    (r"position_embeddings|n_positions|n_ctx|max_seq_len|position(s)?$", 512),
)


# What the rules cannot know: numbers that depend on each other, and defaults that are no model.
INDEXER = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": HEAD, "indexer_budget": 16}
INDEXER |= {"indexer_compress_ratio": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
ONE = {"2": {"num_attention_heads": HEADS}}  # of a layer, so that the default, which is large, is not taken
OWN: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 8},
    "dory": {  # it counts attention and feed-forward as a layer each
        "n_input_layers": 2, "n_recurrent_layers": 4, "n_output_layers": 2, "num_hidden_layers": 2 * LAYERS,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp"] * 2,
    },
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note": {"adapter_in_dim": WIDTH, "adapter_input_size": WIDTH, "head_dim": HEAD + 8, "per_layer_config": ONE},
    "dots3_note_text": {"head_dim": HEAD + 8, "per_layer_config": ONE},
    "falcon_h1": {"mamba_d_head": HEAD},
    "inkling2_loop_text": {"n_layers_per_attn_res_block": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "moshi": {"codebook_size": 512},
    "nemotron": {"num_key_value_heads": 2, "head_dim": HEAD},
    "qwen4_exp": INDEXER,
    "qwen4_exp_text": INDEXER,
    "reformer": {
        "axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 32], "attn_layers": ["local", "lsh"] * 2,
        "hash_seed": 0,
    },
    "xlstm": {"embedding_dim": WIDTH, "max_inference_chunksize": 16384},
    "xlm": {"causal": True},
    "xlnet": {"attn_type": "uni"},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 2 * WIDTH, "attention_head_dim": 2 * WIDTH // HEADS},
    "zamba2": {
        "attention_hidden_size": 2 * WIDTH, "attention_head_dim": 2 * WIDTH // HEADS, "hybrid_layer_ids": [1, 3],
        "layers_block_type": ["mamba", "hybrid"] * 2,
    },
}  # fmt: skip


def shrunk(plain: dict[str, Any], vocab_size: int, own: dict[str, Any]) -> dict[str, Any]:
    """The plain form of a config with numbers as small as their names allow; lists by layer keep each kind once."""
    small: dict[str, Any] = {}
    for key, value in plain.items():
        if key in own:
            small[key] = own[key]
        elif key == "vocab_size":
            small[key] = vocab_size
        elif key == "head_dim" and ("qk_rope_head_dim" in plain or value is None):
            small[key] = HEAD if value is None else 8  # of RoPE
        elif key == "per_layer_config":  # of layers that are gone
            continue
        elif isinstance(value, dict):
            small[key] = shrunk(value, vocab_size, own) if key.endswith("_config") else value
        elif (
            isinstance(value, list)
            and len(value) >= LAYERS
            and re.search(r"layer|types|pattern|intermediate_size", key)
        ):
            kinds = list(dict.fromkeys(map(json.dumps, value)))
            small[key] = [json.loads(kinds[i % len(kinds)]) for i in range(LAYERS)]
        elif re.search(r"(kv|key_value)_heads$", key) and value == plain.get("num_attention_heads"):
            small[key] = HEADS
        elif isinstance(value, int) and not isinstance(value, bool):
            to = next((to for pattern, to in RULES if re.search(pattern, key)), value)
            small[key] = min(value, vocab_size - 1) if to is None else min(value, to or vocab_size)
        else:
            small[key] = value
    return small


def build(model_type: str, vocab_size: int) -> Any:
    """A random tiny model in eval mode. Raises what its config or its class raises where it cannot be made tiny."""
    config_class = transformers.CONFIG_MAPPING[model_type]
    plain = config_class().to_dict()
    for key in ("transformers_version", "model_type"):
        plain.pop(key, None)
    if "is_decoder" in plain:
        plain["is_decoder"] = True
    config = config_class(**shrunk(plain, vocab_size, OWN.get(model_type, {})))
    make = transformers.AutoModelForCausalLM.from_config
    with torch.device("meta"):
        size = sum(p.numel() for p in make(copy.deepcopy(config)).parameters())
    if size > PARAMETERS:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = make(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():  # what begins at zero or one would hide what it does
                parameter += 0.1 * torch.randn_like(parameter)
    return model
