"""What became of the project's old dialect: ten sentences of an earlier commit, drawn by a seed, and their successors.

    python -m bench.dialect [--commit 4beafe4] [--seed 0] [--sentences 10]

reads the pages, docstrings and messages of that commit, draws sentences that hold a word of GLOSSARY, and finds in the
present tree the sentence that shares the most informative words with each. Writes bench/results/dialect.json.
Design note: the words are here and the rule is in tests/test_glossary.py, so that test and draw know one list.
"""

import argparse
import ast
import json
import math
import random
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lccp_sim.files import write_atomic

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench" / "results" / "dialect.json"
GLOSSARY = {  # pattern -> what to write instead
    r"cut(s|ting)?": "sharded (weights), split (documents), truncated (files, text)",
    r"whole": "full, overall, unsharded, entire",
    r"look(s|ed|ing)?(?! up| alike)": "measure, attend to, inspect, seem",
    r"fore(told|tells?|telling)": "predicted, predicts",
    r"anew": "again, at each window",
    r"(of|by) which": "a second sentence, or that ... of",
    r"(?-i:One) that": "name the noun: a run that, the window that",
    r"what it was made of": "its sources",
    r"beside": "next to, in addition to, with",
    r"of (ours|theirs|others)": "our, their, another project's",
    r"(?<!there )(is|are) no (part|text|document|option|cure|help|lack|sharp)": "is not part of, is not a document",
    r"all the way": "end to end",
    r"hangs? on": "depends on",
    r"said (so|in one line)|is said|are said": "reported, stated",
    r"watch(es|ed|ing)?": "measure, monitor",
    r"goes by": "follows, depends on",
    r"stands? (beside|in|first|there|where)": "is, is listed",
    r"at hand": "available, current",
    r"in the place of": "instead of",
    r"mend(s|ed)?": "fix",
    r"what is no\b": "what is not a",
    r"dealt out": "distributed",
}
WORDS = {pattern: re.compile(rf"\b{pattern}\b", re.IGNORECASE) for pattern in GLOSSARY}
FEWEST = 8  # words of a sentence that is drawn; shorter ones say too little to be found again
SAME = 0.35  # share of informative words that makes a sentence the successor of another


def prose(markdown: str) -> str:
    """A page without fenced blocks, code spans, addresses of links and HTML comments."""
    for pattern in (r"^```.*?^```", r"<!--.*?-->", r"`[^`\n]*`", r"(?<=\])\([^)]*\)"):
        markdown = re.sub(pattern, "", markdown, flags=re.MULTILINE | re.DOTALL)
    return markdown


def dialect(text: str) -> list[str]:
    """The words of the glossary in a text, with what to write instead."""
    return [f"{found[0]!r}: {GLOSSARY[name]}" for name, word in WORDS.items() for found in word.finditer(text)]


def sentences(path: str, text: str) -> Iterator[str]:
    """The sentences of a page, or of the docstrings and messages of a module: strings of three words or more."""
    if path.endswith(".md"):
        blocks = re.split(r"\n\s*\n|\n(?=[-|#\d])", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    else:
        nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant | ast.JoinedStr))
        blocks = [
            node.value if isinstance(node, ast.Constant) else "".join(
                str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values
            )
            for node in nodes
            if isinstance(node, ast.JoinedStr) or isinstance(node.value, str)
        ]  # fmt: skip
    for block in blocks:
        for sentence in re.split(r"(?<=[.!?])\s+|\s\|\s|\n\s*\n", block):
            plain = " ".join(sentence.strip(" |-#").split())
            if plain.count(" ") >= 2:
                yield plain


def tree(commit: str | None) -> dict[str, str]:
    """The pages and modules of a commit, or (None) of the working tree, by path."""
    git = ["git", "-C", str(ROOT)]
    listing = [*git, "ls-tree", "-r", "--name-only", commit] if commit else [*git, "ls-files"]
    paths = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines()
    wanted = [p for p in paths if re.fullmatch(r"(README|CONTRIBUTING|docs/\w+)\.md|lccp_sim/.*\.py", p)]
    if not commit:
        return {path: (ROOT / path).read_text(encoding="utf-8") for path in wanted if (ROOT / path).exists()}
    show = [*git, "show"]
    run = lambda path: subprocess.run([*show, f"{commit}:{path}"], capture_output=True, check=True)  # noqa: E731
    return {path: run(path).stdout.decode() for path in wanted}


def drawn(commit: str, seed: int, number: int) -> list[tuple[str, str]]:
    """`number` pairs (path, sentence) of a commit whose sentences hold a word of the glossary."""
    found = [
        (path, sentence)
        for path, text in sorted(tree(commit).items())
        for sentence in sentences(path, text)
        if len(sentence.split()) >= FEWEST and dialect(prose(sentence))
    ]
    return random.Random(seed).sample(sorted(set(found)), number)


def successors(old: list[str], new: list[tuple[str, str]]) -> list[tuple[float, str, str]]:
    """For each old sentence the present one with the largest share of its informative words: (share, path, sentence).

    A word weighs the logarithm of how few present sentences have it. The share is of the weights of both sentences.
    """
    bags = [frozenset(re.findall(r"[a-z0-9_.]{2,}", sentence.lower())) for _, sentence in new]
    counts = Counter(word for bag in bags for word in bag)
    weight = lambda bag: sum(math.log(len(new) / (counts[word] + 0.5)) for word in bag)  # noqa: E731
    best = []
    for sentence in old:
        bag = frozenset(re.findall(r"[a-z0-9_.]{2,}", sentence.lower()))
        share, at = max((weight(bag & other) / weight(bag | other), i) for i, other in enumerate(bags))
        best.append((share, *new[at]))
    return best


def main() -> None:
    """Draws, compares, writes the result and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="4beafe4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sentences", type=int, default=10)
    chosen = parser.parse_args()
    old = drawn(chosen.commit, chosen.seed, chosen.sentences)
    now = [(path, sentence) for path, text in sorted(tree(None).items()) for sentence in sentences(path, text)]
    rows = []
    for (path, sentence), (share, where, nearest) in zip(old, successors([s for _, s in old], now), strict=True):
        became = "kept" if sentence in {s for _, s in now} else "rewritten" if share >= SAME else "gone, nearest shown"
        rows.append({"was_in": path, "was": sentence, "words": dialect(prose(sentence)), "became": became}
                    | {"is_in": where, "is": nearest, "shared": round(share, 2)})  # fmt: skip
        print(f"{path}: {sentence}\n  {became} ({share:.2f}), {where}: {nearest}\n")
    write_atomic(RESULT, json.dumps(vars(chosen) | {"drawn": rows}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
