"""Key tokens against a loop over targets, on a text that says which they are, and against the authors' own package."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lccp_sim.configure.parse import parse
from lccp_sim.data.pools import Corpus
from lccp_sim.data.tokenizer import encode
from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign.adapter import Adapter
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors import Perplexity
from lccp_sim.monitors.observing import evaluating, row_nll
from lccp_sim.monitors.perplexity import DocumentItem, LongPPL, find_keys
from lccp_sim.monitors.values import Moment, Value
from tests.monitors.worlds import NEEDLE, WORDS, planted_model, tiny_model


def watched(model: LanguageModel, monitor: Perplexity, items: list[DocumentItem]) -> list[Value]:
    """What a first window sees: keys, then scores."""
    with evaluating(model):
        known = monitor.refer(items, monitor.reference(model, items))
        assert known is not None
        return monitor.score(model, known)


def values(scored: list[Value], metric: str) -> list[float]:
    return [v.value for v in scored if v.metric == metric and "position" not in v.tags]


def text_item(corpus: Corpus, words: int, seed: int = 0) -> tuple[str, DocumentItem]:
    """A text of random words, and its tokens led by BOS."""
    text = " ".join(np.random.default_rng(seed).choice(WORDS, words)) + ".\n"
    return text, DocumentItem("x", "prose", np.array([corpus.bos, *encode(corpus.tokenizer, text)]))


@pytest.mark.parametrize("trunc, sliding", [(8, 4), (7, 5), (16, 1), (3, 20)])
def test_keys_equal_a_loop_over_targets(trunc: int, sliding: int) -> None:
    """Target t of the text is predicted from BOS and the tokens from `begin` on, which is moved every few targets."""
    settings, model = LongPPL(trunc_tokens=trunc, sliding_tokens=sliding, alpha=0.02, beta=-5.0), tiny_model(100)
    tokens_BT = torch.from_numpy(np.random.default_rng(0).integers(1, 100, (3, 41)))
    tokens_BT[:, 0] = 0

    def log_p(context: torch.Tensor, target: int) -> float:
        logits = model(torch.cat((tokens_BT[0, :1], context))[None]).hidden_BTD[0, -1] @ model.head_weight.T
        return float(logits.double().log_softmax(-1)[target])

    with evaluating(model):
        got = find_keys(model, tokens_BT, settings)
        for row, text in zip(got, tokens_BT[:, 1:], strict=True):
            want = []
            for t, target in enumerate(text.tolist()):
                long = log_p(text[:t], target)
                begin = (t - trunc) // sliding * sliding if t >= trunc else 0
                assert t < trunc or trunc <= t - begin < trunc + sliding
                want.append(long - log_p(text[begin:t], target) > 0.02 and long > -5.0)
            assert row.tolist() == want
    assert 0.05 < got.mean() < 0.8 and not got[:, : trunc + sliding].any()


def test_keys_are_the_tokens_that_only_the_distant_copy_foretells() -> None:
    """A model that copies; a span stands in the text twice, too far apart for the short context."""
    span = list(NEEDLE[:8])
    text = [2] * 10 + span + [2] * 40 + span + [2] * 6
    tokens_BT = torch.tensor([[0, *text]])
    model = planted_model()
    with evaluating(model):
        near = find_keys(model, tokens_BT, LongPPL(trunc_tokens=60, sliding_tokens=4))
        far = find_keys(model, tokens_BT, LongPPL(trunc_tokens=24, sliding_tokens=4))
    assert not near.any()  # the short context reaches the first copy
    # The span's first token follows filler both times: nothing foretells it.
    assert np.flatnonzero(far[0]).tolist() == list(range(59, 66))


def test_longppl_is_the_mean_nll_of_the_keys_of_the_first_look(corpus: Corpus) -> None:
    settings = LongPPL(trunc_tokens=16, sliding_tokens=8, alpha=0.02, beta=-20.0)
    monitor = Perplexity(sources=("prose", "other"), context_tokens=64, short_tokens=16, items=3, longppl=settings)
    items, first, later = monitor.prepare(corpus), tiny_model(corpus.vocab_size), tiny_model(corpus.vocab_size, seed=1)
    with evaluating(first):
        kept = monitor.reference(first, items)
    known = monitor.refer(items, kept)
    assert known is not None
    with evaluating(later):
        scored = monitor.score(later, known)
        for item, count, nll, ppl in zip(
            known, *(values(scored, m) for m in ("key_tokens_count", "longppl_nats", "longppl")), strict=True
        ):
            assert item.keys is not None and count == len(item.keys) > 3
            assert nll == pytest.approx(row_nll(later, torch.from_numpy(item.tokens[None]))[0, item.keys].mean())
            assert ppl == pytest.approx(np.exp(nll))
        own = monitor.reference(later, items)
    assert own["keys"].tolist() != kept["keys"].tolist()  # this model would have named others
    records = {(r.metric, r.tags.get("source")): r for r in monitor.aggregate(scored, Moment(0, 0))}
    assert records["longppl_nats", None].value == pytest.approx(np.mean(values(scored, "longppl_nats")))
    assert records["key_tokens_count", "other"].n == 3


def test_a_text_without_keys_says_so_and_has_no_longppl(corpus: Corpus) -> None:
    settings = LongPPL(trunc_tokens=16, sliding_tokens=8)  # a fresh model predicts nothing well
    monitor = Perplexity(sources=("prose",), context_tokens=64, short_tokens=16, items=3, longppl=settings)
    scored = watched(tiny_model(corpus.vocab_size), monitor, monitor.prepare(corpus))
    assert values(scored, "key_tokens_count") == [0, 0, 0]
    assert values(scored, "longppl_nats") == values(scored, "longppl") == []
    assert {r.metric for r in monitor.aggregate(scored, Moment(0, 0))} >= {"key_tokens_count", "ppl"}


@pytest.mark.parametrize("change", [{"seed": 1}, {"longppl": LongPPL(trunc_tokens=15, sliding_tokens=8)}])
def test_keys_found_for_others_are_of_no_use(change: dict[str, Any], corpus: Corpus) -> None:
    settings = LongPPL(trunc_tokens=16, sliding_tokens=8)
    monitor = Perplexity(sources=("prose",), context_tokens=64, short_tokens=16, items=3, longppl=settings)
    items, model = monitor.prepare(corpus), tiny_model(corpus.vocab_size)
    with evaluating(model):
        kept = monitor.reference(model, items)
    assert monitor.refer(items, kept) is not None
    other = dataclasses.replace(monitor, **change)
    assert other.refer(other.prepare(corpus), kept) is None


def test_a_context_that_has_no_room_for_keys_is_refused() -> None:
    plain = {"sources": ["prose"], "context_tokens": 64, "short_tokens": 16, "longppl": {"sliding_tokens": 32}}
    with pytest.raises(
        ConfigError,
        match=r"^monitors.perplexity.longppl.trunc_tokens=4096: with sliding_tokens, no key token is sought in the "
        r"first 4128 tokens, and context_tokens is only 64; lower one of them$",
    ):
        parse(Perplexity, plain, "monitors.perplexity")
    with pytest.raises(ConfigError, match="monitors.perplexity.longppl.alfa: no such key; did you mean 'alpha'?"):
        parse(Perplexity, plain | {"longppl": {"alfa": 2}}, "monitors.perplexity")


class Led:
    """A model of `transformers` that puts BOS before whatever text it gets: our short contexts all begin with it."""

    def __init__(self, model: Any, bos: int):
        self.model, self.bos, self.device = model, bos, model.device

    def __call__(self, tokens_BT: torch.Tensor) -> Any:
        led_BT = torch.cat((torch.full_like(tokens_BT[:, :1], self.bos), tokens_BT), dim=1)
        return SimpleNamespace(logits=self.model(led_BT).logits[:, 1:])


@pytest.fixture
def llama(corpus: Corpus) -> Callable[..., Any]:
    """A function (seed, text, steps) -> a tiny Llama that has seen one text led by BOS for so many steps."""
    import transformers as t

    def build(seed: int, tokens: np.ndarray, steps: int) -> Any:
        torch.manual_seed(seed)
        config = t.LlamaConfig(
            vocab_size=corpus.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1, max_position_embeddings=512,
        )  # fmt: skip
        model = t.LlamaForCausalLM(config)
        optimizer, tokens_BT = torch.optim.Adam(model.parameters(), 1e-2), torch.from_numpy(tokens[None])
        for _ in range(steps):
            model(tokens_BT, labels=tokens_BT).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.eval()

    return build


@pytest.mark.parametrize("trunc, sliding, alpha, beta", [(64, 16, 2.0, -2.0), (40, 13, 0.5, -3.0)])
def test_agrees_with_the_package_of_the_authors(
    trunc: int, sliding: int, alpha: float, beta: float, corpus: Corpus, llama: Callable[..., Any]
) -> None:
    package = pytest.importorskip("longppl.longppl", reason="the package longppl is not installed")
    from transformers import PreTrainedTokenizerFast

    text, item = text_item(corpus, 300)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=corpus.tokenizer)
    judge, judged = llama(0, item.tokens, 60), llama(1, item.tokens, 20)
    want = package.compute_longppl(
        text, Led(judged, corpus.bos), Led(judge, corpus.bos), tokenizer, tokenizer, None, trunc, sliding, alpha, beta
    )
    settings = LongPPL(trunc_tokens=trunc, sliding_tokens=sliding, alpha=alpha, beta=beta)
    T = len(item.tokens) - 1
    monitor = Perplexity(sources=("prose",), context_tokens=T, short_tokens=T, longppl=settings)
    finder, scored = Adapter(judge), Adapter(judged)
    with evaluating(finder):
        kept = monitor.reference(finder, [item])
    known = monitor.refer([item], kept)
    assert known is not None
    with evaluating(scored):
        found = monitor.score(scored, known)
        nll_T = row_nll(scored, torch.from_numpy(item.tokens[None]))[0]
    assert values(found, "key_tokens_count") == [want["n_key_token"]] and want["n_key_token"] >= 5
    assert values(found, "longppl") == [pytest.approx(float(want["longppl"]), rel=1e-4)]
    assert want["n_token"] == T
    assert float(np.exp(nll_T[1:].mean())) == pytest.approx(float(want["ppl"]), rel=1e-4)  # it leaves the first out
