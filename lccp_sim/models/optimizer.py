"""The AdamW of training and the probe: fused, one call for all weights, however many meshes shard them."""

from typing import Any

from torch.optim import AdamW


def adamw(groups: list[dict[str, Any]], **settings: Any) -> AdamW:
    """An AdamW for groups of weights (`params` and the group's own settings); `settings` are torch's.

    Weights on the meta device are updated one by one, because torch has no fused call for them. The weights decide
    between fused and single updates, never a loaded checkpoint.
    """
    how: dict[str, Any] = {"fused": groups[0]["params"][0].device.type != "meta", "foreach": False}
    optimizer = AdamW(groups, **settings, **how)

    def keep(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return state | {"param_groups": [group | how for group in state["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(keep)
    return optimizer
