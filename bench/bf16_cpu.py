"""Matrix products in bf16 against fp32 on this CPU, as it is and held to AVX2: `python -m bench.bf16_cpu OUT.json`.

Held to AVX2 (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA), torch takes the kernels that a CPU without bf16 arithmetic gets.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

SIZES = (256, 512, 1024)
ROUNDS = 5
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def measure() -> list[dict[str, float]]:
    """Median seconds of one square product by size, in fp32 and bf16 in turn, and the factor between them."""
    import torch

    torch.set_num_threads(1)
    rows = []
    for size in SIZES:
        a, b = torch.randn(size, size), torch.randn(size, size)
        pairs = {"fp32": (a, b), "bf16": (a.bfloat16(), b.bfloat16())}
        seconds: dict[str, list[float]] = {name: [] for name in pairs}
        for _ in range(1 + ROUNDS):
            for name, (left, right) in pairs.items():
                begin = time.perf_counter()
                left @ right
                seconds[name].append(time.perf_counter() - begin)
        fp32, bf16 = (statistics.median(seconds[name][1:]) for name in ("fp32", "bf16"))  # the first one warms up
        rows.append({"size": size, "fp32_seconds": fp32, "bf16_seconds": bf16, "bf16_over_fp32": bf16 / fp32})
    return rows


def main(out: Path) -> None:
    """Measure as it is and held to AVX2, each in a process of its own, and write both to `out`."""
    import torch

    from lccp_sim.train.loop.precision import bf16_units

    found = {
        "torch": torch.__version__, "machine": platform.machine(), "cpu": torch.cpu.get_capabilities().get("cpu_name"),
        "bf16_units": bf16_units(), "threads": 1, "rounds": ROUNDS,
    }  # fmt: skip
    for name, env in (("as_it_is", {}), ("held_to_avx2", AVX2)):
        command = [sys.executable, "-m", "bench.bf16_cpu"]
        shown = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=True).stdout
        found[name] = json.loads(shown)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        print(json.dumps(measure()))
