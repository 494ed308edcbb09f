"""The manifest that a refactoring must leave as it is: a SHA-256 for everything that the command line writes.

    python -m tests.golden write before.json --package ../old     # a checkout of the commit before
    python -m tests.golden compare before.json                    # this checkout: prints what differs, exits with 1

Only the command `lccp` and the files that it leaves are used, so that the same tool reads a package before and after
its modules moved. `numbers` are what no change of wording may touch; `words` are what a person reads: pages, pictures,
JSON with its sentences. Two manifests are comparable in one environment only: libraries, text of the installation and
the processor all change bytes.

Design note: each command runs in a fork of this process, which has imported torch and the other libraries, but nothing
of the package. Thirty commands would otherwise spend longer on imports than on work.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
LIBRARIES = "torch lightning numpy scipy statsmodels pandas pyarrow matplotlib tokenizers transformers".split()
PRELOADED = "lightning.pytorch matplotlib.pyplot pandas pyarrow.parquet scipy.stats statsmodels.api datasets jinja2"
PRELOADED += " hydra pydantic rich.progress tensorboard.backend transformers safetensors.torch torch.distributed.fsdp"
QUIET = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg"}
QUIET |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
SECONDS = 500  # of one command, after which it hangs

# The run of seconds: six steps, two monitors, windows at steps 0, 2, 3, 4 and 6.
BRIEF = ["run=smoke_study", "run.tokens=6144", "run.name=brief", "run.log_every_steps=1"]
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "dp": (2, []),
    "shard": (2, ["run.shard=true"]),
    "ep": (2, ["run.shard=true", "run.ep=2"]),
}
# Part of the pinned wheels, and few items: minutes of tokenizing would show nothing more.
FEW = ["data.sources.code.include=[sympy/core/*.py,sympy/sets/*.py,sympy/logic/*.py]", "run.threads=1"]
FEW += ["data.sources.text.include=['*/Help/command/*.rst']", "data.tokenizer.vocab_size=512"]
FEW += ["monitors.perplexity.items=2", "monitors.induction.items=2"]
FEW += ["data.sources.unseen_code.include=[networkx/algorithms/flow/*.py,networkx/algorithms/bipartite/*.py]"]
CHAIN = {
    "emergence": [
        "run=tiny_emergence", "run.tokens=4096", "data.sources.repeats.documents=300",
        "data.sources.records.documents=300",
    ],
    "base": [
        "run=tiny_short", "run.tokens=6144", "monitors.needle.items=5", "data.sources.repeats.documents=200",
        "data.sources.copies.documents=200", "data.sources.facts.documents=200", "data.sources.keyed.documents=200",
        "data.sources.records.documents=200", "data.sources.asked.documents=100",
    ],
    "arm": [
        "run=tiny_arm", "run.init_from=runs/tiny_short-s0-*", "run.precondition=false", "run.tokens=6144",
        "monitors.first_window_tokens=4096", "monitors.needle.items=5",
        "monitors.needle.controls=2", "monitors.heads.items=5", "monitors.probe.steps=2", "monitors.probe.rows=2",
        "monitors.probe.items=4", "monitors.probe.long_tokens=512", "data.sources.copies.documents=60",
        "data.sources.facts.documents=60", "data.sources.keyed.documents=60", "data.sources.asked.documents=30",
        "data.sources.short_keyed.documents=60",
    ],
}  # fmt: skip
ARCHITECTURES = ("hunyuan_v1_moe", "olmoe", "qwen3_moe", "mixtral", "llama", "qwen3")
STUDY = """question: Does half of the learning rate differ?
run: smoke_study
arms: {whole: [], half: [optim.lr=1.0e-3]}
reference: whole
common: [run.tokens=6144]
seeds: [0, 1]
metrics: [needle/hit_frac, needle/answer_nll_nats, perplexity/nll_nats]
"""
Manifest = dict[str, Any]
Hook = Callable[[str, tuple], None]


class Failed(Exception):
    """A command that did not end as it should; the message says which, and where its output lies."""


class Commands:
    """Runs commands of the package in `root`, a folder of its own, each in a fork of this process."""

    seconds = SECONDS
    imports = True  # each command imports the package anew

    def __init__(self, package: Path, root: Path):
        if self.imports and any(name.partition(".")[0] == "lccp_sim" for name in sys.modules):
            raise Failed("lccp_sim was imported already: start this as a program of its own")
        if not (package / "lccp_sim" / "__init__.py").is_file():
            raise Failed(f"{package}: has no lccp_sim in it; name the root of a checkout")
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        self.package, self.root, self.entry, self.count = package, root, project["scripts"]["lccp"], 0
        # Paths are relative to `root`, so that they read the same wherever it lies. The cache is a fresh one, because
        # an entry of before would hide that the same settings give other bytes; wheels are verified by their hash.
        os.environ.update(QUIET, LCCP_CACHE="cache", PYTHONPATH=str(package))
        fetched = Path("~/.cache/lccp-sim").expanduser().glob("archive-*")
        (root / "cache").mkdir(parents=True, exist_ok=True)
        for wheel in fetched:
            (root / "cache" / wheel.name).symlink_to(wheel)
        for name in PRELOADED.split():
            importlib.import_module(name)

    def __call__(self, *words: str, ranks: int = 1, kill_before: str = "") -> str:
        """What `lccp WORDS` printed, on so many processes as torchrun would start them.

        `kill_before`: part of the name of a file; the first process is killed (SIGKILL) as it gives a file that name.
        Raises Failed where the status is not 0, or nothing was killed.
        """
        self.count += 1
        logs = [self.root / "logs" / f"{self.count:02}-{words[0]}-{rank}.txt" for rank in range(ranks)]
        logs[0].parent.mkdir(exist_ok=True)
        port = free_port()
        began = time.perf_counter()
        sys.stdout.flush(), sys.stderr.flush()
        hooks: list[Hook | None] = [partial(_die_at, kill_before) if kill_before else None, *[None] * (ranks - 1)]
        children = [self.start(words, log, rank, ranks, port, hooks[rank]) for rank, log in enumerate(logs)]
        ended = [os.wait4(children[0], 0)]
        for child in children[1:]:
            if kill_before:  # it would wait for the one that is gone
                os.kill(child, signal.SIGKILL)
            ended.append(os.wait4(child, 0))
        states = [os.waitstatus_to_exitcode(status) for _, status, _ in ended]
        states, wanted = (states[:1], [-signal.SIGKILL]) if kill_before else (states, [0] * ranks)
        said = logs[0].read_text()
        busy = sum(used.ru_utime + used.ru_stime for _, _, used in ended)
        took = f"{time.perf_counter() - began:6.1f} s, {busy:5.1f} s of CPU"
        print(f"{took}: lccp {' '.join(words)}"[:118], file=sys.stderr, flush=True)
        if states != wanted:
            raise Failed(f"lccp {' '.join(words)}: ended with {states}, not {wanted}:\n{said[-3000:]}\n({logs[0]})")
        return said

    def start(self, words: Sequence[str], log: Path, rank: int, ranks: int, port: int, hook: Hook | None = None) -> int:
        """Start one rank of `lccp WORDS`, its output in `log`; return its process. `hook` hears its audit events."""
        child = os.fork()
        if child:
            return child
        status = 70
        try:
            signal.alarm(self.seconds)
            with open(log, "wb") as file:
                os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
            os.chdir(self.root)
            sys.path.insert(0, str(self.package))
            sys.argv = ["lccp", *words]
            if ranks > 1:
                _be_rank(rank, ranks, port)
            if hook is not None:
                sys.addaudithook(hook)
            module, _, name = self.entry.partition(":")
            main = getattr(importlib.import_module(module), name)
            if not Path(str(sys.modules[module].__file__)).is_relative_to(self.package):
                raise Failed(f"{module} was not imported from {self.package}")
            status = main(list(words)) or 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)


def free_port() -> int:
    """A port of this machine that nothing listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _be_rank(rank: int, ranks: int, port: int) -> None:
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    rank_zero_only.rank = rank  # set as lightning was imported, before the fork


def _die_at(name: str, event: str, values: tuple) -> None:
    if event == "os.rename" and name in Path(os.fsdecode(values[1])).name:
        os.kill(os.getpid(), signal.SIGKILL)


# What is hashed


def sha256(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def without_texts(tree: Any) -> Any:
    """A JSON value without its strings: keys, numbers, truth values and nulls. Lists and groups left empty go, too."""
    if isinstance(tree, dict):
        kept = {key: without_texts(value) for key, value in tree.items() if not isinstance(value, str)}
        return {key: value for key, value in kept.items() if value not in ({}, [])}
    if isinstance(tree, list):
        kept_items = [without_texts(value) for value in tree if not isinstance(value, str)]
        return [value for value in kept_items if value not in ({}, [])]
    return tree


class Found:
    """The artefacts found so far: `numbers` and `words`, a hash (or a plain name) each."""

    def __init__(self) -> None:
        self.numbers: dict[str, str] = {}
        self.words: dict[str, str] = {}

    def json(self, name: str, path: Path) -> None:
        """Notes a JSON or JSON lines file with its texts in `words`, without them in `numbers`."""
        text = path.read_text()
        values = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
        self.numbers[f"{name} without its texts"] = sha256(json.dumps(without_texts(values)))
        self.words[name] = sha256(text)

    def run(self, name: str, directory: Path) -> None:
        """Notes what a run, or `lccp measure`, left.

        Left out: timing.jsonl, DONE and TensorBoard's events (seconds of the clock; their values are in csv/ too), and
        the bytes of checkpoints with their manifests (how torch packs a file is not ours; the tensors are hashed).
        """
        if (directory / "config.yaml").exists() and not (directory / "DONE").exists():
            raise Failed(f"{name}: {directory.name} is not finished; did something else send it a signal?")
        self.numbers[f"{name}/directory's name"] = directory.name
        for pattern in ("config.yaml", "records.jsonl", "corpus.json", "tokenizer.json"):
            for path in directory.glob(pattern):
                self.numbers[f"{name}/{path.name}"] = sha256(path.read_bytes())
        for pattern in ("samples/*", "reference/*", "csv/*/*"):
            for path in sorted(directory.glob(pattern)):
                self.numbers[f"{name}/{path.relative_to(directory)}"] = sha256(path.read_bytes())
        for path in directory.glob("decisions.jsonl"):
            self.json(f"{name}/decisions.jsonl", path)
        for path in sorted(directory.glob("checkpoints/*.ckpt")):
            for part, hashed in checkpoint_hashes(path).items():
                self.numbers[f"{name}/checkpoints/{path.stem}/{part}"] = hashed

    def report(self, name: str, folder: Path) -> None:
        """Notes a report. A picture has titles and labels, so it is words; its numbers are in report.json."""
        for path in sorted(folder.iterdir()):
            if path.name == "report.json":
                self.json(f"{name}/report.json", path)
            elif path.suffix in (".csv", ".parquet"):
                self.numbers[f"{name}/{path.name}"] = sha256(path.read_bytes())
            else:
                self.words[f"{name}/{path.name}"] = sha256(path.read_bytes())


def checkpoint_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of the weights and of the optimizer's state, of a file or of a folder of torch.distributed.checkpoint."""
    import torch

    if path.is_dir():
        from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

        with tempfile.TemporaryDirectory() as place:
            dcp_to_torch_save(path, f"{place}/whole.pt")
            trees = [torch.load(file, weights_only=True) for file in (f"{place}/whole.pt", *path.glob("*.pt"))]
    else:
        trees = [torch.load(path, weights_only=True)]
    leaves = {name: value for tree in trees for name, value in flat(tree, "")}
    parts = {"weights": "state_dict/", "optimizer": "optimizer_states/", "schedule": "lr_schedulers/"}
    return {
        part: sha256("".join(f"{name} {leaves[name]}\n" for name in sorted(leaves) if name.startswith(prefix)))
        for part, prefix in parts.items()
    }


def flat(tree: Any, name: str) -> Iterator[tuple[str, str]]:
    """The leaves of a checkpoint by their path: tensors as dtype, shape and hash of their bytes, others as written."""
    import torch

    if isinstance(tree, torch.Tensor):
        data = tree.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        yield name, f"{tree.dtype} {tuple(tree.shape)} {sha256(data)}"
    elif isinstance(tree, Mapping | list | tuple):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from flat(value, f"{name}/{key}" if name else str(key))
    else:
        yield name, repr(tree)


# What is run


def smoke(lccp: Commands, found: Found, quick: bool) -> None:
    """Every monitor once, its report, the same run killed and resumed, and its checkpoints measured again."""
    lccp("train", "run=smoke")
    (run,) = lccp.root.glob("runs/smoke-s0-*")
    found.run("smoke", run)
    fix_seconds(run)
    lccp("report", f"runs/{run.name}")
    found.report("smoke/report", run / "report")
    if quick:
        return
    lccp("train", "run=smoke", "run.root=killed", kill_before="window-00000006")
    lccp("train", "run=smoke", "run.root=killed")
    found.run("smoke, killed and resumed", lccp.root / "killed" / run.name)
    lccp("measure", f"runs/{run.name}", "--check", "--out", "measured")
    found.run("smoke, measured", lccp.root / "measured")


def fix_seconds(run: Path) -> None:
    """Sets every time in a run's timing.jsonl to a second: the page has a table of seconds and their shares."""
    path = run / "timing.jsonl"
    lines = [json.loads(line) | {"seconds": 1.0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path.with_name("sums.json").unlink(missing_ok=True)  # it would tell of the edit


def layouts(lccp: Commands, found: Found, quick: bool) -> None:
    """The brief run, whole, and killed and resumed: a file or a folder of parts, by one process and by two."""
    lccp("train", *BRIEF)
    (run,) = lccp.root.glob("runs/brief-s0-*")
    found.run("brief", run)
    if quick:
        lccp("measure", f"runs/{run.name}", "--check", "--out", "measured-brief")
        found.run("brief, measured", lccp.root / "measured-brief")
    for kind, ranks, words in (("file", 1, []), ("folder", 2, ["run.shard=true"])):
        lccp("train", *BRIEF, *words, f"run.root={kind}", ranks=ranks, kill_before="window-00000004")
        for name, (ranks_after, words_after) in {"one": (1, []), **LAYOUTS}.items():
            if quick and (kind, name) not in (("file", "ep"), ("folder", "one")):
                continue
            shutil.copytree(lccp.root / kind, lccp.root / f"{kind}-{name}")
            lccp("train", *BRIEF, *words_after, f"run.root={kind}-{name}", ranks=ranks_after)
            found.run(f"brief, killed and resumed from a {kind}: {name}", lccp.root / f"{kind}-{name}" / run.name)


def chain(lccp: Commands, found: Found, quick: bool) -> None:
    """Three short runs, each from the one before, on the pinned text; the last of them also killed and resumed."""
    for name, words in CHAIN.items():
        lccp("train", *words, *FEW)
        (run,) = lccp.root.glob(f"runs/{words[0].removeprefix('run=')}-s0-*")
        found.run(f"tiny {name}", run)
    again = [*CHAIN["arm"], *FEW, "run.root=killed"]
    lccp("train", *again, kill_before="window-00000003")
    lccp("train", *again)
    found.run("tiny arm, killed and resumed", lccp.root / "killed" / run.name)


def study(lccp: Commands, found: Found, quick: bool) -> None:
    """A study of two arms and two seeds on the brief run, and a page of several runs."""
    (lccp.root / "configs" / "study").mkdir(parents=True)
    (lccp.root / "configs" / "study" / "golden.yaml").write_text(STUDY)
    lccp("study", "golden", "--config-dir", "configs", "--root", "studied")
    found.report("study", lccp.root / "studied" / "studies" / "golden")
    runs = sorted(path.parent for path in lccp.root.glob("studied/*/DONE"))
    for index, run in enumerate(runs):
        found.run(f"study/run {index}", run)
    lccp("report", *(str(run.relative_to(lccp.root)) for run in runs[:2]), "--out", "compared")
    found.report("two runs compared", lccp.root / "compared")


def plan(lccp: Commands, found: Found, quick: bool) -> None:
    """Two plans as JSON and as printed, one of them with the weights sharded over pretended ranks."""
    for name, words in {
        "plan": ["run=small_lccp", "--hardware", "h200", "--layout", "dp=4,ep=2"],
        "plan --dry-run": ["run=tiny_lccp", "--hardware", "h100", "--layout", "dp=1,ep=2", "--dry-run"],
    }.items():
        said = lccp("plan", *words, "--json", "plan.json")
        # Progress comes by the clock.
        found.words[f"{name}, printed"] = sha256("".join(x for x in said.splitlines(True) if not x.startswith("...")))
        found.json(f"{name} --json", lccp.root / "plan.json")


def exchange(lccp: Commands, found: Found, quick: bool) -> None:
    """A folder of transformers of each architecture, made here, imported and exported again."""
    from safetensors.torch import load_file

    for name in ARCHITECTURES[:: 3 if quick else 1]:
        foreign = lccp.root / "foreign" / name
        make_foreign(foreign, name)
        lccp("import", f"foreign/{name}", f"imported/{name}")
        lccp("export", f"imported/{name}", f"exported/{name}")
        found.run(f"import {name}", lccp.root / "imported" / name)
        out = lccp.root / "exported" / name
        leaves = [leaf for path in sorted(out.glob("*.safetensors")) for leaf in flat(load_file(path), "")]
        found.numbers[f"export {name}/weights"] = sha256(repr(sorted(leaves)))
        for path in sorted(out.glob("*.json")):
            found.numbers[f"export {name}/{path.name}"] = sha256(path.read_bytes())
        found.words[f"export {name}/README.md"] = sha256((out / "README.md").read_bytes())


def make_foreign(path: Path, name: str) -> None:
    """Writes a random model of this architecture and its tokenizer, as transformers does."""
    import tokenizers
    import transformers

    from tests.models.checkpoints import V, save

    transformers.utils.logging.disable_progress_bar()
    save(path, name)
    words = {"<|document|>": 0} | {f"w{index}": index for index in range(1, V)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w1"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|document|>").save_pretrained(path)


STAGES: dict[str, Callable[[Commands, Found, bool], None]] = {
    "smoke": smoke, "layouts": layouts, "plan": plan, "exchange": exchange, "study": study, "chain": chain
}  # fmt: skip
QUICK = ("smoke", "layouts", "plan", "exchange")


def make(package: Path, root: Path, quick: bool, stages: Sequence[str]) -> Manifest:
    """The manifest of these stages of a checkout, made in `root`, an empty folder."""
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        raise Failed(f"{root}: is not empty; name a new folder")
    os.environ.update(QUIET)  # before torch and numpy are imported
    lccp, found = Commands(package.resolve(), root.resolve()), Found()
    failed = []
    for name in stages:  # what follows is worth knowing, too
        try:
            STAGES[name](lccp, found, quick)
        except Failed as error:
            print(error, file=sys.stderr)
            failed.append(name)
    versions = {"python": sys.version.split()[0], **{name: version(name) for name in LIBRARIES}}
    return {
        "quick": quick,
        "stages": list(stages),
        "failed": failed,
        "versions": versions,
        "numbers": found.numbers,
        "words": found.words,
    }


def differences(one: Manifest, other: Manifest, numbers_alone: bool = False) -> list[str]:
    """A line for each artefact that is not the same in both."""
    lines = [f"{name}: failed" for manifest in (one, other) for name in manifest["failed"]]
    for part in ("numbers",) if numbers_alone else ("numbers", "words"):
        before, after = one[part], other[part]
        for name in [*before, *(name for name in after if name not in before)]:
            if before.get(name) != after.get(name):
                how = "is gone" if name not in after else "is new" if name not in before else "differs"
                lines.append(f"{part}: {name}: {how}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 where something differs or a command failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__, add_help=True)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in {"write": "write the manifest", "compare": "compare a manifest with this checkout's"}.items():
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument("file", type=Path, help="the manifest, JSON")
        sub.add_argument("--package", type=Path, default=HERE, help="the checkout to run (default: this one)")
        sub.add_argument("--root", type=Path, help="where to run, and keep what was written (default: removed)")
        if verb == "write":
            sub.add_argument("--quick", action="store_true", help="a part of it, in a third of the time")
            sub.add_argument("--stages", nargs="+", choices=STAGES, help="these alone")
        else:
            sub.add_argument("other", type=Path, nargs="?", help="a second manifest, instead of running anything")
            sub.add_argument("--numbers", action="store_true", help="ignore words: for a change of wording")
    asked = parser.parse_args(argv)
    before = json.loads(asked.file.read_text()) if asked.verb == "compare" else {}
    if asked.verb == "compare" and asked.other:
        after = json.loads(asked.other.read_text())
    else:
        if asked.verb == "write":
            quick, stages = asked.quick, asked.stages or (QUICK if asked.quick else list(STAGES))
        else:
            quick, stages = before["quick"], before["stages"]
        place = contextlib.nullcontext(asked.root) if asked.root else tempfile.TemporaryDirectory(prefix="golden-")
        try:
            with place as root:
                after = make(asked.package, Path(root), quick, stages)
        except Failed as error:
            print(error, file=sys.stderr)
            return 1
    if asked.verb == "write":
        asked.file.write_text(json.dumps(after, indent=1) + "\n")
        print(f"{asked.file}: {len(after['numbers'])} numbers, {len(after['words'])} words")
        return int(bool(after["failed"]))
    if before["versions"] != after["versions"]:
        print(f"other versions, so bytes may differ: {before['versions']}, {after['versions']}")
    lines = differences(before, after, asked.numbers)
    print("\n".join(lines) or f"equal: {len(before['numbers'])} numbers, {len(before['words'])} words")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
