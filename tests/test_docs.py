"""What is shipped and shown must work: every run config, and every command in README.md."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lccp_sim.cli import main
from lccp_sim.configure.compose import check, compose
from lccp_sim.errors import ConfigError
from lccp_sim.verbs.study import read_study
from lccp_sim.verbs.sweep import jobs_of, launching

ROOT = Path(__file__).parents[1]
MODELS = sorted((ROOT / "lccp_sim" / "configs" / "model").glob("*.yaml"))
RUNS = sorted((ROOT / "lccp_sim" / "configs" / "run").glob("*.yaml"))
README = (ROOT / "README.md").read_text()
# docs/first_hour.md has a test of its own.
NAMES = "measuring in_your_loop data plan huggingface models analysis real_models post_training sweeps".split()
PAGES = [README, *((ROOT / "docs" / f"{name}.md").read_text() for name in NAMES)]


def commands(markdown: str) -> list[list[str]]:
    """The words of each `make` and `lccp` command in the fenced blocks, prompts, comments and folders left out."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    blocks = [block for language, block in fenced if language in ("", "bash", "sh", "shell", "console")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    split = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    split = [list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words)) for words in split]
    return [[Path(words[0]).name, *words[1:]] for words in split if words and Path(words[0]).name in ("make", "lccp")]


def arms(words: list[str]) -> list[list[str]]:
    """The overrides of each run of a command: one, or with -m those of a sweep."""
    overrides = [word for word in words if "=" in word]
    return jobs_of(launching(overrides)[0]) if {"-m", "--multirun"} & set(words) else [overrides]


def verbs() -> set[str]:
    code = "import sys; from lccp_sim.cli import main; sys.exit(main())"
    shown = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True).stdout
    names = "train chain measure watch report study plan data import export gate compare doctor".split()
    return {verb for verb in names if re.search(rf"\b{verb}\b", shown)}


def run_dry(words: list[str]) -> None:
    """None; raises where a command names no target, no verb, or overrides that do not validate."""
    program, *rest = words
    if program == "make":
        env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
        subprocess.run(["make", "--dry-run", *rest], cwd=ROOT, env=env, check=True, capture_output=True)
        return
    assert rest[0] in verbs() or rest == ["--help"], f"lccp has no verb {rest[0]!r}"
    if rest[0] in ("train", "data"):
        for overrides in arms(rest[1:]):
            check(overrides)
    if rest[0] == "chain":
        for name in (word for word in rest[1:] if "=" not in word):
            check([f"run={name}", *(word for word in rest[1:] if "=" in word)])
    if rest[0] == "study":
        launching([word for word in rest[1:] if "=" in word])
        for name in (word for word in rest[1:] if "=" not in word and not word.startswith("-")):
            read_study(name)
    if rest[0] == "plan":
        assert main(rest) == 0
    if rest[0] == "measure" and "runs/" not in rest[1]:
        check(["run=measure", *(word for word in rest[1:] if "=" in word)])


def test_the_readme_shows_the_two_commands_that_matter() -> None:
    assert ["make", "demo"] in commands(README) and ["make", "test"] in commands(README)


EVERY = [words for page in PAGES for words in commands(page)]


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_a_command_of_the_documents_runs(words: list[str]) -> None:
    run_dry(words)


def anchors(markdown: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", LINKED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not heading or heading in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("make nonsense", subprocess.CalledProcessError),
        ("lccp trian run=tiny_base", AssertionError),
        ("lccp train run=tiny_base modle.d_model=64", ConfigError),
        ("lccp train -m run=tiny_base optim.lr=1e-3,-1", ConfigError),
        ("lccp measure model monitors.needle.length=[512]", ConfigError),
    ],
)
def test_a_planted_wrong_command_is_found(command: str, error: type[Exception]) -> None:
    [words] = commands(f"```bash\n$ {command}  # comment\n```\n")
    with pytest.raises(error):
        run_dry(words)


def test_there_are_run_configs() -> None:
    assert {"tiny_base", "tiny_lccp", "smoke"} <= {path.stem for path in RUNS}


@pytest.mark.parametrize("name", [path.stem for path in RUNS])
def test_a_shipped_run_composes_and_validates(name: str) -> None:
    composed = compose([f"run={name}"])
    assert composed["run"]["name"]
    config = check([f"run={name}"])
    assert config.run.name == composed["run"]["name"]
    assert config.plain()["run"]["tokens"] == composed["run"]["tokens"]


@pytest.mark.parametrize("name", [path.stem for path in MODELS])
def test_a_shipped_model_composes_and_validates(name: str) -> None:
    config = check(["run=tiny_base", f"model={name}"]).model
    named = compose(["run=tiny_base", f"model={name}"])["model"]
    assert {key: getattr(config, key) for key in named if key not in ("rope", "router")} == {
        key: value for key, value in named.items() if key not in ("rope", "router")
    }
    assert config.rope.frequencies(config.d_head)[0].shape == (config.d_head // 2,)
