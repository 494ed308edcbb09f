"""Any causal LM of `transformers`: the same logits, and the same attention as its own full matrices, head by head."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign.adapter import Adapter
from lccp_sim.models.language_model import Attended
from lccp_sim.models.taps import gating, tapping
from lccp_sim.monitors.heads import CopyTap

V, S = 90, 48
KINDS = "sliding", "full", "sliding"
NEEDLES, ANSWERS = [(5, 17), (20, 29)], [(36, 48), (39, 48)]
COMMON = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8}
COMMON |= {"intermediate_size": 48, "max_position_embeddings": 128, "num_key_value_heads": 2, "initializer_range": 0.4}


def build(family: str) -> Any:
    """A random model of a family, eager, sharp enough that its heads differ."""
    import transformers as t

    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    configs = {
        "llama": lambda: t.LlamaConfig(**COMMON),
        "qwen3_moe": lambda: t.Qwen3MoeConfig(**COMMON, **moe),
        "gpt_oss": lambda: t.GptOssConfig(
            **(COMMON | {"num_hidden_layers": 4}), num_local_experts=4, num_experts_per_tok=2, sliding_window=8
        ),
        "hunyuan_v1_moe": lambda: t.HunYuanMoEV1Config(**COMMON, num_experts=4, moe_topk=2),
        "gemma2": lambda: t.Gemma2Config(
            **COMMON, sliding_window=8, attn_logit_softcapping=3.0, final_logit_softcapping=5.0, query_pre_attn_scalar=4
        ),
        "gemma3_text": lambda: t.Gemma3TextConfig(
            **COMMON, sliding_window=8, query_pre_attn_scalar=4, layer_types=[f"{kind}_attention" for kind in KINDS]
        ),
        "granite": lambda: t.GraniteConfig(**COMMON, logits_scaling=8.0, attention_multiplier=0.5),
        "cohere": lambda: t.CohereConfig(**{k: v for k, v in COMMON.items() if k != "head_dim"}, logit_scale=0.25),
    }
    torch.manual_seed(1)
    model = t.AutoModelForCausalLM.from_config(configs[family](), attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if "sinks" in name:  # zeros, else
            parameter.data.normal_()
    return model


def texts() -> torch.Tensor:
    """Two rows of S tokens whose answers repeat their needles."""
    tokens_BS = torch.from_numpy(np.random.default_rng(3).integers(2, V, (2, S)))
    for row, needle, answer in zip(tokens_BS, NEEDLES, ANSWERS, strict=True):
        row[slice(*answer)] = row[slice(*needle)].clone()
    return tokens_BS


FAMILIES = ["llama", "qwen3_moe", "gpt_oss", "hunyuan_v1_moe", "gemma2", "gemma3_text", "granite", "cohere"]


@pytest.mark.parametrize("family", FAMILIES)
def test_head_scores_are_those_of_the_full_matrices_of_transformers(family: str) -> None:
    want = hold_scores(build(family), texts(), ANSWERS, NEEDLES)
    assert want[..., 0].max() > 0.05 and want[..., 1].std() > 1e-3  # there was something to compare


def hold_scores(model: Any, tokens_BS: torch.Tensor, answers: list, needles: list) -> np.ndarray:
    """The copy scores of an eager model's full matrices, [items, layers, heads, metrics]; the adapter's are the same.

    So are its logits of the last tokens. The spans `answers` repeat the spans `needles`.
    """
    with torch.no_grad():
        whole = model(tokens_BS, output_attentions=True, use_cache=False)
    adapter = Adapter(copy.deepcopy(model))
    tap = CopyTap(tokens_BS, answers, needles, list(range(len(tokens_BS))))
    with torch.no_grad(), tapping(adapter, tap):
        hidden_BTD = adapter(tokens_BS).hidden_BTD
    torch.testing.assert_close(adapter.logits(hidden_BTD[:, -32:]), whole.logits[:, -32:].float())
    want = np.zeros(tap.scores.shape)
    for layer, full_BNTS in enumerate(whole.attentions):
        for item, ((first, stop), (start, end)) in enumerate(zip(answers, needles, strict=True)):
            moved = np.random.default_rng(tokens_BS[item, start:end].tolist()).permutation(tokens_BS[item, start:end])
            for p in range(first, stop):
                null = start + np.flatnonzero(moved == int(tokens_BS[item, p]))
                same = [j for j in range(start, end) if tokens_BS[item, j] == tokens_BS[item, p]]
                row_NS = full_BNTS[item, :, p - 1].double().numpy()
                hard, chance = (np.isin(row_NS.argmax(-1), places) for places in (same, null))
                soft, mass = row_NS[:, same].sum(-1), row_NS[:, start:end].sum(-1)
                want[item, layer] += np.stack([hard, soft, mass, row_NS[:, 0], chance], -1) / (stop - first)
    np.testing.assert_allclose(tap.scores, want, atol=1e-5)
    return want


def test_sdpa_and_eager_give_the_same_scores() -> None:
    scores = []
    for attention in ("eager", "sdpa"):
        model = build("llama")
        model.set_attn_implementation(attention)
        adapter, tap = Adapter(model), CopyTap(texts(), ANSWERS, NEEDLES, [0, 1])
        with torch.no_grad(), tapping(adapter, tap):
            adapter(texts())
        scores.append(tap.scores)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_a_gate_masks_one_head_as_zeroed_weights_do() -> None:
    model = build("gpt_oss")
    adapter, tokens_BS = Adapter(copy.deepcopy(model)), texts()
    gate_LN = torch.ones(adapter.num_layers, adapter.num_heads)
    gate_LN[1, 2] = 0.0
    with torch.no_grad(), gating(adapter, gate_LN):
        got = adapter(tokens_BS).hidden_BTD
    with torch.no_grad():
        plain = adapter(tokens_BS).hidden_BTD
        adapter.model.model.layers[1].self_attn.o_proj.weight[:, 2 * 8 : 3 * 8] = 0.0
        want = adapter(tokens_BS).hidden_BTD
    torch.testing.assert_close(got, want)
    assert not torch.allclose(got, plain)


def test_a_copy_has_a_switch_of_its_own() -> None:
    adapter = Adapter(build("llama"))
    fork = copy.deepcopy(adapter)
    seen: list[int] = []
    with torch.no_grad(), tapping(fork, lambda layer, attended: seen.append(layer)):
        adapter(texts())
        assert seen == []
        fork(texts())
    assert seen == [0, 1, 2]


def test_a_model_with_layers_of_another_kind_is_refused() -> None:
    import transformers as t

    config = t.MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, state_size=4, num_attention_heads=2)
    adapter = Adapter(t.MambaForCausalLM(config))
    with pytest.raises(ConfigError, match="attention of layer 0, 1 of 2 bypassed the tap"):
        with torch.no_grad(), tapping(adapter, lambda *_: None):
            adapter(texts()[:, :8])


def test_a_model_without_a_language_model_head_is_refused() -> None:
    import transformers as t

    with pytest.raises(ConfigError, match="^model_type=llama: has no language-model head; name a causal LM$"):
        Adapter(t.LlamaModel(t.LlamaConfig(**COMMON)))


def test_a_head_with_a_step_that_is_not_known_is_refused() -> None:
    model = build("llama")
    model.register_forward_hook(lambda module, args, out: setattr(out, "logits", out.logits * 3))
    with pytest.raises(ConfigError, match="^model_type=llama: its logits are not its output embedding times"):
        Adapter(model)


def test_a_model_that_looks_ahead_is_refused() -> None:
    import transformers as t

    config = t.BertConfig(vocab_size=V, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with pytest.raises(ConfigError, match="^model_type=bert: a later token changes earlier outputs"):
        Adapter(t.BertLMHeadModel(config))


def test_learned_positions_end() -> None:
    import transformers as t

    config = t.GPT2Config(vocab_size=V, n_embd=32, n_layer=1, n_head=2, n_positions=16)
    adapter = Adapter(t.GPT2LMHeadModel(config))
    adapter(texts()[:, :16])
    with pytest.raises(ConfigError, match="^model_type=gpt2: has 16 positions, and a monitor sends 17 tokens; shorten"):
        adapter(texts()[:, :17])


def test_positions_that_are_no_table_do_not_end() -> None:
    """ALiBi, and hybrids without RoPE: their configs name max_position_embeddings all the same."""
    import transformers as t

    sizes = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    falcon = t.FalconForCausalLM(t.FalconConfig(**sizes, alibi=True, max_position_embeddings=16))
    jamba = {"intermediate_size": 32, "num_key_value_heads": 2, "attn_layer_offset": 0, "use_mamba_kernels": False}
    models = falcon, t.JambaForCausalLM(t.JambaConfig(**sizes, **jamba, max_position_embeddings=16))
    for model in models:
        adapter, tokens_BS = Adapter(model.eval()), texts()
        assert adapter.most_tokens is None
        with torch.no_grad():
            logits_BSV = adapter.logits(adapter(tokens_BS).hidden_BTD)
            torch.testing.assert_close(logits_BSV, model(tokens_BS).logits)


def test_every_part_keeps_its_own_attention() -> None:
    import transformers as t

    text = {k: v for k, v in COMMON.items() if k != "initializer_range"}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = t.Gemma3Config(text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14})
    config._attn_implementation = {"": "sdpa", "text_config": "eager", "vision_config": "sdpa"}
    model = t.Gemma3ForConditionalGeneration(config).eval()
    parts = model.config, model.config.text_config, model.config.vision_config
    before = [part._attn_implementation for part in parts]
    adapter = Adapter(model)
    seen: list[int] = []
    with torch.no_grad(), tapping(adapter, lambda layer, attended: seen.append(layer)):
        adapter(texts())
    assert seen == [0, 1, 2] and adapter.num_heads == 4
    assert before == [part._attn_implementation for part in parts] and before[1] != before[2]


def test_a_model_that_knows_its_attention_by_name_computes_as_before() -> None:
    """DeepSeek V3.2 leaves its choice of keys out under a name of attention that it does not know."""
    import transformers as t

    if not hasattr(t, "DeepseekV32Config"):
        pytest.skip(f"transformers {t.__version__} has no DeepSeek V3.2")
    sizes = {k: v for k, v in COMMON.items() if k not in ("head_dim", "num_key_value_heads")}
    sizes |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    sizes |= {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 8, "first_k_dense_replace": 3}
    torch.manual_seed(1)
    model = t.DeepseekV32ForCausalLM(t.DeepseekV32Config(**sizes, num_key_value_heads=4)).eval()
    adapter = Adapter(model)
    seen: list[float] = []

    def tap(layer: int, attended: Any) -> None:
        seen.append(float((attended.rows(0, S - 1, S) > 0).sum(-1).max()))

    with torch.no_grad(), tapping(adapter, tap):
        hidden_BTD = adapter(texts()).hidden_BTD
    torch.testing.assert_close(adapter.logits(hidden_BTD), model(texts(), use_cache=False).logits)
    assert seen == [8, 8, 8]


def test_biases_are_added_to_the_rows() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(1, 6, heads, 4, generator=generator) for heads in (2, 1))
    bias = torch.randn(1, 2, 6, 6, generator=generator)
    logits_NTS = torch.einsum("tnh,sh->nts", q[0], k[0, :, 0]) * 0.5 + bias[0]
    want = logits_NTS.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), float("-inf")).softmax(-1)
    torch.testing.assert_close(Attended(q, k, 0.5, mask=bias).rows(0, 2, 6), want[:, 2:])
