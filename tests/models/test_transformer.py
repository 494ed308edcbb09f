"""The whole decoder: documents do not see each other, a seed is its bytes, transformers gives the same logits."""

import hashlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lccp_sim.config import RouterConfig
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.models.lighthouse import LighthouseAttention
from lccp_sim.models.positions import rotation
from lccp_sim.models.taps import attending_as_trained, gating, tapping
from lccp_sim.models.transformer import Transformer, initialise

LENGTHS = (6, 7, 9)  # documents A, B, C of one row
# Everything that a Hunyuan does not have, in one model.
OTHER: dict[str, Any] = {
    "num_dense_layers": 1, "d_dense": 24, "qk_norm": "full_width", "qkv_bias": True, "out_bias": True,
    "window_tokens": 4, "full_attention_every": 3, "tie_embeddings": False,
    "router": RouterConfig(scores="sigmoid", scale=2.5, num_groups=2, num_groups_kept=1),
}  # fmt: skip


def leak(model: Transformer, bounds: Tensor, layer: int) -> Tensor:
    """Per token, the gradient norm of document B's logits with respect to what enters block `layer`, [T].

    Layer 0 is the embeddings; deeper ones say which layer lets information through.
    """
    T = sum(LENGTHS)
    kept: dict[str, Tensor] = {}

    def keep(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept["x"] = inputs[0]
        inputs[0].retain_grad()

    handle = model.blocks[layer].attention_norm.register_forward_pre_hook(keep)
    tokens_BT = torch.randint(model.vocab_size, (1, T))
    position_BT = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    hidden_BTD = model(tokens_BT, position_BT, bounds).hidden_BTD
    handle.remove()
    logits = hidden_BTD[0, LENGTHS[0] : LENGTHS[0] + LENGTHS[1]] @ model.head_weight.detach().T
    logits.square().sum().backward()
    return kept["x"].grad[0].norm(dim=-1)


SPARSE = {"attention": LighthouseAttention(levels=2, factor=2, budget=4, tile_budget=2)}


@pytest.mark.parametrize("changes", [{}, OTHER, {"window_tokens": 4}, SPARSE], ids=["", "other", "window", "sparse"])
@pytest.mark.parametrize("gate", [None, 0.5], ids=["", "gated"])
def test_hidden_states_of_some_places_are_those_of_the_whole_row(model, changes: dict, gate: float | None) -> None:
    transformer = model(**changes).eval()
    tokens_BT, place_BA = torch.randint(transformer.vocab_size, (2, 24)), torch.tensor([[23, 3, 0], [7, 8, 9]])
    gate_LN = torch.ones(transformer.num_layers, transformer.num_heads)
    gate_LN[-1, 1] = 1.0 if gate is None else gate
    widths = []
    transformer.layers[-1].attention.out.register_forward_hook(lambda *seen: widths.append(seen[2].shape[1]))
    with torch.no_grad(), gating(transformer, gate_LN), attending_as_trained(transformer):
        some = transformer.hidden_at(tokens_BT, place_BA)
        torch.testing.assert_close(some, LanguageModel.hidden_at(transformer, tokens_BT, place_BA), atol=1e-6, rtol=0)
    assert widths == [3, 24], "the last layer computes what was asked for"


@pytest.mark.parametrize("changes", [{}, OTHER], ids=["", "other"])
@pytest.mark.parametrize("layer", range(3))
def test_documents_do_not_see_each_other(model, backend: str, layer: int, changes: dict) -> None:
    grad_T = leak(model(experts=backend, **changes), torch.tensor([0, *LENGTHS]).cumsum(0), layer)
    own = slice(LENGTHS[0], LENGTHS[0] + LENGTHS[1])
    assert grad_T[own].gt(0).all()
    assert grad_T[: own.start].eq(0).all() and grad_T[own.stop :].eq(0).all()


@pytest.mark.parametrize("layer", range(3))
def test_a_planted_leak_is_seen(model, backend: str, layer: int) -> None:
    """Bounds that join A and B: the same gradient is no longer zero, and C still sees nothing."""
    grad_T = leak(model(experts=backend), torch.tensor([0, LENGTHS[0] + LENGTHS[1], sum(LENGTHS)]), layer)
    assert grad_T[: LENGTHS[0]].gt(0).all()
    assert grad_T[LENGTHS[0] + LENGTHS[1] :].eq(0).all()


@pytest.mark.parametrize("changes", [{}, OTHER], ids=["", "other"])
def test_a_packed_document_is_the_document_alone(model, changes: dict) -> None:
    transformer = model(**changes).eval()
    tokens_BT = torch.randint(50, (1, sum(LENGTHS)))
    position_BT = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    packed = transformer(tokens_BT, position_BT, torch.tensor([0, *LENGTHS]).cumsum(0)).hidden_BTD
    alone = [transformer(piece).hidden_BTD for piece in tokens_BT.split(LENGTHS, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), atol=2e-5, rtol=1e-5)


def test_a_dense_layer_is_one_swiglu_and_counts_for_nothing(model) -> None:
    transformer, tokens_BT = model(**OTHER), torch.randint(50, (2, 9))
    block, seen = transformer.blocks[0], []
    block.register_forward_hook(lambda _, inputs, out: seen.append((inputs, out[0])))
    for later in transformer.blocks[1:]:
        later.moe.register_forward_hook(lambda _, __, out: seen.append(out[1]))
    out = transformer(tokens_BT)
    (x_BTD, rope, bounds, *_), y_BTD = seen[0]
    x_BTD = x_BTD + block.attention(block.attention_norm(x_BTD), rope, bounds)
    gate, up = F.linear(block.moe_norm(x_BTD), block.dense.gate_up.weight).chunk(2, dim=-1)
    assert gate.shape[-1] == 24 and block.moe is None
    torch.testing.assert_close(y_BTD, x_BTD + F.linear(F.silu(gate) * up, block.dense.down.weight))
    assert out.count_LE[0].eq(0).all() and torch.equal(out.count_LE[1:], torch.stack([r.count_E for r in seen[1:]]))
    torch.testing.assert_close(out.balance_loss, (seen[1].balance_loss + seen[2].balance_loss) / 2)
    torch.testing.assert_close(out.z_loss, (seen[1].z_loss + seen[2].z_loss) / 2)


def test_a_dense_model_has_no_router_losses(model) -> None:
    transformer = model(num_dense_layers=3, d_dense=24)
    out = transformer(torch.randint(50, (2, 9)))
    assert not any(".moe." in name or "bias" in name for name in transformer.state_dict())
    assert out.balance_loss == out.z_loss == 0 and out.count_LE.shape == (3, 4) and not out.count_LE.any()
    (out.hidden_BTD.square().sum() + out.balance_loss).backward()
    assert all(p.grad is not None for p in transformer.parameters())


def test_a_fresh_model_has_the_scale_that_is_promised(model) -> None:
    """Standard deviation of every matrix and value of every vector, of a model that has every part."""
    transformer = model(**OTHER, d_model=64, num_shared_experts=1)
    for name, weight in transformer.named_parameters():
        part = name.split(".", 2)[-1]
        if weight.ndim == 1:
            assert weight.eq(0.0 if name.endswith("bias") else 1.0).all(), name
            continue
        fan_in = {"attention.out": 32, "moe.down_EFD": 16, "shared.down": 16, "dense.down": 24}
        found = [n for key, n in fan_in.items() if key in part]
        want = (found[0] * 2 * 3) ** -0.5 if found else 64**-0.5
        assert weight.std().item() == pytest.approx(want, rel=0.15), name


def test_a_model_of_the_first_kind_is_what_it_was_to_the_last_bit(model) -> None:
    """The draws of its weights in their order, and its blocks in their plain form."""
    transformer, generator = model(seed=5, tie_embeddings=False), torch.Generator().manual_seed(5)
    shrink = (2 * 3) ** -0.5
    parts = ("attention.qkv", 32, 1), ("attention.out", 32, shrink), ("moe.router", 32, 1), ("moe.gate_EFD", 32, 1)
    parts += ("moe.up_EFD", 32, 1), ("moe.down_EFD", 16, shrink), ("moe.shared.gate_up", 32, 1)
    parts += (("moe.shared.down", 16, shrink),)
    drawn = [("embedding", 32, 1.0), *((f"blocks.{n}.{name}", *x) for n in range(3) for name, *x in parts)]
    state = transformer.state_dict()
    for name, fan_in, factor in [*drawn, ("lm_head", 32, 1.0)]:
        weight = state[name] if name in state else state[f"{name}.weight"]
        assert torch.equal(weight, torch.randn(weight.shape, generator=generator) * (fan_in**-0.5 * factor)), name
    tokens_BT, bounds = torch.randint(50, (2, 9)), torch.tensor([0, 9, 18])
    rope = rotation(torch.arange(9).expand(2, 9), transformer.frequencies, transformer.rope_scale, torch.float32)
    x_BTD, routings = transformer.embedding(tokens_BT), []
    for block in transformer.layers:
        x_BTD = x_BTD + block.attention(block.attention_norm(x_BTD), rope, bounds)
        y_BTD, routing = block.moe(block.moe_norm(x_BTD))
        x_BTD = x_BTD + y_BTD
        routings.append(routing)
    out = transformer(tokens_BT)
    assert torch.equal(out.hidden_BTD, transformer.norm(x_BTD))
    balance, z, counts = (torch.stack(column) for column in zip(*routings, strict=True))
    assert out.balance_loss == balance.mean() and out.z_loss == z.mean() and torch.equal(out.count_LE, counts)


def test_the_names_of_the_weights_are_those_that_others_read(model) -> None:
    names = {name.replace("blocks.0.", "").replace("blocks.1.", "") for name in model(**OTHER).state_dict()}
    names = {name for name in names if not name.startswith("blocks.2")}
    attention = {f"attention.{part}.{what}" for part in ("qkv", "out") for what in ("weight", "bias")}
    attention |= {"attention.q_norm.weight", "attention.k_norm.weight", "attention_norm.weight", "moe_norm.weight"}
    moe = {"moe.router.weight", "moe.gate_EFD", "moe.up_EFD", "moe.down_EFD", "moe.bias_E"}
    mlps = {"moe.shared.gate_up.weight", "moe.shared.down.weight", "dense.gate_up.weight", "dense.down.weight"}
    assert names == attention | moe | mlps | {"embedding.weight", "norm.weight", "lm_head.weight"}


def digest(model: Transformer) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.state_dict().values())).hexdigest()


def test_a_seed_is_its_bytes_whatever_ran_before(model) -> None:
    first = digest(model(seed=7, previous_token_heads=1))
    torch.manual_seed(99)
    torch.randn(1000)
    state = torch.random.get_rng_state()
    transformer = model(seed=8, previous_token_heads=1)
    other = digest(transformer)
    torch.manual_seed(99)
    torch.randn(1000)
    assert digest(initialise(transformer, 7)) == first != other
    assert torch.equal(torch.random.get_rng_state(), state), "initialise draws from its own generator"


@pytest.mark.parametrize(
    "changes", [{}, {"scale_embeddings": True, "init_std": 0.02}, {"qk_norm": "before_rope"}], ids=str
)
def test_planted_heads_attend_to_the_previous_token(model, changes: dict) -> None:
    base = {"previous_token_heads": 1, "qk_norm": "after_rope", "qk_norm_gain": 4.0, "d_head": 16, "num_kv_heads": 4}
    transformer = model(base=100.0, **(base | changes)).eval()
    seen = {}
    with torch.no_grad(), tapping(transformer, lambda layer, attended: seen.update({layer: attended})):
        transformer(torch.randint(50, (1, 40)))
    for layer in (0, 1):
        prob_NAS = seen[layer].rows(0, 1, 40)
        previous_NA = prob_NAS.diagonal(dim1=1, dim2=2)
        assert (prob_NAS[0].argmax(-1) == torch.arange(39)).all()
        assert previous_NA[0].mean() > 3 * previous_NA[1:].mean()


def test_each_planted_head_attends_one_token_further_back(model) -> None:
    transformer = model(base=1e7, previous_token_heads=3, qk_norm_gain=4.0, d_head=32, num_kv_heads=4).eval()
    seen = {}
    with torch.no_grad(), tapping(transformer, lambda layer, attended: seen.update({layer: attended})):
        transformer(torch.randint(50, (1, 40)))
    for head in range(3):
        prob_AS = seen[0].rows(0, 1, 40)[head]
        near_A = prob_AS.argmax(-1)[head:]  # the first rows have no token that far back
        assert (near_A == torch.arange(39 - head)).all()


@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_gradients_are_those_of_transformers(model, tied: bool) -> None:
    from transformers.models.hunyuan_v1_moe.configuration_hunyuan_v1_moe import HunYuanMoEV1Config
    from transformers.models.hunyuan_v1_moe.modeling_hunyuan_v1_moe import HunYuanMoEV1ForCausalLM

    ours = model(qk_norm="after_rope", tie_embeddings=tied, num_shared_experts=1)
    c = ours.config
    theirs = HunYuanMoEV1ForCausalLM(
        HunYuanMoEV1Config(
            vocab_size=50,
            hidden_size=c.d_model,
            intermediate_size=c.d_expert,
            num_hidden_layers=c.num_layers,
            num_attention_heads=c.num_heads,
            num_key_value_heads=c.num_kv_heads,
            head_dim=c.d_head,
            num_experts=c.num_experts,
            moe_topk=c.num_experts_per_token,
            rms_norm_eps=c.norm_eps,
            tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            use_cache=False,
        )
    )
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)  # norm weights that are all 1 would hide a norm in the wrong place
    pairs = copy_weights(ours, theirs)
    tokens_BT = torch.randint(1, 50, (2, 33))  # 0 pads there: its row gets no gradient
    want = theirs(tokens_BT).logits
    got = ours(tokens_BT).hidden_BTD @ ours.head_weight.T
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    target = torch.randint(50, (66,))
    for logits in (got, want):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), target).backward()
    for parameter, source in pairs:
        torch.testing.assert_close(parameter.grad, source.grad, atol=1e-4, rtol=1e-3)


def copy_weights(ours: Transformer, theirs: torch.nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Pairs of parameters that must have equal gradients, after ours went into theirs (fused ones are split)."""
    c, body = ours.config, theirs.model
    pairs = [(ours.embedding.weight, body.embed_tokens.weight), (ours.norm.weight, body.norm.weight)]
    if ours.lm_head is not None:
        pairs.append((ours.lm_head.weight, theirs.lm_head.weight))
    split = (c.num_heads * c.d_head, c.num_kv_heads * c.d_head, c.num_kv_heads * c.d_head)
    with torch.no_grad():
        for mine, other in zip(ours.blocks, body.layers, strict=True):
            attention, moe, shared = other.self_attn, other.mlp, other.mlp.shared_mlp
            pairs += [
                (mine.attention_norm.weight, other.input_layernorm.weight),
                (mine.moe_norm.weight, other.post_attention_layernorm.weight),
                (mine.attention.q_norm.weight, attention.query_layernorm.weight),
                (mine.attention.k_norm.weight, attention.key_layernorm.weight),
                (mine.attention.out.weight, attention.o_proj.weight),
                (mine.moe.router.weight, moe.gate.wg.weight),
                (mine.moe.shared.down.weight, shared.down_proj.weight),
            ]
            for part, weight in zip(
                (attention.q_proj, attention.k_proj, attention.v_proj),
                mine.attention.qkv.weight.split(split),
                strict=True,
            ):
                part.weight.copy_(weight)
            for part, weight in zip(
                (shared.gate_proj, shared.up_proj), mine.moe.shared.gate_up.weight.chunk(2), strict=True
            ):
                part.weight.copy_(weight)
            moe.experts.gate_up_proj.copy_(torch.cat((mine.moe.gate_EFD, mine.moe.up_EFD), dim=1))
            moe.experts.down_proj.copy_(mine.moe.down_EFD.transpose(1, 2))
        for parameter, source in pairs:
            source.copy_(parameter)
    return pairs
