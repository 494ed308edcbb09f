"""Conversion of RoPE between config.json and `model.rope`.

transformers 5 reads `rope_parameters`; older versions and most other programs read `rope_theta` and `rope_scaling`.
Both forms are read and both are written, because a reader that misses its own silently assumes a base of 10 000.
"""

import json
from typing import Any

from lccp_sim.errors import ConfigError, refuse
from lccp_sim.models.positions import AlphaRope, Llama3Rope, NtkRope, Rope, YarnRope

ORIGINAL = "original_max_position_embeddings"
YARN = ("factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
ROPE_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {  # their type -> our kind, and the keys with the same names
    "default": ("base", ()),
    "linear": ("linear", ("factor",)),
    "llama3": ("llama3", ("factor", "low_freq_factor", "high_freq_factor")),
    "yarn": ("yarn", YARN),
    "proportional": ("proportional", ("partial_rotary_factor",)),
}
# The older names of bases, and the layer type of each.
LEGACY = {
    "rope_theta": "full_attention",
    "global_rope_theta": "full_attention",
    "rope_local_base_freq": "sliding_attention",
    "local_rope_theta": "sliding_attention",
}
USUAL = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "partial_rotary_factor": 1.0}


def check_rope(settings: dict[str, Any], where: str) -> None:
    """Raise ConfigError, with both values, if two places of a config.json state one fact of RoPE differently.

    `rope_parameters` may hold a group for each layer type; then `rope_scaling` applies to full attention, and so does
    `rope_theta` if there is such a group.
    """
    old, new = (_group(settings, key, where) for key in ("rope_scaling", "rope_parameters"))
    if per_type := nested(new):
        full = new.get("full_attention") or {}
        if old and not any(_plain(old, settings) == _plain(each, settings) for each in (new, full)):
            raise _differ(where, new, old)
        for key, layers in LEGACY.items():
            stated = settings.get(key)
            bases = [new[layers]] if layers in per_type else [new[each] for each in per_type] * (key == "rope_theta")
            told = [each["rope_theta"] for each in bases if each.get("rope_theta") is not None]
            if stated is not None and told and float(stated) not in map(float, told):
                shown = " and ".join(f"{float(each):g}" for each in told)
                place = f"of {layers} in rope_parameters" if layers in per_type else "in rope_parameters"
                raise ConfigError(
                    f"{where}: {key} is {float(stated):g}, but rope_theta {place} is {shown}; "
                    "keep the value that the model was trained with"
                )
        return
    if old and new and _plain(old, settings) != _plain(new, settings):
        raise _differ(where, new, old)
    for key, show in ("rope_theta", "{:g}"), ("partial_rotary_factor", "{:g}"), (ORIGINAL, "{:.0f}"):
        stated = {float(each[key]) for each in (old, new, settings) if each.get(key) is not None}
        if len(stated) > 1:
            values = " and ".join(show.format(each) for each in sorted(stated))
            raise ConfigError(f"{where}: {key} is {values} in different places; keep the trained value")


def nested(parameters: dict[str, Any]) -> list[str]:
    """The layer types with a RoPE of their own in `rope_parameters`; none if one RoPE serves all layers."""
    return [key for key, value in parameters.items() if isinstance(value, dict)]


def _group(settings: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    found = settings.get(key) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: damaged ({key} is not a group of keys); fetch it again")
    return found


def _plain(group: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The contents of a group except its base and defaults, so that groups with the same meaning are equal."""
    if nested(group):
        return {key: _plain(value, settings) if isinstance(value, dict) else value for key, value in group.items()}
    length = settings.get(ORIGINAL) or settings.get("max_position_embeddings")
    usual = {**USUAL, ORIGINAL: length}
    said = {key: value for key, value in group.items() if value is not None and usual.get(key) != value}
    said.pop("rope_theta", None)
    kind = said.pop("type", "default")
    return {"rope_type": kind} | said


def _differ(where: str, new: dict[str, Any], old: dict[str, Any]) -> ConfigError:
    return ConfigError(
        f"{where}: rope_parameters is {json.dumps(new)}, but rope_scaling is {json.dumps(old)}; "
        "keep the one that the model was trained with"
    )


def read_rope(settings: dict[str, Any], where: str, theta: float, has_alpha: bool) -> dict[str, Any]:
    """The plain values of `model.rope`; `theta` is the default base.

    Raises ConfigError for a kind that lccp-sim lacks, and if two places state different values.
    """
    check_rope(settings, where)
    old, new = settings.get("rope_scaling") or {}, settings.get("rope_parameters") or {}
    if types := nested(new or old):
        raise ConfigError(
            f"{where}: rope_parameters has a group per layer type ({', '.join(types)}), but this architecture has one "
            "RoPE for all layers; keep that one only"
        )
    stated = [float(each["rope_theta"]) for each in (old, new, settings) if each.get("rope_theta") is not None]
    found: dict[str, Any] = new or old
    plain: dict[str, Any] = {"base": stated[0] if stated else theta}
    kind = found.get("rope_type", found.get("type", "default"))
    if has_alpha and kind == "dynamic" and found.get("alpha"):
        return plain | {"kind": "alpha", "alpha": found["alpha"]}
    if kind not in ROPE_KINDS or (kind != "proportional" and found.get("partial_rotary_factor", 1.0) != 1.0):
        wrong = f"rope_type={kind!r}" if kind not in ROPE_KINDS else "partial_rotary_factor"
        raise ConfigError(
            f"{where}: {wrong}: cannot be imported; RoPE over full heads of type {', '.join(ROPE_KINDS)} can"
        )
    ours, keys = ROPE_KINDS[kind]
    plain |= {"kind": ours} | {key: found[key] for key in keys if found.get(key) is not None}
    for key in keys:
        refuse(isinstance(plain.get(key), str), f"{where}: {key}", plain.get(key), "must be a number, true or false")
    if kind in ("llama3", "yarn"):
        context = settings.get("max_position_embeddings")
        plain["original_context_tokens"] = settings.get(ORIGINAL) or found.get(ORIGINAL) or context
    return plain


def write_rope(rope: Rope, d_head: int, has_alpha: bool) -> dict[str, Any]:
    """`rope_parameters`, `rope_theta`, `rope_scaling`. NTK becomes its effective base, as does alpha if need be."""
    kind, keys = {ours: (theirs, keys) for theirs, (ours, keys) in ROPE_KINDS.items()}.get(rope.kind, ("default", ()))
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
