"""Every causal LM of the installed `transformers`, built tiny, adapted, and measured by the monitors of a forward.

Weights are random and large, so that a scale, a cap or a bias that is missed changes attention. Logits are compared
with the model's own, the end of its positions is sought, and where heads are scored and the model gives its own
attention, every row is compared with it.
"""

import argparse
import json
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bench.tiny_causal_lms import build
from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign.adapter import adapted
from lccp_sim.models.language_model import Attended, LanguageModel
from lccp_sim.models.taps import tapping
from lccp_sim.monitors import Needle, Perplexity
from lccp_sim.monitors.observing import evaluating
from lccp_sim.monitors.values import Moment
from tests.monitors.worlds import make_corpus

RESULT = Path(__file__).parent / "results" / "transformers_sweep.json"
MODEL_TYPES = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # of each the class
OUTCOMES = ("measured", "measured without heads", "refused", "not built")
SECONDS = 20  # at most, for one step of one model
AGREE = 1e-5
CLASS_NAME = re.compile(r"\b[A-Z]\w*(ForCausalLM|Model|Head|Config|Output|Decoder|Generation|Error)\b")
MONITORS = (
    Needle(lengths=(96,), haystack="prose", items=2, depths=2, controls=2),
    Perplexity(sources=("prose",), context_tokens=24, short_tokens=8, items=2),
)


class Texts(NamedTuple):
    """The items of MONITORS, and how many tokens there are."""

    items: list[Any]
    vocab_size: int


class Outcome(NamedTuple):
    """One of OUTCOMES, or failed, which must not be; and more about it."""

    what: str
    detail: str


def texts() -> Texts:
    """Short texts of random words."""
    corpus = make_corpus()
    return Texts([monitor.prepare(corpus) for monitor in MONITORS], corpus.vocab_size)


def outcome(model_type: str, given: Texts) -> Outcome:
    """What became of one model; no exception gets out."""
    try:
        with within(SECONDS), torch.no_grad():
            model = build(model_type, given.vocab_size)
            model(input_ids=torch.arange(20, 60)[None], use_cache=False)
    except Exception as error:  # of transformers, before anything is ours
        return Outcome("not built", _line(error))
    try:
        with within(2 * SECONDS):
            return measured(model, given)
    except ConfigError as error:
        clear = "\n" not in str(error) and not CLASS_NAME.search(str(error))
        return Outcome("refused" if clear else "failed", str(error))
    except Exception as error:
        return Outcome("failed", f"{type(error).__name__}: {_line(error)}")


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """TimeoutError where what is done takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"takes over {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def measured(model: Any, given: Texts) -> Outcome:
    """The outcome of a model that runs. Raises AssertionError where what is measured is not the model's own."""
    adapter, scored = adapted(model), 0
    for monitor, items in zip(MONITORS, given.items, strict=True):
        with evaluating(adapter):
            found = monitor.score(adapter, items)
        records = monitor.aggregate(found, Moment(0, 0))  # which are finite
        scored += sum(r.metric == "copy_hard_frac" and "layer" in r.tags for r in records)
    heads = adapter.num_layers * adapter.num_heads
    assert scored == heads, f"{scored} of {heads} heads are scored"
    tokens_BT = torch.stack([torch.arange(5, 69), torch.arange(5, 69).flip(0)])
    with torch.no_grad():
        want_BTV = model(input_ids=tokens_BT, use_cache=False).logits.float()
        got_BTV = adapter.logits(adapter(tokens_BT).hidden_BTD.flatten(0, 1)).view(want_BTV.shape)
    off = float((got_BTV - want_BTV).abs().max() / want_BTV.abs().max())
    assert off < 10 * AGREE, f"logits are off by {off:.1e}"
    find_end(model, adapter)
    if not heads:
        return Outcome("measured without heads", "")
    default = attention(adapter, tokens_BT)
    own = own_attention(model, tokens_BT)  # from here on eager
    if own is None:
        return Outcome("measured", "gives no attention to compare with")
    for rows, most in ((attention(adapter, tokens_BT), AGREE), (default, 10 * AGREE)):  # other kernels round otherwise
        off = max(difference(a, b) for a, b in zip(rows, own, strict=True))
        assert off < most, f"attention is off by {off:.1e}"
    return Outcome("measured", "attention compared")


def find_end(model: Any, adapter: Any) -> None:
    """None. Raises AssertionError where the model has other positions than the adapter says."""
    most = adapter.most_tokens
    with torch.no_grad():
        if most is None:
            with suppress(ConfigError):  # which says how many there are
                adapter(torch.full((1, 560), 7))  # configs say 512
            return
        model(input_ids=torch.full((1, most), 7), use_cache=False)
        try:
            model(input_ids=torch.full((1, most + 1), 7), use_cache=False)
        except Exception:
            return
    raise AssertionError(f"it has more than {most} positions")


def difference(rows: torch.Tensor, own: torch.Tensor) -> float:
    """The largest difference of rows of attention; some models give rows without the sink's share, which sum to one."""
    share = rows.sum(-1, keepdim=True) if bool(((own.sum(-1) - 1).abs() < AGREE).all()) else 1.0
    return float((rows - own * share).abs().max())


def attention(adapter: LanguageModel, tokens_BT: torch.Tensor) -> list[torch.Tensor]:
    """Attention of every layer as the monitors form it, [B, N, T, T]."""
    found: dict[int, torch.Tensor] = {}

    def tap(layer: int, attended: Attended) -> None:
        B, T = tokens_BT.shape
        found[layer] = torch.stack([attended.rows(i, 0, T) for i in range(B)])

    with torch.no_grad(), tapping(adapter, tap):
        adapter(tokens_BT)
    return [found[layer] for layer in sorted(found)]


def own_attention(model: Any, tokens_BT: torch.Tensor) -> list[torch.Tensor] | None:
    """Attention of every layer as `transformers` gives it, or None where it does not."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(input_ids=tokens_BT, use_cache=False, output_attentions=True).get("attentions")
    return None if not found or any(each is None for each in found) else [each.float() for each in found]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def main() -> None:
    """Prints what became of every class, and writes it to results/transformers_sweep.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="model types; nothing is written")
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    given, found, start = texts(), {}, time.perf_counter()
    for model_type in chosen.only or MODEL_TYPES:
        found[model_type] = outcome(model_type, given)
        print(f"{model_type}: {': '.join(filter(None, found[model_type]))}", flush=True)
    counts = Counter(each.what for each in found.values())
    print(dict(counts), f"{time.perf_counter() - start:.0f} s")
    if not chosen.only:
        models = {
            name: {"class": MODEL_TYPES[name], "outcome": e.what, "detail": e.detail} for name, e in found.items()
        }
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        chosen.out.write_text(json.dumps(versions | {"counts": dict(counts), "models": models}, indent=1) + "\n")


if __name__ == "__main__":
    main()
