"""Whether the short suite notices a broken line: faults planted at random places of the library, one at a time.

    python -m bench.planted_faults DIR [--faults 10] [--seed 0]

Each fault goes into a clone of this commit in DIR and changes one expression of a function: a comparison or an
operator turns into another, a number grows by one, `and` and `or` change places, a condition is negated. Raising code
and messages are left alone, because a fault there shows in words only. Then `make test`'s selection runs until its
first failure, with the test files that name the broken module first; their order does not change whether a test fails.
Writes bench/results/planted_faults.json, one fault after the other, and goes on where it was.
"""

import argparse
import ast
import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lccp_sim.files import write_atomic

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "planted_faults.json"
COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
}  # fmt: skip


def places(tree: ast.AST) -> Iterator[ast.expr]:
    """The expressions inside functions that can be broken, outside of `raise` and of calls of `refuse`."""
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for statement in function.body:
                yield from _places(statement)


def _places(node: ast.AST) -> Iterator[ast.expr]:
    refuses = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "refuse"
    if isinstance(node, (ast.Raise, ast.FunctionDef, ast.AsyncFunctionDef, ast.JoinedStr, ast.Assert)) or refuses:
        return
    if isinstance(node, ast.expr) and broken(node) is not None:
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _places(child)


def broken(node: ast.expr) -> ast.expr | None:
    """The expression with a fault in it, or None if there is none to plant."""
    node = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        node.ops[0] = COMPARED[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED and not _says(node):
        node.op = COMPUTED[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return node.operand
    elif isinstance(node, ast.IfExp):
        node.body, node.orelse = node.orelse, node.body
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        node.value += 1
    else:
        return None
    return node


def _says(node: ast.BinOp) -> bool:
    """Whether an operand is text: its sum or its format has no other."""
    parts = (node.left, node.right)
    return any(isinstance(x, ast.JoinedStr) or isinstance(x, ast.Constant) and isinstance(x.value, str) for x in parts)


def plant(source: str, node: ast.expr) -> tuple[str, str, str]:
    """The source with the fault, and the expression before and after."""
    lines = source.encode().splitlines(keepends=True)
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    stop = sum(map(len, lines[: (node.end_lineno or 0) - 1])) + (node.end_col_offset or 0)
    after = ast.unparse(ast.fix_missing_locations(broken(node) or node))
    data = source.encode()
    return (data[:start] + f"({after})".encode() + data[stop:]).decode(), data[start:stop].decode(), after


def near(clone: Path, module: str) -> list[str]:
    """The test files, those that name the module or its file first, then those of its room."""
    files = sorted((clone / "tests").rglob("test_*.py"))
    name, room = module.rpartition(".")[2], module.split(".")[1]

    def distance(path: Path) -> tuple[int, str]:
        source = path.read_text(encoding="utf-8")
        return (0 if module in source else 1 if name in path.name else 2 if room in path.parts else 3), str(path)

    return [str(path.relative_to(clone)) for path in sorted(files, key=distance)]


def judge(clone: Path, path: Path) -> dict[str, Any]:
    """Run the short suite on the clone until a test fails; which did, or None."""
    module = ".".join(path.relative_to(clone).with_suffix("").parts)
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not sweep"]
    env = os.environ | {"PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*words, *near(clone, module)], cwd=clone, env=env, capture_output=True, text=True)
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return {"exit": done.returncode, "caught_by": failed[0] if failed else None, "end": done.stdout.splitlines()[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--faults", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    clone = given.dir / "clone"
    if not clone.exists():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    at = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True).stdout.strip()
    files = sorted((clone / "lccp_sim").rglob("*.py"))
    found = [
        (path, i) for path in files for i, _ in enumerate(places(ast.parse(path.read_text(encoding="utf-8"))))
    ]  # fmt: skip
    chosen = random.Random(given.seed).sample(found, given.faults)
    said = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if (said.get("commit"), said.get("seed")) != (at, given.seed):
        said = {"commit": at, "seed": given.seed, "places": len(found), "faults": []}
    for path, index in chosen[len(said["faults"]) :]:
        source = path.read_text(encoding="utf-8")
        node = list(places(ast.parse(source)))[index]
        spoilt, before, after = plant(source, node)
        path.write_text(spoilt, encoding="utf-8")
        try:
            outcome = judge(clone, path)
        finally:
            path.write_text(source, encoding="utf-8")
        where = f"{path.relative_to(clone)}:{node.lineno}"
        said["faults"].append({"where": where, "before": before, "after": after, **outcome})
        said["caught"] = sum(fault["exit"] != 0 for fault in said["faults"])
        write_atomic(RESULTS, json.dumps(said, indent=1) + "\n")
        print(where, before, "->", after, outcome)


if __name__ == "__main__":
    main()
