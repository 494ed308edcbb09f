"""Checkpoints of transformers for the tests, and the monitors that they are measured with."""

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers as t

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
SIZES |= {"intermediate_size": 32, "max_position_embeddings": 512, "initializer_range": 0.3}
MONITORS = {
    "first_window_tokens": None,
    "needle": {"lengths": [96], "haystack": "prose", "items": 4, "depths": 2, "controls": 2, "variants": None},
    "perplexity": {"sources": ["prose"], "context_tokens": 64, "short_tokens": 32, "items": 2},
    "induction": {"lengths": [48], "haystack": "prose", "items": 2, "span_tokens": 6},
    "routing": None,
    "probe": None,
}


def folder(origin: Path, path: Path, seed: int = 0, tokenizer: Path | None = None, **changes: Any) -> Path:
    """A random Llama with the tokenizer of `origin`, saved as transformers does."""
    torch.manual_seed(seed)
    backend = tokenizers.Tokenizer.from_file(str(tokenizer or origin / "tokenizer.json"))
    model = t.LlamaForCausalLM(t.LlamaConfig(**(SIZES | {"vocab_size": 400} | changes)))
    model.save_pretrained(path)
    t.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|document|>").save_pretrained(path)
    return path
