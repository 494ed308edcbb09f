"""The tokenizer: deterministic, single digits, plain text only, and its refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from lccp_sim.data.tokenizer import (
    BOS,
    TokenizerConfig,
    bos_id,
    encode,
    load_tokenizer,
    read_tokenizer,
    tokenizer_hash,
    train_tokenizer,
)
from lccp_sim.errors import ConfigError

TEXT = [f"the {word} of number {n} == {n * n}\n" for n in range(300) for word in ("value", "house", "return")]


def test_training_is_deterministic_across_processes(tmp_path: Path) -> None:
    here = tokenizer_hash(train_tokenizer(400, iter(TEXT)))
    code = (
        "import sys, json; from lccp_sim.data.tokenizer import *; "
        "print(tokenizer_hash(train_tokenizer(400, iter(json.load(sys.stdin)))))"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], input=json.dumps(TEXT), capture_output=True, text=True)
        assert done.stdout.strip() == here, done.stderr


def test_any_text_survives_and_digits_stand_alone(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(TokenizerConfig(vocab_size=400), iter(TEXT), tmp_path / "made")
    for text in ("naïve  café\t\n\n  x=12345;  ", "日本語 \U0001f600", "", " ", "a\r\nb"):
        assert tokenizer.decode(encode(tokenizer, text)) == text
    digits = [tokenizer.decode([each]) for each in encode(tokenizer, "x 2024 and 31")]
    assert not [each for each in digits if sum(map(str.isdigit, each)) > 1]
    assert bos_id(tokenizer) == 0 == tokenizer.token_to_id(BOS) and tokenizer.get_vocab_size() <= 400


def test_a_special_token_in_a_text_is_plain_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(TokenizerConfig(vocab_size=400), iter(TEXT), tmp_path / "made")
    ids = encode(tokenizer, f"a{BOS}b")
    assert 0 not in ids and tokenizer.decode(ids) == f"a{BOS}b"


def test_the_second_load_reads_the_file(tmp_path: Path) -> None:
    first = load_tokenizer(TokenizerConfig(vocab_size=400), iter(TEXT), tmp_path / "made")
    stamp = (tmp_path / "made" / "tokenizer.json").stat().st_mtime_ns
    second = load_tokenizer(TokenizerConfig(vocab_size=400), iter(()), tmp_path / "made")
    assert tokenizer_hash(first) == tokenizer_hash(second)
    assert (tmp_path / "made" / "tokenizer.json").stat().st_mtime_ns == stamp


def test_a_file_gives_its_tokenizer_without_truncation(tmp_path: Path) -> None:
    made = train_tokenizer(400, iter(TEXT))
    made.enable_truncation(4)
    made.enable_padding(length=9)
    made.save(str(tmp_path / "mine.json"))
    read = load_tokenizer(TokenizerConfig(kind="file", path=str(tmp_path / "mine.json")), iter(()), tmp_path / "cache")
    assert read.decode(encode(read, TEXT[0] + TEXT[1])) == TEXT[0] + TEXT[1]
    assert encode(read, "") == [] and not (tmp_path / "cache").exists()


def test_bos_is_found_by_its_usual_names_or_asked_for() -> None:
    plain = tokenizers.Tokenizer(tokenizers.models.BPE())
    with pytest.raises(ConfigError, match="no token .*<s>.*data.tokenizer.bos_token"):
        bos_id(plain)
    plain.add_special_tokens(["<pad>", "<s>", "[CLS]"])
    assert bos_id(plain) == plain.token_to_id("<s>") and bos_id(plain, "[CLS]") == plain.token_to_id("[CLS]")
    with pytest.raises(ConfigError, match=r"no token \[BOS\]"):
        bos_id(plain, "[BOS]")


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    for keys, message in [
        ({"kind": "word"}, "data.tokenizer.kind='word'"),
        ({"vocab_size": 256}, "data.tokenizer.vocab_size=256"),
        ({"kind": "file"}, "data.tokenizer.path=None"),
    ]:
        with pytest.raises(ConfigError, match=message):
            TokenizerConfig(**keys)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nowhere.json is not a file"):
        read_tokenizer(tmp_path / "nowhere.json")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ConfigError, match="broken.json cannot be read"):
        read_tokenizer(tmp_path / "broken.json")
