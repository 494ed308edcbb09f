"""Weights and matrix products of a decoder, part by part: exact counts, from a config or for known models.

The active weights are those that a token uses: its own experts and all other parts, including the embedding; a tied
head counts once. Design note: published counts often omit the embedding, so `Counts` has both.
"""

from typing import Any, NamedTuple

from lccp_sim.config import Config, ModelConfig
from lccp_sim.errors import ConfigError, nearest


class WeightPart(NamedTuple):
    """Weights, those that one token uses, and the multiply-adds of its matrix products for one token."""

    total: int
    active: int
    products: int


class Layer(NamedTuple):
    """Parts by name; multiply-adds for each pair of a query and a key (all heads); keys that a query sees, or None.

    `attention`: the attention of the layer in a sparse stage of training, with `entries(tokens)`; None: always dense.
    """

    parts: dict[str, WeightPart]
    pair_products: int
    window: int | None
    attention: Any = None


class Shape(NamedTuple):
    """A model. `ends` are the parts outside the layers."""

    d_model: int
    vocab_size: int
    layers: tuple[Layer, ...]
    ends: dict[str, WeightPart]

    def parts(self) -> dict[str, WeightPart]:
        """The parts by name, summed over the layers."""
        sums = dict(self.ends)
        for layer in self.layers:
            for name, part in layer.parts.items():
                before = sums.get(name, WeightPart(0, 0, 0))
                sums[name] = WeightPart(*(a + b for a, b in zip(before, part, strict=True)))
        return sums


class Counts(NamedTuple):
    """Weights; those that one token uses; and these without an embedding that only looks up (an untied one)."""

    total: int
    active: int
    active_without_lookup: int


def counts(shape: Shape) -> Counts:
    """Exact numbers of weights. Selection biases of routers, which receive no gradient, are not counted."""
    parts = shape.parts()
    total, active = sum(p.total for p in parts.values()), sum(p.active for p in parts.values())
    untied = parts["head"].total > 0
    return Counts(total, active, active - untied * parts["embedding"].total)


def mean_keys(context_tokens: int, window: int | None = None) -> float:
    """The keys that a query sees on average in causal attention over one text: (T + 1) / 2, fewer with a window."""
    w = min(window or context_tokens, context_tokens)
    return (w * (w + 1) / 2 + (context_tokens - w) * w) / context_tokens


def mean_pairs(layer: Layer, context_tokens: int, sparse_frac: float) -> float:
    """Pairs of a query and a key for one token, averaged over a text whose share `sparse_frac` is attended sparsely."""
    dense = mean_keys(context_tokens, layer.window)
    if layer.attention is None:
        return dense
    entries = layer.attention.entries(context_tokens)
    return sparse_frac * entries * mean_keys(entries) / context_tokens + (1 - sparse_frac) * dense


def forward_flops(shape: Shape, context_tokens: int, sparse_frac: float = 0.0) -> dict[str, float]:
    """FLOPs of a forward pass for one token, by part, averaged over one text of `context_tokens`.

    Only matrix products count, a multiply-add as two. Attention is causal: each query counts only the pairs that it
    sees, about half of the count for the full square of the context. Norms, softmax, RoPE and the means of windows are
    left out (below 1 % at real widths). `sparse_frac` is the share of tokens that use the layers' sparse attention, if
    any.
    """
    flops = {name: 2.0 * part.products for name, part in shape.parts().items() if part.products}
    pairs = sum(layer.pair_products * mean_pairs(layer, context_tokens, sparse_frac) for layer in shape.layers)
    return flops | {"attention scores": 2.0 * pairs}


def training_flops(shape: Shape, context_tokens: int, sparse_frac: float = 0.0) -> float:
    """FLOPs of training for one token: forward, and twice that for the backward pass, without recomputation."""
    return 3.0 * sum(forward_flops(shape, context_tokens, sparse_frac).values())


def sparse_frac(config: Config) -> float:
    """The share of a run's tokens that it trains on with sparse attention: its steps before `dense_from_tokens`."""
    attention, batch = config.model.attention, config.run.batch_tokens
    if attention is None:
        return 0.0
    until = attention.dense_from_tokens
    return 1.0 if until is None else min(1.0, -(-until // batch) / config.run.steps)


def matrix(rows: int, columns: int, bias: bool = False) -> WeightPart:
    """A dense layer that every token passes."""
    weights = rows * columns + rows * bias
    return WeightPart(weights, weights, rows * columns)


def vector(width: int) -> WeightPart:
    """Weights that multiply or add elementwise."""
    return WeightPart(width, width, 0)


def added(*parts: WeightPart) -> WeightPart:
    """The sum of the parts."""
    return WeightPart(*(sum(column) for column in zip(*parts, strict=True)))


def experts(number: int, per_token: int, d_model: int, d_expert: int, bias: bool = False) -> WeightPart:
    """SwiGLU experts; each token passes through `per_token` of them."""
    one = 3 * d_model * d_expert + bias * (2 * d_expert + d_model)
    return WeightPart(number * one, per_token * one, per_token * 3 * d_model * d_expert)


def ends(d_model: int, vocab_size: int, tied: bool) -> dict[str, WeightPart]:
    """The embedding, the head and the last norm."""
    weights = vocab_size * d_model
    head = 0 if tied else weights
    return {
        "embedding": WeightPart(weights, weights, 0),
        "head": WeightPart(head, head, weights),
        "norms": vector(d_model),
    }


def shape_of(config: ModelConfig, vocab_size: int) -> Shape:
    """The shape of one of our own models."""
    c = config
    q, k = c.num_heads * c.d_head, c.num_kv_heads * c.d_head
    norms = {"none": 0, "full_width": q + k}.get(c.qk_norm, 2 * c.d_head)
    attention = added(matrix(q + 2 * k, c.d_model, c.qkv_bias), matrix(c.d_model, q, c.out_bias), vector(norms))
    mixture = {
        "router": matrix(c.num_experts, c.d_model),
        "experts": experts(c.num_experts, c.num_experts_per_token, c.d_model, c.d_expert),
        "shared experts": matrix(3 * c.num_shared_experts * c.d_expert, c.d_model),
    }
    dense = {"dense layers": matrix(3 * (c.d_dense or 0), c.d_model)}
    layers = tuple(
        Layer(
            {"attention": attention, "norms": vector(2 * c.d_model)}
            | (dense if layer < c.num_dense_layers else mixture),
            2 * q,
            c.window(layer),
            c.attention and c.attention.at(layer, c.num_layers),
        )
        for layer in range(c.num_layers)
    )
    return Shape(c.d_model, vocab_size, layers, ends(c.d_model, vocab_size, c.tie_embeddings))


def gpt_oss(num_layers: int, num_experts: int) -> Shape:
    """gpt-oss: biases everywhere, one sink weight per head, windows of 128 in every other layer (arXiv 2508.10925)."""
    d, heads, kv, width = 2880, 64, 8, 64
    attention = added(matrix((heads + 2 * kv) * width, d, True), matrix(d, heads * width, True), vector(heads))
    parts = {
        "attention": attention,
        "norms": vector(2 * d),
        "router": matrix(num_experts, d, True),
        "experts": experts(num_experts, 4, d, d, bias=True),
    }
    layers = tuple(Layer(parts, 2 * heads * width, None if layer % 2 else 128) for layer in range(num_layers))
    return Shape(d, 201088, layers, ends(d, 201088, tied=False))


def deepseek_v3() -> Shape:
    """DeepSeek-V3 without its multi-token prediction: MLA, three dense layers (arXiv 2412.19437)."""
    d, heads, content, rope, value, q_rank, kv_rank = 7168, 128, 128, 64, 128, 1536, 512
    attention = added(
        matrix(q_rank, d), vector(q_rank), matrix(heads * (content + rope), q_rank),
        matrix(kv_rank + rope, d), vector(kv_rank), matrix(heads * (content + value), kv_rank),
        matrix(d, heads * value),
    )  # fmt: skip
    mixture = {"router": matrix(256, d), "experts": experts(256, 8, d, 2048), "shared experts": matrix(3 * 2048, d)}
    dense = {"dense layers": matrix(3 * 18432, d)}
    layers = tuple(
        Layer(
            {"attention": attention, "norms": vector(2 * d)} | (dense if layer < 3 else mixture),
            heads * (content + rope + value),
            None,
        )
        for layer in range(61)
    )
    return Shape(d, 129280, layers, ends(d, 129280, tied=False))


# Counted only: no code here builds or trains them.
COUNTED_SHAPES = {
    "gpt_oss_20b": lambda: gpt_oss(24, 32),
    "gpt_oss_120b": lambda: gpt_oss(36, 128),
    "deepseek_v3": deepseek_v3,
}


def counted_shape(name: str) -> Shape:
    """The shape of a model that is counted only. Raises ConfigError with the nearest name."""
    if name not in COUNTED_SHAPES:
        raise ConfigError(
            f"--counted {name}: no such shape; there are {', '.join(COUNTED_SHAPES)}{nearest(name, COUNTED_SHAPES)}"
        )
    return COUNTED_SHAPES[name]()
