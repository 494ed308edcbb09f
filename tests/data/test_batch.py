"""Batches: slices join to the whole, and targets, positions and segments say what the flags say."""

import numpy as np
import pytest

from lccp_sim.data.batch import Batch, Feed
from lccp_sim.data.documents.synthetic import Synthetic
from lccp_sim.data.packing import PAD, SKIP, START
from lccp_sim.data.pools import Corpus, open_corpus
from lccp_sim.errors import ConfigError

FACTS = Synthetic(task="facts", text_from="prose", documents=20, skip_unpredictable=True)


@pytest.fixture
def corpus(make) -> Corpus:
    return open_corpus(make({"facts": FACTS}), 64, seed=0)


@pytest.fixture
def padded(make) -> Corpus:
    return open_corpus(make({"facts": FACTS}, packing="best_fit"), 64, seed=0)


def feed(
    corpus: Corpus, document_mask: bool = True, reset_positions: bool = True, rows: int = 8, seed: int = 0
) -> Feed:
    return Feed(corpus, 64, rows, seed, document_mask, reset_positions)


def joined(parts: list[Batch]) -> Batch:
    offsets = np.cumsum([0] + [part.tokens_BT.size for part in parts])
    return Batch(
        *(np.concatenate([getattr(part, f"{key}_BT") for part in parts]) for key in ("tokens", "targets", "learn")),
        np.concatenate([part.positions_BT for part in parts]),
        np.unique(np.concatenate([part.bounds + at for part, at in zip(parts, offsets, strict=False)])),
        [name for part in parts for name in part.names],
        None if parts[0].text_BT is None else np.concatenate([part.text_BT for part in parts]),
    )


def equal(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(getattr(one, key), getattr(other, key)) for key in vars(one))


@pytest.mark.parametrize("world, num_micro", [(1, 1), (2, 1), (1, 4), (2, 2), (4, 2), (8, 1)])
@pytest.mark.parametrize("document_mask", [True, False])
def test_parts_join_to_the_whole_batch(padded: Corpus, world: int, num_micro: int, document_mask: bool) -> None:
    of = feed(padded, document_mask)
    for index in (0, 7):
        parts = [of.slice(index, rank, world, micro, num_micro) for rank in range(world) for micro in range(num_micro)]
        assert equal(joined(parts), of.batch(index))
        assert of.target_count(index) == sum(int(part.learn_BT.sum()) for part in parts)


def test_a_batch_is_a_function_of_seed_and_index(corpus: Corpus) -> None:
    forwards = [feed(corpus).batch(index) for index in range(5)]
    of = feed(corpus)
    assert all(equal(of.batch(index), forwards[index]) for index in (4, 0, 2))
    assert not equal(feed(corpus, seed=1).batch(0), forwards[0])
    wide = feed(corpus, rows=16).batch(0)
    assert equal(wide, joined(forwards[:2]))


def test_targets_are_one_ahead_and_learned_unless_marked_or_in_another_document(corpus: Corpus) -> None:
    of = feed(corpus, rows=64)
    batch = of.batch(0)
    assert (batch.tokens_BT[:, 1:] == batch.targets_BT[:, :-1]).all()
    assert all(
        array.dtype == np.int64 for array in (batch.tokens_BT, batch.targets_BT, batch.positions_BT, batch.bounds)
    )
    assert not batch.learn_BT[batch.targets_BT == corpus.bos].any()  # no document has a BOS inside
    rows = {
        bytes(row.astype(np.int64)): flags
        for pool in corpus.pools
        for row, flags in zip(pool.rows_ids, pool.flags, strict=True)
    }
    marked = 0
    for tokens, targets, learn in zip(batch.tokens_BT, batch.targets_BT, batch.learn_BT, strict=True):
        flags = rows[bytes(np.append(tokens, targets[-1]))]
        assert (learn == (flags[1:] & (START | SKIP) == 0)).all()
        marked += int((flags[1:] & SKIP > 0).sum())
    assert marked


def test_segments_and_positions_begin_at_each_document(corpus: Corpus) -> None:
    batch = feed(corpus, rows=64).batch(0)
    flat = batch.tokens_BT.ravel()
    assert batch.bounds[0] == 0 and batch.bounds[-1] == flat.size and (np.diff(batch.bounds) > 0).all()
    assert (flat[batch.bounds[:-1]] == corpus.bos).all() and (flat == corpus.bos).sum() == len(batch.bounds) - 1
    assert set(range(0, flat.size, 64)) <= set(batch.bounds.tolist()) and len(batch.bounds) > 65
    expected = np.concatenate([np.arange(length) for length in np.diff(batch.bounds)])
    assert (batch.positions_BT.ravel() == expected).all()


def test_padding_is_the_end_of_a_row_and_nothing_learns_it_or_sees_it(make) -> None:
    corpus = open_corpus(make(packing="best_fit"), 64, seed=0)
    learned = 0
    for pool in corpus.pools:
        padded, at = 0, (np.array(pool.flags) & PAD) > 0
        for row in range(len(pool)):
            ids, flags = np.array(pool.rows_ids[row]), np.array(pool.flags[row])
            text = np.flatnonzero(ids != corpus.bos).max() + 1  # a document has a token after its BOS
            assert (ids[text:] == corpus.bos).all() and (flags[text:] & SKIP).all() and not (flags[:text] & SKIP).any()
            assert np.flatnonzero(flags[text:] & START).tolist() == [0] * bool(text < 65)
            assert np.flatnonzero(at[row]).tolist() == list(range(text, 65))
            padded += 65 - text
            learned += int((flags[1:text] & START == 0).sum())
        assert padded == pool.packed.padding_tokens
    assert sum(pool.packed.padding_tokens for pool in corpus.pools) > 0
    assert sum(feed(corpus)._learn(np.array(pool.flags)).sum() for pool in corpus.pools) == learned
    for mask in (True, False):
        of = feed(corpus, mask, rows=16)
        batch = of.batch(0)
        assert of.target_count(0) == batch.learn_BT.sum() and batch.text_BT is not None
        assert not (batch.learn_BT & ~batch.text_BT).any() and (batch.tokens_BT[~batch.text_BT] == corpus.bos).all()
        assert not batch.learn_BT[(batch.targets_BT == corpus.bos) & (batch.tokens_BT == corpus.bos)].any()


def test_a_corpus_without_padding_says_so(corpus: Corpus) -> None:
    assert feed(corpus).batch(0).text_BT is None


def test_best_fit_keeps_every_document_whole_that_fits(make, folder) -> None:
    corpus = open_corpus(make(packing="best_fit", bucket_tokens=(64, 129)), 128, seed=0)
    whole = {
        bytes(piece.astype(np.int64))
        for pool in corpus.pools
        for row in range(len(pool))
        for piece in np.split(pool.rows_ids[row], np.flatnonzero(pool.flags[row] & START)[1:])
    }
    held = {bytes(ids) for ids in corpus.held_out("prose")}
    checked = 0
    for path in folder.iterdir():
        ids = np.array(corpus.tokenizer.encode(path.read_text(), add_special_tokens=False).ids, dtype=np.int64)
        if len(ids) < 129 and bytes(ids) not in held:
            checked += 1
            assert bytes(np.append(corpus.bos, ids)) in whole
    assert checked > 5 and all(pool.packed.cut_documents == 0 for pool in corpus.pools if pool.bucket != ">129")
    assert all(pool.packed.lost_tokens == 0 for pool in corpus.pools)


def test_the_switches_join_documents_and_let_positions_run(corpus: Corpus) -> None:
    masked, joined_up = feed(corpus).batch(0), feed(corpus, document_mask=False).batch(0)
    assert (joined_up.bounds == np.arange(0, 8 * 64 + 1, 64)).all()
    assert (joined_up.positions_BT == masked.positions_BT).all()
    assert (joined_up.learn_BT | ~(joined_up.targets_BT == corpus.bos) | masked.learn_BT).all()
    assert joined_up.learn_BT[joined_up.targets_BT == corpus.bos].all()
    running = feed(corpus, reset_positions=False).batch(0)
    assert (running.positions_BT == np.arange(64)).all() and (running.bounds == masked.bounds).all()


def test_a_batch_that_does_not_divide_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="8 rows a batch do not divide by 3 ranks x 1 micro-batches"):
        feed(corpus).slice(0, 0, 3, 0, 1)
    with pytest.raises(ConfigError, match="0 rows"):
        feed(corpus, rows=0)
