"""Who may import whom, read from the source: an arrow that points the wrong way fails before a reviewer sees it."""

import ast
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from bench.house import shared_names

PACKAGE = Path(__file__).parents[1] / "lccp_sim"
LEAVES = {"config", "configure.parse", "errors", "files", "progress", "records", "sums"}
ROOMS = {**dict.fromkeys(("errors", "files", "progress"), set()), "records": {"errors"}}
ROOMS |= {"sums": {"errors", "files"}}
ROOMS |= {"config": {"errors"}, "configure.parse": {"config", "errors"}}
ROOMS |= {name: {*LEAVES} for name in ("models", "data", "plan")}  # room -> the rooms that it may import beside itself
ROOMS["monitors"] = {"models", "data", *LEAVES}
ROOMS["train.objectives"] = {"monitors"} | ROOMS["monitors"]
ROOMS["configure"] = {"train.objectives"} | ROOMS["train.objectives"]
ROOMS["analysis"] = {*LEAVES}  # run, overall, metrics, format
ROOMS["analysis.stats"] = {"analysis", *LEAVES}
ROOMS["analysis.findings"] = {"analysis.stats"} | ROOMS["analysis.stats"]
ROOMS["analysis.seeds"] = {"analysis.findings"} | ROOMS["analysis.findings"]
ROOMS["analysis.forks"] = {"analysis.stats"} | ROOMS["analysis.stats"]
SHARED = {f"analysis.report.{name}" for name in ("verdict", "precondition", "plots")}  # what training says, too
ROOMS["analysis.report"] = {"analysis.seeds", "analysis.forks", *SHARED} | ROOMS["analysis.seeds"]
ROOMS |= {name: {"analysis.report"} | ROOMS["analysis.report"] for name in SHARED}
ROOMS["analysis.judge"] = {"analysis.seeds"} | ROOMS["analysis.seeds"]
ROOMS["train.saved"] = {"configure"} | ROOMS["configure"]
ROOMS["train.parallel"] = {"train.saved", "plan"} | ROOMS["train.saved"]
ROOMS["train.loop"] = {"train.parallel"} | ROOMS["train.parallel"]
ROOMS["train.window"] = {"train.loop", "analysis", "analysis.stats", "analysis.findings"} | ROOMS["train.loop"]
ROOMS["train.window"] |= SHARED
ROOMS["train"] = {"train.window"} | ROOMS["train.window"]
ROOMS["verbs"] = {"train", "analysis.report", "analysis.judge"} | ROOMS["train"]
ROOMS |= {"cli": {"verbs"} | ROOMS["verbs"], "__main__": {"cli"}}
HOMES = {  # package -> the places that may name it
    **dict.fromkeys(("lightning", "pytorch_lightning"), ("train/",)),
    "torch.distributed": ("train/parallel/", "train/saved/sharded.py"),
    **dict.fromkeys(("datasets", "tokenizers"), ("data/",)),
    **dict.fromkeys(("megablocks", "grouped_gemm"), ("models/experts.py",)),
    "transformers": ("models/foreign/adapter.py", "models/foreign/hf.py", "train/window/trainer.py"),
    "torch": ("train/", "monitors/", "models/", "data/", "verbs/"),
}
HEAVY = set("torch lightning hydra omegaconf pydantic numpy pandas matplotlib datasets tokenizers".split())
PRIVATE = "train/parallel/torch_private.py"  # the one place for what torch does not promise to keep
LINES, FILES = 500, 15  # of a module, of a folder
PLANTED = {
    "models/moe.py imports data": "def f():\n    from ..data import pools",
    "data/pools.py imports models": "from lccp_sim import models",
    "records.py imports config": "from lccp_sim.config import ConfigError",
    "configure/parse.py imports data": "from lccp_sim.data import sources",
    "analysis/stats/laws.py imports analysis.findings": "from lccp_sim.analysis.findings import examine",
    "analysis/format.py imports analysis.stats": "from lccp_sim.analysis.stats.curve import Estimate",
    "analysis/run.py imports analysis.report": "from lccp_sim.analysis.report import tables",
    "train/saved/init.py imports verbs": "from lccp_sim.verbs.sweep import sweep",
    "train/loop/module.py imports train.window": "from lccp_sim.train.window.suite import MonitorSuite",
    "train/window/stopping.py imports analysis.report": "from lccp_sim.analysis.report import tables",
    "analysis/stats/laws.py names torch": "import torch.nn.functional as F",
    "monitors/heads.py names lightning": "from lightning.pytorch import Callback",
    "models/moe.py names torch.distributed": "import torch\ntorch.distributed.barrier()",
    "train/parallel/layout.py names private parts of torch": "from torch.utils._pytree import tree_map",
    "train/loop/loader.py names datasets": "import datasets.utils",
    "train/run.py has over 500 lines": "\n" * 501,
}


def room_of(module: str) -> str:
    """The room of a module or of a name in one, dotted below lccp_sim; "" for what has none."""
    words = module.split(".")
    return next((room for n in range(len(words), 0, -1) if (room := ".".join(words[:n])) in ROOMS), "")


def imports_of(path: str, tree: ast.Module) -> set[tuple[str, str]]:
    """What the module at `path` of the package imports, at any place: (dotted module, name in it or "")."""
    here, found = ["lccp_sim", *path.split("/")[:-1]], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) + 1 - node.level] * bool(node.level) + [node.module] * bool(node.module)
            found |= {(".".join(base), alias.name) for alias in node.names}
    return found


def violations(path: str, source: str) -> list[str]:
    """What breaks a rule in `source`, the module at `path` of the package."""
    tree = ast.parse(source)
    names = {".".join(filter(None, each)) for each in imports_of(path, tree)}
    names |= {
        f"torch.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch"
    }
    room = room_of(path.removesuffix(".py").replace("/", "."))
    others = {room_of(name.removeprefix("lccp_sim.")) for name in names if name.startswith("lccp_sim.")}
    wrong = [f"{path} imports {other}" for other in sorted(others - {"", room} - ROOMS.get(room, set()))]
    for package, homes in HOMES.items():
        if not path.startswith(homes) and any(f"{name}.".startswith(f"{package}.") for name in names):
            wrong.append(f"{path} names {package}")
    if path != PRIVATE and any(name.startswith("torch.") and "._" in name for name in names):
        wrong.append(f"{path} names private parts of torch")
    return wrong + [f"{path} has over {LINES} lines"] * (source.count("\n") > LINES)


def test_every_module_keeps_the_layers() -> None:
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
    assert "records.py" in sources
    assert [line for path, source in sorted(sources.items()) for line in violations(path, source)] == []


@pytest.mark.parametrize("rule", PLANTED)
def test_a_planted_violation_is_found(rule: str) -> None:
    assert violations(rule.split()[0], PLANTED[rule]) == [rule]


def imported(sources: dict[str, str]) -> dict[str, set[str]]:
    """Of each module, by dotted name, those of `sources` that it imports, at any place; a package is its `__init__`."""
    modules = {
        ".".join(["lccp_sim", *path.removesuffix(".py").split("/")]).removesuffix(".__init__"): path for path in sources
    }
    found = {}
    for module, path in modules.items():
        pairs = imports_of(path, ast.parse(sources[path]))
        found[module] = {
            full if (full := f"{base}.{name}") in modules else base for base, name in pairs
        } & modules.keys()
    return found


def test_no_module_imports_itself_through_others() -> None:
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
    imports = imported(sources)
    assert (
        "lccp_sim.errors" in imports["lccp_sim.config"] and "lccp_sim.monitors.needle" in imports["lccp_sim.monitors"]
    )
    TopologicalSorter(imports).prepare()  # CycleError names the circle


@pytest.mark.parametrize(
    "back", ["from lccp_sim.monitors import MONITORS", "import lccp_sim.monitors as all", "from . import MONITORS"]
)
def test_a_planted_circle_is_found(back: str) -> None:
    planted = {"monitors/__init__.py": "from lccp_sim.monitors.needle import Needle", "monitors/needle.py": back}
    with pytest.raises(CycleError, match="needle"):
        TopologicalSorter(imported(planted)).prepare()


def test_a_public_name_is_unique_in_the_package() -> None:
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
    assert "records.py" in sources
    assert shared_names(sources) == {}


def test_a_planted_second_home_of_a_name_is_found() -> None:
    planted = {"a.py": "_own = LIMIT = 1\nfrom b import Row", "b.py": "class Row: ...\n_own = 2", "c.py": "LIMIT: int"}
    assert shared_names(planted) == {"LIMIT": ["a.py", "c.py"]}
    assert shared_names({"a.py": "A, (B, *_C) = 1, (2, 3)", "b.py": "B = 2"}) == {"B": ["a.py", "b.py"]}


def test_a_folder_has_few_files() -> None:
    count = Counter(
        path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if path.stem[0] != "_"
    )
    assert {folder: n for folder, n in count.items() if n > FILES} == {}


@pytest.mark.parametrize("module", ["config", "errors", "records", "cli"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, lccp_sim.{module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY & set(loaded) == set()
