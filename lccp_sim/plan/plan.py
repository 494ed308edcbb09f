"""The plan of a run as one tree of plain numbers, which `lccp plan` prints and writes.

It is a simulation, and the tree includes its assumptions. Design note: times assume one utilisation (`--mfu` sets it),
because the cost of communication depends on the network, which is not part of a config.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lccp_sim.config import Config
from lccp_sim.errors import ConfigError
from lccp_sim.plan.hardware import RESERVE, Hardware, fits, rows_at_once
from lccp_sim.plan.memory import Layout, Memory, memory, place_of
from lccp_sim.plan.rope import KNOWN_MODELS, base_bound, critical_dimension, first_negative, plain_base
from lccp_sim.plan.shapes import Shape, counted_shape, counts, forward_flops, shape_of, sparse_frac, training_flops


def plan_run(
    config: Config, vocab_size: int, windows: Sequence[int], device: Hardware, layout: Layout
) -> dict[str, Any]:
    """The plan of a run with windows at the steps `windows`. Raises ConfigError if it does not fit the layout."""
    run, shape, bf16 = config.run, shape_of(config.model, vocab_size), config.run.precision == "bf16"
    at_once = rows_at_once(config, layout)
    place = place_of(config, device.name != "cpu")
    row, sparse = run.context_tokens, sparse_frac(config)
    needs = memory(config.model, shape, at_once // layout.cp, layout, place, run.recompute_every, row)
    tokens = run.steps * run.batch_tokens
    training = training_flops(shape, row, sparse) * tokens
    frequencies = np.asarray(config.model.rope.frequencies(config.model.d_head)[0], dtype=float)
    until = round(sparse * run.steps) if config.monitors.attention == "both" else -1
    monitors = plan_monitors(config.monitors.watch, windows, shape, training, until)
    return {
        "run": run.name,
        "context_tokens": run.context_tokens,
        "old_context_tokens": config.data.old_context_tokens,
        "tokens": tokens,
        "steps": run.steps,
        "recompute_every": run.recompute_every,
        **plan_shape(
            shape,
            run.context_tokens,
            tokens,
            device,
            layout,
            bf16,
            sum(each["flops"] for each in monitors.values()),
            run.recompute_every,
            sparse,
        ),
        "memory": _memory(needs, device),
        "tokens_at_once": at_once // layout.cp,
        "monitors": monitors,
        "rope": plan_rope(frequencies, config.model.rope, run.context_tokens, config.data.old_context_tokens),
        "assumptions": assumptions(config, device, layout, needs.state),
    }


def plan_counted(config: Config, name: str, device: Hardware, layout: Layout) -> dict[str, Any]:
    """The plan of a model that is counted only, at a run's context and tokens. Raises ConfigError for another."""
    run, shape = config.run, counted_shape(name)
    tokens = run.steps * run.batch_tokens
    return {
        "run": f"{name} (counted only)",
        "context_tokens": run.context_tokens,
        "tokens": tokens,
        **plan_shape(shape, run.context_tokens, tokens, device, layout, run.precision == "bf16"),
        "assumptions": assumptions(config, device, layout, 0)[:2],
    }


def plan_monitors(
    monitors: Mapping[str, Any], windows: Sequence[int], shape: Shape, training: float, sparse_until: int = -1
) -> dict[str, dict[str, float]]:
    """The texts that each monitor sends through the model at a run's windows; FLOPs also as a share of `training`.

    Nothing is prepared, so texts have their nominal lengths. Not included: scoring attention rows, and copying the
    model for the probe (docs/monitors.md, Cost, has the measured times).

    Up to the step `sparse_until`, monitors that support it also measure with the sparse attention of training, under a
    separate name.
    """
    plan = {}

    def add(name: str, looks: int, each: Sequence[Any], once: Sequence[Any], sparse: float) -> None:
        tokens = looks * sum(p.sent for p in each) + sum(p.sent for p in once)
        flops = looks * _forward_flops(each, shape, sparse) + _forward_flops(once, shape)
        plan[name] = {"looks": looks, "tokens": tokens, "flops": flops, "share": flops / training}

    for name, monitor in monitors.items():
        due = [step for index, step in enumerate(windows) if index % monitor.every == 0 or step == windows[-1]]
        add(name, len(due), monitor.passes(), monitor.reference_passes(), 0.0)
        if monitor.beside and (again := sum(step <= sparse_until for step in due)):
            add(f"{name} as trained", again, monitor.passes(), (), 1.0)
    return plan


def _forward_flops(passes: Sequence[Any], shape: Shape, sparse: float = 0.0) -> float:
    flops = 0.0
    for p in passes:
        parts = forward_flops(shape, p.tokens, sparse)
        flops += p.sent * (sum(parts.values()) - (0 if p.head else parts["head"]))
    return flops


def plan_shape(
    shape: Shape, context_tokens: int, tokens: int, device: Hardware, layout: Layout, bf16: bool, monitors: float = 0.0,
    every: int | None = None, sparse: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """Weights, FLOPs and time of a shape alone. `monitors`: their FLOPs, which take time too.

    Checkpointing runs the first of every `every` blocks once more (None: each block). `sparse` is the share of the
    tokens trained on with the shape's sparse attention; FLOPs of a token are the mean of both stages.
    """
    number, forward = counts(shape), forward_flops(shape, context_tokens, sparse)
    training = training_flops(shape, context_tokens, sparse)
    twice = forward_flops(shape._replace(layers=shape.layers[:: every or 1]), context_tokens, sparse)
    again = sum(twice.values()) - forward["head"]  # which is in no block
    speed = layout.devices * device.flops(bf16) * device.mfu
    day = 86400.0
    return {
        "parameters": {**number._asdict(), "parts": {k: p.total for k, p in shape.parts().items() if p.total}},
        "flops_per_token": {"forward": forward, "training": training, "checkpointed": training + again},
        "flops": training * tokens,
        "layout": {**layout._asdict(), "devices": layout.devices},
        "hardware": {**device._asdict(), "precision": "bf16" if bf16 else "fp32", "flops": device.flops(bf16)},
        "time": {
            "tokens_per_second": speed / training,
            "days": training * tokens / speed / day,
            "tokens_per_second_checkpointed": speed / (training + again),
            "days_checkpointed": (training + again) * tokens / speed / day,
            "days_of_monitors": monitors / speed / day,
        },
    }


def check_fits(config: Config, vocab_size: int, device: Hardware, layout: Layout) -> None:
    """Raise ConfigError with a remedy if a device has too little memory under the run's own checkpointing."""
    shape, place = shape_of(config.model, vocab_size), place_of(config, device.name != "cpu")
    every = config.run.recompute_every

    def needed(at_once: int, layout: Layout, every: int | None = 1) -> float:
        return memory(config.model, shape, at_once // layout.cp, layout, place, every, row).peak(every)

    at_once, row = rows_at_once(config, layout), config.run.context_tokens
    # Cheapest first: what costs a third of the time comes before what costs devices, and stays on with these.
    tries = [(at_once, layout, "run.recompute_every=1 is enough")] if every != 1 else []
    first = "" if every == 1 else "run.recompute_every=1 with "
    if at_once > row:
        tries.append((row, layout, f"{first}run.micro_batch_tokens={row} is enough"))
    for key in ("dp", "cp"):
        for doublings in range(1, 13):
            wider = layout._replace(**{key: getattr(layout, key) << doublings})
            try:
                smaller = min(at_once, rows_at_once(config, wider))
            except ConfigError:
                break
            words = ",".join(f"{name}={size}" for name, size in wider._asdict().items())
            tries.append((smaller, wider, f"{first}--layout {words} is enough ({wider.devices} devices)"))
    remedies = [(words, needed(tokens, wide)) for tokens, wide, words in tries]
    fits(needed(at_once, layout, every), device, remedies, " even with checkpointing" if every else "")


def _memory(needs: Memory, device: Hardware) -> dict[str, Any]:
    """The memory of a device in bytes, and whether it fits."""
    sums = {"total": needs.total, "total_checkpointed": needs.total_checkpointed}
    fitting = {"fits": needs.total <= device.usable, "fits_checkpointed": needs.total_checkpointed <= device.usable}
    return {**needs._asdict(), **sums, "usable": device.usable, **fitting}


def plan_rope(frequencies: np.ndarray, rope: Any, context_tokens: int, old_context_tokens: int) -> dict[str, Any]:
    """The RoPE setting, the bound of the base, and the values of models with similar heads."""
    d_head = 2 * len(frequencies)
    return {
        "setting": {key: value for key, value in vars(rope).items() if value is not None},
        "d_head": d_head,
        "plain_base": plain_base(frequencies),
        "base_bound": base_bound(d_head, context_tokens),
        "base_bound_old": base_bound(d_head, old_context_tokens),
        "first_negative": first_negative(frequencies, context_tokens),
        "critical_dimension": critical_dimension(frequencies, context_tokens),
        "critical_dimension_old": critical_dimension(frequencies, old_context_tokens),
        "known": [known._asdict() for known in KNOWN_MODELS],
    }


def assumptions(config: Config, device: Hardware, layout: Layout, state: float) -> list[str]:
    """The assumptions of the numbers, one per line; `state`: bytes of weights, gradients and moments on a device."""
    every = config.run.recompute_every
    blocks = "each block" if (every or 1) == 1 else f"one of every {every} blocks"
    here = f"run.recompute_every={every} asks for it" if every else "this run has none (run.recompute_every=1 would)"
    lines = [
        "FLOPs: matrix products, a multiply-add as two; backward is twice forward; attention is causal, windows "
        "counted; each row is one document (packed ones attend less, and cost less)",
        f"time: {device.mfu:.0%} of {device.name}'s peak ({device.source}), the same on every device and with monitors",
        "memory: what this code's autograd keeps; weights, gradients and AdamW's moments in fp32"
        + (", and copies of the weights in bf16" if config.run.precision == "bf16" and layout.devices == 1 else "")
        + f"; experts get equal rows; {RESERVE:.0%} of a device stay free",
        f"checkpointing: {blocks} keeps its input alone; {here}",
        "monitors: forward passes of texts as long as their settings allow; the probe's tuning counts three times",
    ]
    if config.model.attention is not None:
        attention, row, frac = config.model.attention, config.run.context_tokens, sparse_frac(config)
        lines.append(
            f"attention: {attention.kind} for {frac:.0%} of the tokens, with {attention.entries(row):,} entries a row "
            f"of {row:,} tokens, else dense; FLOPs are the mean, memory is that of the larger stage; monitors are dense"
            + (", some also as trained" if config.monitors.attention == "both" else "")
        )
    if "probe" in config.monitors.watch:
        what, more = (
            ("a copy of the model", state) if layout.devices == 1 else ("the model, its part kept", 0.75 * state)
        )
        lines.append(f"the probe tunes {what}: {more / 2**30:.1f} GiB more while it does, not counted above")
    if layout.devices > 1:
        gathered = "bf16" if place_of(config, True).gathers_bf16 else "fp32"
        lines.append(
            "layout: weights and their states are sharded evenly over all devices (--dry-run shows how evenly) and "
            f"gathered by layer in {gathered}, the next one ahead; experts lie on ep groups; a row's keys and values "
            "are gathered by its cp devices; communication takes no time beyond what the assumed share of the peak "
            "leaves"
        )
    return lines
