"""Pages are in plain English: no word of the old dialect stands in README, CONTRIBUTING or a page of docs/."""

import pytest

from bench.dialect import GLOSSARY, dialect, prose
from tests.test_docs import ROOT

PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
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


@pytest.mark.parametrize("sentence", PLANTED)
def test_a_planted_sentence_is_found(sentence: str) -> None:
    [found] = dialect(prose(sentence))
    assert found.startswith(PLANTED[sentence])


def test_code_and_addresses_are_not_prose() -> None:
    text = "See `held_out: whole` and [a page](beside.md).\n```yaml\nhow: cut\n```\nLook up a branch.\n"
    assert not dialect(prose(text)) and len(dialect(prose(f"{text}Cut it."))) == 1


def test_each_word_has_a_plain_one() -> None:
    assert all(plain.strip() for plain in GLOSSARY.values())
