"""RoPE is multiplication by a complex number, in the channel layout of transformers, exact at far positions."""

import functools
from typing import Any

import pytest
import torch

from lccp_sim.errors import ConfigError
from lccp_sim.models.positions import (
    POSITIONS,
    AlphaRope,
    BaseRope,
    LinearRope,
    Llama3Rope,
    NtkRope,
    ProportionalRope,
    Rope,
    YarnRope,
    rotate,
    rotation,
)

YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
LLAMA = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# Each variant, and what a config.json of transformers says for it; `tokens` is the length that dynamic NTK looks at.
VARIANTS: dict[str, tuple[Rope, dict[str, Any]]] = {
    "base": (BaseRope(5e5), {"rope_type": "default"}),
    "ntk": (NtkRope(1e4, 4.0), {"rope_type": "dynamic", "factor": 1.0, "tokens": 4 * 4096}),
    "ntk of dynamic": (NtkRope(1e4, 7.0), {"rope_type": "dynamic", "factor": 2.0, "tokens": 4 * 4096}),
    "alpha": (AlphaRope(1e4, 1000.0), {"rope_type": "ntk_alpha", "alpha": 1000.0}),
    "linear": (LinearRope(1e4, 8.0), {"rope_type": "linear", "factor": 8.0}),
    "yarn": (YarnRope(1.5e5, 32.0, 4096), YARN),
    "yarn of gpt-oss": (YarnRope(1.5e5, 32.0, 4096, truncate=False), YARN | {"truncate": False}),
    "yarn with mscale": (
        YarnRope(1e4, 40.0, 4096, mscale=1.0, mscale_all_dim=0.707),
        YARN | {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707},
    ),
    "yarn with all given": (
        YarnRope(1e6, 4.0, 1024, beta_fast=16.0, beta_slow=2.0, attention_factor=1.25),
        YARN
        | {"factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 16.0, "beta_slow": 2.0}
        | {"attention_factor": 1.25},
    ),
    "yarn of a factor of 1": (YarnRope(1e4, 1.0, 4096), YARN | {"factor": 1.0}),
    "llama3": (Llama3Rope(5e5, 8.0, 1.0, 4.0, 8192), LLAMA | {"rope_type": "llama3"}),
    "proportional": (ProportionalRope(1e4, 0.3), {"rope_type": "proportional", "partial_rotary_factor": 0.3}),
}

POSITION_BT = torch.tensor([[0, 1, 7, 1000], [3, 4, 5, 500_000]])


def complex_rotation(x_BTNH: torch.Tensor, base: float) -> torch.Tensor:
    """Pairs (i, i + H/2) as complex numbers, times e^(i * position * base^(-2i/H)), all in fp64."""
    H = x_BTNH.shape[-1]
    first, second = x_BTNH.double().chunk(2, dim=-1)
    frequency = torch.tensor([base ** (-2 * i / H) for i in range(H // 2)], dtype=torch.float64)
    angle = POSITION_BT.double()[:, :, None, None] * frequency
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=-1)


def test_rotation_is_a_complex_product_even_at_half_a_million() -> None:
    x_BTNH = torch.randn(2, 4, 3, 16)
    for base in (10_000.0, 5e5):
        cos, sin = rotation(POSITION_BT, *BaseRope(base).frequencies(16), torch.float32)
        assert cos.shape == (2, 4, 1, 8)
        torch.testing.assert_close(rotate(x_BTNH, cos, sin).double(), complex_rotation(x_BTNH, base), atol=1e-6, rtol=0)


def test_it_is_the_rotary_embedding_of_transformers() -> None:
    from transformers.models.hunyuan_v1_moe import modeling_hunyuan_v1_moe as theirs
    from transformers.models.hunyuan_v1_moe.configuration_hunyuan_v1_moe import HunYuanMoEV1Config

    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    config = HunYuanMoEV1Config(
        hidden_size=64, num_attention_heads=4, head_dim=16, vocab_size=8, num_hidden_layers=1, rope_parameters=rope
    )
    x_BTNH, position_BT = torch.randn(2, 4, 3, 16), POSITION_BT.clamp(max=1000)
    cos, sin = theirs.HunYuanMoEV1RotaryEmbedding(config)(x_BTNH, position_BT)
    want, _ = theirs.apply_rotary_pos_emb(x_BTNH, x_BTNH, cos, sin, unsqueeze_dim=2)
    ours = rotate(x_BTNH, *rotation(position_BT, *BaseRope(10_000.0).frequencies(16), torch.float32))
    torch.testing.assert_close(ours, want, atol=2e-4, rtol=0)  # theirs forms the angle in fp32


def test_products_depend_on_distance_alone() -> None:
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def product(first: int, second: int) -> float:
        turn = [rotation(torch.tensor([[p]]), *BaseRope(1e4).frequencies(16), torch.float64) for p in (first, second)]
        return (rotate(q.double(), *turn[0]) * rotate(k.double(), *turn[1])).sum().item()

    assert abs(product(5, 3) - product(90_005, 90_003)) < 1e-8
    assert abs(product(5, 3) - product(5, 4)) > 1e-3


def test_every_variant_gives_one_frequency_a_pair() -> None:
    for kind, (rope, _) in VARIANTS.items():
        frequency, scale = rope.frequencies(16)
        assert frequency.shape == (8,) and frequency.dtype == torch.float64, kind
        turning = frequency[frequency > 0]
        assert torch.equal(turning, frequency[: len(turning)]) and turning.diff().lt(0).all() and scale >= 1, kind
        assert len(turning) == (2 if kind == "proportional" else 8)
        with torch.device("meta"):
            assert torch.equal(rope.frequencies(16)[0], frequency), "a model made on meta knows its angles"
    assert {rope.kind for rope, _ in VARIANTS.values()} == set(POSITIONS)


class Double:
    """torch as a module of transformers sees it, with fp64 for fp32: their formula without their rounding."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.mark.parametrize(("rope", "theirs"), VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("d_head", [16, 64, 128])
def test_frequencies_are_those_of_transformers(
    rope: Rope, theirs: dict[str, Any], d_head: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1e-7 of each frequency where theirs is computed in fp64, and 1e-7 radians in the fp32 that they ship."""
    from transformers import modeling_rope_utils
    from transformers.models.hunyuan_v1_moe import modeling_hunyuan_v1_moe as hunyuan

    kind, tokens = theirs["rope_type"], theirs.get("tokens")
    given = {"rope_theta": rope.base} | {key: value for key, value in theirs.items() if key != "tokens"}
    config = hunyuan.HunYuanMoEV1Config(
        head_dim=d_head, num_attention_heads=4, max_position_embeddings=4096, rope_parameters=given
    )
    embedding = hunyuan.HunYuanMoEV1RotaryEmbedding
    run = {
        "default": embedding.compute_default_rope_parameters,
        "ntk_alpha": embedding.compute_ntk_alpha_rope_parameters,
    }.get(kind) or functools.partial(modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind], seq_len=tokens)
    ours, scale = rope.frequencies(d_head)
    shipped, factor = run(config)
    torch.testing.assert_close(ours, shipped.double(), atol=1e-7, rtol=0)
    assert scale == pytest.approx(factor, rel=1e-7)
    for module in (modeling_rope_utils, hunyuan):
        monkeypatch.setattr(module, "torch", Double())
    exact, _ = run(config)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(ours, exact, atol=0, rtol=1e-7)


def test_bad_variants_are_named() -> None:
    with pytest.raises(ConfigError, match="model.rope.beta_fast=1.0: must be above beta_slow=2"):
        YarnRope(1e4, 4.0, 4096, beta_fast=1.0, beta_slow=2.0)
    with pytest.raises(ConfigError, match="model.rope.high_freq_factor=1.0: must be above low_freq_factor=1"):
        Llama3Rope(5e5, 8.0, 1.0, 1.0, 8192)
    with pytest.raises(ConfigError, match="model.d_head=2: must be at least 4"):
        NtkRope(1e4, 4.0).frequencies(2)
