"""The size of the house, and how long a user waits for a word: counts of the source, CPU seconds of three commands.

`python -m bench.house [--package DIR]` prints the counts of a checkout as JSON. `--beside OTHER` also runs the
commands of both, in turn, and prints the ratio of the medians of their CPU seconds (wall time would measure who else
is at work).
"""

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

COMMANDS = {
    "help": ["--help"],
    "misspelt key": ["train", "run=smoke", "optim.lrr=1"],
    "plan": ["plan", "run=smoke"],
}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def counts(package: Path) -> dict[str, Any]:
    """Lines, files, files by folder, public names that several modules define, and the longest function."""
    sources = {path.relative_to(package).as_posix(): path.read_text() for path in sorted(package.rglob("*.py"))}
    longest = (0, "")
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                longest = max(longest, (node.end_lineno - node.lineno + 1, f"{path}: {node.name}"))
    twice = shared_names(sources)
    folders = Counter(str(Path(path).parent) for path in sources)
    return {
        "lines": sum(source.count("\n") for source in sources.values()),
        "files": len(sources),
        "files_by_folder": dict(folders.most_common()),
        "names_with_several_homes": len(twice),
        "homes": twice,
        "longest_function": {"lines": longest[0], "name": longest[1]},
    }


def shared_names(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """The public names that several modules define, each with these modules; `sources`: text by path."""
    homes = defaultdict(set)
    for path, source in sources.items():
        for name in names_of(ast.parse(source)):
            homes[name].add(path)
    return {name: sorted(paths) for name, paths in sorted(homes.items()) if len(paths) > 1}


def names_of(tree: ast.Module) -> Iterator[str]:
    """The public names that a module defines: functions, classes and constants; what it imports is not its own."""
    for node in tree.body:
        targets: list[ast.expr] = []
        if isinstance(node, DEFINITIONS):
            targets = [ast.Name(node.name)]
        elif isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and not target.id.startswith("_"):
                yield target.id


def cpu_seconds(root: Path, words: list[str]) -> float:
    """User and system seconds of one `lccp`, with its children."""
    command = [sys.executable, "-m", "lccp_sim", *words]
    env = os.environ | {"PYTHONPATH": str(root)}
    child = subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, used = os.wait4(child.pid, 0)
    child.returncode = 0
    return used.ru_utime + used.ru_stime


def beside(old: Path, new: Path, runs: int, commands: Sequence[str]) -> dict[str, dict[str, float]]:
    """The median CPU seconds of each command in both checkouts, run in turn, and new over old."""
    found = {}
    for name in commands:
        words = COMMANDS[name]
        taken = [(cpu_seconds(old, words), cpu_seconds(new, words)) for _ in range(runs)]
        before, after = (statistics.median(column) for column in zip(*taken, strict=True))
        found[name] = {"before": round(before, 2), "after": round(after, 2), "ratio": round(after / before, 2)}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, default=Path(__file__).parents[1], help="the checkout to count")
    parser.add_argument("--beside", type=Path, help="another checkout, whose times are those before")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    arguments = parser.parse_args()
    result = counts(arguments.package / "lccp_sim")
    if arguments.beside:
        result["cpu_seconds"] = beside(
            arguments.beside.resolve(), arguments.package.resolve(), arguments.runs, arguments.commands
        )
    print(json.dumps(result, indent=1))
