"""The share of the rows for each pool, from settings by source, by document length, and over the run.

A source's weight is its `share` times its tokens^(1 / temperature). Shares by length are applied second. Over the
corpus (25 % short and 75 % long documents, whatever their source) they change the source shares; within each source
they do not. A schedule over the run consists of points, each a full mixture. The shares of the pools are linear between
them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from lccp_sim.data.mixture import Mixture
from lccp_sim.errors import nearest, refuse

Each = tuple[str, str]  # a source and a bucket


@dataclass(frozen=True, kw_only=True)
class Point:
    """The mixture after `tokens` of the run. Omitted keys (null) take their values from outside the schedule."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    tokens: int
    shares: dict[str, float] | None = None
    long_frac: float | None = None
    bucket_shares: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """The mixture by length and over the run. Sources have a `share` and optionally `bucket_shares`.

    A document belongs to the first bucket whose border (`bucket_tokens`; null: `old_context_tokens` alone) it does not
    exceed. `bucket_shares`, from short to long, are shares of the corpus or of each source (`bucket_shares_of`);
    `long_frac` is the second of two. Without either, a source keeps its own lengths, each bucket weighted by its factor
    in `bucket_upsampling`. `temperature` null is infinite: only `share` weights the sources.
    """

    old_context_tokens: int
    bucket_tokens: tuple[int, ...] | None = None
    bucket_shares: tuple[float, ...] | None = None
    long_frac: float | None = None
    bucket_shares_of: Literal["corpus", "source"] = "corpus"
    bucket_upsampling: tuple[float, ...] | None = None
    temperature: float | None = None
    schedule: tuple[Point, ...] = ()

    @property
    def borders(self) -> tuple[int, ...]:
        """The longest document of each bucket but the last, in tokens."""
        return (self.old_context_tokens,) if self.bucket_tokens is None else self.bucket_tokens

    @property
    def buckets(self) -> list[str]:
        """Names from short to long."""
        if self.borders == (self.old_context_tokens,):
            return ["short", "long"]
        return [*(f"<={border}" for border in self.borders), f">{self.borders[-1]}"]

    def bucket_of(self, lengths: np.ndarray) -> np.ndarray:
        """int64, the index of the bucket of each length (tokens with the BOS)."""
        return np.searchsorted(self.borders, lengths, side="left")

    def check(self, sources: Mapping[str, Any]) -> None:
        """Raise ConfigError if the settings do not describe a mixture of these sources."""
        refuse(self.old_context_tokens < 1, "data.old_context_tokens", self.old_context_tokens, "must be at least 1")
        rising = bool(self.borders) and all(a < b for a, b in zip((0, *self.borders), self.borders, strict=False))
        refuse(not rising, "data.bucket_tokens", self.bucket_tokens, "must be lengths above 0 that rise")
        bad = self.temperature is not None and not 0 < self.temperature < float("inf")
        refuse(bad, "data.temperature", self.temperature, "must be above 0 (1: by size), or null: by share alone")
        _check_lengths(self, "data", self)
        factors = self.bucket_upsampling
        refuse(
            not _shares(factors, self), "data.bucket_upsampling", factors, f"must be {self._each} factors, not all 0"
        )
        lengths: list[MixtureConfig | Point] = [self, *self.schedule]
        fixed = any(each.bucket_shares or each.long_frac is not None for each in lengths)
        rule = "without effect where bucket_shares or long_frac are given; remove one of them"
        refuse(factors and fixed, "data.bucket_upsampling", factors, rule)
        for name, source in sources.items():
            key, own = f"data.sources.{name}.bucket_shares", getattr(source, "bucket_shares", None)
            refuse(not _shares(own, self), key, own, f"must be {self._each} shares >= 0, not all 0")
            rule = "contradicts bucket shares of the entire corpus; set data.bucket_shares_of=source"
            refuse(own and fixed and self.bucket_shares_of == "corpus", key, own, rule)
        names = [f"data.sources.{name}.share" for name in sources]
        total = sum(source.share for source in sources.values())
        refuse(not total and not self.schedule, ", ".join(names), 0, "the shares sum to 0; raise one of them")
        for index, point in enumerate(self.schedule):
            where = f"data.schedule.{index}"
            before = self.schedule[index - 1].tokens if index else None
            rule = "must be 0: the first point is the start of the run" if before is None else f"must exceed {before}"
            wrong = point.tokens != 0 if before is None else point.tokens <= before
            refuse(wrong, f"{where}.tokens", point.tokens, rule)
            _check_lengths(point, where, self)
            for name, share in (point.shares or {}).items():
                rule = f"no such source; data.sources has {', '.join(sources)}{nearest(name, sources)}"
                refuse(name not in sources, f"{where}.shares.{name}", share, rule)
                refuse(not 0 <= share < float("inf"), f"{where}.shares.{name}", share, "must be a number >= 0")
            given = {name: source.share for name, source in sources.items()} | (point.shares or {})
            refuse(not sum(given.values()), f"{where}.shares", given, "the shares sum to 0; raise one of them")

    @property
    def _each(self) -> str:
        return f"null, or one for each of the {len(self.buckets)} buckets {', '.join(self.buckets)}:"

    def points(self, sources: Mapping[str, Any]) -> list[Point]:
        """The points of the schedule (without one: a single point at 0), with shares and bucket shares filled in."""
        filled = []
        for point in self.schedule or (Point(tokens=0),):
            shares = {name: source.share for name, source in sources.items()} | (point.shares or {})
            silent = point.long_frac is None and point.bucket_shares is None
            lengths = self if silent else point
            long = lengths.long_frac
            buckets = lengths.bucket_shares if long is None else (1 - long, long)
            filled.append(replace(point, shares=shares, long_frac=long, bucket_shares=buckets))
        return filled


def _shares(values: Sequence[float] | None, config: MixtureConfig) -> bool:
    """Whether the value is null or has a share for every bucket."""
    if values is None:
        return True
    return len(values) == len(config.buckets) and all(0 <= v < float("inf") for v in values) and sum(values) > 0


def _check_lengths(given: MixtureConfig | Point, where: str, config: MixtureConfig) -> None:
    """Raise ConfigError if a config or a point asks for impossible lengths."""
    long, shares = given.long_frac, given.bucket_shares
    refuse(long is not None and not 0 <= long <= 1, f"{where}.long_frac", long, "must lie between 0 and 1, or be null")
    many = long is not None and (shares is not None or len(config.buckets) > 2)
    refuse(many, f"{where}.long_frac", long, "is for two buckets without bucket_shares; remove one of them")
    refuse(
        not _shares(shares, config), f"{where}.bucket_shares", shares, f"must be {config._each} shares >= 0, not all 0"
    )


def mixture_of(
    config: MixtureConfig,
    sources: Mapping[str, Any],
    rows: Mapping[Each, int],
    tokens: Mapping[str, int],
    context_tokens: int,
) -> tuple[list[Each], Mixture]:
    """The pools with a share above 0, and their mixture over rows of `context_tokens`.

    `rows` count the rows of each (source, bucket), `tokens` the training tokens of a source. Raises ConfigError if a
    requested pool has no rows, or two points of the schedule fall into one row.
    """
    points, knots, found = config.points(sources), [], []
    for index, point in enumerate(points):
        where = f"data.schedule.{index}" if config.schedule else "data"
        rule = f"must be a row or more (run.context_tokens={context_tokens}) after the point before"
        knots.append(point.tokens // context_tokens)
        refuse(index and knots[-1] == knots[-2], f"{where}.tokens", point.tokens, rule)
        found.append(pool_shares(config, sources, point, rows, tokens, where))
    pools = list(dict.fromkeys(each for shares in found for each, share in shares.items() if share))
    return pools, Mixture(tuple(knots), tuple(tuple(shares.get(each, 0.0) for each in pools) for shares in found))


def pool_shares(
    config: MixtureConfig,
    sources: Mapping[str, Any],
    point: Point,
    rows: Mapping[Each, int],
    tokens: Mapping[str, int],
    where: str = "data",
) -> dict[Each, float]:
    """The share of each (source, bucket) at a point that `MixtureConfig.points` filled in; they sum to 1.

    Raises ConfigError, with the key at `where`, if a requested pool has no rows. Source: arXiv 2402.10171 for
    `bucket_shares_of=source`: long documents, and the source shares as before.
    """
    power = 0.0 if config.temperature is None else 1 / config.temperature
    weight = {name: share * tokens[name] ** power for name, share in (point.shares or {}).items() if share > 0}
    rows = {each: count for each, count in rows.items() if count and each[0] in weight}
    if point.bucket_shares is not None and config.bucket_shares_of == "corpus":
        found = _of_corpus(config, point, weight, rows, where)
    else:
        found = {}
        for name in weight:
            own = getattr(sources[name], "bucket_shares", None)
            mine = {each: count for each, count in rows.items() if each[0] == name}
            inside = _of_source(config, own or point.bucket_shares, mine)
            key, asked = (f"data.sources.{name}.bucket_shares", own) if own else _asked(point, where)
            rule = f"{name} has rows of {', '.join(bucket for _, bucket in inside)} documents alone; give these a share"
            refuse(not sum(inside.values()), key, asked, rule)
            found |= {each: weight[name] * part / sum(inside.values()) for each, part in inside.items()}
    total = sum(found.values())
    return {each: part / total for each, part in found.items()}


def _asked(point: Point, where: str) -> tuple[str, object]:
    """The key with which a point sets shares by length, and its value."""
    name = "bucket_shares" if point.long_frac is None else "long_frac"
    return f"{where}.{name}", getattr(point, name)


def _of_corpus(
    config: MixtureConfig, point: Point, weight: Mapping[str, float], rows: Mapping[Each, int], where: str
) -> dict[Each, float]:
    """Weights of pools: each bucket has its share, divided among the sources with rows there by their weights."""
    found: dict[Each, float] = {}
    for bucket, part in zip(config.buckets, point.bucket_shares or (), strict=True):
        inside = {each: weight[each[0]] for each in rows if each[1] == bucket}
        rule = (
            f"no source has a row of {bucket} documents (buckets end at {', '.join(map(str, config.borders))} tokens)"
        )
        refuse(part and not inside, *_asked(point, where), f"{rule}; add some, or lower run.context_tokens")
        found |= {each: part * share / sum(inside.values()) for each, share in inside.items()}
    return found


def _of_source(config: MixtureConfig, shares: Sequence[float] | None, rows: Mapping[Each, int]) -> dict[Each, float]:
    """Weights of the pools of one source: the requested shares, or its rows times the upsampling factors."""
    at = {bucket: index for index, bucket in enumerate(config.buckets)}
    if shares is not None:
        return {each: shares[at[each[1]]] for each in rows}
    factors = config.bucket_upsampling or [1.0] * len(at)
    return {each: count * factors[at[each[1]]] for each, count in rows.items()}
