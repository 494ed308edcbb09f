"""What the two packings do to real documents, and how fast they are: truncation, padding, rows, documents a second.

    python bench/packing.py

packs the training documents of the tiny corpus (code and prose of this installation, vocabulary 1024) into rows of
several lengths, and drawn lengths of many more documents; writes bench/results/packing.json and prints its tables.
"""

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lccp_sim.cli import check
from lccp_sim.data.cache import cache_root
from lccp_sim.data.placement import PACKINGS, packed
from lccp_sim.data.pools import open_corpus
from lccp_sim.data.tokenizer import tokenizer_hash
from lccp_sim.data.tokens import Text, tokenize
from lccp_sim.files import write_atomic

ROOT = Path(__file__).parents[1]
CONTEXTS = (256, 1024, 4096, 8192)
DRAWN = (10_000, 100_000, 1_000_000)  # documents; lengths are log-normal, median 600 tokens, sigma 1.2
REPEATS = 3


def measure(sizes: list[int], context: int, packing: str) -> dict[str, Any]:
    """Counts and the median processor time of one packing of documents of `sizes` tokens into rows of `context` + 1."""
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()
        parts, rows = PACKINGS[packing](sizes, context + 1)
        seconds.append(time.process_time() - began)
    done = packed(sizes, parts, rows, context + 1)
    longer = sum(size > context for size in sizes)
    return {
        "context_tokens": context,
        "packing": packing,
        "documents": len(sizes),
        "longer_than_a_row_frac": longer / len(sizes),
        "rows": rows,
        "cut_documents_frac": done.cut_documents / done.documents,
        "cut_tokens_frac": done.cut_tokens / done.tokens,
        "needlessly_cut_documents_frac": (done.cut_documents - longer) / done.documents,
        "lost_tokens_frac": done.lost_tokens / done.tokens,
        "padding_frac": done.padding_tokens / max(rows * (context + 1), 1),
        "seconds": round(statistics.median(seconds), 4),
        "documents_a_second": round(len(sizes) / statistics.median(seconds)),
    }


def corpus_sizes() -> dict[str, list[int]]:
    """Tokens without BOS of the training documents of code, of prose, and of code cut into pieces of 128 tokens."""
    config = check(["run=tiny_lccp", "run.init_from=null"])
    corpus = open_corpus(config.data, config.run.context_tokens, config.seed)
    root, key = cache_root(config.data.cache), tokenizer_hash(corpus.tokenizer)
    found = {}
    for name in ("code", "text", "replay"):
        source = config.data.sources[name]
        bare = replace(source, share=0.0, max_document_tokens=None)  # as open_corpus reads it, and its cache
        text = Text(name, bare, config.data.held_out_frac)
        tokens = tokenize(text, source.max_document_tokens, corpus.tokenizer, key, root)
        order = np.random.default_rng(0).permutation(tokens.pieces(False))
        found[name] = (tokens.stops - tokens.starts)[order].tolist()
    return found


def main() -> None:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "packing.json")
    out = parser.parse_args().out
    corpus = [
        {"source": name} | measure(sizes, context, packing)
        for name, sizes in corpus_sizes().items()
        for context in CONTEXTS
        for packing in PACKINGS
    ]
    rng = np.random.default_rng(0)
    drawn = []
    for count in DRAWN:
        sizes = np.maximum(1, rng.lognormal(np.log(600), 1.2, count)).astype(int).tolist()
        drawn += [measure(sizes, 8192, packing) for packing in PACKINGS]
    machine = f"{platform.machine()}, one thread, Python {platform.python_version()}"
    results = {"machine": machine, "corpus": corpus, "drawn": drawn}
    write_atomic(out, json.dumps(results, indent=1) + "\n")
    print(tables(results))


def tables(results: dict[str, Any]) -> str:
    """The two tables of docs/data.md."""
    head = ["documents of", "row", "longer than a row", "needlessly split: concatenate", "best fit"]
    rows = [[*head, "tokens in split documents: concatenate", "best fit", "padding: best fit"], ["---"] * 8]
    for one, other in zip(results["corpus"][::2], results["corpus"][1::2], strict=True):
        cells = [one["source"], f"{one['context_tokens']:,}", f"{one['longer_than_a_row_frac']:.1%}"]
        cells += [f"{each['needlessly_cut_documents_frac']:.1%}" for each in (one, other)]
        rows.append(
            [*cells, *(f"{each['cut_tokens_frac']:.1%}" for each in (one, other)), f"{other['padding_frac']:.2%}"]
        )
    rows.append([])
    head = ["documents", "split: concatenate", "best fit", "padding: best fit", "seconds: concatenate", "best fit"]
    rows += [head, ["---"] * 6]
    for one, other in zip(results["drawn"][::2], results["drawn"][1::2], strict=True):
        cells = [f"{one['documents']:,}", *(f"{each['cut_documents_frac']:.1%}" for each in (one, other))]
        rows.append([*cells, f"{other['padding_frac']:.3%}", *(f"{each['seconds']:.2f}" for each in (one, other))])
    lines = ["|".join(["", *(f" {cell} " for cell in row), ""]).replace(" --- ", "---") if row else "" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
