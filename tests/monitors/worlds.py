"""Small worlds whose truth is known: a corpus, random tiny models, and a model that copies by hand-set weights."""

import hashlib
from typing import Any

import numpy as np
import torch

from lccp_sim.config import ModelConfig
from lccp_sim.data.mixture import Mixture
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tokenizer import bos_id, encode, train_tokenizer
from lccp_sim.data.tokens import vocab_size
from lccp_sim.models.positions import BaseRope
from lccp_sim.models.transformer import Transformer, initialise
from lccp_sim.monitors.needle_items import NeedleItem

WORDS = (
    "the house river stone light under moves slowly while children gather around table where bread lies and nobody "
    "speaks because winter came early this year before harvest ended so people wait for letters from town about prices "
    "of grain salt iron wood every morning old man walks along garden wall counting birds that return again"
).split()
PLANTED_VOCAB = 64  # 0 is BOS, 1 the separator, then filler, question and needle tokens
FILLER, QUESTION, NEEDLE = range(2, 32), range(32, 40), range(40, 64)
COPY_HEAD, SINK_HEAD, PREVIOUS_HEAD = (1, 0), (1, 2), (0, 0)


def make_corpus() -> Corpus:
    """Two sources of held-out random prose, nine documents of 100 to 2500 tokens each, and a tokenizer of 600."""
    rng = np.random.default_rng(0)

    def prose(words: int) -> str:
        return " ".join(rng.choice(WORDS, words)) + f" {rng.integers(1000)}.\n"

    tokenizer = train_tokenizer(600, (prose(50) for _ in range(300)))
    held_out = {
        name: [np.array(encode(tokenizer, prose(100 * (1 + i * i) // 3)), dtype=np.int64) for i in range(9)]
        for name in ("prose", "other")
    }
    return Corpus(
        tokenizer=tokenizer,
        bos=bos_id(tokenizer),
        vocab_size=vocab_size(tokenizer),
        pools=[],
        mixture=Mixture((0,), ((),)),
        table=[],
        warnings=[],
        hash="",
        held_out_documents=held_out,
    )


def digest(items: Any) -> str:
    """A hash of everything in the items of a monitor."""

    def plain(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return x.tolist()
        if callable(x):  # its text has an address
            return None
        return [plain(each) for each in x] if isinstance(x, (list, tuple)) else x

    return hashlib.sha256(repr(plain(items)).encode()).hexdigest()


def tiny_model(vocab: int, seed: int = 0, **keys: Any) -> Transformer:
    """A random model of two layers with GQA and heads sharp enough that their argmax differs from row to row."""
    settings = {"d_model": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_head": 8, "d_expert": 16}
    settings |= {"num_experts": 4, "qk_norm": "after_rope", "qk_norm_gain": 2.0, "experts": "loop"}
    return initialise(Transformer(ModelConfig(rope=BaseRope(1e4), **(settings | keys)), vocab), seed).eval()


@torch.no_grad()
def planted_model(qk_norm: str = "none") -> Transformer:
    """Copies: head (0, 0) writes the previous token's identity, head (1, 0) attends where that is the current token.

    The residual stream is one-hot: a constant, then the current, the previous and the predicted token. The fast half of
    the rotary pairs holds positions, the slow half (still within a few hundred tokens) identities. Head (1, 2) attends
    to BOS. All other queries are zero, so those heads attend uniformly; the experts write nothing.
    """
    V, H = PLANTED_VOCAB, 128
    config = ModelConfig(
        rope=BaseRope(1e8), d_model=1 + 3 * V, num_layers=2, num_heads=4, num_kv_heads=2, d_head=H, d_expert=8,
        num_experts=2, num_experts_per_token=1, num_shared_experts=0, qk_norm=qk_norm, qk_norm_gain=10.0,
        tie_embeddings=False, experts="loop",
    )  # fmt: skip
    model = Transformer(config, V)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            weight.zero_()
    token = torch.arange(V)
    current, previous, predicted = 1 + token, 1 + V + token, 1 + 2 * V + token
    code = torch.where(token < 32, 32 + token, 64 + token)
    model.embedding.weight[:, 0], model.embedding.weight[token, current] = 1.0, 1.0
    assert model.lm_head is not None
    model.lm_head.weight[token, predicted] = 4.0

    first, second = (block.attention for block in model.blocks)
    q, k, v = first.qkv.weight.view(8, H, -1)[[0, 4, 6]].unbind()
    angle = model.frequencies[:32].float()
    q[:32, 0], k[:32, 0], k[64:96, 0] = 8.0, angle.cos(), angle.sin()
    v[token, current] = 1.0
    first.qkv.weight.view(8, H, -1)[[0, 4, 6]] = torch.stack((q, k, v))
    first.out.weight[previous, token] = 0.1  # the norm before the layer multiplied by about ten

    heads = second.qkv.weight.view(8, H, -1)
    heads[0, code, current], heads[4, code, previous], heads[6, token, current] = 8.0, 1.0, 1.0
    heads[2, code[0], 0], heads[5, code[0], current[0]] = 8.0, 1.0
    second.out.weight[predicted, token] = 0.1
    return model.eval()


def planted_item(name: str, length: int, needle: list[int], seed: int = 0) -> NeedleItem:
    """BOS filler SEP needle filler question SEP needle, in the vocabulary of `planted_model`."""
    rng, n = np.random.default_rng(seed), len(needle)
    room = length - 2 * n - len(QUESTION) - 3
    filler = rng.choice(list(FILLER), room)
    at = int(rng.integers(room + 1))
    tokens = np.concatenate(([0], filler[:at], [1], needle, filler[at:], list(QUESTION), [1], needle)).astype(np.int64)
    spans = (at + 2, at + 2 + n), (length - n, length)
    tags: dict[str, Any] = {"length": length, "depth": 0.0, "variant": "single"}
    mask = np.zeros(n, dtype=bool)
    mask[-2:] = True
    return NeedleItem(name, tags, tokens, *spans, mask, None)
