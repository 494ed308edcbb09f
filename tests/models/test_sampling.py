"""Sampling with a cache: the tokens and log-probabilities of whole forwards, whatever is batched with what."""

import numpy as np
import pytest
import torch

from lccp_sim.models import sampling
from lccp_sim.models.sampling import sample
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors.observing import score_spans
from tests.monitors.worlds import tiny_model

VOCAB, STOPS = 40, frozenset({3, 7})
KINDS = {
    "gqa": {},
    "window": {"window_tokens": 6, "full_attention_every": 2},
    "norm before RoPE": {"qk_norm": "before_rope", "num_kv_heads": 4},
    "dense": {"num_dense_layers": 2, "d_dense": 24, "qk_norm": "none"},
}


def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(VOCAB, size=n) for n in (5, 17, 11)]


def numbers(samples: int = 4, longest: int = 9) -> np.ndarray:
    return 1 - np.random.default_rng(1).random((3, samples, longest))


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_gives_the_samples_of_whole_forwards(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(VOCAB, **KINDS[kind])
    before = [block.attention.comm for block in model.layers]
    fast = sample(model, prompts(), STOPS, numbers())
    assert [block.attention.comm for block in model.layers] == before
    monkeypatch.setattr(sampling, "_cached", lambda *a: sampling._again(*a[:4]))
    for mine, plain in zip(fast, sample(model, prompts(), STOPS, numbers()), strict=True):
        for one, other in zip(mine, plain, strict=True):
            assert one.tokens.tolist() == other.tokens.tolist()
            assert np.allclose(one.logp, other.logp, atol=1e-5) and np.allclose(one.entropy, other.entropy, atol=1e-5)


def test_the_log_probabilities_of_sampling_are_those_of_teacher_forcing() -> None:
    model = tiny_model(VOCAB)
    for prompt, group in zip(prompts(), sample(model, prompts(), STOPS, numbers()), strict=True):
        texts = [np.concatenate((prompt, each.tokens)) for each in group]
        with torch.no_grad():
            spans = score_spans(model, texts, [(len(prompt), len(text)) for text in texts])
        for row, each in enumerate(group):
            assert np.abs(spans.nll[row, spans.mask[row]] + each.logp).max() < 1e-5


def test_a_sample_does_not_depend_on_what_is_sampled_with_it() -> None:
    model = tiny_model(VOCAB)
    together = sample(model, prompts(), STOPS, numbers())
    for i, prompt in enumerate(prompts()):
        (alone,) = sample(model, [prompt], STOPS, numbers()[i : i + 1])
        assert [each.tokens.tolist() for each in alone] == [each.tokens.tolist() for each in together[i]]


def test_tokens_come_as_often_as_they_are_likely_and_greedy_takes_the_likeliest() -> None:
    model, prompt, n = tiny_model(VOCAB), prompts()[0], 400
    (drawn,) = sample(model, [prompt], frozenset(), ((np.arange(n) + 0.5) / n).reshape(1, n, 1))
    with torch.no_grad():
        p = model.logits(model(torch.from_numpy(prompt)[None]).hidden_BTD[0, -1:])[0].softmax(-1).numpy()
    counts = np.bincount([int(each.tokens[0]) for each in drawn], minlength=VOCAB)
    assert np.abs(counts - n * p).max() <= 1.01
    ((likeliest,),) = sample(model, [prompt], frozenset(), np.zeros((1, 1, 1)))
    assert likeliest.tokens[0] == p.argmax()


def test_an_answer_ends_with_its_first_stop() -> None:
    model: Transformer = tiny_model(VOCAB)
    for group in sample(model, prompts(), STOPS, numbers(8, 30)):
        for each in group:
            *rest, last = each.tokens.tolist()
            assert not STOPS & {*rest} and (last in STOPS or len(each.tokens) == 30)
