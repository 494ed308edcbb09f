"""The printed plan: tables, then their assumptions."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table


def show_plan(plan: dict[str, Any], console: Console, claim: float | None = None) -> None:
    """Print the tree of plan.plan_run, or that of plan.plan_shape alone. `claim`: FLOPs to compare with."""
    parts, number = plan["parameters"]["parts"], plan["parameters"]
    rows = [(name, f"{weights:,}", f"{weights / number['total']:.1%}") for name, weights in parts.items()]
    rows += [("all", f"{number['total']:,}", ""), ("active for a token", f"{number['active']:,}", "")]
    if number["active_without_lookup"] != number["active"]:
        rows.append(("the same without the embedding", f"{number['active_without_lookup']:,}", ""))
    _table(console, f"{plan['run']}: weights", ("part", "weights", "share"), rows)

    forward, per = plan["flops_per_token"]["forward"], plan["flops_per_token"]
    whole = sum(forward.values())
    rows = [(name, _si(flops), f"{flops / whole:.1%}") for name, flops in forward.items()]
    rows += [("forward", _si(whole), ""), ("training", _si(per["training"]), "")]
    rows += [("training, with checkpointing", _si(per["checkpointed"]), "")]
    title = f"FLOPs a token, at {plan['context_tokens']:,} tokens of context"
    _table(console, title, ("part", "FLOPs", "share"), rows)

    if "memory" in plan:
        _show_memory(plan, console)
    _show_time(plan, console, claim)
    if "monitors" in plan:
        looked = [(k, str(m["looks"]), f"{m['tokens']:,.0f}", f"{m['share']:.2%}") for k, m in plan["monitors"].items()]
        sums = [sum(m[key] for m in plan["monitors"].values()) for key in ("tokens", "share")]
        looked.append(("all", "", f"{sums[0]:,.0f}", f"{sums[1]:.2%}"))
        _table(console, "monitors, over the run", ("monitor", "windows", "tokens", "FLOPs, of training's"), looked)
    if "rope" in plan:
        _show_rope(plan, console)
    console.print("Assumed:")
    for line in plan["assumptions"]:
        console.print(f"  - {line}", markup=False)


def show_dry(tree: dict[str, Any], console: Console) -> None:
    """Print the result of a dry run: what ranks hold, next to the even shards that the plan assumes."""
    looked, parts = tree["looked_at"], tree["parts"].values()
    sums = {key: sum(part[key] for part in parts) for key in ("whole", "planned")}
    everything = sums | {"cut": [], "local": [sum(each) for each in zip(*(p["local"] for p in parts), strict=True)]}
    rows = [
        (name, _si(p["whole"]), " or ".join(p["cut"]), *map(_si, p["local"]), _si(p["planned"]), _off(p))
        for name, p in (tree["parts"] | {"all": everything}).items()
    ]
    for kind in ("weights", "gradients", "moments"):
        mib = (f"{size / 2**20:,.2f}" for size in (*tree[kind]["local"], tree[kind]["planned"]))
        rows.append((f"{kind}, MiB", "", "", *mib, _off(tree[kind])))
    title = f"dry run on {tree['ranks']:,} ranks, and {tree['buffer_bytes']:,} bytes of buffers on each"
    columns = (
        "part",
        "unsharded",
        "sharded",
        *(f"rank {rank}" for rank in looked),
        "planned",
        f"rank {looked[0]}, off",
    )
    _table(console, title, columns, rows)


def _off(found: dict[str, Any]) -> str:
    return f"{found['local'][0] / found['planned'] - 1:+.2%}"


def _show_memory(plan: dict[str, Any], console: Console) -> None:
    m = plan["memory"]
    several = plan["layout"]["devices"] > 1
    whole = "embeddings and head, gathered" if several else "copies in the precision of products"
    both = [
        ("weights", "weights", "weights"),
        ("gradients", "gradients", "gradients"),
        ("AdamW's moments", "moments", "moments"),
        (whole, "copies", "copies_checkpointed"),
        ("activations", "activations", "activations_checkpointed"),
        (f"one step of backward{' with what it gathers' if several else ''}, or the loss", "step", "step_checkpointed"),
        ("all", "total", "total_checkpointed"),
    ]
    unit, size = ("GiB", 2**30) if m["total"] >= 2**30 else ("MiB", 2**20)
    rows = [(name, *(f"{m[key] / size:,.2f}" for key in keys)) for name, *keys in both]
    rows.append(("fits", *("yes" if m[key] else "no" for key in ("fits", "fits_checkpointed"))))
    tokens, usable = plan["tokens_at_once"], m["usable"] / size
    title = f"{unit} of a device, {tokens:,} tokens at once; {usable:,.1f} to use (logits: {m['logits'] / size:.2f})"
    _table(console, title, _columns(plan), rows)


def _columns(plan: dict[str, Any]) -> tuple[str, ...]:
    """The columns without and with checkpointing; the run's own is marked."""
    kept, again = ("", " (this run)") if plan.get("recompute_every") else (" (this run)", "")
    return ("", f"kept{kept}", f"checkpointed{again}") if "memory" in plan else ("", "kept", "checkpointed")


def _show_time(plan: dict[str, Any], console: Console, claim: float | None) -> None:
    time, layout, device = plan["time"], plan["layout"], plan["hardware"]
    sizes = f"dp={layout['dp']} ep={layout['ep']} cp={layout['cp']}"
    title = f"{plan['tokens']:,} tokens on {layout['devices']} x {device['name']} ({sizes}, {device['precision']})"
    rows = [
        ("FLOPs", _si(plan["flops"]), ""),
        ("tokens a second", f"{time['tokens_per_second']:,.0f}", f"{time['tokens_per_second_checkpointed']:,.0f}"),
        ("days", f"{time['days']:,.4g}", f"{time['days_checkpointed']:,.4g}"),
    ]
    if "monitors" in plan:
        rows.append(("days of monitors", f"{time['days_of_monitors']:,.3g}", f"{time['days_of_monitors']:,.3g}"))
    _table(console, title, _columns(plan), rows)
    if claim is not None:
        console.print(
            f"claimed: {_si(claim)} FLOPs, {claim / plan['flops']:.3g} times this plan's {_si(plan['flops'])}"
        )


def _show_rope(plan: dict[str, Any], console: Console) -> None:
    r, context, old = plan["rope"], plan["context_tokens"], plan["old_context_tokens"]
    setting = " ".join([r["setting"]["kind"], *(f"{k}={v:g}" for k, v in r["setting"].items() if k != "kind")])
    reach = r["first_negative"]
    held = "B(m) >= 0 throughout" if reach is None else f"B(m) < 0 at {reach:,}"
    rows = [
        ("this run's RoPE", setting, held),
        ("as plain RoPE, base", _base(r["plain_base"]), ""),
        ("bound of a plain base", _base(r["base_bound"]), f"{_base(r['base_bound_old'])} for {old:,} tokens"),
        ("critical dimension", f"{r['critical_dimension']} of {r['d_head']}",
         f"{r['critical_dimension_old']} for {old:,} tokens"),
    ]  # fmt: skip
    _table(console, f"RoPE: heads of {r['d_head']} channels, {context:,} tokens", ("", "", ""), rows)
    known = [
        (k["model"], str(k["d_head"]), f"{k['context_tokens']:,}", f"{k['base']:.3g}", k["scaling"]) for k in r["known"]
    ]
    _table(console, "what models use", ("model", "channels", "context", "base", "scaling"), known)


def _table(console: Console, title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)


def _base(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _si(value: float) -> str:
    """Three digits and a prefix, or powers of ten above them: 1.53 G, 2.56e22."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size <= value < 1e18:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"
