"""A pinned wheel as a source: what becomes a document, the same corpus on every machine, and every refusal."""

import hashlib
import os
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lccp_sim.configure.compose import check
from lccp_sim.data.documents.archives import PackageArchive
from lccp_sim.data.documents.synthetic import Synthetic
from lccp_sim.data.pools import Corpus, DataConfig, open_corpus
from lccp_sim.data.tokenizer import TokenizerConfig
from lccp_sim.errors import ConfigError
from lccp_sim.sums import SUMS
from tests.data.conftest import WORDS

WHEEL = "lccp_planted-1.0-py3-none-any.whl"
FILES: dict[str, str | bytes] = {
    "lccp_planted/__init__.py": "raise RuntimeError('imported')\n",
    "lccp_planted/b.py": "b = 2\n",
    "lccp_planted/a.py": "a = 1\n",
    "lccp_planted/empty.py": "\n",
    "lccp_planted/inner/copy_of_a.py": "a = 1\n",
    "lccp_planted/inner/__init__.py": "inner = True\n",
    "lccp_planted/inner/deep/most.py": "deep = True\n",
    "lccp_planted/tests/test_a.py": "assert False\n",
    "lccp_planted/docs/one.rst": "One\n===\n",
    "lccp_planted/docs/more/two.rst": "Two\n===\n",
    "lccp_planted/docs/more/also_two.rst": "Two\n===\n",
    "lccp_planted/latin.bin": b"\xe9",
    "lccp_planted-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: lccp-planted\nVersion: 1.0\n",
    "lccp_planted-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


def wheel(mirror: Path, files: dict[str, str | bytes] = FILES, name: str = WHEEL) -> str:
    """Write a wheel into a folder, the same bytes at any time. Its SHA-256."""
    mirror.mkdir(exist_ok=True)
    with zipfile.ZipFile(mirror / name, "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return hashlib.sha256((mirror / name).read_bytes()).hexdigest()


def source(tmp_path: Path, sha256: str, name: str = WHEEL, **keys: object) -> PackageArchive:
    """The source of a wheel in the folder `mirror`."""
    return PackageArchive(wheel=name, sha256=sha256, **keys).within(tmp_path / "cache", tmp_path / "mirror")


@pytest.fixture
def sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """That of the planted wheel, which lies in the folder `mirror`; no pip asks a network."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "mirror"))
    return wheel(tmp_path / "mirror")


def test_code_is_one_document_a_folder_and_is_never_imported(tmp_path: Path, sha256: str) -> None:
    documents = list(source(tmp_path, sha256, exclude=("*/tests/*",)).documents())
    assert [(each.name, each.group) for each in documents] == [
        ("lccp_planted", ""),
        ("lccp_planted/inner", "inner"),
        ("lccp_planted/inner/deep", "inner"),
    ]
    assert documents[0].text.startswith("# lccp_planted\nraise RuntimeError('imported')\n\n\n# lccp_planted.a\na = 1\n")
    assert documents[0].text.endswith("# lccp_planted.b\nb = 2\n")
    assert documents[1].text == "# lccp_planted.inner\ninner = True\n"
    assert documents[2].text == "# lccp_planted.inner.deep.most\ndeep = True\n"
    assert "lccp_planted" not in sys.modules
    kept = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert sorted(kept) == sorted([WHEEL, SUMS]), "nothing is unpacked"


def test_prose_is_one_document_a_file_as_it_stands(tmp_path: Path, sha256: str) -> None:
    documents = list(source(tmp_path, sha256, include=("*/docs/*.rst",), document="file").documents())
    names = ["lccp_planted/docs/one.rst", "lccp_planted/docs/more/also_two.rst"]
    assert [(each.name, each.text) for each in documents] == list(zip(names, ["One\n===\n", "Two\n===\n"], strict=True))
    assert len({each.group for each in documents}) == 2


def test_pip_fetches_it_once_whatever_the_platform(tmp_path: Path, sha256: str) -> None:
    for name in (WHEEL, "lccp_planted-2.0-py2.py3-none-manylinux2014_s390x.manylinux_2_17_s390x.whl"):
        files = {path.replace("1.0.dist", name.split("-")[1] + ".dist"): text for path, text in FILES.items()}
        files = {path: str(text).replace("\nVersion: 1.0", "\nVersion: 2.0") for path, text in files.items()}
        digest = sha256 if name == WHEEL else wheel(tmp_path / "mirror", files, name)
        archive = PackageArchive(wheel=name, sha256=digest, include=("*/a.py",)).within(tmp_path / "cache", None)
        assert [each.text for each in archive.documents()] == ["# lccp_planted.a\na = 1\n"]
        (tmp_path / "mirror" / name).unlink()
        assert len(list(archive.documents())) == 1, "it is in the cache now"


def test_without_a_network_the_command_is_named(tmp_path: Path, sha256: str) -> None:
    shutil.rmtree(tmp_path / "mirror")
    (tmp_path / "mirror").mkdir()
    command = "python -m pip download .*--no-deps --only-binary :all: .*--dest {} lccp_planted==1.0"
    with pytest.raises(ConfigError) as caught:
        list(PackageArchive(wheel=WHEEL, sha256=sha256).within(tmp_path / "cache", None).documents())
    assert caught.match(
        rf"cannot be fetched \(No matching.*, run: {command.format('FOLDER')}; then set data.mirror=FOL"
    )
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=f"data.mirror=.* has no {WHEEL}; .*{command.format('.*mirror')}"):
        list(source(tmp_path, sha256).documents())
    assert not list((tmp_path / "cache").glob("archive-*"))


def test_another_file_of_that_name_is_refused_and_not_kept(tmp_path: Path, sha256: str) -> None:
    other = wheel(tmp_path / "mirror", FILES | {"lccp_planted/a.py": "a = 3\n"})
    for mirror in (tmp_path / "mirror", None):
        with pytest.raises(ConfigError, match=f"sha256='{sha256}': {WHEEL} has another SHA-256, {other}"):
            list(PackageArchive(wheel=WHEEL, sha256=sha256).within(tmp_path / "cache", mirror).documents())
    wheel(tmp_path / "mirror")
    assert "a = 1" in next(source(tmp_path, sha256).documents()).text


@pytest.mark.parametrize("name", ["../a.py", "lccp_planted/../../a.py", "/a.py", "C:/a.py", "b\\..\\a.py"])
def test_a_member_that_leads_out_of_the_archive_is_refused(tmp_path: Path, sha256: str, name: str) -> None:
    digest = wheel(tmp_path / "mirror", FILES | {name: "a = 1\n"})
    with pytest.raises(ConfigError, match="the member .* leads out of the archive; use another wheel"):
        list(source(tmp_path, digest, include=("*/b.py",)).documents())


def test_links_foreign_encodings_and_what_is_no_zip_file_are_refused(tmp_path: Path, sha256: str) -> None:
    with pytest.raises(ConfigError, match=r"lccp_planted/latin.bin is not UTF-8; name it under exclude"):
        list(source(tmp_path, sha256, include=("*",)).documents())
    with zipfile.ZipFile(tmp_path / "mirror" / WHEEL, "a") as archive:
        link = zipfile.ZipInfo("lccp_planted/link.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    digest = hashlib.sha256((tmp_path / "mirror" / WHEEL).read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match="the member 'lccp_planted/link.py' is a link or a device"):
        list(source(tmp_path, digest).documents())
    (tmp_path / "mirror" / WHEEL).write_text("no zip file")
    digest = hashlib.sha256(b"no zip file").hexdigest()
    with pytest.raises(ConfigError, match="cannot be read as a wheel .*; remove its folder, and it is fetched again"):
        list(source(tmp_path, digest).documents())


def texts(seed: int) -> dict[str, str | bytes]:
    """Sixteen pages of words."""
    rng = np.random.default_rng(seed)
    return {f"pages/{index:02}.txt": " ".join(rng.choice(WORDS, 400)) + ".\n" for index in range(16)}


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Corpus]:
    """A function (machine, mirror, **keys) -> the corpus of two wheels, of which one is held out whole.

    `keys` are of the source that is trained on; machine and mirror are folders, and the cache lies in the first.
    """
    monkeypatch.delenv("LCCP_CACHE", raising=False)

    def corpus(machine: str, mirror: str, **keys: object) -> Corpus:
        shas = [wheel(tmp_path / mirror, texts(seed), f"pages-{seed}-py3-none-any.whl") for seed in (0, 1)]
        pages: dict[str, object] = {"include": ("*.txt",), "document": "file"}
        sources = {
            "text": PackageArchive(wheel="pages-0-py3-none-any.whl", sha256=shas[0], **pages | keys),
            "unseen": PackageArchive(
                wheel="pages-1-py3-none-any.whl", sha256=shas[1], share=0.0, held_out="whole", **pages
            ),
            "facts": Synthetic(task="facts", text_from="text", documents=30),
        }
        places = {"cache": str(tmp_path / machine), "mirror": str(tmp_path / mirror)}
        config = DataConfig(sources=sources, tokenizer=TokenizerConfig(vocab_size=400), old_context_tokens=64, **places)
        return open_corpus(config, 64, 0)

    return corpus


def test_two_machines_with_other_packages_installed_have_the_same_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[..., Corpus]
) -> None:
    one = prepare("one", "a")
    installed = tmp_path / "site" / "pages"
    (tmp_path / "site" / "pages-0.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "pages-0.dist-info" / "METADATA").write_text("Name: pages\nVersion: 0\n\nAnother text.\n")
    installed.mkdir()
    (installed / "00.txt").write_text("another text")
    (installed / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    two = prepare("two", "b")
    assert two.hash == one.hash and two.tokenizer.to_str() == one.tokenizer.to_str() and two.table == one.table
    for mine, theirs in zip(one.pools, two.pools, strict=True):
        np.testing.assert_array_equal(mine.rows_ids, theirs.rows_ids)
    entries = [{path.name for path in (tmp_path / machine).iterdir()} for machine in ("one", "two")]
    assert entries[0] == entries[1], "the names in the cache hold no place"
    assert prepare("two", "b", exclude=("*/03.txt",)).hash != one.hash
    for path in (tmp_path / "two").glob("archive-*"):
        shutil.rmtree(path)
    shutil.rmtree(tmp_path / "a")
    assert prepare("two", "b").hash == one.hash and not list((tmp_path / "two").glob("archive-*"))


def test_a_source_held_out_whole_is_held_out_and_nothing_else(prepare: Callable[..., Corpus]) -> None:
    corpus = prepare("one", "a")
    found = {corpus.tokenizer.decode(ids.tolist()) for ids in corpus.held_out("unseen")}
    assert found == set(texts(1).values()) and len(corpus.held_out("text")) in (1, 2)
    assert {pool.source for pool in corpus.pools} == {"text", "facts"} and not corpus.warnings
    [line] = [line for line in corpus.table if line["source"] == "unseen"]
    assert (line["documents"], line["held_out_frac"], sum(line["rows"].values())) == (0, 1.0, 0)


def test_a_source_held_out_whole_gives_no_row_in_any_way() -> None:
    unseen = PackageArchive(wheel=WHEEL, sha256="0" * 64, share=0.0, held_out="whole")
    text = PackageArchive(wheel=WHEEL, sha256="1" * 64)
    with pytest.raises(
        ConfigError, match=r"data.sources.facts.text_from.*must be a text source of this config \(text;"
    ):
        DataConfig(
            sources={"text": text, "unseen": unseen, "facts": Synthetic(task="facts", text_from="unseen")},
            old_context_tokens=64,
        )
    with pytest.raises(
        ConfigError, match="data.schedule.1.shares.unseen_text=0.5: must be 0: all of the source is held out"
    ):
        check(["run=tiny_base", "data.schedule=[{tokens: 0},{tokens: 9000,shares: {unseen_text: 0.5}}]"])


def test_the_tiny_data_are_pinned_and_runs_without_a_network_use_none_of_them() -> None:
    kinds = {
        run: {source.kind for source in check([f"run={run}"]).data.sources.values()}
        for run in ("tiny_emergence", "smoke", "smoke_study", "measure")
    }
    assert kinds.pop("tiny_emergence") == {"package_archive", "synthetic"}
    assert all("package_archive" not in each for each in kinds.values())


CACHE = Path(os.environ.get("LCCP_CACHE") or "~/.cache/lccp-sim").expanduser()


@pytest.mark.skipif(len(list(CACHE.glob("archive-*"))) < 4, reason="the wheels are not here: make corpus fetches them")
def test_the_documents_of_the_tiny_data_are_as_many_as_the_page_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for name, each in check(["run=tiny_emergence"]).data.sources.items():
        if isinstance(each, PackageArchive):
            sizes = [len(document.text.encode()) for document in each.within(CACHE, None).documents()]
            assert f"`{'-'.join(each.wheel.split('-')[:2])}`" in rows[name]
            assert f"| {len(sizes)} " in rows[name] and f"| {sum(sizes) / 1e6:.1f} MB |" in rows[name]
