"""AdamW as training and the probe take it: one fused update of all weights, where these allow it."""

from typing import Any

from torch.optim import AdamW


def adamw(groups: list[dict[str, Any]], **settings: Any) -> AdamW:
    """An AdamW of groups of weights (`params` and what is the group's own); `settings` are torch's.

    Weights that are cut on two meshes cannot be updated by one call, nor can those without numbers (meta): they are
    updated one by one. Which of the two it is follows from the weights, never from a checkpoint that is loaded.
    """
    weights = [weight for group in groups for weight in group["params"]]
    at_once = (
        len({getattr(weight, "device_mesh", None) for weight in weights}) == 1 and weights[0].device.type != "meta"
    )
    how: dict[str, Any] = {"fused": at_once, "foreach": False}
    optimizer = AdamW(groups, **settings, **how)

    def keep(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return state | {"param_groups": [group | how for group in state["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(keep)
    return optimizer
