"""The first ten minutes on a GPU: nine checks in order, each with its criterion, and a JSON file for each.

    python -m bench.first_gpu                  # one GPU; writes bench/results/first_gpu/, exits with 1 if a check fails
    python -m bench.first_gpu --dry            # on a CPU: the same code wherever a CPU can run it, nothing is kept
    python -m bench.first_gpu --only experts attention
    python -m bench.first_gpu --band           # measures the band of the check `bf16` anew, on a CPU

| check | criterion |
| precision | CPU in fp32 and GPU in fp32 (TF32 off): logits, loss and each parameter's gradient within 1e-4 |
| bf16 | bf16 on the GPU is no further from fp32 on the CPU than twice what bf16 on a CPU is (bf16_band.json) |
| experts | each backend against the loop at uneven and zero counts: outputs, weight gradients; no rows, no gradient |
| attention | each kernel against fp32 on packed rows with a document of one token, with and without a window |
| memory | the peak of a step at three lengths lies within 0.75 to 1.10 of what plan expects |
| resume | a run killed at a checkpoint and resumed equals one that was not, to the bit |
| waits | 20 steps wait for the GPU 20 times: once a step, at the gradient norm |
| monitors | with monitors and without, a run ends in the same weights |
| step | bench.step_gpu runs, and ours is not refused |

A tensor's error is its largest difference over the largest value of the reference; for a gradient, over 1/1000 of the
largest gradient of all parameters at least, because rounding noise in a gradient that is zero is no error. What a
device lacks is written down as `refused`; that fails a check only where every run needs it. A check that cannot be
judged on a CPU has `passed: null` in a dry run.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import step_gpu
from bench.step_cpu import machine
from lccp_sim.configure.compose import check as composed
from lccp_sim.models.attention import attend, attend_by_document, attend_varlen
from lccp_sim.models.experts import EXPERTS
from lccp_sim.models.loss import cross_entropy
from lccp_sim.models.transformer import Transformer, initialise
from lccp_sim.train.loop.module import LccpModule
from tests.golden import Found

RESULTS = Path(__file__).parent / "results" / "first_gpu"
BAND = Path(__file__).parent / "results" / "bf16_band.json"
V, STEPS = 256, 20
LENGTHS = [0, 40, 1, 55, 60, 36]  # of the documents of two rows of 96 tokens; the first is the offset
COUNTS = [[0, 1, 63, 64, 65, 0, 127, 0], [192, 0, 0, 0, 0, 0, 0, 128], [40] * 8, [0] * 7 + [320]]
KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
RUN = ["run=smoke_study", "run.log_every_steps=1", "run.checkpoint_every_steps=2", "run.deterministic=true"]
UNWATCHED = ["monitors.needle=null", "monitors.perplexity=null"]


class Place(NamedTuple):
    """Where the checks run: the device under test, a dry run or not, and a folder for runs."""

    device: torch.device
    dry: bool
    work: Path


class Verdict(NamedTuple):
    """Whether a check passed (None: cannot be judged here), and its numbers."""

    passed: bool | None
    found: dict[str, Any]


class Pass(NamedTuple):
    """What a forward and backward pass gives, on the CPU in fp32."""

    loss: Tensor
    logits: Tensor
    gradients: dict[str, Tensor]


def error(got: Tensor, want: Tensor, least: float = 1e-30) -> float:
    """The largest difference over the largest value of `want`, or over `least`."""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    return (got - want).abs().max().item() / max(want.abs().max().item(), least)


def away(got: Tensor, want: Tensor) -> float:
    """The norm of the difference over the norm of `want`."""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    return ((got - want).norm() / want.norm().clamp_min(1e-30)).item()


def bounds_of(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(lengths).cumsum(0)


def model_of(experts: str, seed: int = 0) -> Transformer:
    """A toy of the kind of configs/model/small.yaml, on the CPU."""
    config = dataclasses.replace(step_gpu.case_of("small", 96, torch.device("cpu"), 1, True).config, experts=experts)
    return initialise(Transformer(config, V), seed)


def one_pass(model: Transformer, device: torch.device, bf16: bool, seed: int = 0) -> Pass:
    """Logits, loss and gradients of packed rows, as training takes them."""
    bounds = bounds_of(LENGTHS)
    tokens = torch.randint(1, V, (2, 97), generator=torch.Generator().manual_seed(seed))
    starts = bounds[:-1].repeat_interleave(bounds.diff())
    positions = (torch.arange(192) - starts).view(2, 96).to(device)
    model = model.to(device)
    model.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        out = model(tokens[:, :-1].to(device), positions, bounds)
        targets = tokens[:, 1:].flatten().to(device)
        loss = cross_entropy(out.hidden_BTD.flatten(0, 1), model.head_weight, targets, len(targets))
        total = loss + 0.01 * out.balance_loss + 0.001 * out.z_loss
    total.backward()
    logits = model.logits(out.hidden_BTD.detach().flatten(0, 1))
    gradients = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return Pass(total.detach().float().cpu(), logits.float().cpu(), gradients)


@contextmanager
def plain_fp32() -> Iterator[None]:
    """While it is open, products in fp32 are fp32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def precision(place: Place) -> Verdict:
    """Each tensor of a pass in fp32, by name."""
    want = one_pass(model_of("loop"), torch.device("cpu"), bf16=False)
    with plain_fp32():
        got = one_pass(model_of("auto"), place.device, bf16=False)
    least = 1e-3 * max(gradient.abs().max().item() for gradient in want.gradients.values())
    found = {"logits": error(got.logits, want.logits), "loss": error(got.loss, want.loss)}
    found |= {name: error(got.gradients[name], gradient, least) for name, gradient in want.gradients.items()}
    return Verdict(max(found.values()) <= 1e-4, found)


def bf16_errors(device: torch.device, experts: str, seed: int) -> dict[str, float]:
    """How far a pass in bf16 on `device` is from fp32 on the CPU, by tensor."""
    want = one_pass(model_of("loop", seed), torch.device("cpu"), bf16=False, seed=seed)
    got = one_pass(model_of(experts, seed), device, bf16=True, seed=seed)
    found = {"logits": away(got.logits, want.logits), "loss": error(got.loss, want.loss)}
    return found | {name: away(got.gradients[name], gradient) for name, gradient in want.gradients.items()}


def measure_band(seeds: int = 8) -> dict[str, Any]:
    """The largest error of bf16 on this CPU over the seeds, by tensor."""
    each = [bf16_errors(torch.device("cpu"), "loop", seed) for seed in range(seeds)]
    return {"seeds": seeds, "machine": machine(), "band": {name: max(one[name] for one in each) for name in each[0]}}


def bf16(place: Place) -> Verdict:
    """Each tensor of a pass in bf16, over the band."""
    band = json.loads(BAND.read_text())["band"]
    found = bf16_errors(place.device, "auto", 0)
    over = {name: value / max(band[name], 1e-6) for name, value in found.items()}
    return Verdict(max(over.values()) <= 2, {"errors": found, "over_the_band": over})


class Rows(NamedTuple):
    """Inputs of the experts: rows sorted by expert, weights, the gradient of the output, and rows by expert."""

    leaves: list[Tensor]
    cotangent: Tensor
    counts: list[int]

    def run(self, name: str) -> list[Tensor]:
        """Output and gradients of a backend."""
        leaves = [each.detach().clone().requires_grad_() for each in self.leaves]
        y = EXPERTS[name](*leaves, torch.tensor(self.counts, device=self.cotangent.device))
        return [y, *torch.autograd.grad(y, leaves, self.cotangent)]


def rows_of(counts: list[int], device: torch.device, dtype: torch.dtype, D: int = 64, F: int = 32) -> Rows:
    """Random inputs for so many rows by expert."""
    generator = torch.Generator().manual_seed(sum(counts))
    shapes = [(sum(counts), D), *[(len(counts), F, D)] * 3, (sum(counts), D)]
    *leaves, cotangent = [(torch.randn(s, generator=generator) / 4).to(device, dtype) for s in shapes]
    return Rows(leaves, cotangent, counts)


def expert_errors(rows: Rows, want: Sequence[Tensor], name: str, most: float) -> dict[str, Any]:
    """How far a backend is from the loop: output, rows' gradient, and each expert's weight gradients."""
    got = rows.run(name)
    errors = {"y": away(got[0], want[0]), "dx": away(got[1], want[1])}
    idle = {}
    for part, mine, theirs in zip(("gate", "up", "down"), got[2:], want[2:], strict=True):
        for e, n in enumerate(rows.counts):
            if n:
                errors[f"{part} of expert {e}, {n} rows"] = away(mine[e], theirs[e])
            else:
                idle[f"{part} of expert {e}"] = mine[e].abs().max().item()
    passed = max(errors.values()) <= most and not any(idle.values())
    return {"errors": errors, "without_rows": idle, "passed": passed}


def experts(place: Place) -> Verdict:
    """Every backend in bf16, and in fp32 where it can."""
    lines = []
    for dtype, most in ((torch.bfloat16, 0.02), (torch.float32, 1e-4)):
        for counts in COUNTS:
            rows = rows_of(counts, place.device, dtype)
            want = rows.run("loop")
            for name in EXPERTS:
                found = step_gpu.tried(partial(expert_errors, rows, want, name, most))
                lines.append({"backend": name, "dtype": str(dtype), "counts": counts} | found)
    # A run in bf16 on a GPU takes grouped_mm; nobody needs the others, nor it in fp32.
    needed = [line for line in lines if line["backend"] == "grouped_mm" and line["dtype"] == str(torch.bfloat16)]
    judged = [line for line in lines if "refused" not in line]
    good = all(line["passed"] for line in judged) and not any("refused" in line for line in needed)
    return Verdict(good, {"lines": lines})


class Heads(NamedTuple):
    """Queries, keys, values of packed rows, and the gradient of the output."""

    qkv: list[Tensor]
    cotangent: Tensor

    def run(self, function: Callable[..., Tensor], window: int | None, dtype: torch.dtype) -> list[Tensor]:
        """Output and gradients."""
        leaves = [each.detach().to(dtype).requires_grad_() for each in self.qkv]
        y = function(*leaves, leaves[0].shape[-1] ** -0.5, bounds_of(LENGTHS), window)
        return [y, *torch.autograd.grad(y, leaves, self.cotangent.to(dtype))]


def attention_errors(heads: Heads, want: Sequence[Tensor], name: str, window: int | None) -> dict[str, Any]:
    """How far a kernel in bf16 is from fp32."""
    function = {"chosen": attend, "variable length": attend_varlen}.get(name, attend_by_document)
    with sdpa_kernel(KERNELS[name]) if name in KERNELS else nullcontext():
        got = heads.run(function, window, torch.bfloat16)
    errors = {part: away(a, b) for part, a, b in zip(("y", "dq", "dk", "dv"), got, want, strict=True)}
    return {"errors": errors, "passed": max(errors.values()) <= 0.02}


def attention(place: Place) -> Verdict:
    """Every kernel, with and without a window; what a run would choose, and on a GPU the packed one, must be there."""
    generator, lines = torch.Generator().manual_seed(0), []
    drawn = [torch.randn(2, 96, n, 16, generator=generator).bfloat16().to(place.device) for n in (4, 2, 2, 4)]
    heads = Heads(drawn[:3], drawn[3])
    for window in (None, 16):
        with sdpa_kernel(SDPBackend.MATH), plain_fp32():
            want = heads.run(attend_by_document, window, torch.float32)
        for name in ("chosen", "variable length", *KERNELS):
            found = step_gpu.tried(partial(attention_errors, heads, want, name, window))
            lines.append({"kernel": name, "window": window} | found)
    needed = {"chosen"} if place.dry else {"chosen", "variable length"}
    refused = any("refused" in line for line in lines if line["kernel"] in needed)
    return Verdict(not refused and all(line["passed"] for line in lines if "refused" not in line), {"lines": lines})


def peak(case: step_gpu.Case) -> dict[str, Any]:
    """What a step allocates at most, and what plan expects."""
    _, step = step_gpu.ours(case)
    step()
    planned, most = step_gpu.planned_bytes(case), step_gpu.peak_bytes(step, case.device)
    return {"planned_bytes": planned, "peak_bytes": most, "ratio": most / planned}


def memory(place: Place) -> Verdict:
    """The peak at three lengths; a CPU counts that of the whole process, and cannot say."""
    lines = []
    for tokens in (64, 128, 256) if place.dry else (4096, 16384, 65536):
        case = step_gpu.case_of("small", tokens, place.device, 1, place.dry)
        found = step_gpu.tried(partial(peak, case))
        lines.append({"tokens": tokens, "recompute_every": case.every} | found)
    ran = all("refused" not in line for line in lines)
    good = ran and all(0.75 <= line["ratio"] <= 1.10 for line in lines)
    return Verdict(None if place.dry and ran else good, {"lines": lines})


def start(words: Sequence[str], folder: Path) -> subprocess.Popen:
    """`lccp WORDS` in a process of its own, what it says in `log.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with open(folder / "log.txt", "ab") as log:
        command = [sys.executable, "-m", "lccp_sim", *words]
        env = os.environ | {"PYTHONPATH": path, "LCCP_CACHE": str(folder.parent / "cache")}
        return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)


def trained(place: Place, name: str, words: Sequence[str] = (), kill_at: str = "") -> Path:
    """The run directory of a short run; killed (SIGKILL) once a checkpoint of that name is there."""
    words = ["train", *RUN, f"run.accelerator={'cpu' if place.dry else 'gpu'}", *words]
    child, folder = start(words, place.work / name), place.work / name
    while child.poll() is None:
        if kill_at and list(folder.glob(f"runs/*/checkpoints/{kill_at}")):
            child.send_signal(signal.SIGKILL)
            child.wait()
            return next(folder.glob("runs/*"))
        time.sleep(0.01)
    if child.returncode or kill_at:
        raise RuntimeError(f"ended with {child.returncode}: {(folder / 'log.txt').read_text()[-500:]}")
    return next(folder.glob("runs/*"))


def hashes(run: Path) -> dict[str, str]:
    """What the run left, without what depends on when it was killed."""
    found = Found()
    found.run("run", run)
    return {name: value for name, value in found.numbers.items() if "/csv/" not in name and "/last-" not in name}


def resume(place: Place) -> Verdict:
    """A run, and the same run killed at its third checkpoint and started again."""
    want = hashes(trained(place, "plain"))
    killed = trained(place, "killed", kill_at="window-00000003.ckpt")
    early = not (killed / "DONE").exists()
    got = hashes(trained(place, "killed"))
    differences = sorted(name for name in want.keys() | got.keys() if want.get(name) != got.get(name))
    found = {"killed_before_its_end": early, "compared": len(want), "differences": differences}
    return Verdict(early and not differences, found)


def waits(place: Place) -> Verdict:
    """What torch says waits for the GPU, in 20 steps as training takes them."""
    config = composed(["run=smoke_study", "model.experts=grouped_mm"] if place.dry else ["run=smoke_study"])
    bounds = bounds_of(LENGTHS)
    tokens = torch.randint(1, V, (2, 96), generator=torch.Generator().manual_seed(0))
    batch = {"tokens_BT": tokens, "targets_BT": tokens, "positions_BT": torch.arange(96).repeat(2, 1)}
    batch |= {"learn_R": torch.arange(192)}
    if not place.dry:
        batch = {key: value.pin_memory() for key, value in batch.items()}
    given: dict[str, Any] = batch | {"bounds": bounds, "names": ["a"], "target_count": 192}
    module = LccpModule(config, initialise(Transformer(config.model, V), 0).to(place.device), {})
    module.step_loss, module.step_aux = (torch.zeros((), device=place.device) for _ in range(2))
    module._trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1, global_step=0)  # type: ignore[assignment]
    optimizer = module.configure_optimizers()["optimizer"]

    def step() -> None:
        module.step_loss = torch.zeros((), device=place.device)
        with torch.autocast(place.device.type, torch.bfloat16):
            loss = module.training_step(module.transfer_batch_to_device(given, place.device, 0), 0)
        loss.backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not place.dry:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(STEPS):
                step()
        finally:
            if not place.dry:
                torch.cuda.set_sync_debug_mode("default")
    said = [str(each.message)[:200] for each in caught if "synchroniz" in str(each.message)]
    found = {"steps": STEPS, "waits": len(said), "said": sorted(set(said))}
    return Verdict(None if place.dry else len(said) == STEPS, found)


def monitors(place: Place) -> Verdict:
    """The weights at each window that both runs wrote."""
    runs = [trained(place, "plain"), trained(place, "unwatched", UNWATCHED)]
    with_, without = (
        {name: value for name, value in hashes(run).items() if "/window-" in name and name.endswith("/weights")}
        for run in runs
    )
    differences = sorted(name for name in with_.keys() & without.keys() if with_[name] != without[name])
    shared = sorted(with_.keys() & without.keys())
    return Verdict(bool(shared) and not differences, {"compared": shared, "differences": differences})


def step(place: Place) -> Verdict:
    """The benchmark of a step, as far as ten minutes go."""
    out = place.work / "step_gpu.json"
    sizes = ["--toy"] if place.dry else ["--models", "small", "--tokens", "4096", "32768", "--long", "--pairs", "3"]
    step_gpu.main([*sizes, "--out", str(out)])
    found = json.loads(out.read_text())
    return Verdict(all("refused" not in cell for cell in found["cells"]), found)


CHECKS: dict[str, Callable[[Place], Verdict]] = {
    "precision": precision, "bf16": bf16, "experts": experts, "attention": attention, "memory": memory,
    "resume": resume, "waits": waits, "monitors": monitors, "step": step,
}  # fmt: skip
TABLE = [line.strip("| ").split(" | ") for line in (__doc__ or "").splitlines() if line.startswith("| ")]
CRITERIA = {name: criterion for name, criterion in TABLE if name in CHECKS}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a check fails."""
    parser = argparse.ArgumentParser(prog="python -m bench.first_gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="on a CPU, whatever a CPU can run; keeps nothing")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--band", action="store_true", help="measure the band of bf16 on this CPU, and end")
    parser.add_argument("--out", type=Path, help="default: bench/results/first_gpu; of a dry run, a temporary folder")
    asked = parser.parse_args(argv)
    if asked.band:
        BAND.write_text(json.dumps(measure_band(), indent=1) + "\n")
        return 0
    if not asked.dry and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use; --dry runs on a CPU what a CPU can run")
    device = torch.device("cpu" if asked.dry else "cuda")
    work = Path(tempfile.mkdtemp(prefix="first-gpu-"))
    out = asked.out or (work / "out" if asked.dry else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    where = {"device": "cpu" if asked.dry else torch.cuda.get_device_name(), "dry": asked.dry, "machine": machine()}
    failed = []
    for name in asked.only:
        began = time.monotonic()
        try:
            verdict = CHECKS[name](Place(device, asked.dry, work))
        except Exception as problem:  # the checks after it are worth knowing, too
            where_from = traceback.format_exc().strip().splitlines()[-6:]
            verdict = Verdict(False, {"raised": f"{type(problem).__name__}: {problem}"[:500], "traceback": where_from})
        seconds = round(time.monotonic() - began, 2)
        line = {"check": name, "criterion": CRITERIA[name], "passed": verdict.passed, "seconds": seconds, **where}
        (out / f"{name}.json").write_text(json.dumps(line | {"found": verdict.found}, indent=1) + "\n")
        word = {True: "passed", False: "FAILED", None: "ran (only a GPU can tell)"}[verdict.passed]
        print(f"{name}: {word} in {seconds} s", flush=True)
        failed += [name] if verdict.passed is False else []
    print(f"{out}: {'failed: ' + ', '.join(failed) if failed else 'no check failed'}")
    if asked.out or not asked.dry:
        shutil.rmtree(work)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
