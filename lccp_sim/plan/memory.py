"""Memory of one device: weights, AdamW, the tensors that the model's autograd functions actually save, the loss.

Each term follows a line of models/{attention,kernels,moe,loss}.py. Tests and bench/plan_accuracy.py compare the result
with the measured peak. With several devices, weights, gradients and moments are sharded evenly over them (ZeRO-3, arXiv
1910.02054), the weights of a layer are gathered when its turn comes, and experts lie on `ep` groups of devices. Design
note: this was measured on ranks simulated on one CPU, without NCCL's buffers and GPU streams.
"""

from typing import NamedTuple

from lccp_sim.config import Config, ModelConfig
from lccp_sim.plan.shapes import Layer, Shape

LOGIT_ROWS, SLICE_ROWS, WINDOW_BLOCK = 256, 1024, 64  # as in models/loss.py, kernels.py and attention.py


class Layout(NamedTuple):
    """Devices = dp x ep x cp: groups with different rows, with different experts, and with a share of a row's tokens.

    Devices with different experts also have different rows; only `cp` devices share a row.
    """

    dp: int = 1
    ep: int = 1
    cp: int = 1

    @property
    def devices(self) -> int:
        """The number of devices."""
        return self.dp * self.ep * self.cp


class Place(NamedTuple):
    """The factors that decide which tensors are kept: precision, and GPU or CPU (which use different kernels).

    `exact`: sharded weights are gathered in fp32 although products are in bf16, as monitors in fp32 require.
    """

    bf16: bool
    gpu: bool
    exact: bool = False

    @property
    def gathers_bf16(self) -> bool:
        """Whether sharded weights are gathered in bf16."""
        return self.bf16 and not self.exact


def place_of(config: Config, gpu: bool) -> Place:
    """The place where a run trains."""
    return Place(config.run.precision == "bf16", gpu, exact=not config.watched_in_bf16)


class Memory(NamedTuple):
    """Bytes of one device. `step` is the largest additional need of the loss or of one layer's backward pass."""

    weights: float
    gradients: float
    moments: float
    copies: float
    activations: float
    step: float
    copies_checkpointed: float
    activations_checkpointed: float
    step_checkpointed: float
    logits: float  # part of `step`

    @property
    def state(self) -> float:
        """The bytes held between two micro-batches."""
        return self.weights + self.gradients + self.moments

    @property
    def total(self) -> float:
        """The peak without checkpointing."""
        return self.state + self.copies + self.activations + self.step

    @property
    def total_checkpointed(self) -> float:
        """The peak if blocks keep only their input and run again in the backward pass."""
        return self.state + self.copies_checkpointed + self.activations_checkpointed + self.step_checkpointed

    def peak(self, every: int | None) -> float:
        """The peak of a run with this `run.recompute_every`."""
        return self.total_checkpointed if every else self.total


def memory(
    config: ModelConfig, shape: Shape, tokens: int, layout: Layout, place: Place, every: int | None = None,
    row: int | None = None,
) -> Memory:  # fmt: skip
    """Bytes of a device that holds `tokens` tokens of a micro-batch; experts get equal numbers of rows.

    Checkpointed is the first of every `every` blocks, as in train/loop/recompute.py (None: each block). Sparse
    attention needs the tokens of a `row` (None: all tokens are one row). If it becomes dense in the end, the larger
    need counts.
    """
    total = sum(part.total for part in shape.parts().values())
    mine, cut = total / layout.devices, layout.devices > 1
    local = [_matrices(layer, layout.ep) for layer in shape.layers]
    again = range(0, config.num_layers, every or 1)
    cast = 2.0 * (place.bf16 and not (cut and place.gathers_bf16))  # bytes of a weight's additional bf16 copy
    copies = cast * sum(local)
    copies_checkpointed = copies - cast * (sum(local[i] for i in again) - max(local[i] for i in again))
    D, V = shape.d_model, shape.vocab_size
    around = _gathered(local, 2 if place.gathers_bf16 else 4) if cut else [0.0] * config.num_layers
    ends = V * D * 4.0 * (1 if config.tie_embeddings else 2)  # embeddings and head, gathered all the while
    copies, copies_checkpointed = copies + cut * ends, copies_checkpointed + cut * ends
    angles, norm = tokens * 4.0 * config.d_head, tokens * D * (8.0 if place.gpu else 4.0)  # the norm is the last one
    logits = LOGIT_ROWS * V * (10.0 if place.bf16 else 12.0)  # logits, softmax, and the gradient of the chunk before
    # Forward: hidden states picked, their gradient, the head's gradient. Backward: both gradients and their products.
    forward = tokens * D * (4 + 4 + 2 * place.bf16) + V * D * (4 + 4 * place.bf16) + logits
    loss = max(forward, tokens * D * 8.0 + V * D * 8)
    # The head's gradient waits for the embedding's, or with sharded weights for the sum over the ranks.
    waits = V * D * 4.0 if config.tie_embeddings or cut else 0.0
    inputs = tokens * D * 4
    kept, kept_checkpointed, backward = 0.0, 0.0, []
    for layer in range(config.num_layers):
        # In the backward pass of a layer, what later ones kept is gone; and the feed-forward part comes first in it.
        stages = (kept_attention(config, layer, layout.cp, place, n) for n in _stages(config, layer, row or tokens))
        attention = tokens * max(stages)
        mixture = tokens * kept_feed_forward(config, layer, place, layout.ep)
        kept += attention + mixture
        kept_checkpointed += inputs if layer in again else attention + mixture
        formed = attention + mixture if layer in again else 0.0
        first = _feed_forward_backward(config, layer, tokens, layout.ep, place)
        needs = waits + around[layer] + max(first, _attention_backward(config, tokens, place) - mixture)
        backward.append((kept + needs, kept_checkpointed + formed + needs))
    peak, peak_checkpointed = (max(each) for each in zip(*backward, strict=True))
    return Memory(
        4 * mine, 4 * mine, 8 * mine,
        copies, angles + norm + kept, max(loss, peak - kept - norm),
        copies_checkpointed, angles + norm + kept_checkpointed,
        max(loss, peak_checkpointed - kept_checkpointed - norm), logits,
    )  # fmt: skip


def _gathered(local: list[float], size: int) -> list[float]:
    """Bytes of weights and gradients that are unsharded while each layer runs backward, `local` weights of each.

    These are its own weights, the prefetched weights of the layer before it, its gradients, and in fp32 the gradients
    of the layer after it, which are still being summed. The pass itself counts the gradients of its experts.
    """
    before, after = [0.0, *local[:-1]], [*local[1:], 0.0]
    return [size * (own + b) + 4 * a for own, b, a in zip(local, before, after, strict=True)]


def _matrices(layer: Layer, ep: int) -> float:
    """Weights of a layer that are cast or gathered, with one group's experts; the router stays in fp32."""
    return sum(part.total / (ep if name == "experts" else 1) for name, part in layer.parts.items() if name != "router")


def _stages(config: ModelConfig, layer: int, row: int) -> list[float | None]:
    """The attention of a layer in the stages of a run: entries of sparse attention per token, or None for dense."""
    attention = config.attention and config.attention.at(layer, config.num_layers)
    if attention is None:
        return [None]
    return [attention.entries(row) / row, *([] if attention.dense_from_tokens is None else [None])]


def kept_attention(config: ModelConfig, layer: int, cp: int, place: Place, entries: float | None = None) -> float:
    """Bytes that attention and its norm keep for one token of a device; `cp` devices share each row.

    `entries`: entries per token if attention is sparse, which keeps the entries' q, k and v instead of the tokens'. The
    residual stream, norms and the router are fp32; matrix products are in the precision of `place`. On a CPU, a norm
    saves its output, which the next matmul reuses if it is fp32. On a GPU, it saves its input.
    """
    c, s = config, 2 if place.bf16 else 4
    q, k = c.num_heads * c.d_head, c.num_kv_heads * c.d_head
    turned, inverse = s * (q + k), 4 * (c.num_heads + c.num_kv_heads)
    window, blocks = c.window(layer), 0.0
    if window:  # queries in blocks, keys and values for each, the output once more
        blocks = s * (2 * q + 2 * k * (1 + window / max(WINDOW_BLOCK, window // 2)))
    if c.qk_norm == "none":
        rope = turned
    elif place.gpu:  # the norm keeps q and k, views of all of qkv
        rope = turned + s * (q + 2 * k) + inverse
    else:
        rope = turned * (1 if c.qk_norm == "after_rope" else 2) + inverse
    if entries is not None:  # q, k, v and y of the entries with their sums, and two numbers of each
        norms = 0.0 if c.qk_norm == "none" else rope - turned * (place.gpu or c.qk_norm != "after_rope")
        return _norm(config, place) + norms + s * q + entries * (s * 4 * q + c.num_heads * (4 + 2 * 8))
    others = (cp - 1) * s * 2 * k  # keys and values of the row's other devices
    return _norm(config, place) + rope + s * k + s * q + 4 * c.num_heads + others + blocks


def kept_feed_forward(config: ModelConfig, layer: int, place: Place, ep: int = 1) -> float:
    """Bytes that a mixture, or a dense layer, and its norm keep for one token."""
    c, s = config, 2 if place.bf16 else 4
    if layer < c.num_dense_layers:
        return _norm(config, place) + 2 * s * (c.d_dense or 0)
    K, F = c.num_experts_per_token, c.d_expert
    router = 8 * c.num_experts + K * (4 + s + 3 * 8) + 12 + (4 * c.d_model if place.gpu and place.bf16 else 0)
    routed = K * s * (2 * F if _fused(c, place, ep) else 4 * F + 3 * c.d_model)
    return _norm(config, place) + router + routed + 2 * s * c.num_shared_experts * F


def _norm(config: ModelConfig, place: Place) -> float:
    """A norm over the width, and the input of the next product if that is not the norm's own tensor."""
    return 4 * config.d_model + 4 + ((2 if place.bf16 else 4) * config.d_model if place.gpu or place.bf16 else 0)


def _fused(config: ModelConfig, place: Place, ep: int = 1) -> bool:
    """Whether experts run in kernels.MixtureFunction, as models/experts.py chooses."""
    size, c = 2 if place.bf16 else 4, config
    aligned = c.d_model * size % 16 == 0 and c.d_expert * size % 16 == 0
    return c.experts == "auto" and ep == 1 and not (aligned and (place.gpu or c.d_model >= 512))


def _stream(config: ModelConfig, tokens: int, place: Place) -> float:
    """Gradients of the residual stream and of a norm's output."""
    return tokens * config.d_model * (4 * 2 + (2 if place.bf16 else 4) * 2)


def _feed_forward_backward(config: ModelConfig, layer: int, tokens: int, ep: int, place: Place) -> float:
    """Temporary bytes of the backward pass of a mixture or a dense layer: mostly the gradients of its weights."""
    c, s, D = config, 2 if place.bf16 else 4, config.d_model
    if layer < c.num_dense_layers:
        width, slices = c.d_dense or 0, 4 + 2 * (tokens > SLICE_ROWS)  # the gradient of the slice before lives on
        return _stream(c, tokens, place) + 3 * width * D * s + slices * width * s * min(tokens, SLICE_ROWS)
    rows, F = tokens * c.num_experts_per_token, c.d_expert
    one = c.num_experts / ep * F * D * s
    if _fused(c, place, ep):  # expert by expert; all gradients stay until the last
        return _stream(c, tokens, place) + 3 * one + rows / c.num_experts * (4 * F + 2 * D) * s
    # One product after the other, each freeing what it kept: first the rows' gradient, then the weights' and others.
    later = max(F - D, 0) * rows * s + one * (3 if place.bf16 else 1)
    return _stream(c, tokens, place) + max(rows * D * s, later)


def _attention_backward(config: ModelConfig, tokens: int, place: Place) -> float:
    """The same for attention, sparse or not: the norm and the rotation of q and k work in fp32."""
    c = config
    width = (22 if place.bf16 else 12) if c.qk_norm == "after_rope" else (10 if place.bf16 else 8)
    return _stream(c, tokens, place) + tokens * (c.num_heads + c.num_kv_heads) * c.d_head * width
