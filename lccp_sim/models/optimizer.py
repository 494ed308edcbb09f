"""AdamW as training and the probe take it: fused, one call for all weights, on however many meshes they are cut."""

from typing import Any

from torch.optim import AdamW


def adamw(groups: list[dict[str, Any]], **settings: Any) -> AdamW:
    """An AdamW of groups of weights (`params` and what is the group's own); `settings` are torch's.

    Weights without numbers (meta) are updated one by one, as torch has no fused call for them. How it is done follows
    from the weights, never from a checkpoint that is loaded.
    """
    how: dict[str, Any] = {"fused": groups[0]["params"][0].device.type != "meta", "foreach": False}
    optimizer = AdamW(groups, **settings, **how)

    def keep(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return state | {"param_groups": [group | how for group in state["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(keep)
    return optimizer
