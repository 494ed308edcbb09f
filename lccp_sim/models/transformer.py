"""The decoder: embeddings, pre-norm blocks of attention and mixture of experts (or one SwiGLU), a final norm.

It returns hidden states; models/loss.py applies the head in chunks. `fresh` is the only place where weights get their
first values, including the warm start of previous-token heads. It yields one full tensor after the other, so that a
rank can keep its part of each.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lccp_sim.config import ModelConfig
from lccp_sim.models.attention import Attention, RMSNorm
from lccp_sim.models.language_model import LanguageModel, Tap, picked
from lccp_sim.models.moe import MoE, Routed, SwiGLU
from lccp_sim.models.positions import rotation


class Output(NamedTuple):
    """Hidden states after the final norm, the router losses, and rows per expert [L, E] int64.

    The losses are means over the layers with experts; a dense layer has no rows, a dense model no losses (0).
    """

    hidden_BTD: Tensor
    balance_loss: Tensor
    z_loss: Tensor
    count_LE: Tensor


class Block(nn.Module):
    """x + attention(norm x), then x + moe(norm x), or x + dense(norm x) in the first layers of some models."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        c = config
        self.attention_norm = RMSNorm(c.d_model, c.norm_eps)
        self.attention = Attention(c, layer)
        self.moe_norm = RMSNorm(c.d_model, c.norm_eps)
        dense = c.d_dense if layer < c.num_dense_layers else None
        self.moe = MoE(c) if dense is None else None
        self.dense = None if dense is None else SwiGLU(c.d_model, dense)

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        bounds: Tensor,
        text_BT: Tensor | None = None,
        sparse: bool = False,
        place_BA: Tensor | None = None,
    ) -> tuple[Tensor, Routed | None]:
        """[B, T, D], or [B, A, D] of the places asked for; and the routing if the layer has experts."""
        y_BTD = self.attention(self.attention_norm(x_BTD), rope, bounds, sparse, place_BA)
        x_BTD = (x_BTD if place_BA is None else picked(x_BTD, place_BA)) + y_BTD
        z_BTD = self.moe_norm(x_BTD)
        if self.moe is None:
            assert self.dense is not None
            return x_BTD + self.dense(z_BTD), None
        y_BTD, routing = self.moe(z_BTD, text_BT)
        return x_BTD + y_BTD, routing


class Transformer(LanguageModel):
    """A decoder of the Hunyuan-A13B family: routed and shared SwiGLU experts, or one SwiGLU per layer."""

    def __init__(self, config: ModelConfig, vocab_size: int):
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.num_layers, self.num_heads = config.num_layers, config.num_heads
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.d_model, vocab_size, bias=False)
        self.frequencies, self.rope_scale = config.rope.frequencies(config.d_head)
        self.sparse = False

    @property
    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def head_weight(self) -> Tensor:
        """The [V, D] weight of the language-model head."""
        return self.embedding.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """[R, V] fp32."""
        with torch.autocast(hidden_RD.device.type, enabled=False):  # bf16 logits would lose an NLL near 0
            return (hidden_RD @ self.head_weight.to(hidden_RD.dtype).T).float()

    def hidden_at(self, tokens_BT: Tensor, place_BA: Tensor) -> Tensor:
        """[B, A, D], without the last layer's work for other places."""
        return self(tokens_BT, place_BA=place_BA).hidden_BTD

    def set_tap(self, tap: Tap | None) -> None:
        """Set the tap of every layer."""
        for block in self.layers:
            block.attention.tap = tap

    def set_gate(self, gate_LN: Tensor | None) -> None:
        """Set the gate of every layer."""
        for layer, block in enumerate(self.layers):
            block.attention.gate_N = None if gate_LN is None else gate_LN[layer]

    def set_sparse(self, sparse: bool) -> None:
        """Set whether a forward without `sparse` is sparse."""
        self.sparse = sparse

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        bounds: Tensor | None = None,
        text_BT: Tensor | None = None,
        sparse: bool = False,
        place_BA: Tensor | None = None,
    ) -> Output:
        """Hidden states of packed rows. `bounds`: offsets of documents in the flattened tokens; default one per row.

        `place_BA` (rows of one document each): only these places go through the last layer, for which no other place
        has more than a key and a value; the result is [B, A, D].

        Tokens outside `text_BT` (bool; None: all are text) are padding, which the router's losses and counts leave out.
        Attention is dense unless `sparse` (set by training) or `set_sparse`: then `config.attention` applies, if any.
        """
        B, T = tokens_BT.shape
        if positions_BT is None:
            positions_BT = torch.arange(T, device=tokens_BT.device).expand(B, T)
        if bounds is None:
            bounds = torch.arange(0, B * T + 1, T)
        x_BTD = self.embedding(tokens_BT)
        if self.config.scale_embeddings:
            x_BTD = x_BTD * self.config.d_model**0.5
        rope = rotation(positions_BT, self.frequencies, self.rope_scale, x_BTD.dtype)
        sparse = sparse or self.sparse
        routings = []
        for layer, block in enumerate(self.layers, 1):
            x_BTD, routing = block(x_BTD, rope, bounds, text_BT, sparse, place_BA if layer == self.num_layers else None)
            routings += [routing] if routing is not None else []
        hidden_BTD, c = self.norm(x_BTD), self.config
        if not routings:
            none_LE = torch.zeros(c.num_layers, c.num_experts, dtype=torch.int64, device=x_BTD.device)
            return Output(hidden_BTD, none_LE.sum().float(), none_LE.sum().float(), none_LE)
        balance, z, counts = (torch.stack(column) for column in zip(*routings, strict=True))
        return Output(hidden_BTD, balance.mean(), z.mean(), F.pad(counts, (0, 0, c.num_dense_layers, 0)))


@torch.no_grad()
def initialise(model: Transformer, seed: int) -> Transformer:
    """Give the model fresh weights (`fresh`), which depend on the seed alone."""
    own = model.state_dict()
    for name, weight in fresh(model, seed):
        own[name].copy_(weight)
    return model


def fresh(model: Transformer, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Name and full initial value of each weight and buffer, one at a time. Only shapes of the model are read.

    Matrices are normal with std 1/sqrt(fan in), or `init_std`; those that write into the residual stream are smaller by
    sqrt(2 L) (GPT-2). Norm weights start at their gain, biases at 0. `previous_token_heads` are planted.
    """
    generator = torch.Generator().manual_seed(seed)
    config, shapes = model.config, {name: value.shape for name, value in model.state_dict().items()}
    shrink = (2 * config.num_layers) ** -0.5
    drawn = ["embedding.weight"]
    for layer in range(config.num_layers):
        parts = ["attention.qkv.weight", "attention.out.weight", "moe.router.weight", "moe.gate_EFD", "moe.up_EFD"]
        parts += ["moe.down_EFD", "dense.gate_up.weight", "dense.down.weight"]
        parts += ["moe.shared.gate_up.weight", "moe.shared.down.weight"]
        drawn += [f"blocks.{layer}.{part}" for part in parts]
    # This is the order of the draws, so a new part goes to the end of its layer.
    for name in (name for name in [*drawn, "lm_head.weight"] if name in shapes):
        # Experts write from their width F to D with rows of D: [E, F, D]; a linear layer from its columns.
        fan_in = config.d_expert if name.endswith("down_EFD") else shapes[name][-1]
        std = (config.init_std or fan_in**-0.5) * (shrink if ".down" in name or ".out." in name else 1.0)
        weight = torch.randn(shapes.pop(name), generator=generator, device="cpu").mul_(std)
        if config.previous_token_heads:
            _plant_previous_token_heads(model, name, weight)
        yield name, weight
        del weight  # before drawing the next one
    gains = {f"{name}.weight": each.gain for name, each in model.named_modules() if isinstance(each, RMSNorm)}
    for name, shape in shapes.items():
        yield name, torch.full(shape, gains.get(name, 0.0), device="cpu")


def _plant_previous_token_heads(model: Transformer, name: str, weight: Tensor) -> None:
    """Make head i of layers 0 and 1 attend i + 1 tokens back at the start of training.

    Embedding channel 0 is constant, and q and k of those heads read it alone: q into the three fastest pairs, k rotated
    i + 1 positions ahead, so that their product peaks at that distance. This replaces what billions of tokens teach a
    real base; without it, induction does not form within minutes on a CPU.
    """
    config = model.config
    H, half = config.d_head, config.d_head // 2
    if name == "embedding.weight":
        weight[:, 0] = 1.0 if not config.scale_embeddings else config.d_model**-0.5
    if name not in ("blocks.0.attention.qkv.weight", "blocks.1.attention.qkv.weight"):
        return
    angles = model.frequencies[: min(3, half)].float()
    group = config.num_heads // config.num_kv_heads
    for head in range(config.previous_token_heads):
        q = weight[head * H : (head + 1) * H]
        first_key = (config.num_heads + head // group) * H
        k = weight[first_key : first_key + H]
        q.zero_(), k.zero_()
        q[: len(angles), 0] = 1.0
        ahead = angles * (head + 1)
        k[: len(angles), 0], k[half : half + len(angles), 0] = ahead.cos(), ahead.sin()
