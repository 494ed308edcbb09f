"""The size of the house, and how long a user waits for a word: counts of the source, CPU seconds of three commands.

`python -m bench.house [--package DIR]` prints the counts of a checkout as JSON. `--beside OTHER` counts another
checkout, too, runs the commands of both in turn, and gives the ratio of the medians of their CPU seconds (wall time
would also measure other processes). `--out FILE` writes the JSON to a file, too.
"""

import argparse
import ast
import io
import json
import os
import statistics
import subprocess
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from lccp_sim.files import write_atomic

COMMANDS = {
    "help": ["--help"],
    "misspelt key": ["train", "run=smoke", "optim.lrr=1"],
    "plan": ["plan", "run=smoke"],
}
ADDED = {  # what was added since the second edition began: modules for it alone, without predecessors
    "post-training objectives": (
        "train/objectives/*",
        "models/sampling.py",
        "monitors/sampled/*",
        "data/tasks/rewards.py",
        "data/tasks/teaching.py",
        "data/tasks/keyed.py",
    ),
    "chains and forks of runs": (
        "verbs/chain.py",
        "analysis/chain.py",
        "analysis/report/chain.py",
        "analysis/forks.py",
        "analysis/report/after.py",
    ),
    "other trainers' loops and the sidecar": (
        "train/parallel/foreign.py",
        "train/saved/followed.py",
        "verbs/sidecar.py",
        "train/window/own_loop.py",
        "train/window/trainer.py",
        "train/window/window_files.py",
        "data/documents/pretokenized.py",
    ),
    "gate and compare": ("analysis/judge/*", "verbs/judge.py"),
    "Lighthouse attention": ("models/lighthouse.py", "models/attention_kinds.py"),
    "CPT law and areas of the learning rate": ("analysis/stats/cpt_law.py", "analysis/areas.py"),
    "small real models, hashes of folders, recovery": ("data/gguf_files.py", "sums.py", "monitors/recovery.py"),
}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def counts(package: Path) -> dict[str, Any]:
    """Sizes of the Python sources: lines of all kinds, lines of code, files, both by folder, and names with two homes.

    `lines` are all lines, with blank lines, comments and docstrings; `code_lines` are without them. `floors_by_room`:
    the longest chain of modules of a room that import each other when loaded (`floors_by_folder`:
    of a folder). `added`: lines and files of ADDED.
    """
    sources = {path.relative_to(package).as_posix(): path.read_text() for path in sorted(package.rglob("*.py"))}
    longest = (0, "")
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                longest = max(longest, (node.end_lineno - node.lineno + 1, f"{path}: {node.name}"))
    twice = shared_names(sources)
    folders = Counter(str(Path(path).parent) for path in sources)
    lines, code = ({path: count(text) for path, text in sources.items()} for count in (lines_of, code_lines))
    rooms = sorted({room_of(path) for path in sources})
    added = {
        name: [path for path in sources if any(fnmatch(path, pattern) for pattern in patterns)]
        for name, patterns in ADDED.items()
    }
    return {
        "lines": sum(lines.values()),
        "code_lines": sum(code.values()),
        "files": len(sources),
        "files_by_folder": dict(folders.most_common()),
        "lines_by_room": {room: sum(n for path, n in lines.items() if room_of(path) == room) for room in rooms},
        "floors_by_room": {room: floors({p: s for p, s in sources.items() if room_of(p) == room}) for room in rooms},
        "floors_by_folder": {
            folder: floors({p: s for p, s in sources.items() if str(Path(p).parent) == folder}) for folder in folders
        },
        "added": {
            name: {"lines": sum(lines[path] for path in paths), "files": len(paths)} for name, paths in added.items()
        },
        "names_with_several_homes": len(twice),
        "homes": twice,
        "longest_function": {"lines": longest[0], "name": longest[1]},
        "assertions_in_tests": sum(map(assertions, (package.parent / "tests").rglob("*.py"))),
    }


def assertions(path: Path) -> int:
    """The assert statements of a file, and its `pytest.raises`."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    raises = [node for node in nodes if isinstance(node, ast.Attribute) and node.attr == "raises"]
    return sum(isinstance(node, ast.Assert) for node in nodes) + len(raises)


def commit_of(root: Path) -> str:
    """The commit of a checkout."""
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def room_of(path: str) -> str:
    """The folder of the package that holds a module; "." for the modules of no folder."""
    return path.split("/")[0] if "/" in path else "."


def lines_of(source: str) -> int:
    """All lines of a module."""
    return source.count("\n")


def code_lines(source: str) -> int:
    """Lines of a module without blank lines, comments and docstrings."""
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, (*DEFINITIONS, ast.Module)))
    said = {
        line
        for node in nodes
        if ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    other = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    return len(
        {
            line
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type not in other
            for line in range(token.start[0], token.end[0] + 1)
        }
        - said
    )


def floors(sources: Mapping[str, str]) -> int:
    """The longest chain of imports among modules, by path; an import inside a function does not count."""
    names = {f"lccp_sim.{path.removesuffix('.py').replace('/', '.')}": path for path in sources}
    imports = {name: set(imported(name, sources[path])) & names.keys() for name, path in names.items()}

    @cache
    def height(name: str) -> int:
        return 1 + max((height(other) for other in imports[name] - {name}), default=0)

    return max(map(height, names))


def imported(name: str, source: str) -> Iterator[str]:
    """Dotted names that a module imports when it is loaded, as modules and as names in them."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom):
            parts = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


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
            targets = [ast.Name(node.name, ast.Store())]
        elif isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store) and not name.id.startswith("_"):
                    yield name.id


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
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    arguments = parser.parse_args()
    result = counts(arguments.package / "lccp_sim")
    if arguments.beside:
        old, new = arguments.beside.resolve(), arguments.package.resolve()
        times = beside(old, new, arguments.runs, arguments.commands)
        commits = {"before": commit_of(old), "after": commit_of(new)}
        result = {"before": counts(old / "lccp_sim"), "after": result, "cpu_seconds": times, "commits": commits}
    text = json.dumps(result, indent=1)
    if arguments.out:
        write_atomic(arguments.out, text + "\n")
    print(text)
