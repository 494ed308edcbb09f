"""Two real pretrained models on one CPU thread, measured by the command that a user would type, with its defaults.

    python -m bench.real_models WORK

SmolLM2-135M-Instruct and Gemma 3 270M (`make smollm2`, `make gemma`), 4-bit weights made numbers again. SmolLM2, which
is one of ours under other names, also goes all the way: import, a few steps of LCCP at twice its context, export, and
the export read back by transformers in a process of its own. Three steps show that the way is open, not that a model
learns from them. Each stage is a process of its own, whose wall time, CPU time and peak memory are kept.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import torch
import transformers
from matplotlib.figure import Figure

from lccp_sim.analysis.report.plots import STYLE, draw_map
from lccp_sim.data.cache import cache_root
from lccp_sim.data.gguf_files import MODELS
from lccp_sim.data.pools import DataConfig
from lccp_sim.files import write_atomic
from lccp_sim.records import read_records

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench" / "results" / "real_models.json"
PICTURE = ROOT / "docs" / "real_models.png"
TITLES = {"smollm2": "SmolLM2-135M-Instruct", "gemma": "Gemma 3 270M"}
SPANS = {"value": "the value", "full": "the sentence"}
METRICS = {"hit_frac": "hit", "answer_nll_nats": "NLL", "control_nll_nats": "NLL, no needle"}
WINDOWS = ("needle_before", "needle_after")
HIGH = 0.1  # a retrieval head's copy score
CONTEXT, BASE, STEPS = 8192, 100_000, 2  # of SmolLM2, and of its training here
TRAIN = (
    f"run.name=smollm2_lccp run.context_tokens={2 * CONTEXT} run.batch_tokens={2 * CONTEXT} "
    f"run.tokens={STEPS * 2 * CONTEXT} run.precision=bf16 run.log_every_steps=1 "
    f"data.old_context_tokens={CONTEXT} data.long_frac=0.75 model.rope.base={4 * BASE} optim.lr=2e-5 "
    "monitors.needle={lengths:[1024],items:5,controls:2,variants:null} monitors.perplexity=null "
    "monitors.induction=null monitors.heads=null monitors.intervention=null"
)
LOADED = """
import sys, transformers as t
model, tokenizer = (auto.from_pretrained(sys.argv[1]) for auto in (t.AutoModelForCausalLM, t.AutoTokenizer))
text = model.generate(**tokenizer("The capital of France is", return_tensors="pt"), max_new_tokens=8, do_sample=False)
print(type(model).__name__, model.config.rope_parameters, model.config.max_position_embeddings)
print(repr(tokenizer.decode(text[0])))
"""
STAGES = ("measure", "import", "logits", "train", "export")  # all but the first with SmolLM2 alone


def stage(command: str, log: Path) -> dict[str, float]:
    """Seconds by the clock and of CPU, and peak GiB, of a command in a process of its own; `log` gets its output."""
    with open(log, "w") as file:
        start = time.perf_counter()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(shlex.split(command), stdout=file, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command}\nfailed; see {log}")
    taken = {"seconds": time.perf_counter() - start, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    return {key: round(value, 1) for key, value in taken.items()} | {"peak_gib": round(usage.ru_maxrss / 2**20, 2)}


def fp32_rotation(positions_BT: Any, frequencies: Any, scale: float, dtype: Any) -> tuple[Any, Any]:
    """cos and sin as transformers forms them: of an angle in fp32."""
    angle_BTH = positions_BT[..., None].float() * frequencies.float()
    return tuple((part * scale).to(dtype).unsqueeze(2) for part in (angle_BTH.cos(), angle_BTH.sin()))


def logits(checkpoint: Path, other: Path, length: int) -> dict[str, float]:
    """The largest difference between our logits and those of transformers, of the last 64 of `length` random tokens.

    Once more with our angles in fp32 like theirs: what is left then is not RoPE.
    """
    from lccp_sim.models import transformer
    from lccp_sim.models.foreign.hf import load_checkpoint
    from lccp_sim.train.saved.checkpoint import read_checkpoint
    from lccp_sim.train.saved.init import load_transformer

    tokens_BT = torch.randint(0, 49152, (1, length), generator=torch.Generator().manual_seed(0))

    def last(model: Any) -> torch.Tensor:
        return model.logits(model.eval()(tokens_BT).hidden_BTD[0, -64:])

    theirs = last(load_checkpoint(other, torch.float32, "cpu"))
    ours = load_transformer(checkpoint, read_checkpoint(checkpoint))
    found = {
        "length": length,
        "largest": float(theirs.abs().max()),
        "difference": float((last(ours) - theirs).abs().max()),
    }
    transformer.rotation = fp32_rotation
    return found | {"difference_fp32_angles": float((last(ours) - theirs).abs().max())}


def needle(records: list[Any], step: int) -> list[dict[str, Any]]:
    """Hit, answer NLL and control NLL of single needles by length and span, then by depth, too, of one window."""
    cells: dict[tuple, dict[str, Any]] = {}
    for r in records:
        if r.step == step and r.metric in METRICS:
            if r.monitor == "needle" and r.tags.get("variant") == "single":
                place = {key: r.tags[key] for key in ("span", "length", "depth") if key in r.tags}
                cells.setdefault(tuple(place.items()), place)[r.metric] = round(r.value, 4)
    return sorted(cells.values(), key=lambda cell: "depth" in cell)


def head_scores(records: list[Any]) -> list[list[float]]:
    """The copy score on needles of each layer's heads."""
    found = [r for r in records if r.metric == "copy_hard_frac" and "head" in r.tags and "samples" not in r.tags]
    scores: dict[int, list[float]] = {}
    for r in sorted(found, key=lambda r: (r.tags["layer"], r.tags["head"])):
        scores.setdefault(r.tags["layer"], []).append(round(r.value, 3))
    return list(scores.values())


def whole(records: list[Any]) -> list[dict[str, Any]]:
    """What the other monitors say as a whole or by source: no layers, heads, positions or values."""
    names = {"perplexity", "induction", "intervention", "heads"}
    chosen = [r for r in records if r.monitor in names and not {"layer", "head", "position"} & set(r.tags)]
    chosen = [r for r in chosen if r.tags.get("span", "full") == "full"]
    return [{"name": f"{r.monitor}/{r.metric}", "value": round(r.value, 4), "n": r.n, **r.tags} for r in chosen]


def shape(gguf: Path) -> dict[str, Any]:
    """What the file says of its model."""
    config = transformers.AutoConfig.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    keys = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "vocab_size")
    layers = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    full = [layer for layer, kind in enumerate(layers) if kind == "full_attention"]
    context, window = config.max_position_embeddings, getattr(config, "sliding_window", None)
    return {key: getattr(config, key) for key in keys} | {"context": context, "window": window, "full_layers": full}


def cpu() -> str:
    """The name of the processor, as the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def by_place(needles: list[Any], span: str, metric: str, depths: bool) -> list[tuple[int, float | None, float]]:
    """Length, depth and value of one metric of the needles of a model."""
    cells = [cell for cell in needles if cell["span"] == span and ("depth" in cell) == depths]
    return [(cell["length"], cell.get("depth"), cell[metric]) for cell in cells if metric in cell]


def strongest(found: dict[str, Any]) -> list[tuple[float, int, int]]:
    """Score, layer and head of all heads, the highest first."""
    scores = [(s, layer, head) for layer, row in enumerate(found["heads"]) for head, s in enumerate(row)]
    return sorted(scores, key=lambda each: (-each[0], each[1:]))


def value(found: dict[str, Any], name: str, **tags: Any) -> float:
    """The value of the first record of a name that has all `tags`."""
    return next(r["value"] for r in found["whole"] if r["name"] == name and tags.items() <= r.items())


def tables(results: dict[str, Any]) -> str:
    """The tables of docs/real_models.md: the two models, their needles by length, and by depth."""
    models = {key: results["models"][key] for key in TITLES}
    rows: list[list[str]] = [["", *TITLES.values()], ["---"] * (1 + len(models))]

    def row(name: str, cell: Any) -> None:
        rows.append([name, *(cell(found) for found in models.values())])

    row(
        "layers x heads (KV)",
        lambda f: "{num_hidden_layers} x {num_attention_heads} ({num_key_value_heads})".format(**f["shape"]),
    )
    row("context, vocabulary", lambda f: f"{f['shape']['context']:,}, {f['shape']['vocab_size']:,}")
    row("`lccp measure`: minutes by the clock", lambda f: f"{f['measure']['seconds'] / 60:.0f}")
    row("minutes of CPU", lambda f: f"{f['measure']['cpu_seconds'] / 60:.1f}")
    row("peak memory, GiB", lambda f: f"{f['measure']['peak_gib']:.1f}")
    row("NLL of code, nats a token", lambda f: f"{value(f, 'perplexity/nll_nats', source='code'):.2f}")
    row("NLL of prose", lambda f: f"{value(f, 'perplexity/nll_nats', source='text'):.2f}")
    high = lambda f: [each for each in strongest(f) if each[0] > HIGH]  # noqa: E731
    row("heads that copy more than 0.1", lambda f: f"{len(high(f))} of {sum(map(len, f['heads']))}")
    row("the strongest: layer.head, score", lambda f: ", ".join(f"{y}.{h} {s:.2f}" for s, y, h in strongest(f)[:5]))
    for arm, name in (("none", "as it is"), ("mask_top", "the strongest masked"), ("mask_random", "others masked")):
        row(
            f"answer NLL at 512 tokens, {name}",
            lambda f, arm=arm: f"{value(f, 'intervention/answer_nll_nats', arm=arm):.2f}",
        )
    row("2nd copy of random tokens: NLL", lambda f: f"{value(f, 'induction/second_copy_nll_nats'):.2f}")
    lengths = sorted({place[0] for place in by_place(models["gemma"]["needle"], "full", "hit_frac", False)})
    rows += [[], ["", *(f"{length:,} tokens" for length in lengths)], ["---"] * (1 + len(lengths))]
    for key, found in models.items():
        for span, of in SPANS.items():
            for metric, name in (
                ("hit_frac", "hit"),
                ("answer_nll_nats", "NLL"),
                ("control_nll_nats", "NLL, no needle"),
            ):
                cells = sorted(by_place(found["needle"], span, metric, False))
                rows.append([f"{TITLES[key]}, {of}: {name}", *(f"{number:.2f}" for _, _, number in cells)])
    lines = ["|".join(["", *(f" {cell} " for cell in row), ""]).replace(" --- ", "---") if row else "" for row in rows]
    return "\n".join(lines)


def figures(results: dict[str, Any]) -> list[str]:
    """The words of docs/real_models.md that hold a number of SmolLM2's way through."""
    found = results["models"]["smollm2"]
    taken = {key: found[key] for key in ("import", "train", "export")}
    before, after = (by_place(found[key], "full", "answer_nll_nats", False)[0][2] for key in WINDOWS)
    words = [
        f"{taken['import']['seconds']:.0f} s and {taken['import']['peak_gib']:.1f} GiB",
        f"{taken['train']['seconds'] / 60:.0f} minutes, {taken['train']['peak_gib']:.2f} GiB at the peak",
        "{:.2f} and {:.2f} nats".format(*found["losses"].values()),
        f"the answer's NLL was {before:.2f} nats, and {after:.2f}",
        f"in {taken['export']['seconds']:.0f} s",
    ]
    for length in (512, CONTEXT + 512):
        each = found[f"logits_{length}"]
        parts = f"{each['largest']:.1f}", f"{each['difference']:.1e}", f"{each['difference_fp32_angles']:.1e}"
        words.append(f"| {' | '.join(parts)} |".replace("e-0", "e-"))
    return words


def picture(results: dict[str, Any]) -> Figure:
    """Of each model the needle map (hit of the value, and its NLL) and the copy scores of its heads."""
    figure = Figure(figsize=(9.6, 6.2), layout="constrained")
    axes = figure.subplots(len(TITLES), 3)
    kinds = ("hit_frac", "hit of the value", "viridis", 1.0), ("answer_nll_nats", "its NLL, nats", "viridis_r", 3.0)
    for row, (key, title) in zip(axes, TITLES.items(), strict=True):
        found = results["models"][key]
        for ax, (metric, name, colours, top) in zip(row, kinds, strict=False):
            cells = pd.DataFrame(by_place(found["needle"], "value", metric, True), columns=["length", "depth", "value"])
            image = draw_map(ax, cells.pivot(index="depth", columns="length", values="value"), colours, (0.0, top))
            ax.set(title=f"{title}: {name}" if ax is row[0] else name, ylabel="depth of the needle")
            figure.colorbar(image, ax=ax, pad=0.02).outline.set_visible(False)
        image = draw_map(row[2], pd.DataFrame(found["heads"]), "viridis", (0.0, 1.0))
        for text in list(row[2].texts):
            text.remove()
        row[2].set(title="copy score of its heads", ylabel="layer")
        figure.colorbar(image, ax=row[2], pad=0.02).outline.set_visible(False)
    for ax, name in zip(axes[-1], ("length in tokens", "length in tokens", "head"), strict=True):
        ax.set_xlabel(name)
    return figure


def main() -> None:
    """Prints the figures and writes them to results/real_models.json, a stage after the other, then the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="a folder for what is made on the way (3 GB)")
    parser.add_argument("--models", nargs="*", choices=TITLES, default=list(TITLES), help="none: only the picture")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="go on where an earlier call ended")
    parser.add_argument("--only", type=int, help="compare logits at this length, and end")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    cache = cache_root(DataConfig.cache)
    ggufs = {key: MODELS[key].path(cache) for key in TITLES}
    base = chosen.work / "SmolLM2"
    if chosen.only:
        print(json.dumps(logits(base / "checkpoints" / "window-00000000.ckpt", ggufs["smollm2"], chosen.only)))
        return
    chosen.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"models": {}}
    for key in chosen.models:
        if not ggufs[key].exists():
            raise SystemExit(f"{ggufs[key]} is not there; make {key} fetches it")
        stages = chosen.stages if key == "smollm2" else [each for each in chosen.stages if each == "measure"]
        found = results["models"].setdefault(key, {})

        def note(name: str, value: Any, found: dict[str, Any] = found) -> None:
            found[name] = value
            print(json.dumps({name: value}), flush=True)
            write_atomic(RESULT, json.dumps(results, indent=1) + "\n")

        run_stages(ggufs[key], chosen.work, base, stages, note)
    print(tables(results))
    with matplotlib.rc_context(STYLE):
        picture(results).savefig(PICTURE, dpi=110, metadata={"Software": None})


def run_stages(gguf: Path, work: Path, base: Path, stages: list[str], note: Any) -> None:
    """None; what each stage took and found goes to `note(name, value)`."""
    machine = {"torch": torch.__version__, "transformers": transformers.__version__, "cpu": cpu(), "threads": 1}
    lccp = f"{sys.executable} -m lccp_sim.cli"
    if "measure" in stages:
        out = work / f"{gguf.stem}-measured"
        command = f"measure {shlex.quote(str(gguf))} run.threads=1 run.accelerator=cpu"
        took = stage(f"{lccp} {command} --out {out}", work / f"{gguf.stem}.log")
        note("shape", shape(gguf))
        note("measure", took | machine)
        records, _ = read_records(out / "records.jsonl")
        note("needle", needle(records, 0))
        note("heads", head_scores(records))
        note("whole", whole(records))
    common = f"run=measure data.cache={work}/cache run.threads=1 run.accelerator=cpu"
    if "import" in stages:
        note("import", stage(f"{lccp} import {gguf} {base}", work / "import.log"))
    for length in (512, CONTEXT + 512) if "logits" in stages else ():
        log = work / f"logits-{length}.log"
        used = stage(f"{sys.executable} -m bench.real_models {work} --only {length}", log)
        note(f"logits_{length}", json.loads(log.read_text().splitlines()[-1]) | used)
    if "train" in stages:
        words = f"{common} model=SmolLM2 --config-dir {base}/configs run.init_from={base} run.root={work}/runs {TRAIN}"
        note("train", stage(f"{lccp} train {words}", work / "train.log") | {"settings": TRAIN})
        [run] = (work / "runs").glob("smollm2_lccp-*")
        records, _ = read_records(run / "records.jsonl")
        note("losses", {r.step: round(r.value, 4) for r in records if r.metric == "loss_nats"})
        note("needle_before", needle(records, 0))
        note("needle_after", needle(records, STEPS))
    if "export" in stages:
        [run] = (work / "runs").glob("smollm2_lccp-*")
        note("export", stage(f"{lccp} export {run} {work}/exported", work / "export.log"))
        log = work / "loaded.log"
        used = stage(f"{sys.executable} -c {shlex.quote(LOADED)} {work}/exported", log)
        note("loaded", used | {"said": log.read_text().splitlines()[-2:]})


if __name__ == "__main__":
    main()
