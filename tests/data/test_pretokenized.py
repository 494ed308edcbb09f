"""Rows of token ids: the pool of their text, to the byte, and every refusal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lccp_sim.data.beyond import check_ids
from lccp_sim.data.documents.document import Document, LeftOut, collect
from lccp_sim.data.documents.sources import Hub, TextFiles
from lccp_sim.data.pools import open_corpus
from lccp_sim.data.tokenizer import BOS, TokenizerConfig, encode, read_tokenizer, train_tokenizer
from lccp_sim.errors import ConfigError

SIZE = 320


@pytest.fixture
def texts(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.iterdir())]


@pytest.fixture
def file(texts: list[str], tmp_path: Path) -> Path:
    """A tokenizer.json of 320 tokens, the first of which begins a document."""
    train_tokenizer(SIZE, iter(texts)).save(str(tmp_path / "own.json"))
    return tmp_path / "own.json"


def write(path: Path, kind: str, key: str, values: list[Any], **keys: Any) -> TextFiles:
    """A source of rows with these values."""
    path.mkdir()
    if kind == "jsonl":
        (path / "x.jsonl").write_text("\n".join(json.dumps({key: value}) for value in values))
    elif kind == "json":
        (path / "x.json").write_text(json.dumps([{key: value} for value in values]))
    elif kind == "parquet":
        pq.write_table(pa.table({key: values}), path / "x.parquet", row_group_size=7)
    else:
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_dict({key: values}).save_to_disk(str(path / "saved"))
    return TextFiles(paths=(str(path),), text_key=key, **keys)


@pytest.mark.parametrize("bos", [False, True], ids=["bare", "with BOS"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "saved"])
def test_a_text_and_its_ids_give_the_same_pools(
    kind: str, bos: bool, texts: list[str], file: Path, tmp_path: Path, make: Callable[..., Any]
) -> None:
    own = read_tokenizer(file)
    ids = [[own.token_to_id(BOS)] * bos + encode(own, text) for text in texts]
    plain = write(tmp_path / "plain", "jsonl", "text", texts)
    rows = write(tmp_path / "rows", kind, "ids", ids, tokenized_with=str(file))
    given = TokenizerConfig(kind="file", path=str(file))
    one, other = (open_corpus(make({"mine": each}, tokenizer=given), 64, seed=0) for each in (plain, rows))
    mine = [[pool for pool in each.pools if pool.source == "mine"] for each in (one, other)]
    for a, b in zip(*mine, strict=True):
        assert a.rows_ids.tobytes() == b.rows_ids.tobytes() and a.flags.tobytes() == b.flags.tobytes()
    held = [[ids.tolist() for ids in each.held_out("mine")] for each in (one, other)]
    assert held[0] == held[1] and 0 < len(held[0]) < 30 and mine[0]
    assert one.hash != other.hash, "what is packed names a corpus"
    assert other.largest == {"mine": max(map(max, ids))} and one.largest == {}


def test_ids_are_packed_as_they_are_and_a_bos_divides_a_row(file: Path, tmp_path: Path) -> None:
    own = read_tokenizer(file)
    bos = own.token_to_id(BOS)
    river = encode(own, "river")[::-1]  # not what its text encodes to
    packed = [bos, *river, bos, *river, 5, bos]
    source = write(tmp_path / "x", "jsonl", "ids", [river, packed, [bos], [], None], tokenized_with=str(file))
    documents, left_out = collect("mine", source)
    assert [each.ids.tolist() for each in documents if each.ids is not None] == [river, river, [*river, 5]]
    assert [Path(each.name).name for each in documents] == ["x.jsonl:1", "x.jsonl:2, part 1", "x.jsonl:2, part 2"]
    assert documents[0].text == own.decode(river) and documents[0].group == documents[1].group
    assert [(each.reason, Path(each.name).name) for each in left_out] == [
        ("empty", "x.jsonl:3"), ("empty", "x.jsonl:4"), ("null", "x.jsonl:5")
    ]  # fmt: skip


def test_the_bos_is_the_run_s(file: Path, tmp_path: Path, make: Callable[..., Any]) -> None:
    """An unusual name of the token that begins a document, which the config says."""
    given = TokenizerConfig(kind="file", path=str(file), bos_token="Q")
    own = read_tokenizer(file)
    rows = [[own.token_to_id("Q"), *encode(own, f"bread {i} lies the")] for i in range(90)]
    source = write(tmp_path / "x", "jsonl", "ids", rows, tokenized_with=str(file))
    documents = [each for each in source.within(tmp_path, None, "Q").documents() if isinstance(each, Document)]
    assert [each.ids.tolist() for each in documents if each.ids is not None][3] == rows[3][1:]
    corpus = open_corpus(make({"mine": source}, tokenizer=given), 64, seed=0)
    assert corpus.held_out("mine")[0][0] != corpus.bos == own.token_to_id("Q")


@pytest.mark.parametrize(
    "value, message",
    [
        ([5, -1], "x.jsonl:2: token 2 is -1, and no id is below 0; fix it, or set on_bad_row to skip"),
        ([320], r"x.jsonl:2: token 1 is 320, and .*own.json has the ids 0 to 319"),
        ([10**30], "x.jsonl:2: token 1 is 10{30}, and .*own.json"),
        ([5, 6, 7.0], "x.jsonl:2: token 3 is 7.0, and ids are integers"),
        ([[5, 6]], "x.jsonl:2: token 1 is a list"),
        ([5, None], "x.jsonl:2: token 2 is null"),
        ([True, 5], "x.jsonl:2: token 1 is true or false"),
        (["a"], "x.jsonl:2: token 1 is text"),
        ("a text", "x.jsonl:2 holds text under the key 'ids', not a list of token ids"),
        (7, "x.jsonl:2 holds a number under the key 'ids', not a list of token ids"),
    ],
)
def test_what_is_no_id_is_refused_with_file_and_row_or_counted(
    value: Any, message: str, file: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "x", "jsonl", "ids", [[5], value], tokenized_with=str(file))
    with pytest.raises(ConfigError, match=rf"data.sources.mine: .*{message}"):
        collect("mine", source)
    skipping = TextFiles(paths=source.paths, text_key="ids", tokenized_with=str(file), on_bad_row="skip")
    documents, left_out = collect("mine", skipping)
    assert len(documents) == 1 and left_out == [LeftOut("bad row", str(tmp_path / "x" / "x.jsonl:2"))]


def test_ids_are_read_with_the_run_s_tokenizer_alone(file: Path, tmp_path: Path, make: Callable[..., Any]) -> None:
    source = write(tmp_path / "x", "jsonl", "ids", [[5] * 80, [6] * 80], tokenized_with=str(file))
    with pytest.raises(ConfigError, match=r"data.sources.mine.tokenized_with='.*own.json': the run trains a tokenizer"):
        open_corpus(make({"mine": source}), 64, seed=0)
    train_tokenizer(SIZE + 1, iter(["the house " * 9])).save(str(tmp_path / "other.json"))
    other = TokenizerConfig(kind="file", path=str(tmp_path / "other.json"))
    with pytest.raises(ConfigError, match=r"tokenized_with='.*own.json': the run has another tokenizer; set data"):
        open_corpus(make({"mine": source}, tokenizer=other), 64, seed=0)
    corpus = open_corpus(make({"mine": source}), 64, seed=0, tokenizer=file)  # its base's, whatever the config says
    assert corpus.largest == {"mine": 6}
    with pytest.raises(ConfigError, match="tokenized_with='nowhere.json': is no file; name the tokenizer.json that"):
        TextFiles(paths=source.paths, tokenized_with="nowhere.json")
    with pytest.raises(ConfigError, match="x.jsonl:1 holds token ids, not text; name their tokenizer.json in"):
        collect("mine", TextFiles(paths=source.paths, text_key="ids"))


def test_another_tokenizer_under_the_same_name_is_read_anew(file: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "x", "jsonl", "ids", [[5]], tokenized_with=str(file))
    before = source.fingerprint(), source.within(tmp_path, None, "Q").fingerprint()
    file.write_text(file.read_text() + " ")
    assert before[0] != before[1] != source.fingerprint() != before[0]


def test_an_id_without_a_row_in_the_embedding_is_refused() -> None:
    check_ids({"mine": 399}, 400)
    with pytest.raises(ConfigError, match="data.sources.mine=400: is a token id there, and the model's embed"):
        check_ids({"prose": 7, "mine": 400}, 400)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_hub_has_ids_too_and_counts_bad_rows(
    streaming: bool, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    rows = [[5, 6], [7, 400], None, [0, 8]]
    write(tmp_path / "set", "parquet", "ids", rows)
    keys: dict[str, Any] = {"name": str(tmp_path / "set"), "text_key": "ids", "tokenized_with": str(file)}
    keys |= {"streaming": streaming, "max_documents": 9}
    with pytest.raises(ConfigError, match="data.sources.mine: .*set, row 1: token 2 is 400"):
        collect("mine", Hub(**keys))
    documents, left_out = collect("mine", Hub(**keys, on_bad_row="skip"))
    assert [each.ids.tolist() for each in documents if each.ids is not None] == [[5, 6], [8]]
    assert [(each.reason, each.name[-5:]) for each in left_out] == [("bad row", "row 1"), ("null", "row 2")]


def test_one_row_of_ids_alone_is_not_cut(file: Path, tmp_path: Path, make: Callable[..., Any]) -> None:
    source = write(tmp_path / "x", "jsonl", "ids", [np.arange(5, 300).tolist()], tokenized_with=str(file))
    given = TokenizerConfig(kind="file", path=str(file))
    corpus = open_corpus(make({"mine": source}, tokenizer=given), 64, seed=0)
    assert corpus.held_out("mine") == []
    assert "data.sources.mine: nothing is held out, its text has a single group; add documents" in corpus.warnings
