"""The corpus of a run: its tokenizer, its pools of packed rows, their shares, and what was held out.

Token shares are given per source and, above them, by document length (`long_frac`): the paper trains on 25 % short and
75 % long documents. A document counts as long when it is longer than the old context.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from lccp_sim.config import refuse
from lccp_sim.data.cache import cache_root, digest
from lccp_sim.data.document import TextSource
from lccp_sim.data.packing import Layout, Pool, document_lengths, pack, synthesize
from lccp_sim.data.synthetic import Synthetic
from lccp_sim.data.tokenizer import TokenizerConfig, bos_id, load_tokenizer, read_tokenizer, tokenizer_hash
from lccp_sim.data.tokens import Text, Tokens, tokenize, tokenizer_sample, vocab_size


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a run reads. `long_frac` null keeps each source's own portion of long documents."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    sources: dict[str, Any]
    old_context_tokens: int
    long_frac: float | None = None
    held_out_frac: float = 0.07
    document_mask: bool = True
    reset_positions: bool = True
    cache: str = "~/.cache/lccp-sim"

    def __post_init__(self) -> None:
        refuse(not self.sources, "data.sources", {}, "is empty; name at least one source")
        refuse(self.old_context_tokens < 1, "data.old_context_tokens", self.old_context_tokens, "must be at least 1")
        bad = self.long_frac is not None and not 0 <= self.long_frac <= 1
        refuse(bad, "data.long_frac", self.long_frac, "must lie between 0 and 1, or be null")
        bad = not 0 <= self.held_out_frac <= 0.5
        refuse(bad, "data.held_out_frac", self.held_out_frac, "must lie between 0 and 0.5 (0.05 to 0.1 is usual)")
        texts = [name for name, source in self.sources.items() if isinstance(source, TextSource)]
        for name, source in self.sources.items():
            if isinstance(source, Synthetic) and source.text_from is not None:
                rule = f"must be a text source of this config ({', '.join(texts) or 'there is none'}; share 0 will do)"
                refuse(source.text_from not in texts, f"data.sources.{name}.text_from", source.text_from, rule)
        shares = {f"data.sources.{name}.share": source.share for name, source in self.sources.items()}
        refuse(not sum(shares.values()), ", ".join(shares), 0, "the shares sum to 0; raise one of them")


@dataclass(frozen=True)
class Corpus:
    """Everything that a run reads. `shares` [pools] sum to 1, `table` has a line per source, `hash` names it all."""

    tokenizer: tokenizers.Tokenizer
    bos: int
    vocab_size: int
    pools: list[Pool]
    shares: np.ndarray
    table: list[dict[str, Any]]
    warnings: list[str]
    hash: str
    held_out_documents: dict[str, list[np.ndarray]]

    def held_out(self, name: str) -> list[np.ndarray]:
        """Ids (int64, without BOS) of each held-out document of a source; of a synthetic one: `context_tokens` ids."""
        return self.held_out_documents[name]


class _Part(NamedTuple):
    """What one source gives to a corpus; `longest` is the length and name of its longest training document."""

    pools: dict[str, Pool]
    held_out: list[np.ndarray]
    lengths: np.ndarray
    longest: tuple[int, str]


def open_corpus(
    config: DataConfig, context_tokens: int, seed: int, tokenizer: tokenizers.Tokenizer | Path | None = None
) -> Corpus:
    """The corpus of a config in rows of `context_tokens` + 1, prepared now or taken from the cache.

    `tokenizer` takes the place of the configured one (a chained run goes on with its base's). Raises ConfigError.
    """
    root = cache_root(config.cache)
    plain: dict[TextSource, Text] = {}  # sources that differ only in share or cut read one text
    texts: dict[str, Text] = {}
    for name, source in config.sources.items():
        if isinstance(source, TextSource):
            bare = replace(source, share=1.0, max_document_tokens=None)
            texts[name] = plain.setdefault(bare, Text(name, bare, config.held_out_frac))
    if tokenizer is None:
        tokenizer = _configured_tokenizer(config, texts, root)
    elif isinstance(tokenizer, Path):
        tokenizer = read_tokenizer(tokenizer)
    key, bos = tokenizer_hash(tokenizer), bos_id(tokenizer, config.tokenizer.bos_token)
    layout = Layout(tokenizer, key, bos, context_tokens, config.old_context_tokens, seed, root)
    tokens = {
        name: tokenize(text, config.sources[name].max_document_tokens, tokenizer, key, root)
        for name, text in texts.items()
    }
    # A text that one source holds out is not trained on through another one either.
    held: frozenset[str] = frozenset().union(*(each.held_hashes() for each in tokens.values()))
    parts = {
        name: _text_part(name, tokens[name], held, layout)
        if name in tokens
        else _synthetic_part(name, source, tokens.get(source.text_from), held, layout)
        for name, source in config.sources.items()
    }

    longest = max(part.longest for name, part in parts.items() if config.sources[name].share > 0)
    if context_tokens > config.old_context_tokens:
        of_longest = f"longer than every document (the longest, {longest[1]}, has {longest[0]} tokens)"
        refuse(longest[0] < context_tokens, "run.context_tokens", context_tokens, f"{of_longest}; lower it or add text")
    rows = {(name, bucket): len(pool) for name, part in parts.items() for bucket, pool in part.pools.items()}
    shares = bucket_shares(config, rows, context_tokens, longest)
    content = [
        [name, vars(source) | {"text_from": None}, tokens[source.text_from].content if source.text_from else None]
        if isinstance(source, Synthetic)
        else [name, tokens[name].content, source.max_document_tokens]
        for name, source in config.sources.items()
    ]
    return Corpus(
        tokenizer=tokenizer,
        bos=bos,
        vocab_size=vocab_size(tokenizer),
        pools=[parts[name].pools[bucket] for name, bucket in shares],
        shares=np.array(list(shares.values())),
        table=[_line(name, config, part) for name, part in parts.items()],
        warnings=_warnings(config, parts, shares, context_tokens),
        hash=digest(layout.key, content, [[*each, share] for each, share in shares.items()], config.held_out_frac),
        held_out_documents={name: part.held_out for name, part in parts.items()},
    )


def _configured_tokenizer(config: DataConfig, texts: dict[str, Text], root: Path) -> tokenizers.Tokenizer:
    shares = [config.sources[name].share for name in texts]
    shares = shares if sum(shares) else [1.0] * len(shares)
    untrained = config.tokenizer.kind == "train" and not texts
    refuse(untrained, "data.tokenizer.kind", "train", "no source has text to train it on; add one, or give a file")
    entry = root / f"tokenizer-{digest([text.key for text in texts.values()], shares, config.tokenizer.vocab_size)}"
    return load_tokenizer(config.tokenizer, tokenizer_sample(list(texts.values()), shares), entry)


def _text_part(name: str, tokens: Tokens, held: frozenset[str], layout: Layout) -> _Part:
    train, aside = tokens.pieces(False, held), tokens.pieces(True)
    lengths = tokens.lengths[train]
    is_long = lengths > layout.old_context_tokens
    pools = {
        bucket: pack(name, bucket, tokens, train[is_long == (bucket == "long")], layout) for bucket in ("short", "long")
    }
    held_out = [np.array(tokens.ids[tokens.starts[i] : tokens.stops[i]], dtype=np.int64) for i in aside]
    top = int(lengths.argmax()) if len(lengths) else None
    longest = (0, name) if top is None else (int(lengths[top]), tokens.names[tokens.document[train[top]]])
    return _Part(pools, held_out, lengths, longest)


def _synthetic_part(name: str, source: Synthetic, text: Tokens | None, held: frozenset[str], layout: Layout) -> _Part:
    pool, held_out = synthesize(name, source, text, held, layout)
    lengths = np.tile(document_lengths(source, layout.context_tokens + 1), len(pool))
    return _Part({pool.bucket: pool}, held_out, lengths, (int(lengths.max()), name))


def _warnings(
    config: DataConfig, parts: dict[str, _Part], shares: dict[tuple[str, str], float], context_tokens: int
) -> list[str]:
    lines = []
    for name, source in config.sources.items():
        if isinstance(source, TextSource):
            lines += [f"data.sources.{name}: {note}" for note in source.notes()]
        if config.held_out_frac and not parts[name].held_out:
            lines.append(f"data.sources.{name}: nothing is held out, its text has a single group; add documents")
    long_share = sum(share for (_, bucket), share in shares.items() if bucket == "long")
    if context_tokens > config.old_context_tokens and long_share < 0.2:
        lines.append(
            f"only {long_share:.0%} of the training tokens lie in documents longer than the old context "
            f"({config.old_context_tokens} tokens), so little can use the new window; raise data.long_frac or add some"
        )
    return lines


def bucket_shares(
    config: DataConfig, rows: dict[tuple[str, str], int], context_tokens: int, longest: tuple[int, str]
) -> dict[tuple[str, str], float]:
    """The share of each (source, bucket) that has one, summing to 1.

    `long_frac` given: long rows get it, short rows the rest, and inside a bucket the sources that have rows there go by
    their shares. Null: each source has its share, divided as its rows are. Raises ConfigError where rows are missing.
    """
    shares = {name: source.share for name, source in config.sources.items() if source.share > 0}
    rows = {each: count for each, count in rows.items() if count and each[0] in shares}
    of_source = {name: sum(count for each, count in rows.items() if each[0] == name) for name in shares}
    for name, count in of_source.items():
        rule = f"has no text for one row of {context_tokens} tokens; lower run.context_tokens or add documents"
        refuse(not count, f"data.sources.{name}", config.sources[name].kind, rule)
    if config.long_frac is None:
        weights = {each: shares[each[0]] * count / of_source[each[0]] for each, count in rows.items()}
    else:
        weights = {}
        for bucket, part in ("short", 1 - config.long_frac), ("long", config.long_frac):
            inside = {each: shares[each[0]] for each in rows if each[1] == bucket}
            rule = (
                f"no source has a row of {bucket} documents: short is up to data.old_context_tokens="
                f"{config.old_context_tokens}, the longest document, {longest[1]}, has {longest[0]} tokens; add "
                f"documents, or lower run.context_tokens={context_tokens}"
            )
            refuse(part and not inside, "data.long_frac", config.long_frac, rule)
            weights |= {each: part * share / sum(inside.values()) for each, share in inside.items() if part}
    return {each: weight / sum(weights.values()) for each, weight in weights.items()}


def _line(name: str, config: DataConfig, part: _Part) -> dict[str, Any]:
    """A line of the corpus table; tokens count the BOS of each document."""
    total, held = int(part.lengths.sum()), sum(len(ids) + 1 for ids in part.held_out)
    rows = {bucket: len(part.pools[bucket]) if bucket in part.pools else 0 for bucket in ("short", "long")}
    pieces = sum(len(pool.piece_name) for pool in part.pools.values())
    return {
        "source": name,
        "kind": config.sources[name].kind,
        "share": float(config.sources[name].share),
        "documents": len(part.lengths),
        "tokens": total,
        "long_token_frac": float(part.lengths[part.lengths > config.old_context_tokens].sum() / max(total, 1)),
        "held_out_tokens": held,
        "held_out_frac": held / max(held + total, 1),
        "rows": rows,
        "documents_per_row": pieces / max(sum(rows.values()), 1),
    }
