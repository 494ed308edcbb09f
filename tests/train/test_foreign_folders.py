"""Folders of transformers at the command line: what is refused, what is said, and whose tokenizer is read."""

import json
import re
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers as t
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from bench.transformers_sweep import CLASS_NAME
from lccp_sim.cli import main
from lccp_sim.data.beyond import check_pair, check_rows
from lccp_sim.data.tokenizer import encode, parse_tokenizer
from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign import hf
from lccp_sim.records import read_records
from lccp_sim.train.run import train
from lccp_sim.train.saved.foreign import read_vocabulary
from lccp_sim.train.window.suite import NO_HEADS
from tests.train.foreign import folder
from tests.train.test_exchange import DENSE, QUIET
from tests.train.tiny import WORDS, weights


@pytest.fixture(scope="module")
def llama(measuring: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama. Only to be copied."""
    return folder(measuring, tmp_path_factory.mktemp("hub") / "llama")


@pytest.fixture
def path(llama: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt; its name has odd characters."""
    return shutil.copytree(llama, tmp_path / "ein Modell [1] 模型")


@pytest.fixture
def lccp(measuring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A function (verb, path) -> the exit status of `lccp measure` or `lccp import`, and what it said."""

    def run(verb: str, path: Path) -> tuple[int, str]:
        look = ["--config-dir", str(measuring / "configs"), "run=look", "--out", str(tmp_path / "measured")]
        capsys.readouterr()
        status = main([verb, str(path), *(look if verb == "measure" else [str(tmp_path / "imported")])])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """None; edits the tensors of a folder."""
    save_file(edit(load_file(path / "model.safetensors")), path / "model.safetensors", {"format": "pt"})


def behead(path: Path) -> None:
    """Takes the head away from an untied model."""
    change(path, lambda held: {key: value for key, value in held.items() if key != "lm_head.weight"})


def contradict(path: Path) -> None:
    """The older words for RoPE, beside those of transformers 5, and other ones."""
    config = json.loads((path / "config.json").read_text())
    config["rope_scaling"] = {"rope_type": "linear", "factor": 4.0}
    (path / "config.json").write_text(json.dumps(config))


def adapt(path: Path) -> None:
    """Leaves an adapter alone."""
    (path / "config.json").unlink()
    (path / "model.safetensors").rename(path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')


@pytest.mark.parametrize("verb", ["measure", "import"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (behead, "lm_head.weight is not in the weights; if the model ties its head, set tie_word_embeddings=true"),
        (contradict, r'rope_parameters is .*"default".*, but rope_scaling is \{"rope_type": "linear", "factor": 4.0\}'),
        (adapt, "holds an adapter of some/base: merge it first, save the merged model, and name that"),
    ],
    ids=["headless", "rope_twice", "adapter"],
)
def test_refused_in_one_line_by_both(
    edit: Callable[[Path], None], message: str, verb: str, path: Path, lccp: Callable[..., tuple[int, str]]
) -> None:
    edit(path)
    status, said = lccp(verb, path)
    lines = [line for line in said.splitlines() if line]
    assert status == 1 and len(lines) == 1 and re.search(message, lines[0]), said
    assert not re.search(r"[a-z]Error\b|ForCausalLM|Traceback", said)


SMALL = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
UNUSUAL: dict[str, tuple[t.PreTrainedConfig, int, str]] = {
    "encoder": (
        t.BertConfig(**SMALL, intermediate_size=32), 1, "model_type=bert: a later token changes earlier outputs"
    ),
    "end": (
        t.GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2, n_positions=64), 1,
        "model_type=gpt2: has 64 positions, and a monitor sends",
    ),
    "bias": (t.BloomConfig(vocab_size=400, hidden_size=32, n_layer=1, n_head=2), 0, NO_HEADS),
    "hybrid": (
        t.Qwen3NextConfig(
            **SMALL | {"num_hidden_layers": 2}, intermediate_size=32, num_key_value_heads=2, head_dim=16,
            layer_types=["linear_attention", "full_attention"], num_experts=2, num_experts_per_tok=1,
            moe_intermediate_size=16, shared_expert_intermediate_size=16, linear_num_value_heads=2,
            linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16,
        ),
        0, NO_HEADS,
    ),
    "streams": (
        t.ProphetNetConfig(
            vocab_size=400, hidden_size=32, num_encoder_layers=1, num_decoder_layers=1, encoder_ffn_dim=32,
            decoder_ffn_dim=32, num_encoder_attention_heads=2, num_decoder_attention_heads=2, is_decoder=True,
            is_encoder_decoder=False, add_cross_attention=False,
        ),
        1, "model_type=prophetnet: a forward of 8 tokens does not return a causal LM's output",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_unusual_model_is_measured_or_refused_without_names_of_classes(
    kind: str, path: Path, lccp: Callable[..., tuple[int, str]]
) -> None:
    config, want, message = UNUSUAL[kind]
    torch.manual_seed(0)
    t.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    status, said = lccp("measure", path)
    assert status == want and message in re.sub(r"\s+", " ", said), said
    assert not CLASS_NAME.search(said) and "Traceback" not in said


def test_a_folder_of_a_compiled_model_is_measured_and_it_is_said(
    llama: Path, path: Path, lccp: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """So it is with a byte order mark in config.json, and a path of odd characters."""
    change(path, lambda held: {f"_orig_mod.{key}": value for key, value in held.items()})
    (path / "config.json").write_bytes(b"\xef\xbb\xbf" + (path / "config.json").read_bytes())
    found = []
    for each in (llama, path):
        status, said = lccp("measure", each)
        assert status == 0, said
        assert ("the wrappers' names are removed" in said) == (each == path)
        found.append([record.line() for record in read_records(tmp_path / "measured" / "records.jsonl")[0]])
    assert found[0] == found[1]
    status, said = lccp("import", path)
    assert status == 0 and "note: " in said and "the wrappers' names are removed" in said


def padded(tokenizer: tokenizers.Tokenizer, special: bool = True) -> tokenizers.Tokenizer:
    """A copy with a pad token at its end."""
    copy = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    copy.add_tokens([AddedToken("<pad>", special=special, normalized=False)])
    return copy


def test_a_pad_token_beyond_the_embedding_is_accepted_and_said(
    path: Path, lccp: Callable[..., tuple[int, str]], tmp_path: Path, make: Callable[..., Any], say: Any
) -> None:
    """Measured, imported, and trained on, from the folder and from its import."""
    padded(tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))).save(str(path / "tokenizer.json"))
    for verb in ("measure", "import"):
        status, said = lccp(verb, path)
        assert status == 0, said
        assert "has 401 tokens, its embedding 400 rows; no text becomes those that it lacks (<pad>)" in said
    for base in (path, tmp_path / "imported"):
        changes = {"run.init_from": str(base), "run.tokens": 512, "model": DENSE, "monitors": QUIET}
        run = train(make(changes | {"run.name": "padded" + base.name[:3]}), say)
        [last] = sorted((run / "checkpoints").glob("window-*.ckpt"))[-1:]
        assert weights(last)["model.embedding.weight"].shape == (400, 32)
    assert "no text becomes those that it lacks (<pad>)" in say.file.getvalue()


def test_tokens_beyond_the_embedding_that_text_needs(measuring: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(measuring / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    assert check_rows(tokenizer, 400, None, "here") is None and check_rows(tokenizer, 500, None, "here") is None
    plain = parse_tokenizer(padded(tokenizer, special=False).to_str())
    pad = parse_tokenizer(padded(tokenizer).to_str())
    assert encode(plain, "<pad>") == [400] and 400 not in encode(pad, "<pad>")
    assert "(<pad>), so they do no harm" in str(check_rows(pad, 400, None, "here"))
    with pytest.raises(
        ConfigError, match=r"401 tokens, its embedding 400 rows, and text needs those that it lacks \(<pad>\)"
    ):
        check_rows(plain, 400, None, "here")
    with pytest.raises(ConfigError, match=r"lacks \(that which begins a text\)"):
        check_rows(pad, 400, "<pad>", "here")
    with pytest.raises(ConfigError, match="400 tokens, its embedding 500 rows; put its own tokenizer there"):
        check_pair(tokenizer, 500, None, "here")


def test_tokenizer_json_is_read_and_not_what_a_class_makes_of_it(
    path: Path, lccp: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a class of transformers read the tokenizer")

    monkeypatch.setattr(t.AutoTokenizer, "from_pretrained", never)
    for verb in ("measure", "import"):
        status, said = lccp(verb, path)
        assert status == 0, said
    (path / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + (path / "tokenizer.json").read_bytes())
    assert read_vocabulary(path).bos == "<|document|>"
    (path / "tokenizer_config.json").unlink()
    assert read_vocabulary(path).bos is None
    (path / "special_tokens_map.json").write_text('{"bos_token": {"content": "<s>"}}')
    assert read_vocabulary(path).bos == "<s>"


def sentencepiece(path: Path) -> tokenizers.Tokenizer:
    """A tokenizer in the form of Llama 2's, saved: pieces that begin with U+2581, and bytes for what has no piece."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    letters = list(string.ascii_letters + string.digits + string.punctuation)
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    plain = json.loads(tokenizer.to_str())
    vocab = plain["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    path.write_text(json.dumps(plain))
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.save(str(path))
    return tokenizer


def test_sentencepiece_with_byte_fallback(
    measuring: Path, tmp_path: Path, lccp: Callable[..., tuple[int, str]]
) -> None:
    size = sentencepiece(tmp_path / "pieces.json").get_vocab_size()
    path = folder(measuring, tmp_path / "pieces", tokenizer=tmp_path / "pieces.json", vocab_size=size, bos_token_id=1)
    (path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    text, tokenizer, bos = read_vocabulary(path)
    assert bos == "<s>" and tokenizer.decode(encode(tokenizer, "a ü 模 b")) == "a ü 模 b"
    for verb in ("measure", "import"):
        status, said = lccp(verb, path)
        assert status == 0, said
    hits = [r.value for r in read_records(tmp_path / "measured" / "records.jsonl")[0] if r.metric == "hit_frac"]
    assert hits


def test_nothing_of_transformers_is_printed(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change(path, lambda held: held | {"extra.weight": torch.ones(2)})
    before = t.logging.get_verbosity()
    with pytest.raises(ConfigError, match=r"extra\.weight is in the weights, not in llama; remove them, or name"):
        hf.load_checkpoint(path, torch.float32, "cpu")
    said = capfd.readouterr()
    assert said.out == said.err == "" and t.logging.get_verbosity() == before
