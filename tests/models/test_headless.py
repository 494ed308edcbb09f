"""Models whose attention cannot be scored are measured without heads; one that cannot be adapted stays as it was."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers as t

from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign.adapter import Adapter, adapted
from lccp_sim.monitors import Induction, Intervention, LongBioHeads, Needle, Perplexity
from lccp_sim.monitors.observing import evaluating
from lccp_sim.monitors.values import Moment
from lccp_sim.records import Record, overall_name
from tests.monitors.worlds import make_corpus

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2}
HEADS = SHAPE | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
LENGTH = 96


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus()


def build(family: str, vocab_size: int = 90) -> Any:
    configs = {
        "mamba": lambda: t.MambaConfig(vocab_size=vocab_size, **SHAPE, state_size=4),
        "mamba2": lambda: t.Mamba2Config(
            vocab_size=vocab_size, **SHAPE, num_heads=8, head_dim=8, n_groups=1, state_size=16, chunk_size=32
        ),
        "llama4_text": lambda: t.Llama4TextConfig(
            vocab_size=vocab_size, **HEADS, intermediate_size_mlp=48, num_local_experts=2
        ),
        "recurrent_gemma": lambda: t.RecurrentGemmaConfig(
            vocab_size=vocab_size, **(HEADS | {"num_hidden_layers": 3}), lru_width=32, attention_window_size=64
        ),
    }
    torch.manual_seed(0)
    return t.AutoModelForCausalLM.from_config(configs[family]())


def measured(model: Any, corpus: Corpus, *monitors: Any) -> list[Record]:
    records = []
    for monitor in monitors:
        items = monitor.prepare(corpus)
        adapter = adapted(model)
        with evaluating(adapter):
            found = monitor.score(adapter, items)
        monitor.samples(found)
        records += monitor.aggregate(found, Moment(0, 0))
    return records


NEEDLE = Needle(lengths=(LENGTH,), haystack="prose", items=2, depths=2, controls=2)
PERPLEXITY = Perplexity(sources=("prose",), context_tokens=24, short_tokens=8, items=2)


@pytest.mark.parametrize(
    ("family", "num_heads"), [("mamba", 0), ("mamba2", 0), ("recurrent_gemma", 0), ("llama4_text", 4)]
)
def test_heads_are_counted_where_every_layer_attends(family: str, num_heads: int) -> None:
    assert Adapter(build(family)).num_heads == num_heads


@pytest.mark.parametrize("family", ["mamba2", "llama4_text"])
def test_the_needle_and_perplexity_are_those_of_the_models_own_logits(family: str, corpus: Corpus) -> None:
    model = build(family, corpus.vocab_size).eval()
    records = measured(model, corpus, NEEDLE, PERPLEXITY)
    nll = []
    for item in NEEDLE.prepare(corpus):
        first, stop = item.answer
        with torch.no_grad():
            logits_TV = model(torch.from_numpy(item.tokens[None]), use_cache=False).logits[0].double()
        wanted_A = torch.from_numpy(item.tokens[first:stop])
        nll.append(float(torch.nn.functional.cross_entropy(logits_TV[first - 1 : stop - 1], wanted_A)))
    whole = {overall_name(r): r.value for r in records}
    assert whole["needle/sentence_answer_nll_nats"] == pytest.approx(np.mean(nll), abs=1e-4)
    assert 0 < whole["perplexity/nll_nats"] < 20
    scored = {(r.tags["layer"], r.tags["head"]) for r in records if r.monitor == "heads" and "layer" in r.tags}
    assert scored == ({(i, j) for i in range(2) for j in range(4)} if family == "llama4_text" else set())


def test_monitors_of_heads_leave_them_out(corpus: Corpus) -> None:
    induction = Induction(lengths=(48,), haystack="prose", items=2)
    intervention = Intervention(lengths=(LENGTH,), haystack="prose", items=4, depths=2)
    longbio = LongBioHeads(lengths=(160,), items=2, depths=2)
    records = measured(build("mamba2", corpus.vocab_size), corpus, NEEDLE, induction, intervention, longbio)
    found = {(r.monitor, r.metric) for r in records}
    assert {("induction", "second_copy_nll_nats"), ("heads", "hit_frac"), ("heads", "answer_nll_nats")} <= found
    assert {metric for monitor, metric in found if monitor == "heads"} == {"hit_frac", "answer_nll_nats"}
    assert "intervention" not in {monitor for monitor, _ in found}


def test_a_construction_that_fails_leaves_the_model_as_it_was() -> None:
    model = build("llama4_text").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    attends = model.config._attn_implementation
    hook = model.model.register_forward_hook(lambda module, args, out: out.to_tuple())
    with pytest.raises(ConfigError, match="^model_type=llama4_text: .* is not supported$") as refused:
        adapted(model)
    assert "Llama4" not in str(refused.value) and "Output" not in str(refused.value)
    hook.remove()
    assert model.config._attn_implementation == attends
    assert [module.training for module in model.modules()] == modes
    assert "forward" not in vars(model.lm_head)
    assert adapted(model).num_heads == 4
