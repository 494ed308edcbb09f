"""The corpus of a run: its tokenizer, its pools of packed rows, their mixture, and the held-out documents.

A pool holds the documents of one source and one length bucket. So a mixture only chooses the pool of each next row, and
arms that differ only in the mixture share their pools.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tokenizers

from lccp_sim.config import Count, Effect
from lccp_sim.data.cache import cache_root, digest
from lccp_sim.data.documents.document import LeftOut, TextSource, count_reasons
from lccp_sim.data.documents.files import RowSource
from lccp_sim.data.documents.synthetic import Synthetic
from lccp_sim.data.mixture import Mixture
from lccp_sim.data.packing import Pool, RowLayout, document_lengths, pack, synthesize
from lccp_sim.data.shares import Each, MixtureConfig, mixture_of
from lccp_sim.data.tokenizer import TokenizerConfig, bos_id, load_tokenizer, read_tokenizer, tokenizer_hash
from lccp_sim.data.tokens import Text, Tokens, tokenize, tokenizer_sample, vocab_size
from lccp_sim.errors import refuse
from lccp_sim.progress import Tell, silent


@dataclass(frozen=True, kw_only=True)
class DataConfig(MixtureConfig):
    """The data of a run, and how its rows are filled (`placement.py`).

    `order_seed` (null: the run's seed) changes only the order in which rows are read.
    """

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    sources: dict[str, Any]
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    held_out_frac: float = 0.07
    document_mask: bool = True
    reset_positions: bool = True
    order_seed: Count | None = None
    cache: Annotated[str, Effect.PLACE] = "~/.cache/lccp-sim"
    mirror: Annotated[str | None, Effect.PLACE] = None

    def __post_init__(self) -> None:
        refuse(not self.sources, "data.sources", {}, "is empty; name at least one source")
        bad = not 0 <= self.held_out_frac <= 0.5
        refuse(bad, "data.held_out_frac", self.held_out_frac, "must lie between 0 and 0.5 (0.05 to 0.1 is usual)")
        kept = {name: source for name, source in self.sources.items() if isinstance(source, TextSource)}
        texts = [name for name, source in kept.items() if source.held_out == "part"]
        for name, source in self.sources.items():
            if isinstance(source, Synthetic) and source.text_from is not None:
                rule = f"must be a text source of this config ({', '.join(texts) or 'there is none'}; share 0 will do)"
                refuse(source.text_from not in texts, f"data.sources.{name}.text_from", source.text_from, rule)
        self.check(self.sources)
        for index, point in enumerate(self.schedule):
            for name in set(kept) - set(texts):
                share, rule = (point.shares or {}).get(name, 0), "must be 0: all of the source is held out"
                refuse(share, f"data.schedule.{index}.shares.{name}", share, rule)


@dataclass(frozen=True)
class Corpus:
    """All data of a run. `mixture` is over the pools, `table` has a line per source, and `hash` identifies it all."""

    tokenizer: tokenizers.Tokenizer
    bos: int
    vocab_size: int
    pools: list[Pool]
    mixture: Mixture
    table: list[dict[str, Any]]
    warnings: list[str]
    hash: str
    held_out_documents: dict[str, list[np.ndarray]]
    left_out: dict[str, list[LeftOut]] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)  # the largest id of each source of token ids

    def held_out(self, name: str) -> list[np.ndarray]:
        """Ids (int64, without BOS) of each held-out document of a source; `context_tokens` ids for a synthetic one."""
        return self.held_out_documents[name]


class _Part(NamedTuple):
    """The part of one source in a corpus. `longest`: length and name of its longest training document.

    `lengths` are the lengths of its training documents in tokens, including BOS.
    """

    pools: dict[str, Pool]
    held_out: list[np.ndarray]
    lengths: np.ndarray
    longest: tuple[int, str]
    left_out: list[LeftOut]
    stretch: bool


def open_corpus(
    config: DataConfig,
    context_tokens: int,
    seed: int,
    tokenizer: tokenizers.Tokenizer | Path | None = None,
    tell: Tell = silent,
) -> Corpus:
    """The corpus of a config in rows of `context_tokens` + 1, prepared now or taken from the cache.

    `tokenizer` replaces the configured one (a chained run keeps that of its base). `tell` receives the progress. Raises
    ConfigError.
    """
    root, mirror = cache_root(config.cache), None if config.mirror is None else Path(config.mirror).expanduser()
    plain: dict[TextSource, Text] = {}  # sources that differ only in share or maximum length read one text
    texts: dict[str, Text] = {}
    for name, source in config.sources.items():
        if isinstance(source, TextSource):
            bare = replace(source, share=0.0, bucket_shares=None, max_document_tokens=None)
            text = Text(name, bare.within(root, mirror, config.tokenizer.bos_token), config.held_out_frac, tell)
            texts[name] = plain.setdefault(bare, text)
    if tokenizer is None:
        tokenizer = _configured_tokenizer(config, texts, root, tell)
    elif isinstance(tokenizer, Path):
        tokenizer = read_tokenizer(tokenizer)
    key, bos = tokenizer_hash(tokenizer), bos_id(tokenizer, config.tokenizer.bos_token)
    _check_tokenized_with(config, key)
    layout = RowLayout(tokenizer, key, bos, context_tokens, config.packing, seed, root, tell)
    tokens = {
        name: tokenize(text, config.sources[name].max_document_tokens, tokenizer, key, root)
        for name, text in texts.items()
    }
    # A text that one source holds out is not trained on through another one either.
    held: frozenset[str] = frozenset().union(*(each.held_hashes() for each in tokens.values()))
    parts = {
        name: _text_part(name, tokens[name], held, config, layout)
        if name in tokens
        else _synthetic_part(name, source, tokens.get(source.text_from), held, config, layout)
        for name, source in config.sources.items()
    }

    used = {name for point in config.points(config.sources) for name, share in (point.shares or {}).items() if share}
    longest = max(parts[name].longest for name in used)
    if context_tokens > config.old_context_tokens:
        of_longest = f"longer than every document (the longest, {longest[1]}, has {longest[0]} tokens)"
        refuse(longest[0] < context_tokens, "run.context_tokens", context_tokens, f"{of_longest}; lower it or add text")
    rows = {(name, bucket): len(pool) for name, part in parts.items() for bucket, pool in part.pools.items()}
    for name in config.sources:
        empty = name in used and not any(count for each, count in rows.items() if each[0] == name)
        rule = f"has no text for one row of {context_tokens} tokens; lower run.context_tokens or add documents"
        refuse(empty, f"data.sources.{name}", config.sources[name].kind, rule)
    sizes = {name: int(part.lengths.sum()) for name, part in parts.items()}
    chosen, mixture = mixture_of(config, config.sources, rows, sizes, context_tokens)
    content = [
        [name, vars(source) | {"text_from": None}, tokens[source.text_from].content if source.text_from else None]
        if isinstance(source, Synthetic)
        else [name, tokens[name].content, source.max_document_tokens, source.held_out]
        for name, source in config.sources.items()
    ]
    return Corpus(
        tokenizer=tokenizer,
        bos=bos,
        vocab_size=vocab_size(tokenizer),
        pools=[parts[name].pools[bucket] for name, bucket in chosen],
        mixture=mixture,
        table=[_line(name, config, part) for name, part in parts.items()],
        warnings=_warnings(config, parts, chosen, mixture, context_tokens),
        hash=digest(layout.key, config.packing, content, chosen, asdict(mixture), config.held_out_frac),
        held_out_documents={name: part.held_out for name, part in parts.items()},
        left_out={name: part.left_out for name, part in parts.items()},
        largest={name: int(tokens[name].ids.max()) for name in _tokenized_with(config)},
    )


def _configured_tokenizer(config: DataConfig, texts: dict[str, Text], root: Path, tell: Tell) -> tokenizers.Tokenizer:
    shares = [config.sources[name].share for name in texts]
    shares = shares if sum(shares) else [1.0] * len(shares)
    untrained = config.tokenizer.kind == "train" and not texts
    refuse(untrained, "data.tokenizer.kind", "train", "no source has text to train it on; add one, or give a file")
    if config.tokenizer.kind == "train":
        _check_tokenized_with(config, None)
    entry = root / f"tokenizer-{digest([text.key for text in texts.values()], shares, config.tokenizer.vocab_size)}"
    return load_tokenizer(config.tokenizer, tokenizer_sample(list(texts.values()), shares, tell), entry)


def _check_tokenized_with(config: DataConfig, key: str | None) -> None:
    """Raise ConfigError if rows of token ids come from a tokenizer other than the run's, or the run has none yet."""
    own = "trains a tokenizer of its own" if key is None else "has another tokenizer"
    rule = f"the run {own}; set data.tokenizer.kind=file and data.tokenizer.path to this one, or tokenize again"
    for name, path in _tokenized_with(config).items():
        other = key is None or tokenizer_hash(read_tokenizer(Path(path).expanduser())) != key
        refuse(other, f"data.sources.{name}.tokenized_with", path, rule)


def _tokenized_with(config: DataConfig) -> dict[str, str]:
    """The path of the tokenizer with which each pre-tokenized source was made, by source."""
    rows = {name: source for name, source in config.sources.items() if isinstance(source, RowSource)}
    return {name: source.tokenized_with for name, source in rows.items() if source.tokenized_with is not None}


def _text_part(name: str, tokens: Tokens, held: frozenset[str], config: DataConfig, layout: RowLayout) -> _Part:
    train, aside = tokens.pieces(False, held), tokens.pieces(True)
    lengths = tokens.lengths[train]
    of = config.bucket_of(lengths)
    pools = {bucket: pack(name, bucket, tokens, train[of == i], layout) for i, bucket in enumerate(config.buckets)}
    held_out = [np.array(tokens.ids[tokens.starts[i] : tokens.stops[i]], dtype=np.int64) for i in aside]
    top = int(lengths.argmax()) if len(lengths) else None
    longest = (0, name) if top is None else (int(lengths[top]), tokens.names[tokens.document[train[top]]])
    return _Part(pools, held_out, lengths, longest, tokens.left_out, tokens.stretch)


def _synthetic_part(
    name: str, source: Synthetic, text: Tokens | None, held: frozenset[str], config: DataConfig, layout: RowLayout
) -> _Part:
    lengths = np.array(document_lengths(source, layout.context_tokens + 1))
    bucket = config.buckets[int(config.bucket_of(lengths[:1])[0])]
    pool, held_out = synthesize(name, bucket, source, text, held, layout)
    return _Part({bucket: pool}, held_out, np.tile(lengths, len(pool)), (int(lengths.max()), name), [], False)


def _warnings(
    config: DataConfig, parts: dict[str, _Part], chosen: list[Each], mixture: Mixture, context_tokens: int
) -> list[str]:
    lines = []
    for name, source in config.sources.items():
        if isinstance(source, TextSource):
            lines += [f"data.sources.{name}: {note}" for note in source.notes()]
        if parts[name].stretch:
            lines.append(f"data.sources.{name}: its text is one document; the end of it is held out")
        if config.held_out_frac and not parts[name].held_out:
            lines.append(f"data.sources.{name}: nothing is held out, its text has a single group; add documents")
    if context_tokens <= config.old_context_tokens:
        return lines
    long = np.array([_long_frac(config, parts[name].lengths, bucket) for name, bucket in chosen])
    most = max(float(mixture.at(knot) @ long) for knot in mixture.knots)
    if most < 0.2:
        lines.append(
            f"only {most:.0%} of the training tokens lie in documents longer than the old context "
            f"({config.old_context_tokens} tokens), so little can use the new window; raise data.long_frac or add some"
        )
    return lines


def _long_frac(config: DataConfig, lengths: np.ndarray, bucket: str) -> float:
    """The share of a source's tokens in a bucket that are in documents longer than the old context."""
    inside = lengths[config.bucket_of(lengths) == config.buckets.index(bucket)]
    return float(inside[inside > config.old_context_tokens].sum() / max(inside.sum(), 1))


def _line(name: str, config: DataConfig, part: _Part) -> dict[str, Any]:
    """A line of the corpus table; tokens count the BOS of each document."""
    total, held = int(part.lengths.sum()), sum(len(ids) + 1 for ids in part.held_out)
    rows = {bucket: len(part.pools[bucket]) if bucket in part.pools else 0 for bucket in config.buckets}
    pieces = sum(len(pool.piece_name) for pool in part.pools.values())
    padding = sum(pool.packed.padding_tokens for pool in part.pools.values())
    positions = sum(pool.rows_ids.size for pool in part.pools.values())
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
        "left_out": count_reasons(part.left_out),
        "documents_per_row": pieces / max(sum(rows.values()), 1),
        "cut_token_frac": sum(pool.packed.cut_tokens for pool in part.pools.values()) / max(total, 1),
        "padding_frac": padding / max(positions, 1),
    }
