"""Pages and code are in plain English: README, CONTRIBUTING, docs/, and docstrings, messages and comments of CLEAN."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator

import pytest

from bench.dialect import GLOSSARY, dialect, prose
from tests.test_docs import ROOT

PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
CLEAN = ["analysis", "configure", "data", "models", "monitors", "plan", "train", "verbs"]  # folders of lccp_sim
MODULES = sorted(
    path.relative_to(ROOT / "lccp_sim").as_posix()
    for folder in CLEAN
    for path in (ROOT / "lccp_sim" / folder).rglob("*.py")
)
ALLOWED = {  # words of the probe's texts, which are data, and of a folder's name
    "analysis/metrics.py": {"beside"},  # a place of the catalogue
    "data/tasks/phrases.py": {"stands in"},
    "data/tasks/words.py": {"watches"},
    "verbs/checkpoints.py": {"watched"},
}
NAMES = re.compile(r"\blccp \w+|[\w.]*\w[.=][\w.]+")  # verbs, dotted names, settings such as held_out=whole
PATTERNS = {  # of docstrings, beyond words
    re.compile(r"\ANone[,;] "): "begin with an imperative: Write ..., Raise ConfigError if ...",
    re.compile(r"Questionable:|[Ww]hat\s+a\s+reader\s+would\s+question"): "Design note:",
}
PLANTED = {
    "The weights are cut over all ranks.": "'cut'",
    "Whole rows are sent.": "'Whole'",
    "It looks at eight windows.": "'looks'",
    "The gain is foretold.": "'foretold'",
    "Heads are chosen anew.": "'anew'",
    "Two laws, of which one fits.": "'of which'",
    "One that fails keeps its reason.": "'One that'",
    "The sentence is shown beside it.": "'beside'",
}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_in_plain_english(page: str) -> None:
    lines = prose((ROOT / page).read_text(encoding="utf-8")).splitlines()
    assert [(line.strip(), words) for line in lines if (words := dialect(line))] == []


def written(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of the docstrings, messages (strings with a space) and comments of a module."""
    tree = ast.parse(source)
    pieces = {id(piece) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(p.value) if isinstance(p, ast.Constant) else "x" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def faults(source: str) -> list[tuple[int, str]]:
    """Line and fault of each word and pattern of the old dialect in a module."""
    return [
        (line, fault)
        for line, text in written(source)
        if " " in text.strip()
        for fault in [
            *dialect(NAMES.sub("", prose(text))),
            *(f"{pattern.pattern!r}: {plain}" for pattern, plain in PATTERNS.items() if pattern.search(text)),
        ]
    ]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_in_plain_english(module: str) -> None:
    found = faults((ROOT / "lccp_sim" / module).read_text(encoding="utf-8"))
    allowed = tuple(f"{word!r}:" for word in ALLOWED.get(module, ()))
    assert [(line, fault) for line, fault in found if not fault.startswith(allowed)] == []


def test_modules_with_allowed_words_exist() -> None:
    assert all((ROOT / "lccp_sim" / module).exists() for module in ALLOWED)


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """None, once it is on disk."""\n',
        'def f():\n    """None; prints it."""\n',
        '"""A module.\n\nWhat a\nreader would question: nothing."""\n',
        'raise ValueError(f"{path}: holds the whole file")\n',
        "x = 1  # a row that is cut\n",
    ],
)
def test_a_planted_text_of_a_module_is_found(source: str) -> None:
    assert len(faults(source)) == 1


def test_names_and_settings_of_a_module_are_not_prose() -> None:
    source = 'whole = cut["whole"]\nraise ValueError(f"run.stopping.watch, held_out=whole: see `cut` and lccp watch")\n'
    assert not faults(source)


@pytest.mark.parametrize("sentence", PLANTED)
def test_a_planted_sentence_is_found(sentence: str) -> None:
    [found] = dialect(prose(sentence))
    assert found.startswith(PLANTED[sentence])


def test_code_and_addresses_are_not_prose() -> None:
    text = "See `held_out: whole` and [a page](beside.md).\n```yaml\nhow: cut\n```\nLook up a branch.\n"
    assert not dialect(prose(text)) and len(dialect(prose(f"{text}Cut it."))) == 1


def test_each_word_has_a_plain_one() -> None:
    assert all(plain.strip() for plain in GLOSSARY.values())
