"""Folders of transformers as people have them: `measure` and `import` read each the same way, or both refuse it."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign.architectures import read_settings, write_config
from lccp_sim.models.foreign.hf import (
    ALPHA_SINCE,
    is_checkpoint,
    load_checkpoint,
    load_tokenizer_json,
    notes_of,
    older,
    open_weights,
)
from lccp_sim.models.foreign.hf_folder import HF_INDEX, inspect
from lccp_sim.models.foreign.rope_settings import check_rope
from lccp_sim.models.foreign.weights import read_weights
from lccp_sim.models.transformer import Transformer
from tests.models.checkpoints import ALPHA, CONTEXT, ROPES, V, save

Held = dict[str, Tensor]
WHOLE = "model.safetensors"
HEAD, EMBEDDING, NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"
Q = "model.layers.1.self_attn.q_proj.weight"


def imported(path: Path) -> Transformer:
    """Our model of a folder, as `lccp import` reads it."""
    settings, stream, _ = open_weights(path, torch.float32)
    name, config = read_settings(settings, str(path))
    model = Transformer(config, config.vocab_size or 0)
    model.load_state_dict(read_weights(stream, name, config, torch.float32, str(path)))
    return model.eval()


def measured(path: Path) -> Any:
    """The model of a folder, as `lccp measure` loads it."""
    return load_checkpoint(path, torch.float32, "cpu")


@torch.no_grad()
def logits(model: Any, tokens: int = 2 * CONTEXT) -> Tensor:
    """[T, V]."""
    tokens_BT = torch.randint(3, V, (1, tokens), generator=torch.Generator().manual_seed(1))
    return model.logits(model(tokens_BT).hidden_BTD[0])


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function (variant of Llama) -> its folder. Only to be copied."""
    made: dict[str, Path] = {}

    def make(variant: str) -> Path:
        if variant not in made:
            made[variant] = tmp_path_factory.mktemp("origin")
            save(made[variant], variant)
        return made[variant]

    return make


def tensors(path: Path, edit: Callable[[Held], Held | None]) -> None:
    """None; edits the tensors of a folder's one file."""
    held = load_file(path / WHOLE)
    save_file(edit(held) or held, path / WHOLE, {"format": "pt"})


def renamed(change: Callable[[str], str]) -> Callable[[Path], None]:
    """An edit that gives every tensor another name."""
    return lambda path: tensors(path, lambda held: {change(key): value for key, value in held.items()})


def settings(**changes: Any) -> Callable[[Path], None]:
    """An edit that changes config.json; `...` takes a key out."""

    def edit(path: Path) -> None:
        plain = json.loads((path / "config.json").read_text()) | changes
        (path / "config.json").write_text(json.dumps({k: v for k, v in plain.items() if v is not ...}))

    return edit


def shards(names: list[str], index: dict[str, str] | None = None) -> Callable[[Path], None]:
    """An edit that cuts the weights over files of these names; `index` maps names of files to those in the index."""

    def edit(path: Path) -> None:
        held = load_file(path / WHOLE)
        (path / WHOLE).unlink()
        parts = [sorted(held)[number :: len(names)] for number in range(len(names))]
        for name, keys in zip(names, parts, strict=True):
            (path / name).parent.mkdir(exist_ok=True)
            save_file({key: held[key] for key in keys}, path / name, {"format": "pt"})
        if index is not None:
            where = {k: index.get(name, name) for name, keys in zip(names, parts, strict=True) for k in keys}
            (path / HF_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))

    return edit


def mark(path: Path) -> None:
    """Puts a byte order mark before config.json."""
    (path / "config.json").write_bytes(b"\xef\xbb\xbf" + (path / "config.json").read_bytes())


def inside(key: str) -> str:
    return "_orig_mod." + key.replace("layers.1.", "layers.1._orig_mod.").replace("_proj.", "_proj._orig_mod.")


TIED, PLAIN = "llama, tied and bias", "llama"
TWO = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
# Name -> the variant, what is done to its folder, and what is said of it.
SAME: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "as it is": (PLAIN, lambda path: None, ""),
    "a byte order mark": (PLAIN, mark, ""),
    "of a compiled model": (PLAIN, renamed(lambda key: f"_orig_mod.{key}"), "named as in a wrapped model"),
    "compiled in parts": (TIED, renamed(inside), "named as in a wrapped model"),
    "of a DDP model": (PLAIN, renamed(lambda key: f"module.{key}"), "named as in a wrapped model"),
    "of a compiled DDP model": (PLAIN, renamed(lambda key: f"_orig_mod.module.{key}"), "named as in a wrapped model"),
    "without model.": (PLAIN, renamed(lambda key: key.removeprefix("model.")), ""),
    "of the base model alone": (TIED, renamed(lambda key: key.removeprefix("model.")), ""),
    "with model. twice": (PLAIN, renamed(lambda key: f"model.{key}"), ""),
    "a stored head that is the embedding": (
        TIED, lambda path: tensors(path, lambda held: held | {HEAD: held[EMBEDDING].clone()}), ""),
    "a stored head alone": (
        TIED, renamed(lambda key: HEAD if key == EMBEDDING else key), ""),
    "an untied head that equals the embedding": (
        PLAIN, lambda path: tensors(path, lambda held: held | {HEAD: held[EMBEDDING].clone()}), ""),
    "a tensor twice, equal": (
        PLAIN, lambda path: tensors(path, lambda held: held | {"norm.weight": held[NORM].clone()}), ""),
    "shards in a subfolder": (PLAIN, shards(["weights/a.safetensors", "weights/b.safetensors"], {}), ""),
    "a file of another name": (PLAIN, lambda path: (path / WHOLE).rename(path / "weights.safetensors"), ""),
    "shards without an index": (PLAIN, shards(TWO), ""),
    "fp64": (PLAIN, lambda path: tensors(path, lambda held: {k: v.double() for k, v in held.items()}), ""),
    "RoPE said twice, equal": (PLAIN, settings(rope_theta=5000.0, rope_scaling={"type": "default"}), ""),
    "a pad token beyond the embedding": (
        PLAIN, settings(pad_token_id=V), f"pad_token_id is {V}, but the embedding has {V} rows"),
    "old frequencies carried along": (
        PLAIN,
        lambda path: tensors(path, lambda held: held | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_both_read_the_same(case: str, origin: Callable[[str], Path], tmp_path: Path) -> None:
    variant, edit, note = SAME[case]
    path = tmp_path / "модель ’ü [1] %20#"  # odd characters do no harm
    shutil.copytree(origin(variant), path)
    edit(path)
    assert is_checkpoint(path)
    theirs, ours = logits(measured(path)), logits(imported(path))
    assert theirs.std() > 0.1 and (theirs - ours).abs().max() <= 1e-4
    if case != "an untied head that equals the embedding":
        assert (theirs - logits(measured(origin(variant)))).abs().max() <= 1e-6
    assert all(note in line for line in notes_of(path)) and bool(notes_of(path)) == bool(note)
    assert notes_of(path) == open_weights(path, torch.float32)[2]


def torn(path: Path) -> None:
    whole = (path / WHOLE).read_bytes()
    (path / WHOLE).write_bytes(whole[: len(whole) - 100])


def adapter(path: Path) -> None:
    """Leaves what peft saves: no config.json, no weights of a model."""
    (path / "config.json").unlink()
    (path / WHOLE).rename(path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))


NESTED = {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}
LINEAR = {"rope_type": "linear", "factor": 4.0}
REFUSED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no head": (
        PLAIN, lambda path: tensors(path, lambda held: {k: v for k, v in held.items() if k != HEAD}),
        "lm_head.weight is not in the weights; if the model ties its head, set tie_word_embeddings=true in"),
    "no embedding and no head": (
        TIED, lambda path: tensors(path, lambda held: {k: v for k, v in held.items() if k != EMBEDDING}),
        "lm_head.weight, model.embed_tokens.weight are not in the weights; fetch the checkpoint again"),
    "a layer less": (
        PLAIN, lambda path: tensors(path, lambda held: {k: v for k, v in held.items() if "layers.2." not in k}),
        "model.layers.2.input_layernorm.weight, model.layers.2.mlp.down_proj.weight, "
        "model.layers.2.mlp.gate_proj.weight and 6 more are not in the weights"),
    "a layer more": (PLAIN, settings(num_hidden_layers=2), "and 6 more are in the weights, not in llama; remove them"),
    "a head of values": (
        PLAIN, lambda path: tensors(path, lambda held: held | {"v_head.weight": torch.ones(2)}),
        "v_head.weight is in the weights, not in llama; remove them, or name the model that they belong to"),
    "an adapter beside the weights": (
        PLAIN, lambda path: tensors(path, lambda held: held | {f"{Q[:-7]}.lora_A.weight": torch.ones(2)}),
        "lora_A.weight is in the weights, not in llama; these belong to an adapter: merge it first"),
    "an adapter alone": (PLAIN, adapter, "holds an adapter of some/base: merge it first"),
    "another shape": (
        PLAIN, lambda path: tensors(path, lambda held: held | {Q: torch.zeros(3, 32)}),
        f"{Q} has shape (3, 32), but config.json implies (32, 32)"),
    "whole numbers": (
        PLAIN, lambda path: tensors(path, lambda held: held | {Q: held[Q].to(torch.int8)}),
        f"{Q} is stored as I8; convert the weights"),
    "a tied head that is not": (
        TIED, lambda path: tensors(path, lambda held: held | {HEAD: held[EMBEDDING] + 1}), "tie"),
    "a tensor twice, not equal": (
        PLAIN, lambda path: tensors(path, lambda held: held | {"norm.weight": held[NORM] + 1}), "norm.weight"),
    "a wrapper that hides a second one": (
        PLAIN, lambda path: tensors(path, lambda held: held | {f"_orig_mod.{NORM}": held[NORM] + 1}),
        "are the same tensor"),
    "the names of an adapter": (
        PLAIN, renamed(lambda key: f"base_model.model.{key}"), "these belong to an adapter: merge it first"),
    "a link that leads nowhere": (
        PLAIN, lambda path: ((path / WHOLE).unlink(), (path / WHOLE).symlink_to(path / "blob")),
        f"{WHOLE}: cannot be read (No such file or directory); put it back"),
    "a folder for weights": (
        PLAIN, lambda path: ((path / WHOLE).unlink(), (path / WHOLE).mkdir()),
        f"{WHOLE}: cannot be read (Is a directory); put it back"),
    "torn": (PLAIN, torn, f"{WHOLE}: damaged"),
    "empty": (PLAIN, lambda path: (path / WHOLE).write_bytes(b""), f"{WHOLE}: damaged"),
    "a shard less": (PLAIN, lambda path: (shards(TWO)(path), (path / TWO[0]).unlink()), "holds 1 of the 2 shards"),
    "a shard less than the index": (
        PLAIN, lambda path: (shards(TWO, {})(path), (path / TWO[0]).unlink()), f"{TWO[0]} is missing, listed in"),
    "an index that leads away": (
        PLAIN, shards(["a.safetensors", "b.safetensors"], {"a.safetensors": "../other/a.safetensors"}),
        "names '../other/a.safetensors', which lies outside the folder"),
    "an index that leads to the root": (
        PLAIN, shards(["a.safetensors", "b.safetensors"], {"a.safetensors": "/etc/hostname"}),
        "names '/etc/hostname', which lies outside the folder"),
    "an index of nothing": (
        PLAIN, lambda path: (shards(TWO)(path), (path / HF_INDEX).write_text("[]")), f"{HF_INDEX}: damaged"),
    "two sets of weights": (
        PLAIN, lambda path: (shutil.copy(path / WHOLE, path / "copy"), shards(TWO, {})(path),
                             (path / "copy").rename(path / WHOLE)), "which are two sets of weights"),
    "a tensor in two files": (
        PLAIN, lambda path: (shutil.copy(path / WHOLE, path / "b.safetensors"),
                             (path / WHOLE).rename(path / "a.safetensors")),
        "is in a.safetensors and in b.safetensors"),
    "two kinds of RoPE": (
        PLAIN, settings(rope_scaling=LINEAR),
        'rope_parameters is {"rope_theta": 5000.0, "rope_type": "default"}, but rope_scaling is '
        '{"rope_type": "linear", "factor": 4.0}; keep'),
    "two bases": (PLAIN, settings(rope_theta=1e6), "rope_theta is 5000 and 1e+06 in different places"),
    "RoPE by layer type": (
        PLAIN, settings(rope_parameters=NESTED), "rope_parameters has a group per layer type (full_attention), but"),
    "code of its own": (PLAIN, settings(auto_map={"AutoModelForCausalLM": "a.B"}), "needs its own code"),
    "UTF-16": (
        PLAIN, lambda path: (path / "config.json").write_bytes((path / "config.json").read_text().encode("utf-16")),
        "config.json: damaged"),
    "a list": (PLAIN, lambda path: (path / "config.json").write_text("[]"), "config.json: damaged (no JSON object)"),
    "RoPE that is no group": (PLAIN, settings(rope_scaling=[1]), "config.json: damaged ("),
    "YaRN without a factor": (PLAIN, settings(rope_parameters={"rope_type": "yarn", "rope_theta": 5000.0}), "factor"),
    "RoPE in words": (PLAIN, settings(rope_theta="much"), "config.json: damaged ("),
    "no type of model": (PLAIN, settings(model_type=...), "model_type"),
    "an unknown type of model": (PLAIN, settings(model_type="no_such"), "model_type='no_such'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("read", [measured, imported])
def test_both_refuse(read: Callable[[Path], Any], case: str, origin: Callable[[str], Path], tmp_path: Path) -> None:
    variant, edit, message = REFUSED[case]
    path = tmp_path / "model"
    shutil.copytree(origin(variant), path)
    edit(path)
    assert is_checkpoint(path)
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        read(path)
    said = str(raised.value)
    assert "\n" not in said and str(tmp_path) in said and not re.search(r"[a-z]Error\b|<class|ForCausalLM", said), said


FORMS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "new": lambda plain: {k: v for k, v in plain.items() if k not in ("rope_theta", "rope_scaling")},
    "old": lambda plain: {k: v for k, v in plain.items() if k != "rope_parameters"},
    "both": dict,
    "bare": lambda plain: {k: v for k, v in plain.items() if k != "rope_theta"},  # the base in rope_parameters alone
}


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
KINDS = ROPES | {"alpha": ALPHA, "yarn, mscale": YARN | {"mscale": 0.7, "mscale_all_dim": 1.0}}
if "proportional" in ROPE_INIT_FUNCTIONS:  # newer than the oldest transformers that works
    KINDS |= {"proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.5}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rope", KINDS)
def test_every_way_to_name_rope(rope: str, form: str, tmp_path: Path) -> None:
    """Each kind of RoPE, in the words of transformers 5 and of older versions, is what `save_pretrained` wrote."""
    variant = "hunyuan_v1_moe" if rope == "alpha" else "llama"
    whole = save(tmp_path, variant, KINDS[rope])
    plain = json.loads((tmp_path / "config.json").read_text())
    name, config = read_settings(plain, "config.json")
    rewritten = {k: v for k, v in write_config(name, config).items() if k.startswith("rope")}
    (tmp_path / "config.json").write_text(json.dumps(FORMS[form](plain | rewritten)))
    tokens_BT = torch.randint(3, V, (1, 4 * CONTEXT), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = whole(tokens_BT).logits[0]
    if rope == "alpha" and older(ALPHA_SINCE):
        with pytest.raises(ConfigError, match=f"install transformers>={ALPHA_SINCE}"):
            measured(tmp_path)
        return
    for model in measured(tmp_path), imported(tmp_path):
        assert (logits(model, 4 * CONTEXT) - wanted).abs().max() <= 1e-4


GEMMA = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"type": "linear", "factor": 8}}, ""),
        ({"rope_theta": 5e5}, "rope_theta is 500000, but rope_theta of full_attention in rope_parameters is 1e+06"),
        ({"rope_local_base_freq": 2e4}, "rope_local_base_freq is 20000, but rope_theta of sliding_attention in"),
        ({"rope_scaling": LINEAR}, 'but rope_scaling is {"rope_type": "linear", "factor": 4.0}; keep'),
        ({"rope_scaling": GEMMA["rope_parameters"]}, ""),
        ({"rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}, "partial_rotary_factor": 0.25},
         "partial_rotary_factor is 0.25 and 0.5 in different places"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
          "original_max_position_embeddings": 64}, "original_max_position_embeddings is 32 and 64 in different"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "rope_theta": 1e4},
          "rope_scaling": {"type": "yarn", "factor": 4.0}}, ""),
    ],
)  # fmt: skip
def test_two_places_of_one_fact(changes: dict[str, Any], message: str) -> None:
    plain = GEMMA | changes
    if not message:
        return check_rope(plain, "config.json")
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_rope(plain, "config.json")


def test_links_of_a_download_cache_are_followed(origin: Callable[[str], Path], tmp_path: Path) -> None:
    """The hub's cache keeps blobs elsewhere, and links to them."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for file in origin(PLAIN).iterdir():
        shutil.copy(file, tmp_path / "blobs" / file.stem)
        os.symlink(f"../blobs/{file.stem}", tmp_path / "snapshot" / file.name)
    assert (logits(measured(tmp_path / "snapshot")) - logits(measured(origin(PLAIN)))).abs().max() == 0


def test_a_view_leaves_nothing_behind(origin: Callable[[str], Path]) -> None:
    with inspect(origin(PLAIN)).view() as place:
        assert sorted(path.name for path in place.iterdir())[0] == "config.json"
    assert not place.exists()


def test_a_gguf_file_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").touch()
    monkeypatch.setattr("lccp_sim.models.foreign.hf.find_spec", lambda name: None)
    message = "^GGUF files need gguf and accelerate; pip install 'lccp-sim\\[hf]'$"
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(tmp_path, torch.float32, "cpu")
    with pytest.raises(ConfigError, match=message):
        load_tokenizer_json(tmp_path / "model.gguf")
