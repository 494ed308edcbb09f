"""A real pretrained model on one CPU thread: import, measure, a few steps of LCCP at twice its context, export, and the
export read back by transformers in a process of its own.

The model is SmolLM2-135M-Instruct (`make smollm2`), 4-bit weights made numbers again. Every stage is the command that a
user would type; its wall time and peak memory are those of its own process. Three steps show that the way is open, not
that a model learns from them.
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

import torch
import transformers

from lccp_sim.records import read_records

CONTEXT, BASE, STEPS = 8192, 100_000, 2
LOOK = (
    "monitors.needle={lengths:[512,1024,2048],items:10,controls:2,variants:null} monitors.perplexity=null "
    "monitors.induction={lengths:[512],items:4} monitors.heads={lengths:[1024],items:5} "
    "monitors.intervention={lengths:[512],items:10,draws:1}"
)
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
print(tokenizer.decode(text[0]))
"""
STAGES = ("import", "logits", "train", "export", "measure")


def stage(command: str, log: Path) -> dict[str, float]:
    """Seconds and peak GiB of a command in a process of its own, whose output goes to `log`."""
    with open(log, "w") as file:
        start = time.perf_counter()
        process = subprocess.Popen(shlex.split(command), stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command}\nfailed; see {log}")
    return {"seconds": round(time.perf_counter() - start, 1), "peak_gib": round(usage.ru_maxrss / 2**20, 2)}


def fp32_rotation(positions_BT: Any, frequencies: Any, scale: float, dtype: Any) -> tuple[Any, Any]:
    """cos and sin as transformers forms them: of an angle in fp32."""
    angle_BTH = positions_BT[..., None].float() * frequencies.float()
    return tuple((part * scale).to(dtype).unsqueeze(2) for part in (angle_BTH.cos(), angle_BTH.sin()))


def logits(checkpoint: Path, other: Path, length: int) -> dict[str, float]:
    """The largest difference between our logits and those of transformers, of the last 64 of `length` random tokens.

    Once more with our angles in fp32 like theirs: what is left then is not RoPE.
    """
    from lccp_sim.models import transformer
    from lccp_sim.models.hf import load_checkpoint
    from lccp_sim.train.checkpoint import read_checkpoint
    from lccp_sim.train.start import load_transformer

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


def needle(records: list[Any], step: int) -> dict[str, Any]:
    """Hit and answer NLL of the single needle, whole and by length, and by depth and length, of one window."""
    found: dict[str, Any] = {}
    for r in records:
        if r.step == step and r.monitor == "needle" and r.metric in ("hit_frac", "answer_nll_nats", "control_nll_nats"):
            if r.tags.get("span", "full") == "full":
                found.setdefault(r.metric, []).append({"value": round(r.value, 4), "n": r.n, **r.tags})
    return found


def strongest(records: list[Any], count: int = 10) -> list[dict[str, Any]]:
    """The heads with the highest copy score on needles."""
    heads = [r for r in records if r.metric == "copy_hard_frac" and "head" in r.tags and "samples" not in r.tags]
    top = sorted(heads, key=lambda r: -r.value)[:count]
    return [{"layer": r.tags["layer"], "head": r.tags["head"], "copy_hard_frac": round(r.value, 3)} for r in top]


def mechanistic(records: list[Any]) -> list[dict[str, Any]]:
    """What the monitors of heads say as a whole: no layers, no heads."""
    chosen = [r for r in records if r.tier == "mechanistic" and not {"layer", "head"} & set(r.tags)]
    return [{"name": f"{r.monitor}/{r.metric}", "value": round(r.value, 4), "n": r.n, **r.tags} for r in chosen]


def main() -> None:
    """Prints the figures and writes them to results/smollm2.json, a stage after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("work", type=Path, help="a folder for what is made on the way (3 GB)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="go on where an earlier call ended")
    parser.add_argument("--only", type=int, help="compare logits at this length, and end")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "smollm2.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    work, base = chosen.work, chosen.work / "SmolLM2"
    if chosen.only:
        print(json.dumps(logits(base / "checkpoints" / "window-00000000.ckpt", chosen.gguf, chosen.only)))
        return
    work.mkdir(parents=True, exist_ok=True)
    lccp = f"{sys.executable} -m lccp_sim.cli"
    common = f"run=measure data.cache={work}/cache run.threads=1 run.accelerator=cpu"
    results: dict[str, Any] = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    results |= {"torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.machine()}
    results |= {"threads": 1, "look": LOOK, "train_with": TRAIN}

    def note(name: str, value: Any) -> None:
        results[name] = value
        print(json.dumps({name: value}), flush=True)
        chosen.out.write_text(json.dumps(results, indent=1) + "\n")

    if "import" in chosen.stages:
        note("import", stage(f"{lccp} import {chosen.gguf} {base}", work / "import.log"))
    for length in (512, CONTEXT + 512) if "logits" in chosen.stages else ():
        log = work / f"logits-{length}.log"
        used = stage(f"{sys.executable} {__file__} {chosen.gguf} {work} --only {length}", log)
        note(f"logits_{length}", json.loads(log.read_text().splitlines()[-1]) | used)
    if "train" in chosen.stages:
        words = f"{common} model=SmolLM2 --config-dir {base}/configs run.init_from={base} run.root={work}/runs {TRAIN}"
        note("train", stage(f"{lccp} train {words}", work / "train.log"))
    if "export" in chosen.stages:
        [run] = (work / "runs").glob("smollm2_lccp-*")
        records, _ = read_records(run / "records.jsonl")
        note("losses", {r.step: round(r.value, 4) for r in records if r.metric == "loss_nats"})
        note("needle_before", needle(records, 0))
        note("needle_after", needle(records, STEPS))
        note("export", stage(f"{lccp} export {run} {work}/exported", work / "export.log"))
        log = work / "loaded.log"
        used = stage(f"{sys.executable} -c {shlex.quote(LOADED)} {work}/exported", log)
        note("loaded", used | {"said": log.read_text().splitlines()[-2:]})
    if "measure" in chosen.stages:
        out = work / "measured"
        note("measure", stage(f"{lccp} measure {chosen.gguf} {common} {LOOK} --out {out}", work / "measure.log"))
        records, _ = read_records(out / "records.jsonl")
        note("needle", needle(records, 0))
        note("strongest_heads", strongest(records))
        note("mechanistic", mechanistic(records))
        note("report", stage(f"{lccp} report {out}", work / "report.log"))


if __name__ == "__main__":
    main()
