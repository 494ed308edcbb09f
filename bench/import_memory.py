"""Peak memory of an import and of an export, beside the size of the weights and of the largest shard.

A random Qwen3-MoE is written in shards. Each way runs in a process of its own; its peak counts mapped files, too,
and what the process held before it began (interpreter, torch) is taken off.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

SIZES = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
SIZES |= {"moe_intermediate_size": 1024, "num_experts": 16, "num_experts_per_tok": 2, "vocab_size": 8192}
MIB = 2**20


def held() -> int:
    """Resident bytes of this process, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def only(way: str, folder: Path) -> None:
    """Prints the bytes that a way takes at its peak, over what there was before."""
    from lccp_sim.models.foreign.architectures import read_settings
    from lccp_sim.models.foreign.hf_folder import inspect
    from lccp_sim.models.foreign.weights import read_weights, write_weights

    name, config = read_settings(json.loads((folder / "config.json").read_text()), str(folder))
    if way == "read":
        before = held()
        read_weights(inspect(folder).stream(), name, config, torch.float32, str(folder))
    else:
        state = read_weights(inspect(folder).stream(), name, config, torch.float32, str(folder))
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = held()
        with tempfile.TemporaryDirectory(dir=folder) as out:
            write_weights(state, name, config, Path(out), torch.float32, shard=100 * 10**6)
    peak = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(int(peak[0]) * 1024 - before)


def main() -> None:
    """Prints the figures and writes them to results/import_memory.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "import_memory.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.only:
        only(chosen.only[0], Path(chosen.only[1]))
        return
    import transformers as t

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**SIZES)).save_pretrained(folder, max_shard_size="100MB")
        shards = [path.stat().st_size for path in folder.glob("*.safetensors")]
        results: dict[str, Any] = {"torch": torch.__version__, "model": SIZES, "shards": len(shards)}
        results |= {"weights_mib": round(sum(shards) / MIB, 1), "largest_shard_mib": round(max(shards) / MIB, 1)}
        for way in ("read", "write"):
            command = [sys.executable, __file__, "--only", way, place]
            peaks = [int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3)]
            results[f"{way}_peak_mib"] = round(sorted(peaks)[1] / MIB, 1)
    print(json.dumps(results))
    chosen.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
