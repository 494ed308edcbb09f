"""Sources: what becomes a document, in which order, and every refusal."""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lccp_sim.configure.parse import parse_kind
from lccp_sim.data.documents.document import Document, LeftOut, collect, hold_out
from lccp_sim.data.documents.sources import SOURCES, Hub, PackageText, PythonCode, TextFiles
from lccp_sim.data.documents.synthetic import Synthetic
from lccp_sim.errors import ConfigError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that fails when imported, with a sub-package, a copy, a test folder and a foreign encoding."""
    root = tmp_path / "site" / "lccp_planted"
    for name, text in {
        "__init__.py": "raise RuntimeError('imported')\n",
        "b.py": "b = 2\n",
        "a.py": "a = 1\n",
        "copy_of_a.py": "a = 1\n",
        "empty.py": "\n",
        "inner/__init__.py": "inner = True\n",
        "inner/deep.py": "deep = True\n",
        "tests/test_a.py": "assert False\n",
        "notes.txt": "no code\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (root / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nname = '\xe9'\n")
    monkeypatch.syspath_prepend(root.parent)
    return root


def test_a_package_is_one_document_a_directory_with_its_files_in_path_order(package: Path) -> None:
    documents = list(PythonCode(packages=("lccp_planted",), stdlib=False).documents())
    assert [(each.name, each.group) for each in documents] == [
        ("lccp_planted", "lccp_planted"),
        ("lccp_planted/inner", "lccp_planted"),
    ]
    text = documents[0].text
    assert [line for line in text.splitlines() if line.startswith("# ")] == [
        "# lccp_planted",
        "# lccp_planted.a",
        "# lccp_planted.b",
    ]
    assert "assert False" not in text and "no code" not in text and "latin" not in text
    assert "# lccp_planted.inner.deep\ndeep = True" in documents[1].text
    assert "lccp_planted" not in sys.modules


def test_a_missing_package_is_noted_and_none_left_is_refused(package: Path) -> None:
    source = PythonCode(packages=("lccp_planted", "lccp_nowhere"), stdlib=False)
    assert source.notes() == ["packages not installed here, skipped: lccp_nowhere"]
    with pytest.raises(ConfigError, match="packages.*lccp_nowhere.*none is installed"):
        PythonCode(packages=("lccp_nowhere",), stdlib=False)
    with pytest.raises(ConfigError, match="packages='lccp_sim'"):
        PythonCode(packages=("lccp_sim",))


def test_the_standard_library_has_its_modules_and_packages_without_its_tests() -> None:
    names = {name for name, _, _ in PythonCode(packages=())._files()}
    assert {"argparse", "json", "email/mime"} <= names
    assert not [name for name in names if {"test", "tests", "idle_test", "pydoc_data"} & set(name.split("/"))]


def test_prose_has_descriptions_and_pages_each_once() -> None:
    documents = list(PackageText().documents())
    assert len({each.text for each in documents}) == len(documents) == len({each.name for each in documents})
    assert any(each.name == "topic/assert" and "debugging assertions" in each.text for each in documents)
    assert any(each.name == "description/numpy" for each in documents)


def test_local_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.md").write_text("bee", encoding="utf-8")
    (tmp_path / "in" / "a.txt").write_text("\ufeffä", encoding="utf-8")
    (tmp_path / "in" / "skipped.pdf").write_bytes(b"\xff")
    lines = [json.dumps({"text": "one", "more": 1}), "", json.dumps({"text": "two\u2028lines"})]
    (tmp_path / "c.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = TextFiles(paths=(str(tmp_path / "in"), str(tmp_path / "*.jsonl"), str(tmp_path / "in" / "a.txt")))
    documents, left_out = collect("mine", source)
    assert [each.text for each in documents] == ["ä", "bee", "one", "two\u2028lines"]
    assert [each.name.rpartition("/")[2] for each in documents] == ["a.txt", "b.md", "c.jsonl:1", "c.jsonl:3"]
    assert left_out == [LeftOut("kind not read", str(tmp_path / "in" / "skipped.pdf"))]


def test_what_is_no_local_text_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="paths='.*nowhere.txt': does not exist"):
        TextFiles(paths=(str(tmp_path / "nowhere.txt"),))
    for empty in ((), ("",), ("  ",)):
        with pytest.raises(ConfigError, match="paths=.*is empty"):
            TextFiles(paths=empty)
    with pytest.raises(ConfigError, match="paths='here.txt': must be a list"):
        TextFiles(paths="here.txt")  # type: ignore[arg-type]
    (tmp_path / "bare").mkdir()
    with pytest.raises(ConfigError, match="bare': holds no jsonl, ndjson, json, parquet, txt or md file"):
        TextFiles(paths=(str(tmp_path / "bare"),))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match="latin.txt is not UTF-8: byte 3 is 0xe9"):
        list(TextFiles(paths=(str(tmp_path / "latin.txt"),)).documents())
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(ConfigError, match="data.sources.mine.* no document with text"):
        collect("mine", TextFiles(paths=(str(tmp_path / "blank.txt"),)))


@pytest.mark.parametrize("line, message", [("{", "x.jsonl:2 is not JSON"), ('{"body": "a"}', "x.jsonl:2 .*key 'text'")])
def test_a_bad_line_is_refused_by_number(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(ConfigError, match=message):
        list(TextFiles(paths=(str(tmp_path / "x.jsonl"),)).documents())


def test_parquet_has_a_document_a_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(5), "body": [f"text {i}" for i in range(5)]}), tmp_path / "x.parquet", 2)
    documents = list(TextFiles(paths=(str(tmp_path),), text_key="body").documents())
    assert [each.text for each in documents] == [f"text {i}" for i in range(5)]
    assert [each.name.rpartition("/")[2] for each in documents] == [f"x.parquet:{i}" for i in range(1, 6)]
    with pytest.raises(ConfigError, match="x.parquet has no column 'text', its columns are id, body; set text_key"):
        list(TextFiles(paths=(str(tmp_path),)).documents())


def test_parquet_and_lines_of_the_same_texts_are_the_same_documents(tmp_path: Path) -> None:
    texts = ["one", "zwei\n\u2028", "", "3"]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    pq.write_table(pa.table({"text": texts}), tmp_path / "x.parquet")
    lines, rows = (
        [(each.text, each.group) for each in TextFiles(paths=(str(tmp_path / f"x.{end}"),)).documents()]
        for end in ("jsonl", "parquet")
    )
    assert lines == rows and [text for text, _ in rows] == texts


def half(tmp_path: Path, kind: str) -> TextFiles:
    """A source whose second half cannot be read."""
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        texts = [f"{i} " + "".join(random.Random(i).choices("abcdef ", k=4000)) for i in range(60)]
        pq.write_table(pa.table({"text": texts}), path, row_group_size=20, use_dictionary=False, compression="none")
        data = bytearray(path.read_bytes())
        at = pq.read_metadata(path).row_group(1).column(0).data_page_offset
        data[at : at + 40] = b"\xff" * 40
        path.write_bytes(data)
    else:
        path.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    return TextFiles(paths=(str(path),))


@pytest.mark.parametrize(
    "kind, message",
    [
        ("parquet", "data.sources.mine: .*x.parquet: cannot be read as parquet after row 20 "),
        ("jsonl", "data.sources.mine: .*x.jsonl:2 is not UTF-8: byte 13 is 0xe9"),
    ],
)
def test_a_file_that_fails_half_way_is_named_with_its_source_and_row(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        collect("mine", half(tmp_path, kind))


def test_a_row_without_text_a_torn_file_and_one_that_vanished_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "id": [["a"], ["b"]]}), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match="x.parquet:1 holds a list under the key 'id', not a string"):
        list(TextFiles(paths=(str(tmp_path),), text_key="id").documents())
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[: len(whole) // 2])
    source = TextFiles(paths=(str(tmp_path),))
    with pytest.raises(ConfigError, match="data.sources.mine: .*x.parquet: cannot be read as parquet after row 0"):
        collect("mine", source)
    file = tmp_path / "y.txt"
    file.write_text("here")
    source = TextFiles(paths=(str(file),))
    file.unlink()
    with pytest.raises(ConfigError, match="data.sources.mine: .*y.txt"):
        collect("mine", source)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_that_fails_half_way_says_after_which_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    datasets = pytest.importorskip("datasets")

    def rows(*a: object, **k: object) -> Iterator[dict[str, str]]:
        yield from ({"text": "a"}, {"text": "b"})
        raise ConnectionError("the line\nis dead")

    monkeypatch.setattr(datasets, "load_dataset", rows)
    source = Hub(name="far", streaming=streaming, max_documents=9)
    with pytest.raises(ConfigError, match="data.sources.mine: data set 'far' .* failed after row 1: the line is dead"):
        collect("mine", source)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_by_name_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "set").mkdir()
    lines = [json.dumps({"text": f"text {index}"}) for index in range(5)]
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(lines))
    source = Hub(name=str(tmp_path / "set"), max_documents=3, streaming=streaming)
    assert [each.text for each in source.documents()] == ["text 0", "text 1", "text 2"]
    assert source.fingerprint()
    with pytest.raises(ConfigError, match="row 0 has no key 'body', its keys are text"):
        list(Hub(name=str(tmp_path / "set"), text_key="body").documents())
    with pytest.raises(ConfigError, match="cannot be opened"):
        list(Hub(name=str(tmp_path / "set"), split="test").documents())


@pytest.mark.parametrize(
    "kind, keys, message",
    [
        ("hub", {"name": "x", "streaming": True}, "max_documents.*streaming needs it"),
        ("hub", {"name": "x", "max_documents": 0}, "max_documents=0"),
        ("package_text", {"share": -1.0}, "share=-1.0: must be a number >= 0"),
        ("python_code", {"max_megabytes": 0.0}, "max_megabytes=0.0"),
        ("python_code", {"max_document_tokens": 1}, "max_document_tokens=1"),
        ("python_code", {"packages": ["os.path"]}, "packages='os.path'"),
        ("python_code", {"package": ["numpy"]}, "did you mean 'packages'"),
        ("package_archive", {"wheel": "a-1.0.tar.gz", "sha256": "0" * 64}, "wheel='a-1.0.tar.gz': must be .* wheel"),
        ("package_archive", {"wheel": "a-1.0-cp311-cp311-any.whl", "sha256": "0" * 64}, "for any Python 3"),
        ("package_archive", {"wheel": "../a-1.0-py3-none-any.whl", "sha256": "0" * 64}, "wheel="),
        ("package_archive", {"wheel": "a-1.0-py3-none-any.whl", "sha256": "0" * 40}, "sha256=.*64 hex digits"),
        ("package_archive", {"wheel": "a-1.0-py3-none-any.whl", "sha256": "0" * 64, "include": []}, "include=.*glob"),
        ("package_text", {"held_out": "whole"}, "share=1.0: must be 0 if held_out=whole"),
        ("synthetic", {"task": "copies"}, "text_from=None"),
        ("synthetic", {"task": "copy", "text_from": "a"}, "task.*'facts', .*'records' or 'questions'"),
        ("synthetic", {"task": "repeats", "documents": 0}, "documents=0"),
        ("synthetic", {"task": "repeats", "share": float("nan")}, "share=nan"),
        ("synthetic", {"task": "questions"}, "questions={}: needs a task with a weight above 0"),
        ("synthetic", {"task": "questions", "questions": {"niah_single_1": -1}}, "questions.niah_single_1=-1"),
        ("synthetic", {"task": "questions", "questions": {"niah_singel_1": 1}}, "did you mean 'niah_single_1'"),
        ("synthetic", {"task": "repeats", "questions": {"two_hop": 1}}, "is for task questions; remove it"),
        ("synthetic", {"task": "facts", "text_from": "a", "templates": 13}, "templates=13: must lie between 1 and 12"),
        ("synthetic", {"task": "copies", "text_from": "a", "copy_frac": 1.0}, "copy_frac=1.0"),
    ],
)
def test_bad_settings_are_refused_by_key(kind: str, keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_kind(SOURCES, {"kind": kind, **keys}, "data.sources.mine")


def test_every_kind_is_made_from_a_config() -> None:
    for kind, keys in {
        "python_code": {"packages": ["numpy"], "max_document_tokens": 128},
        "package_text": {},
        "package_archive": {"wheel": "a-1.0-py3-none-any.whl", "sha256": "0" * 64},
        "text_files": {"paths": [__file__.replace("test_sources.py", "*.md"), str(Path(__file__).parent)]},
        "hub": {"name": "x"},
        "synthetic": {"task": "facts", "text_from": "a"},
    }.items():
        if kind != "text_files":  # that one looks for its files
            assert parse_kind(SOURCES, {"kind": kind, **keys}, "data.sources.mine").kind == kind
    assert set(SOURCES) == {"python_code", "package_text", "package_archive", "text_files", "hub", "synthetic"}
    assert isinstance(parse_kind(SOURCES, {"kind": "synthetic", "task": "repeats"}, "data.sources.mine"), Synthetic)


def test_a_cap_takes_documents_in_the_order_of_their_hash(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"{index}.txt").write_text(f"{index} " * 300)
    whole, capped = (collect("mine", TextFiles(paths=(str(tmp_path),), max_megabytes=cap))[0] for cap in (None, 0.004))
    assert 0 < sum(len(each.text) for each in capped) <= 4000 and set(capped) < set(whole)
    with pytest.raises(ConfigError, match="data.sources.mine.max_megabytes=0.0001: less than every document"):
        collect("mine", TextFiles(paths=(str(tmp_path),), max_megabytes=0.0001))


def test_whole_groups_are_held_out_up_to_a_portion() -> None:
    documents = [Document("x" * (10 + i % 7), f"{i}", f"group {i // 3}") for i in range(300)]
    held = hold_out(documents, 0.07)
    sizes = [len(each.text) for each in documents]
    assert 0.05 <= sum(size for size, out in zip(sizes, held, strict=True) if out) / sum(sizes) <= 0.1
    groups = [each.group for each in documents]
    assert not {g for g, out in zip(groups, held, strict=True) if out} & {
        g for g, out in zip(groups, held, strict=True) if not out
    }
    assert (hold_out(documents[::-1], 0.07)[::-1] == held).all()
    assert not hold_out(documents, 0.0).any() and not hold_out(documents[:3], 0.07).any()
    assert hold_out(documents[:6], 0.07).sum() == 3  # two large groups: the smaller one
