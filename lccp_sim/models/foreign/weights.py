"""Weights in safetensors under the names of `transformers`, read into our tensors and written from them, by shards.

Both directions use one table, which maps each of their tensors to rows of one of our tensors. Published checkpoints
store experts one by one, and so does `save_pretrained`; in memory both `transformers` and lccp-sim fuse them, each in
its own layout.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from lccp_sim.config import ModelConfig
from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign.architectures import ARCHITECTURES
from lccp_sim.models.foreign.hf_folder import HF_INDEX, lacking, misfit, unknown
from lccp_sim.models.transformer import Transformer
from lccp_sim.progress import Tell, silent

SHARD_BYTES = 5 * 10**9
# Modules of a layer by our names, unless the row of an architecture overrides them.
PART_NAMES = {"q_norm": "q_norm", "k_norm": "k_norm", "router": "mlp.gate", "experts": "mlp.experts"}
PART_NAMES |= {"shared": "mlp.shared_mlp", "dense": "mlp", "gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
WEIGHT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BUFFER = ".rotary_emb.inv_freq"  # old Llama checkpoints carry it; it follows from config.json


class TensorPart(NamedTuple):
    """The part of one of our tensors that holds one of their tensors: rows [start, stop), one expert, or all of it."""

    ours: str
    start: int | None = None
    stop: int | None = None
    expert: int | None = None
    transposed: bool = False

    def view(self, tensor: Tensor) -> Tensor:
        """The part of our tensor as a view in their layout."""
        part = tensor[self.start : self.stop] if self.expert is None else tensor[self.expert]
        return part.T if self.transposed else part


def parts(name: str, config: ModelConfig) -> dict[str, TensorPart]:
    """Every tensor of an architecture's checkpoint by its name there, in layer order."""
    c, names = config, PART_NAMES | dict(ARCHITECTURES[name].names)
    found = {"model.embed_tokens.weight": TensorPart("embedding.weight")}

    def swiglu(ours: str, theirs: str, width: int) -> None:
        found[f"{theirs}.{names['gate']}.weight"] = TensorPart(f"{ours}.gate_up.weight", 0, width)
        found[f"{theirs}.{names['up']}.weight"] = TensorPart(f"{ours}.gate_up.weight", width, 2 * width)
        found[f"{theirs}.{names['down']}.weight"] = TensorPart(f"{ours}.down.weight")

    for layer in range(c.num_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        found[f"{theirs}.input_layernorm.weight"] = TensorPart(f"{ours}.attention_norm.weight")
        found[f"{theirs}.post_attention_layernorm.weight"] = TensorPart(f"{ours}.moe_norm.weight")
        for kind, has in ("weight", True), ("bias", c.qkv_bias):
            start = 0
            for key, heads in (("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads)) if has else ():
                stop = start + heads * c.d_head
                found[f"{theirs}.self_attn.{key}_proj.{kind}"] = TensorPart(f"{ours}.attention.qkv.{kind}", start, stop)
                start = stop
        for kind in ("weight", "bias") if c.out_bias else ("weight",):
            found[f"{theirs}.self_attn.o_proj.{kind}"] = TensorPart(f"{ours}.attention.out.{kind}")
        for key in ("q_norm", "k_norm") if c.qk_norm != "none" else ():
            found[f"{theirs}.self_attn.{names[key]}.weight"] = TensorPart(f"{ours}.attention.{key}.weight")
        if layer < c.num_dense_layers:
            swiglu(f"{ours}.dense", f"{theirs}.{names['dense']}", c.d_dense or 0)
            continue
        found[f"{theirs}.{names['router']}.weight"] = TensorPart(f"{ours}.moe.router.weight")
        for expert in range(c.num_experts):
            for key in ("gate", "up", "down"):
                part = TensorPart(f"{ours}.moe.{key}_EFD", expert=expert, transposed=key == "down")
                found[f"{theirs}.{names['experts']}.{expert}.{names[key]}.weight"] = part
        if c.num_shared_experts:
            swiglu(f"{ours}.moe.shared", f"{theirs}.{names['shared']}", c.num_shared_experts * c.d_expert)
    found["model.norm.weight"] = TensorPart("norm.weight")
    # A tied head may be stored nevertheless, and must then equal the embedding.
    return found | {"lm_head.weight": TensorPart("embedding.weight" if c.tie_embeddings else "lm_head.weight")}


def read_weights(
    stream: Iterator[tuple[str, Tensor]],
    name: str,
    config: ModelConfig,
    dtype: torch.dtype,
    where: str,
    tell: Tell = silent,
) -> dict[str, Tensor]:
    """Our state dict in `dtype` from a stream of (name, tensor). Memory: the model and one tensor of the stream.

    `tell` gets the number of tensors read.

    Raises ConfigError if a tensor is missing, has another shape, is not stored as floats, is not part of this
    architecture, or occurs twice with different values.
    """
    assert config.vocab_size is not None
    with torch.device("meta"):
        empty = Transformer(config, config.vocab_size).state_dict()
    table = parts(name, config)
    state = {key: torch.zeros(each.shape) for key, each in empty.items() if key.endswith("bias_E")}
    seen: set[TensorPart] = set()
    extra = []
    for key, tensor in stream:
        # As in transformers: names of the model without its head, or with the full model's prefix.
        bare = re.sub(r"^(?:model\.)+", "", key)
        part = table.get(key) or table.get(f"model.{bare}") or table.get(bare)
        if part is None:
            extra += [] if key.endswith(BUFFER) else [key]
            continue
        wanted = part.view(empty[part.ours]).shape
        if tensor.shape != wanted:
            raise misfit(where, key, tensor.shape, wanted)
        if tensor.dtype not in WEIGHT_DTYPES:
            raise ConfigError(f"{where}: {key} is stored as {tensor.dtype}; convert the weights to bf16 or fp32")
        if part.ours not in state:
            state[part.ours] = torch.empty(empty[part.ours].shape, dtype=dtype)
        place = part.view(state[part.ours])
        if part in seen and not torch.equal(place, tensor.to(dtype)):
            tied = "lm_head.weight and model.embed_tokens.weight differ, but config.json ties them"
            raise ConfigError(f"{where}: {tied if part.ours == 'embedding.weight' else f'{key} occurs twice'}; fix it")
        place.copy_(tensor)
        seen.add(part)
        tell(f"reading weights: {len(seen):,} of {len(table):,} tensors", len(seen) / len(table))
    if extra:
        raise unknown(where, extra, name)
    if missing := [key for key, part in table.items() if part not in seen]:
        raise lacking(where, missing)
    return state


def write_weights(
    state: dict[str, Tensor],
    name: str,
    config: ModelConfig,
    out: Path,
    dtype: torch.dtype,
    shard: int = SHARD_BYTES,
    tell: Tell = silent,
) -> int:
    """Write the weights to `out`, as one file or as shards of up to `shard` bytes with an index; return their bytes."""
    table = parts(name, config)
    if config.tie_embeddings:
        del table["lm_head.weight"]
    shards: list[list[str]] = [[]]
    total = size = 0
    for key, part in table.items():
        more = part.view(state[part.ours]).numel() * dtype.itemsize
        if shards[-1] and size + more > shard:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size, total = size + more, total + more
    where: dict[str, str] = {}
    for number, keys in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tell(f"writing weights: {number - 1} of {len(shards)} files", (number - 1) / len(shards))
        views = {key: table[key].view(state[table[key].ours]) for key in keys}
        # Copy each: safetensors refuses views of one tensor in one file.
        save_file({key: view.to(dtype).clone(memory_format=torch.contiguous_format) for key, view in views.items()},
                  out / file, {"format": "pt"})  # fmt: skip
        (out / file).chmod(0o644)  # safetensors writes it for its owner alone
        where |= dict.fromkeys(keys, file)
    if len(shards) > 1:
        index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (out / HF_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


def untied(state: dict[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], ModelConfig]:
    """The same function without `scale_embeddings`, which no architecture has: the embedding absorbs the factor."""
    if not config.scale_embeddings:
        return state, config
    head = state["embedding.weight"] if config.tie_embeddings else state["lm_head.weight"]
    scaled = {"embedding.weight": state["embedding.weight"].float() * config.d_model**0.5, "lm_head.weight": head}
    return state | scaled, dataclasses.replace(config, scale_embeddings=False, tie_embeddings=False)
