"""Who may import whom, read from the source: an arrow that points the wrong way fails before a reviewer sees it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lccp_sim"
LEAVES = {"config", "parsing", "progress", "records"}
OURS = {"config": set(), "parsing": {"config"}, "progress": set(), "records": set()}
OURS |= {name: {name, *LEAVES} for name in ("models", "data", "analysis", "plan")}
OURS["monitors"] = {"monitors"} | OURS["models"] | OURS["data"]
OURS["train"] = {"train"} | OURS["monitors"] | OURS["analysis"] | OURS["plan"]
HOMES = {  # package -> the places that may name it
    **dict.fromkeys(("lightning", "pytorch_lightning"), ("train/",)),
    "torch.distributed": ("train/parallel/",),
    **dict.fromkeys(("datasets", "tokenizers"), ("data/",)),
    **dict.fromkeys(("megablocks", "grouped_gemm"), ("models/experts.py",)),
    "transformers": ("models/adapter.py", "models/hf.py"),
    "torch": ("train/", "monitors/", "models/", "data/", "cli.py", "doctor.py"),
}
HEAVY = set("torch lightning hydra omegaconf pydantic numpy pandas matplotlib datasets tokenizers".split())
PLANTED = {
    "models/moe.py imports data": "def f():\n    from ..data import pools",
    "data/pools.py imports models": "from lccp_sim import models",
    "records.py imports config": "from lccp_sim.config import ConfigError",
    "analysis/laws.py names torch": "import torch.nn.functional as F",
    "monitors/heads.py names lightning": "from lightning.pytorch import Callback",
    "models/moe.py names torch.distributed": "import torch\ntorch.distributed.barrier()",
    "train/feed.py names datasets": "import datasets.utils",
    "train/run.py has over 300 lines": "\n" * 301,
}


def violations(path: str, source: str) -> list[str]:
    """What breaks a rule in `source`, the module at `path` of the package; a layer that OURS leaves out imports all."""
    layer, here, names = path.split("/")[0].removesuffix(".py"), ["lccp_sim", *path.split("/")[:-1]], set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) + 1 - node.level] * bool(node.level) + [node.module] * bool(node.module)
            names |= {".".join([*base, alias.name]) for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            names.add(f"torch.{node.attr}")
    ours = {name.split(".")[1] for name in names if name.startswith("lccp_sim.")} & {*OURS, "cli", "doctor", "study"}
    wrong = [f"{path} imports {other}" for other in sorted(ours - OURS.get(layer, ours))]
    for package, homes in HOMES.items():
        if not path.startswith(homes) and any(f"{name}.".startswith(f"{package}.") for name in names):
            wrong.append(f"{path} names {package}")
    return wrong + [f"{path} has over 300 lines"] * (source.count("\n") > 300)


def test_every_module_keeps_the_layers() -> None:
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
    assert "records.py" in sources
    assert [line for path, source in sorted(sources.items()) for line in violations(path, source)] == []


@pytest.mark.parametrize("rule", PLANTED)
def test_a_planted_violation_is_found(rule: str) -> None:
    assert violations(rule.split()[0], PLANTED[rule]) == [rule]


@pytest.mark.parametrize("module", ["config", "records", "cli"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, lccp_sim.{module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY & set(loaded) == set()
