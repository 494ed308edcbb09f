"""RoPE is multiplication by a complex number, in the channel layout of transformers, exact at far positions."""

import torch

from lccp_sim.models.positions import POSITIONS, BaseRope, rotate, rotation

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
    for name, variant in POSITIONS.items():
        frequency, scale = variant(base=10_000.0).frequencies(16)
        assert frequency.shape == (8,) and frequency.dtype == torch.float64 and scale == 1.0, name
        assert frequency.diff().lt(0).all() and frequency[0] == 1
