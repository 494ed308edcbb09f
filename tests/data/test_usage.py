"""What a run takes from each pool, told before it begins, is what its batches hold."""

import numpy as np
import pytest

from lccp_sim.data.batch import Feed
from lccp_sim.data.pools import Corpus, open_corpus
from lccp_sim.data.shares import Point
from lccp_sim.data.usage import EPOCHS, repetition, usage


@pytest.fixture
def corpus(make) -> Corpus:
    schedule = (Point(tokens=0, long_frac=0.2), Point(tokens=64 * 60, long_frac=0.9))
    return open_corpus(make(schedule=schedule, packing="best_fit"), 64, seed=0)


def test_rows_epochs_and_shares_are_those_of_the_batches(corpus: Corpus) -> None:
    feed = Feed(corpus, 64, 8, 0, True, True)
    pools = np.concatenate([feed._where(i * 8, i * 8 + 8)[0] for i in range(20)])
    used = usage(corpus, 160)
    assert [each.rows for each in used] == np.bincount(pools, minlength=len(used)).tolist()
    for each, pool in zip(used, corpus.pools, strict=True):
        assert (each.source, each.bucket, each.size) == (pool.source, pool.bucket, len(pool))
        assert each.epochs == each.rows / len(pool) and each.packed == pool.packed
        assert each.padding_frac == pool.packed.padding_tokens / (len(pool) * 65)
        assert 0 <= each.cut_documents_frac <= 1 and 0 <= each.cut_tokens_frac <= 1
    long = next(each for each in used if each.bucket == "long")
    assert (long.share_start, long.share_end) == pytest.approx((0.2, 0.9))
    assert next(each for each in usage(corpus, 30) if each.bucket == "long").share_end == pytest.approx(0.55)


def test_repetition_names_the_pools_that_come_too_often(corpus: Corpus) -> None:
    assert repetition(usage(corpus, 1)) == []
    rows = 3 * int(EPOCHS) * max(len(pool) for pool in corpus.pools)
    lines = repetition(usage(corpus, rows))
    over = [each for each in usage(corpus, rows) if each.rows > EPOCHS * each.size]
    assert over and len(lines) == len(over)
    assert lines[0].startswith(
        f"{over[0].source}, {over[0].bucket} documents: {over[0].epochs:.1f} epochs over the run"
    )
