"""Every causal LM of the installed `transformers`, built tiny, adapted, and measured by the monitors of a forward.

`shrunk` makes a config small by the names of its numbers; `outcome` is what became of one model. Weights are random and
large, so that a scale, a cap or a bias that is missed changes attention. Where a model has heads that are scored and
gives its own attention, every row is compared with it.
"""

import argparse
import copy
import json
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lccp_sim.config import ConfigError
from lccp_sim.data.pools import Corpus
from lccp_sim.models.adapter import Adapter, adapted
from lccp_sim.models.language_model import Attended
from lccp_sim.models.taps import tapping
from lccp_sim.monitors import Needle, Perplexity
from lccp_sim.monitors.observing import observing
from lccp_sim.monitors.values import Moment
from tests.monitors.worlds import make_corpus

RESULT = Path(__file__).parent / "results" / "transformers_sweep.json"
SECONDS, PARAMETERS = 20, 40_000_000  # at most, for one model
AGREE = 1e-5
MONITORS = (
    Needle(lengths=(96,), haystack="prose", items=2, depths=2, controls=2),
    Perplexity(sources=("prose",), context_tokens=24, short_tokens=8, items=2),
)

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
INDEXER = {"indexer_n_heads": 4, "indexer_kv_heads": 2, "indexer_head_dim": HEAD, "indexer_budget": 16}
INDEXER |= {"indexer_compress_ratio": 4}
OWN: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {k: {"rope_type": "default", "rope_theta": 1e4} for k in ("full_attention", "sliding_attention")}
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4}},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 8},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {"mamba_d_head": HEAD},
    "inkling2_loop_text": {"n_layers_per_attn_res_block": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "moshi": {"codebook_size": 512},
    "nemotron": {"num_key_value_heads": 2, "head_dim": HEAD},
    "qwen4_exp": INDEXER,
    "qwen4_exp_text": INDEXER,
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 32], "attn_layers": ["local", "lsh"] * 2},
    "xlstm": {"embedding_dim": WIDTH},
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
        elif isinstance(value, list) and len(value) >= LAYERS and re.search(r"layer|types|pattern|intermediate_size", key):
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


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """TimeoutError where what is done takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"over {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


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


class Outcome(NamedTuple):
    """What became of a model: measured, measured without heads, refused, not built, or failed; and more about it."""

    what: str
    detail: str


def outcome(model_type: str, corpus: Corpus) -> Outcome:
    """Builds, adapts and measures one model; `failed` is what must not be."""
    try:
        with within(SECONDS):
            model = build(model_type, corpus.vocab_size)
    except Exception as error:
        return Outcome("not built", line(error))
    try:
        with within(SECONDS), torch.no_grad():
            model(input_ids=torch.arange(20, 60)[None], use_cache=False)
    except Exception as error:
        import traceback

        traceback.print_exc()
        return Outcome("not built", f"its own forward fails: {line(error)}")
    try:
        with within(SECONDS):
            return measured(model, corpus)
    except ConfigError as error:
        return Outcome("refused" if "\n" not in str(error) else "failed", str(error))
    except Exception as error:
        import traceback

        traceback.print_exc()
        return Outcome("failed", f"{type(error).__name__}: {line(error)}")


def measured(model: Any, corpus: Corpus) -> Outcome:
    """The monitors' records are there and finite, logits and attention are the model's own."""
    tokens_BT = torch.arange(5, 5 + 64)[None].repeat(2, 1)
    tokens_BT[1] = tokens_BT[1].flip(0)
    count = 0
    if adapter := adapted(model):
        for monitor in MONITORS:
            items = monitor.prepare(corpus)
            with observing(adapter):
                found = monitor.score(adapter, items)
            records = monitor.aggregate(found, Moment(0, 0))
            scored = {(r.tags["layer"], r.tags["head"]) for r in records if r.monitor == "heads" and "layer" in r.tags}
            count += len(scored)
        heads = adapter.num_layers * adapter.num_heads
        assert count == heads, f"{count} of {heads} heads are scored"
        with torch.no_grad():
            hidden_BTD = adapter(tokens_BT).hidden_BTD
            logits_BTV = adapter.logits(hidden_BTD.flatten(0, 1)).view(2, 64, -1)
            want = model(input_ids=tokens_BT, use_cache=False).logits.float()
        off = float((logits_BTV - want).abs().max() / want.abs().max())
        assert off < 1e-4, f"logits are off by {off:.1e}"
        limits(model, adapter)
        if not heads:
            return Outcome("measured without heads", "")
        default = attention(adapter, tokens_BT)
        own = own_attention(model, tokens_BT)
        if own is None:
            return Outcome("measured", "gives no attention to compare with")
        eager = attention(adapter, tokens_BT)
    for rows, most in ((eager, AGREE), (default, 10 * AGREE)):  # another kernel rounds otherwise
        off = max(difference(a, b) for a, b in zip(rows, own, strict=True))
        assert off < most, f"attention is off by {off:.1e}"
    return Outcome("measured", f"attention compared {off:.0e}")


def difference(rows: torch.Tensor, own: torch.Tensor) -> float:
    """The largest difference of rows of attention; some models give rows without the sink's share, which sum to one."""
    share = rows.sum(-1, keepdim=True) if bool(((own.sum(-1) - 1).abs() < AGREE).all()) else 1.0
    return float((rows - own * share).abs().max())


def limits(model: Any, adapter: Any) -> None:
    """None; the number of positions is the model's own."""
    most, there = adapter.most_tokens, 560  # configs say 512
    with torch.no_grad():
        model(input_ids=torch.full((1, most or there), 7), use_cache=False)
        if most is None:
            return
        try:
            model(input_ids=torch.full((1, most + 1), 7), use_cache=False)
        except Exception:
            return
    raise AssertionError(f"it has more than {most} positions")


def attention(adapter: Any, tokens_BT: torch.Tensor) -> list[torch.Tensor]:
    """Attention of every layer as the monitors form it, [B, N, T, T]."""
    found: dict[int, torch.Tensor] = {}

    def tap(layer: int, attended: Attended) -> None:
        B, T = tokens_BT.shape
        found[layer] = torch.stack([attended.rows(i, 0, T) for i in range(B)])

    with torch.no_grad(), tapping(adapter, tap):
        adapter(tokens_BT)
    return [found[layer] for layer in sorted(found)]


def own_attention(model: Any, tokens_BT: torch.Tensor) -> list[torch.Tensor] | None:
    """Attention of every layer as `transformers` gives it, or None where it does not."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(input_ids=tokens_BT, use_cache=False, output_attentions=True).get("attentions")
    return None if not found or any(each is None for each in found) else [each.float() for each in found]


def line(error: Exception) -> str:
    """The first 200 characters of an error."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def main() -> None:
    """Prints and writes what became of every class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    corpus, found = make_corpus(), {}
    for model_type in chosen.only or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        start = time.time()
        found[model_type] = outcome(model_type, corpus)
        print(f"{model_type}: {': '.join(found[model_type])}  {time.time() - start:.1f}", flush=True)
    print(Counter(each.what for each in found.values()))


if __name__ == "__main__":
    main()
