"""Parts of a text in its tokens: exact for each kind of tokenizer, and a merge across a border is refused."""

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from lccp_sim.data.spans import encode_after, encode_parts
from lccp_sim.data.tokenizer import encode, train_tokenizer
from lccp_sim.errors import ConfigError

TEXTS = ["Question: who came to Turin?\nAnswer: Tom Weber came.\n", "Ten größere Äpfel, 12 trees.\nTwo lines.\n"] * 30
PARTS = ["\nQuestion: who came to Turin?\nAnswer:", " Tom", " Weber", " größere", "", "\n"]


def byte_level(post_processor: bool = False) -> tokenizers.Tokenizer:
    tokenizer = train_tokenizer(340, iter(TEXTS))
    if post_processor:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def metaspace() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, show_progress=False, unk_token="?", special_tokens=["?"])
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def sentencepiece_bpe() -> tokenizers.Tokenizer:
    """Spaces become letters and nothing is split before the merges, as in Llama 2."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="?"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False, special_tokens=["?"])
    tokenizer.train_from_iterator(" ".join(TEXTS).replace(" ", "\n").split("\n"), trainer)
    return tokenizer


def whole_words() -> tokenizers.Tokenizer:
    words = sorted({word for text in TEXTS for word in text.replace(":", " : ").split()})
    vocabulary = {word: i for i, word in enumerate(["?", *words])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, lambda: byte_level(True), metaspace, sentencepiece_bpe, whole_words])
def test_parts_join_to_the_encoding_of_the_whole_and_hold_their_own_text(make) -> None:
    tokenizer = make()
    parts = encode_parts(tokenizer, PARTS)
    assert len(parts) == len(PARTS) and all(part.dtype == np.int64 for part in parts)
    assert np.concatenate(parts).tolist() == encode(tokenizer, "".join(PARTS))
    assert len(parts[4]) == 0 and all(len(part) for part in parts[:4])
    for text, ids in zip(PARTS[1:3], parts[1:3], strict=True):
        shown = "".join(tokenizer.id_to_token(id_) for id_ in ids)
        assert shown.strip("Ġ▁") == text.strip(), shown
    assert len(encode_parts(tokenizer, ["", ""])) == 2


@pytest.mark.parametrize("make", [byte_level, metaspace, sentencepiece_bpe])
def test_a_continued_text_has_no_space_of_its_own(make) -> None:
    tokenizer = make()
    (ids,) = encode_after(tokenizer, ["\nTwo"])
    assert "▁" not in "".join(tokenizer.id_to_token(id_) for id_ in ids)
    assert (
        np.concatenate(encode_after(tokenizer, ["\nTwo", " trees"])).tolist()
        == encode(tokenizer, "a\nTwo trees")[len(encode(tokenizer, "a")) :]
    )


@pytest.mark.parametrize("trimmed", [False, True])
def test_a_merge_across_a_border_is_refused(trimmed: bool) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if trimmed:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=258, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([": T"] * 100, trainer)
    with pytest.raises(ConfigError) as error:
        encode_parts(tokenizer, ["Answer:", " Tom stayed at home today"])
    assert str(error.value) == (
        "the tokenizer merges across the start of ' Tom stayed at home '...: token ': T' holds text of both sides; "
        "use a tokenizer that splits at white space"
    )
    with pytest.raises(ConfigError, match="across the start of 'Tom'"):
        encode_parts(byte_level(trimmed), ["Answer: ", "Tom"])
