"""What users bring and cannot be used is refused in one line of plain words, whatever verb meets it."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lccp_sim.cli import main
from lccp_sim.data.tokenizer import train_tokenizer
from tests import home
from tests.train.foreign import folder
from tests.train.tiny import WORDS

CLASSES = re.compile(
    r"\w(Error|Exception|Warning)\b|Traceback|<class |NoneType|object (has no|is not)|operand type|\bstr\b|\bbool\b"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's place: texts, configs, and the tokenizer of a model."""
    root = home.build(tmp_path_factory.mktemp("home"))
    train_tokenizer(400, iter([" ".join(WORDS)] * 20)).save(str(root / "tokenizer.json"))
    return root


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a command leaves, with exit status 1 and without a name of a class."""
    capsys.readouterr()
    assert main(argv) == 1
    said = capsys.readouterr()
    [line] = said.err.splitlines()
    assert line.startswith("lccp: ") and not CLASSES.search(line + said.out), line
    return line


def parquet(**columns: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


ROW = b'{"text": "fine"}\n'
DATA: dict[str, tuple[str, bytes, str]] = {  # name of the file, bytes, and a part of the line
    "half a character": ("a.jsonl", ROW + b'{"text": "\\ud83d"}', "a.jsonl:2 holds half a character"),
    "a list": ("a.jsonl", ROW + b'{"text": ["a"]}', "a.jsonl:2 holds a list under the key 'text'"),
    "an object": ("a.jsonl", ROW + b'{"text": {"a": 1}}', "a.jsonl:2 holds an object"),
    "token ids": ("a.jsonl", b'{"text": [1, 2]}', "a.jsonl:1 holds token ids"),
    "no object": ("a.ndjson", b'"text"', "a.ndjson:1 is text, not an object"),
    "deep": ("a.jsonl", b"[" * 100_000, "a.jsonl:1 is not JSON"),
    "torn": ("a.json", b'[{"text": "a"', "a.json is not JSON"),
    "UTF-16": ("a.txt", "text".encode("utf-16"), "a.txt is not UTF-8"),
    "bytes": ("a.parquet", parquet(text=[b"a"]), "a.parquet:1 holds bytes"),
    "numbers": ("a.parquet", parquet(text=[1.5]), "a.parquet:1 holds a number"),
    "no such column": ("a.parquet", parquet(body=["a"]), "a.parquet has no column 'text', its columns are body"),
    "no parquet": ("a.parquet", b"PAR1 nothing", "a.parquet: cannot be read as parquet"),
    "no gz": ("a.jsonl.gz", ROW, "a.jsonl.gz: cannot be decompressed as gz"),
    "half a gz": ("a.jsonl.gz", gzip.compress(ROW * 99)[:-9], "a.jsonl.gz: cannot be decompressed as gz"),
    "no zst": ("a.txt.zst", b"nothing", "a.txt.zst: cannot be decompressed as zst"),
    "nothing but null": ("a.jsonl", b'{"text": null}', "no document with text; left out: 1 null"),
    "no saved set": ("state.json", b"{", "a saved data set"),
    "another kind": ("a.pdf", b"x", "holds no jsonl, ndjson, json, parquet, txt or md file"),
}


@pytest.mark.parametrize("case", DATA)
def test_text_that_is_none(case: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, data, message = DATA[case]
    (tmp_path / name).write_bytes(data)
    if name == "state.json":
        (tmp_path / "dataset_info.json").write_text("[]")
    line = refused(
        capsys, "data", "run=tiny", f"data.sources.prose.paths=['{tmp_path}']", "--config-dir", f"{place}/configs"
    )
    assert "data.sources.prose" in line and message in line


def test_a_data_set_by_name_that_is_none(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configs = ["run=tiny", "--config-dir", f"{place}/configs"]
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": \n')
    for name in (str(tmp_path), "no/such-set"):
        line = refused(capsys, "data", *configs, f"+data.sources.far={{kind: hub, name: '{name}'}}")
        assert f"data.sources.far: data set '{name}'" in line and "cannot be opened: " in line


def setting(key: str, value: Any) -> Callable[[Path], None]:
    """A function of a folder that puts a value into its config.json."""

    def change(path: Path) -> None:
        settings = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(settings | {key: value}))

    return change


def writing(name: str, data: bytes) -> Callable[[Path], None]:
    """A function of a folder that writes a file there."""
    return lambda path: (path / name).write_bytes(data) and None


FOLDERS: dict[str, Callable[[Path], None]] = {
    "no config.json": lambda path: (path / "config.json").unlink(),
    "a config.json without end": writing("config.json", b'{"a":' * 5000),
    "a config.json in UTF-16": writing("config.json", "{}".encode("utf-16")),
    "a list for a type": setting("model_type", ["llama"]),
    "an unknown type": setting("model_type", "no_such"),
    "no type": setting("model_type", None),
    "a word for a width": setting("hidden_size", "wide"),
    "a width below 0": setting("hidden_size", -1),
    "null for heads": setting("num_attention_heads", None),
    "a word for layers": setting("num_hidden_layers", "two"),
    "a word for yes": setting("attention_bias", "word"),
    "a number in quotes": setting("rms_norm_eps", "1e-5"),
    "quotes around yes": setting("tie_word_embeddings", "true"),
    "a word for RoPE": setting("rope_theta", "much"),
    "a word for a group": setting("quantization_config", "word"),
    "code of its own": setting("auto_map", {"AutoModel": "x.py"}),
    "torn weights": writing("model.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{"),
    "no weights": lambda path: (path / "model.safetensors").unlink(),
    "an index of nothing": writing("model.safetensors.index.json", b"[]"),
    "an adapter": writing("adapter_config.json", b"{}"),
    "a torn tokenizer": writing("tokenizer.json", b"{"),
    "a tokenizer of another kind": writing("tokenizer.json", b'{"model": 7}'),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_is_no_model(case: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(place, tmp_path / "model")
    FOLDERS[case](path)
    look = ["run=tiny", "--config-dir", f"{place}/configs", f"run.root={tmp_path}/runs"]
    for argv in (["measure", str(path), *look], ["import", str(path), str(tmp_path / "out")]):
        line = refused(capsys, *argv)
        assert str(path) in line
    assert not (tmp_path / "out").exists()


CAUSES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a kind of RoPE that is none": (
        setting("rope_parameters", {"rope_type": "odd", "rope_theta": 1e4}),
        "'odd'(?!.*miss)",
    ),
    "an activation that is none": (setting("hidden_act", "odd"), "'odd'(?!.*miss)"),
    "RoPE that lacks a number": (
        setting("rope_parameters", {"rope_type": "linear", "rope_theta": 1e4}),
        "requ.*factor|factor.*requ",
    ),
    "no tokenizer": (lambda path: (path / "tokenizer.json").unlink(), "put its tokenizer.json there$"),
}


@pytest.mark.parametrize("case", CAUSES)
def test_the_line_names_its_cause(case: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, (change, cause) = folder(place, tmp_path / "model"), CAUSES[case]
    change(path)
    look = ["run=tiny", "--config-dir", f"{place}/configs", f"run.root={tmp_path}/runs"]
    for argv in (["measure", str(path), *look], ["import", str(path), str(tmp_path / "out")]):
        line = refused(capsys, *argv)
        assert re.search(cause, line), line
