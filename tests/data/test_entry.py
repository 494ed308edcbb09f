"""What a folder of text holds is read or named, and text is checked where it enters."""

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lccp_sim.data.documents import rows
from lccp_sim.data.documents.document import LeftOut, collect
from lccp_sim.data.documents.rows import cause
from lccp_sim.data.documents.sources import Hub, TextFiles
from lccp_sim.data.tokens import Text
from lccp_sim.errors import ConfigError

TEXTS = [f"text {i} ü" for i in range(10)]
LINES = "\n".join(json.dumps({"text": text}) for text in TEXTS).encode()


def read(path: Path, **keys: str) -> tuple[list[str], dict[str, list[str]]]:
    """The texts below a path, and the names of what is left out by reason."""
    documents, left_out = collect("mine", TextFiles(paths=(str(path),), **keys))
    names: dict[str, list[str]] = {}
    for each in left_out:
        names.setdefault(each.reason, []).append(Path(each.name).relative_to(path).as_posix())
    return [each.text for each in documents], names


def content(kind: str) -> bytes:
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": TEXTS}), sink)
        return sink.getvalue().to_pybytes()
    return {"json": json.dumps([{"text": text} for text in TEXTS]).encode(), "txt": b"one", "md": b"one"}.get(
        kind, LINES
    )


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "parquet", "txt", "md"])
def test_every_kind_is_read_also_compressed(tmp_path: Path, kind: str, packed: str) -> None:
    data = {"": bytes, ".gz": gzip.compress, ".zst": zst}[packed](content(kind))
    (tmp_path / f"x.{kind}{packed}").write_bytes(data)
    assert read(tmp_path) == (["one"] if kind in ("txt", "md") else TEXTS, {})


@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_a_torn_compressed_file_is_named(tmp_path: Path, packed: str) -> None:
    data = {"gz": gzip.compress, "zst": zst}[packed](LINES * 50)
    (tmp_path / f"x.jsonl.{packed}").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match=rf"x.jsonl.{packed}\S* (cannot be decompressed|is not JSON)"):
        read(tmp_path)


def test_lines_under_the_name_json_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(LINES)
    assert read(tmp_path)[0] == TEXTS


def test_a_downloaded_data_set_is_read_without_its_card_and_cache(tmp_path: Path) -> None:
    """The cases compressed and snapshot."""
    files = {f"data/{i}.txt": f"text {i}" for i in range(5)} | {
        "README.md": "# A card",
        "data/README.md": "---\nlicense: mit\n---\n",
        "LICENSE.txt": "MIT",
        ".cache/huggingface/note.txt": "no text",
        ".gitattributes": "x",
        "dataset_infos.json": "{}",
        "picture.png": "x",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    texts, left_out = read(tmp_path)
    assert texts == [f"text {i}" for i in range(5)]
    assert left_out == {
        "hidden": [".cache/huggingface/note.txt", ".gitattributes"],
        "licence": ["LICENSE.txt"],
        "data card": ["README.md", "data/README.md"],
        "about the data set": ["dataset_infos.json"],
        "kind not read": ["picture.png"],
    }
    named = TextFiles(paths=(str(tmp_path / "README.md"),))  # what is named itself is read
    assert [each.text for each in collect("mine", named)[0]] == ["# A card"]


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"text": TEXTS, "meta": [{"body": text} for text in TEXTS]})
    datasets.DatasetDict(train=table).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path)[0] == read(tmp_path / "saved" / "train", text_key="meta.body")[0] == TEXTS
    with pytest.raises(ConfigError, match="train has no column 'body', its columns are text, meta; set text_key"):
        read(tmp_path, text_key="body")


def test_a_dotted_key_leads_into_objects_and_structs(tmp_path: Path) -> None:
    rows = [{"meta": {"body": text}} for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"meta": None}])))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    assert read(tmp_path, text_key="meta.body") == (TEXTS * 2, {"null": ["a.jsonl:11"]})
    (tmp_path / "a.jsonl").write_text(json.dumps({"meta.body": "flat", "meta": {"body": "deep"}}))
    assert read(tmp_path, text_key="meta.body")[0] == ["flat", *TEXTS]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(("inner", "what"), [("text", "text"), ([{"body": "a"}], "a list")])
def test_a_dotted_key_that_leads_into_no_object_says_what_is_there(
    tmp_path: Path, kind: str, inner: Any, what: str
) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([{"meta": inner}]), path)
    else:
        path.write_text(json.dumps({"meta": inner}))
    with pytest.raises(ConfigError, match=f"x.{kind}:1 holds {what} under the key 'meta', not an object with the key"):
        read(tmp_path, text_key="meta.body")


@pytest.mark.parametrize(("kind", "data"), [("jsonl", b""), ("jsonl", b"\n \n"), ("json", b"[]"), ("txt", b" ")])
def test_a_file_without_a_row_is_counted(tmp_path: Path, kind: str, data: bytes) -> None:
    (tmp_path / f"a.{kind}").write_bytes(data)
    (tmp_path / "b.txt").write_text("one")
    assert read(tmp_path) == (["one"], {"empty": [f"a.{kind}"]})


@pytest.mark.parametrize(
    "row, message",
    [
        ('{"text": "half \\ud83d"}', r"x.jsonl:3 holds half a character \(the lone surrogate U\+D83D at character 6\)"),
        ('{"text": ["a"]}', "x.jsonl:3 holds a list under the key 'text', not a string"),
        ('{"text": [1, 2]}', "x.jsonl:3 holds token ids, not text"),
        ('{"text": 7}', "x.jsonl:3 holds a number"),
        ('{"body": "a"}', "x.jsonl:3 has no key 'text', its keys are body; set text_key"),
        ('{"text": {"a": "b"}}', "x.jsonl:3 holds an object under the key 'text'"),
        ("[1]", "x.jsonl:3 is a list, not an object"),
        ('{"text": "torn', "x.jsonl:3 is not JSON"),
        (b'{"text": "\xe9"}', "x.jsonl:3 is not UTF-8: byte 10 is 0xe9"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_row_or_counted(tmp_path: Path, row: str | bytes, message: str) -> None:
    data = row if isinstance(row, bytes) else row.encode()
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\r\n{"text": null}\r\n' + data)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path)
    assert read(tmp_path, on_bad_row="skip") == (["a"], {"null": ["x.jsonl:2"], "bad row": ["x.jsonl:3"]})
    with pytest.raises(ConfigError, match="on_bad_row='drop': must be refuse or skip"):
        read(tmp_path, on_bad_row="drop")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_bad_row_of_a_data_set_by_name_is_refused_or_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "set").mkdir()
    rows = [{"text": "a"}, {"text": "half \ud83d"}, {"text": None}, {"text": "b"}]
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(map(json.dumps, [rows[0], rows[2], rows[3]])))
    one = Hub(name=str(tmp_path / "set"), streaming=streaming, max_documents=9)
    assert [each.text for each in collect("mine", one)[0]] == ["a", "b"]
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: rows)  # pyarrow keeps lone surrogates out of its own
    with pytest.raises(ConfigError, match="data.sources.mine: .*set, row 1 holds half a character"):
        collect("mine", one)
    documents, left_out = collect("mine", Hub(name=one.name, on_bad_row="skip"))
    assert [(each.text, each.name) for each in documents] == [("a", f"{one.name}, row 0"), ("b", f"{one.name}, row 3")]
    assert left_out == [LeftOut("bad row", f"{one.name}, row 1"), LeftOut("null", f"{one.name}, row 2")]
    (tmp_path / "set" / "train.jsonl").write_text('{"text": ["a"]}\n{"text": ["b"]}')
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    lists = Hub(name=one.name, streaming=streaming, max_documents=9, on_bad_row="skip")
    with pytest.raises(ConfigError, match="data.sources.mine has no document with text; left out: 2 bad row"):
        collect("mine", lists)


def test_bytes_in_parquet_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [b"a"]}), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match="x.parquet:1 holds bytes under the key 'text'"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "txt", "md"])
def test_no_text_begins_with_a_byte_order_mark(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"x.{kind}").write_bytes(b"\xef\xbb\xbf" + content(kind))
    assert read(tmp_path)[0] == (["one"] if kind in ("txt", "md") else TEXTS)
    (tmp_path / f"x.{kind}").unlink()
    pq.write_table(pa.table({"text": ["\ufeffone"]}), tmp_path / "x.parquet")
    assert read(tmp_path)[0] == ["one"]


def test_utf_16_is_refused_and_odd_paths_and_nul_are_read(tmp_path: Path) -> None:
    odd = tmp_path / "ä [1] #%"
    odd.mkdir()
    (odd / "x y*.txt").write_bytes(b"a\x00b\r\nc")
    assert read(odd)[0] == ["a\x00b\r\nc"]
    (odd / "z.txt").write_text("a", encoding="utf-16")
    with pytest.raises(ConfigError, match="z.txt is not UTF-8: byte 0 is 0xff; convert it .iconv -f UTF-16 -t UTF-8"):
        read(odd)
    (odd / "z.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ConfigError, match="z.txt is not UTF-8: byte 0 is 0xe9; convert it .iconv -f ITS_ENCODING -t"):
        read(odd)


def test_a_message_has_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = RuntimeError("An error occurred while generating the dataset")
    outer.__cause__ = ValueError("row 7 is\ntorn")
    assert cause(outer) == "row 7 is torn"
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ConfigError, match="cannot be opened: (?!.*An error occurred)."):
        list(Hub(name=str(tmp_path / "set")).documents())


def test_what_is_left_out_is_printed_by_reason_and_named_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace as Plain

    from rich.console import Console

    from lccp_sim.data.documents.document import LeftOut
    from lccp_sim.train import corpus as shown

    left_out = {"mine": [LeftOut("licence", "x/LICENSE"), LeftOut("empty", "x/a.jsonl:3")]}
    line = {"source": "mine", "held_out_frac": 0.1, "left_out": {"empty": 1, "licence": 1}}
    corpus = Plain(hash="0" * 16, table=[line], warnings=[], left_out=left_out)
    config = Plain(run=Plain(tokens=1, context_tokens=1), data=Plain(packing="best_fit", schedule=[]))
    monkeypatch.setattr(shown, "usage_of", lambda *a: [])
    console = Console(record=True, width=100)
    shown.print_corpus(console, corpus, config)
    shown.print_left_out(console, corpus)
    text = console.export_text()
    assert "left out of mine: 1 empty, 1 licence (--left-out names them)" in text
    assert "left out of mine: x/LICENSE (licence)\nleft out of mine: x/a.jsonl:3 (empty)\n" in text


def forbid(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, path: Path) -> None:
    """Lets a function of a module or class fail on a path as the system does, also where tests run as root."""
    plain = getattr(where, name, open)

    def forbidden(first: Any, *rest: Any, **keys: Any) -> Any:
        if Path(first) == path:
            raise PermissionError(13, "Permission denied", str(path))
        return plain(first, *rest, **keys)

    monkeypatch.setattr(where, name, forbidden, raising=False)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "txt", "jsonl.gz", "parquet.zst"])
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    path.write_bytes(content(kind))
    forbid(monkeypatch, rows, "open", path)
    said = rf"data.sources.mine: {path} cannot be read \(Permission denied\); change that, or leave it out$"
    with pytest.raises(ConfigError, match=said):
        read(tmp_path)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "shut").mkdir(parents=True)
    (tmp_path / "a" / "x.txt").write_text("one")
    source = TextFiles(paths=(str(tmp_path / "a"),))
    forbid(monkeypatch, Path, "iterdir", tmp_path / "a" / "shut")
    said = r"paths=\['.*a'\]: .*a/shut cannot be read \(Permission denied\)"
    with pytest.raises(ConfigError, match=said):
        TextFiles(paths=(str(tmp_path / "a"),))
    with pytest.raises(ConfigError, match=f"data.sources.mine: {said}"):
        _ = Text("mine", source, 0.1).key
    with pytest.raises(ConfigError, match=f"data.sources.mine: {said}"):
        collect("mine", source)


def test_links_that_lead_nowhere_are_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").symlink_to(tmp_path / "blob")
    os.mkfifo(tmp_path / "c.txt")
    assert read(tmp_path) == (["one"], {"broken link": ["b.txt"], "no file": ["c.txt"]})


@pytest.mark.parametrize(
    ("module", "kind"), [("pyarrow.parquet", "parquet"), ("pyarrow", "jsonl.zst"), ("datasets", "saved")]
)
def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, kind: str
) -> None:
    package, path = module.partition(".")[0], tmp_path / f"x.{kind}"
    if kind == "saved":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(path))
    else:
        path.write_bytes(content(kind))
    monkeypatch.setitem(sys.modules, module, None)
    said = rf"data.sources.mine: {path} cannot be read without {package} \(.*\); pip install {package}$"
    with pytest.raises(ConfigError, match=said):
        read(path)
    if kind == "saved":
        with pytest.raises(ConfigError, match="data.sources.mine: data set 'x' cannot be read without datasets"):
            collect("mine", Hub(name="x"))
