"""RoPE as config.json has it, and as `model.rope` does.

transformers 5 reads `rope_parameters`, older versions and most other programs `rope_theta` and `rope_scaling`: both are
read, and both are written, because a reader that misses its own falls back to a base of 10 000 without a word.
"""

from typing import Any

from lccp_sim.config import ConfigError
from lccp_sim.models.positions import AlphaRope, Llama3Rope, NtkRope, Rope, YarnRope

ORIGINAL = "original_max_position_embeddings"
YARN = ("factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {  # their type -> our kind, and the keys that are named alike
    "default": ("base", ()),
    "linear": ("linear", ("factor",)),
    "llama3": ("llama3", ("factor", "low_freq_factor", "high_freq_factor")),
    "yarn": ("yarn", YARN),
}


def read_rope(settings: dict[str, Any], where: str, theta: float, has_alpha: bool) -> dict[str, Any]:
    """The plain values of `model.rope`; `theta` is the base where none is stated.

    Of two ways to name the scaling the older wins, as in transformers; two bases that differ are refused. Raises
    ConfigError for a kind that is none of ours.
    """
    old, new = settings.get("rope_scaling") or {}, settings.get("rope_parameters") or {}
    stated = {float(each["rope_theta"]) for each in (old, new, settings) if each.get("rope_theta") is not None}
    if len(stated) > 1:
        bases = " and ".join(f"{base:g}" for base in sorted(stated))
        raise ConfigError(f"{where}: rope_theta is {bases} in different places; leave the one that was trained with")
    found: dict[str, Any] = old or new
    plain: dict[str, Any] = {"base": stated.pop() if stated else theta}
    kind = found.get("rope_type", found.get("type", "default"))
    if has_alpha and kind == "dynamic" and found.get("alpha"):
        return plain | {"kind": "alpha", "alpha": found["alpha"]}
    if kind not in KINDS or found.get("partial_rotary_factor", 1.0) != 1.0:
        wrong = f"rope_type={kind!r}" if kind not in KINDS else "partial_rotary_factor"
        raise ConfigError(f"{where}: {wrong}: cannot be imported; RoPE over whole heads of type {', '.join(KINDS)} can")
    ours, keys = KINDS[kind]
    plain |= {"kind": ours} | {key: found[key] for key in keys if found.get(key) is not None}
    if kind in ("llama3", "yarn"):
        context = settings.get("max_position_embeddings")
        plain["original_context_tokens"] = settings.get(ORIGINAL) or found.get(ORIGINAL) or context
        if kind == "yarn" and "factor" not in plain and context:
            plain["factor"] = context / plain["original_context_tokens"]
    return plain


def write_rope(rope: Rope, d_head: int, has_alpha: bool) -> dict[str, Any]:
    """`rope_parameters`, `rope_theta`, `rope_scaling`; NTK, and alpha where none has it, is the base it amounts to."""
    kind, keys = {ours: (theirs, keys) for theirs, (ours, keys) in KINDS.items()}.get(rope.kind, ("default", ()))
    base, values = rope.base, {key: getattr(rope, key) for key in keys if getattr(rope, key) is not None}
    if isinstance(rope, AlphaRope) and has_alpha:
        kind, values = "dynamic", {"alpha": rope.alpha, "factor": 1.0}
    elif isinstance(rope, AlphaRope | NtkRope):
        factor = rope.alpha if isinstance(rope, AlphaRope) else rope.factor
        base *= factor ** (d_head / (d_head - 2))
    if isinstance(rope, Llama3Rope | YarnRope):
        values[ORIGINAL] = rope.original_context_tokens
    scaling = {"rope_type": kind, "type": kind} | values if kind != "default" else None
    return {
        "rope_parameters": {"rope_type": kind, "rope_theta": base} | values,
        "rope_theta": base,
        "rope_scaling": scaling,
    }
