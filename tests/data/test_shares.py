"""Shares of pools: by source, temperature, length and point of the run, and every refusal."""

from typing import Any

import numpy as np
import pytest

from lccp_sim.configure.parse import parse
from lccp_sim.data.documents.sources import PackageText, TextFiles
from lccp_sim.data.documents.synthetic import Synthetic
from lccp_sim.data.pools import DataConfig, open_corpus
from lccp_sim.data.shares import MixtureConfig, Point, mixture_of, pool_shares
from lccp_sim.errors import ConfigError

ROWS = {("a", "short"): 70, ("a", "long"): 30, ("b", "short"): 20, ("b", "long"): 180, ("c", "short"): 10}
TOKENS = {"a": 1000, "b": 4000, "c": 250}


def given(c: float = 0.0, **of_c: Any) -> dict[str, Any]:
    """Sources a, b and c; only the settings that shares look at are theirs."""
    return {
        "a": Synthetic(task="repeats", share=0.6),
        "b": Synthetic(task="repeats", share=0.4),
        "c": PackageText(share=c, **of_c),
    }


def found(config: MixtureConfig, sources: dict[str, Any] | None = None) -> dict[tuple[str, str], float]:
    """The shares at the first point, those above 0."""
    sources = sources or given()
    config.check(sources)
    shares = pool_shares(config, sources, config.points(sources)[0], ROWS, TOKENS)
    assert sum(shares.values()) == pytest.approx(1)
    return {each: share for each, share in shares.items() if share}


def config(**keys: Any) -> MixtureConfig:
    return MixtureConfig(old_context_tokens=64, **keys)


def of_source(shares: dict[tuple[str, str], float]) -> dict[str, float]:
    return {name: sum(v for each, v in shares.items() if each[0] == name) for name in {each[0] for each in shares}}


def test_a_source_keeps_its_own_lengths_unless_told_otherwise() -> None:
    assert found(config()) == pytest.approx(
        {("a", "short"): 0.42, ("a", "long"): 0.18, ("b", "short"): 0.04, ("b", "long"): 0.36}
    )


def test_length_upsampling_keeps_the_ratio_of_the_sources() -> None:
    """From 30 % to 70 % of long documents in every source, as arXiv 2402.10171 does."""
    shares = found(config(long_frac=0.7, bucket_shares_of="source"), given(0.5))
    assert of_source(shares) == pytest.approx({"a": 0.4, "b": 0.4 / 1.5, "c": 0.5 / 1.5})
    for name in ("a", "b"):
        assert shares[name, "long"] / of_source(shares)[name] == pytest.approx(0.7)
    assert ("c", "long") not in shares  # it has none, and keeps its share
    factors = found(config(bucket_upsampling=(1.0, 4.0)))
    assert of_source(factors) == pytest.approx({"a": 0.6, "b": 0.4})
    assert factors["a", "long"] == pytest.approx(0.6 * 4 * 30 / (70 + 4 * 30))


def test_bucket_shares_of_the_corpus_bend_the_ratio() -> None:
    shares = found(config(bucket_shares=(0.25, 0.75)), given(1.0))
    assert shares == pytest.approx(
        {
            **{("a", "short"): 0.25 * 0.3, ("b", "short"): 0.25 * 0.2, ("c", "short"): 0.25 * 0.5},
            **{("a", "long"): 0.75 * 0.6, ("b", "long"): 0.75 * 0.4},
        }
    )
    assert found(config(long_frac=0.75), given(1.0)) == shares


def test_a_source_may_have_bucket_shares_of_its_own() -> None:
    sources = {**given(), "c": given(1.0, bucket_shares=(1.0, 3.0))["c"]}
    rows = {**ROWS, ("c", "long"): 10}
    point = config().points(sources)[0]
    shares = pool_shares(config(), sources, point, rows, TOKENS)
    assert shares["c", "long"] == pytest.approx(0.5 * 0.75) and shares["a", "long"] == pytest.approx(0.3 * 0.3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, None])
def test_a_temperature_takes_the_share_as_a_factor_on_the_size(temperature: float | None) -> None:
    power = 0 if temperature is None else 1 / temperature
    weight = {"a": 0.6 * 1000**power, "b": 0.4 * 4000**power, "c": 2 * 250**power}
    total = sum(weight.values())
    shares = of_source(found(config(temperature=temperature), given(2.0)))
    assert shares == pytest.approx({name: each / total for name, each in weight.items()})


def test_several_buckets_go_by_their_borders() -> None:
    three = config(bucket_tokens=(10, 100), bucket_shares=(1.0, 2.0, 1.0))
    assert three.buckets == ["<=10", "<=100", ">100"] and config().buckets == ["short", "long"]
    assert three.bucket_of(np.array([1, 10, 11, 100, 101, 9999])).tolist() == [0, 0, 1, 1, 2, 2]
    rows = {("a", "<=10"): 1, ("b", "<=100"): 5, ("a", ">100"): 2, ("b", ">100"): 2}
    shares = pool_shares(three, given(), three.points(given())[0], rows, TOKENS)
    assert shares == pytest.approx(
        {("a", "<=10"): 0.25, ("b", "<=100"): 0.5, ("a", ">100"): 0.25 * 0.6, ("b", ">100"): 0.25 * 0.4}
    )


def test_a_schedule_is_linear_between_whole_mixtures() -> None:
    points = (Point(tokens=0, shares={"c": 1.0}), Point(tokens=320, shares={"a": 0.0}, long_frac=1.0))
    ramp = config(long_frac=0.5, schedule=points)
    ramp.check(given())
    pools, mixture = mixture_of(ramp, given(), ROWS, TOKENS, context_tokens=32)
    assert mixture.knots == (0, 10)
    at = {row: dict(zip(pools, mixture.at(row), strict=True)) for row in (0, 5, 10, 99)}
    assert at[0]["c", "short"] == pytest.approx(0.25) and at[0]["a", "long"] == pytest.approx(0.3)
    assert at[10] == at[99] and at[10]["b", "long"] == 1.0
    assert all(at[5][each] == pytest.approx((at[0][each] + at[10][each]) / 2) for each in pools)


def test_what_a_schedule_asks_for_is_what_is_drawn(make, folder) -> None:
    schedule = (Point(tokens=0, long_frac=0.0), Point(tokens=64 * 100, long_frac=1.0))
    corpus = open_corpus(make(schedule=schedule), 64, seed=0)
    drawn = {pool.bucket: count for pool, count in zip(corpus.pools, corpus.mixture.drawn(100), strict=True)}
    assert drawn == {"short": 50, "long": 50}
    assert corpus.hash != open_corpus(make(long_frac=0.0), 64, seed=0).hash


def test_a_source_that_only_the_schedule_names_is_read(make, folder) -> None:
    more = TextFiles(paths=(str(folder / "0*.txt"),), share=0.0)
    later = (Point(tokens=0), Point(tokens=640, shares={"more": 1.0}))
    corpus = open_corpus(make({"more": more}, schedule=later), 64, seed=0)
    assert {pool.source for pool in corpus.pools} == {"prose", "more"}
    assert {pool.source for pool in open_corpus(make({"more": more}), 64, seed=0).pools} == {"prose"}


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"bucket_tokens": (100, 10)}, r"data.bucket_tokens=\(100, 10\): must be lengths above 0 that rise"),
        ({"bucket_tokens": ()}, "data.bucket_tokens"),
        ({"bucket_shares": (0.5,)}, "data.bucket_shares=.*one for each of the 2 buckets short, long"),
        ({"bucket_shares": (-1.0, 2.0)}, "data.bucket_shares=.*>= 0"),
        ({"bucket_shares": (0.0, 0.0)}, "data.bucket_shares=.*not all 0"),
        ({"long_frac": 0.5, "bucket_shares": (0.5, 0.5)}, "data.long_frac=0.5: is for two buckets"),
        ({"long_frac": 0.5, "bucket_tokens": (1, 2)}, "data.long_frac=0.5: is for two buckets"),
        ({"long_frac": 0.5, "bucket_upsampling": (1.0, 2.0)}, "data.bucket_upsampling=.*without effect"),
        ({"bucket_upsampling": (1.0, float("nan"))}, "data.bucket_upsampling=.*factors"),
        ({"temperature": 0.0}, "data.temperature=0.0: must be above 0"),
        ({"schedule": (Point(tokens=5),)}, "data.schedule.0.tokens=5: must be 0"),
        ({"schedule": (Point(tokens=0), Point(tokens=9), Point(tokens=9))}, "data.schedule.2.tokens=9: must exceed 9"),
        ({"schedule": (Point(tokens=0, shares={"aa": 1.0}),)}, "data.schedule.0.shares.aa=1.0: no such source; .*'a'?"),
        ({"schedule": (Point(tokens=0, shares={"a": -1.0}),)}, "data.schedule.0.shares.a=-1.0: must be a number >= 0"),
        ({"schedule": (Point(tokens=0, shares={"a": 0.0, "b": 0.0}),)}, "data.schedule.0.shares=.*sum to 0"),
        ({"schedule": (Point(tokens=0, long_frac=2.0),)}, "data.schedule.0.long_frac=2.0: must lie between"),
        ({"schedule": (Point(tokens=0, bucket_shares=(1.0,)),)}, "data.schedule.0.bucket_shares=.*2 buckets"),
    ],
)
def test_what_is_no_mixture_is_refused_by_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**keys).check(given())


def test_shares_without_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="data.schedule.1.tokens=20: must be a row or more .*32"):
        close = config(schedule=(Point(tokens=0), Point(tokens=20)))
        mixture_of(close, given(), ROWS, TOKENS, context_tokens=32)
    with pytest.raises(ConfigError, match="data.schedule.0.long_frac=1.0: no source has a row of long documents"):
        only = config(schedule=(Point(tokens=0, shares={"a": 0, "b": 0, "c": 1}, long_frac=1.0),))
        mixture_of(only, given(), ROWS, TOKENS, context_tokens=32)
    with pytest.raises(ConfigError, match="data.long_frac=1.0: c has rows of short documents alone"):
        found(config(long_frac=1.0, bucket_shares_of="source"), given(1.0))
    with pytest.raises(ConfigError, match="data.sources.c.bucket_shares=.*set data.bucket_shares_of=source"):
        config(long_frac=0.5).check(given(1.0, bucket_shares=(1.0, 1.0)))


def test_a_misspelt_key_of_a_point_is_named() -> None:
    sources = given()
    plain = {"old_context_tokens": 64, "sources": sources, "schedule": [{"tokens": 0, "sharse": {"a": 1}}]}
    with pytest.raises(ConfigError, match="data.schedule.0.sharse"):
        parse(DataConfig, plain, "data")
    plain["schedule"] = [{"tokens": 0, "shares": {"a": 1}}]
    assert parse(DataConfig, plain, "data").schedule == (Point(tokens=0, shares={"a": 1.0}),)
