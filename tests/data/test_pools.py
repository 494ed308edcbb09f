"""The corpus: packing, the held-out split, shares, the cache, and what cannot be prepared."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lccp_sim.configure.parse import parse, parse_kind
from lccp_sim.data.documents.sources import SOURCES, PythonCode, TextFiles
from lccp_sim.data.documents.synthetic import Synthetic
from lccp_sim.data.packing import START
from lccp_sim.data.pools import DataConfig, open_corpus
from lccp_sim.data.tokenizer import TokenizerConfig, encode, tokenizer_hash
from lccp_sim.errors import ConfigError

FACTS = Synthetic(task="facts", text_from="prose", documents=20, skip_unpredictable=True)


def pieces(pool):
    """Name and ids of each piece of a pool, BOS first, in order."""
    for row in range(len(pool)):
        starts = np.flatnonzero(pool.flags[row] & START)
        assert starts[0] == 0
        yield from zip(pool.names(row), np.split(pool.rows_ids[row], starts[1:]), strict=True)


def shares(corpus, row: int = 0) -> dict[tuple[str, str], float]:
    """The share of each pool at a row."""
    return {
        (pool.source, pool.bucket): float(part) for pool, part in zip(corpus.pools, corpus.mixture.at(row), strict=True)
    }


def test_packing_loses_no_token_but_the_last_partial_row(make, folder: Path) -> None:
    corpus = open_corpus(make(), 64, seed=0)
    assert {pool.bucket for pool in corpus.pools} == {"short", "long"}
    expected = {str(path): encode(corpus.tokenizer, path.read_text()) for path in folder.iterdir()}
    held_out = {tuple(ids.tolist()) for ids in corpus.held_out("prose")}
    seen: set[str] = set()
    for pool in corpus.pools:
        got: dict[str, list[int]] = {}
        for name, ids in pieces(pool):
            assert ids[0] == corpus.bos and corpus.bos not in ids[1:]
            got.setdefault(name, []).extend(ids[1:].tolist())
        for name, ids in got.items():
            assert ids == expected[name][: len(ids)] and tuple(expected[name]) not in held_out
            assert (len(expected[name]) + 1 > 64) == (pool.bucket == "long")
        cut = [name for name, ids in got.items() if ids != expected[name]]
        assert len(cut) <= 1
        seen |= set(got)
        assert pool.rows_ids.dtype == np.uint16 and pool.rows_ids.shape == (len(pool), 65)
    train = {name for name, ids in expected.items() if tuple(ids) not in held_out}
    missing = sum(len(expected[name]) + 1 for name in train - seen)
    assert missing < 2 * 65 and len(held_out) + len(train) == 30


def test_the_table_counts_what_is_there(make) -> None:
    corpus = open_corpus(make({"facts": FACTS}), 64, seed=0)
    line = {each["source"]: each for each in corpus.table}
    assert line["prose"]["documents"] + len(corpus.held_out("prose")) == 30
    assert 0.03 < line["prose"]["held_out_frac"] < 0.15
    assert line["prose"]["held_out_tokens"] == sum(len(ids) + 1 for ids in corpus.held_out("prose"))
    assert line["facts"]["rows"] == {"short": 0, "long": 20} and line["facts"]["documents_per_row"] == 1
    assert {(pool.source, pool.bucket): len(pool) for pool in corpus.pools} == {
        (name, bucket): count for name, each in line.items() for bucket, count in each["rows"].items() if count
    }
    json.dumps(corpus.table)
    assert corpus.mixture.at(0).sum() == pytest.approx(1) and corpus.vocab_size <= 400


def test_held_out_packages_share_no_file_with_training(tmp_path, monkeypatch, make) -> None:
    rng = np.random.default_rng(0)
    for package in range(12):
        root = tmp_path / "site" / f"planted_{package}"
        root.mkdir(parents=True)
        for file in range(6):
            text = "# shared\n" * 5 if file == 5 else f"value = {rng.integers(10**9)}\n" * 20
            (root / f"file_{file}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "site")
    source = PythonCode(packages=tuple(f"planted_{package}" for package in range(12)), stdlib=False)
    config = make({"code": source}, held_out_frac=0.1)
    corpus = open_corpus(config, 64, seed=0)
    held = "".join(corpus.tokenizer.decode(ids.tolist()) for ids in corpus.held_out("code"))
    train = "".join(
        corpus.tokenizer.decode(row.tolist()) for pool in corpus.pools if pool.source == "code" for row in pool.rows_ids
    )
    groups = {name.split("/")[0] for pool in corpus.pools for row in range(len(pool)) for name in pool.names(row)}
    assert held and not any(f"# {group}." in held for group in groups)
    assert (held + train).count("# shared\n# shared\n# shared\n# shared\n# shared") == 1


def test_what_one_source_holds_out_no_source_trains_on(make, folder: Path) -> None:
    """The second source has only what the first trains on, so what it holds out must leave the first one's training."""
    texts = {str(path): path.read_text() for path in folder.iterdir()}
    first = open_corpus(make(), 64, seed=0)
    out = {first.tokenizer.decode(ids.tolist()) for ids in first.held_out("prose")}
    other = TextFiles(paths=tuple(sorted(name for name, text in texts.items() if text not in out)))
    corpus = open_corpus(make({"other": other}), 64, seed=0)
    held = {corpus.tokenizer.decode(ids.tolist()) for name in ("prose", "other") for ids in corpus.held_out(name)}
    trained = {texts[name] for pool in corpus.pools for row in range(len(pool)) for name in pool.names(row)}
    assert len(held) > len(corpus.held_out("prose")) and not held & trained


def test_the_cut_makes_short_pieces_of_the_same_text(make, folder: Path) -> None:
    corpus = open_corpus(make({"replay": TextFiles(paths=(str(folder),), max_document_tokens=32)}), 128, seed=0)
    pool = next(pool for pool in corpus.pools if pool.source == "replay")
    assert max(len(ids) for _, ids in pieces(pool)) == 32 and pool.bucket == "short"
    assert max(len(ids) for ids in corpus.held_out("replay")) == 31
    whole, cut = (np.concatenate(corpus.held_out(name)) for name in ("prose", "replay"))
    assert (whole == cut).all()


def test_synthetic_rows_are_one_document_each(make, monkeypatch) -> None:
    sources = {"facts": FACTS, "pairs": Synthetic(task="repeats", documents=10, document_tokens=64)}
    corpus = open_corpus(make(sources), 128, seed=0)
    facts, pairs = (next(pool for pool in corpus.pools if pool.source == name) for name in ("facts", "pairs"))
    assert ((facts.flags & START).sum(1) == 1).all() and (facts.flags & START)[:, 0].all() and len(facts) == 20
    assert (facts.rows_ids[:, 0] == corpus.bos).all() and (facts.flags > START).any()
    assert facts.bucket == "long" and pairs.bucket == "short" and len(pairs) == 5
    assert [np.flatnonzero(row).tolist() for row in pairs.flags] == [[0, 64]] * 5
    assert pairs.names(1) == ["repeats:2", "repeats:3"]
    held = corpus.held_out("facts")
    assert len(held) == 20 and {len(ids) for ids in held} == {128}
    monkeypatch.setattr("lccp_sim.data.packing.HELD_OUT_TOKENS", 3 * 129)
    fewer = open_corpus(make(sources), 128, seed=0).held_out("facts")
    assert [ids.tolist() for ids in fewer] == [ids.tolist() for ids in held[:3]], "very long rows have fewer"
    rows = {bytes(row[1:].astype(np.int64)) for row in facts.rows_ids}
    assert not rows & {bytes(ids) for ids in held}
    other = open_corpus(make(sources), 128, seed=1)
    assert not (next(pool for pool in other.pools if pool.source == "facts").rows_ids == facts.rows_ids).all()


@pytest.mark.parametrize("long_frac", [0.0, 0.25, 0.75, 1.0])
def test_the_portion_of_long_rows_is_what_was_asked_for(make, long_frac: float) -> None:
    sources = {"facts": Synthetic(task="facts", text_from="prose", documents=20, share=3.0)}
    corpus = open_corpus(make(sources, long_frac=long_frac), 128, seed=0)
    share = shares(corpus)
    expected = {
        ("prose", "short"): 1 - long_frac,  # facts have no short rows
        ("prose", "long"): long_frac / 4,
        ("facts", "long"): long_frac * 3 / 4,
    }
    assert share == pytest.approx({key: value for key, value in expected.items() if value})


def test_natural_shares_follow_the_rows_of_a_source(make) -> None:
    corpus = open_corpus(make({"facts": Synthetic(task="facts", text_from="prose", share=3.0)}), 128, seed=0)
    rows = {(pool.source, pool.bucket): len(pool) for pool in corpus.pools}
    share = shares(corpus)
    assert share["facts", "long"] == pytest.approx(0.75)
    prose = rows["prose", "long"] + rows["prose", "short"]
    assert share["prose", "long"] == pytest.approx(0.25 * rows["prose", "long"] / prose)


def test_a_source_of_share_0_only_fills(make, folder: Path) -> None:
    config = make({"prose": TextFiles(paths=(str(folder),), share=0.0), "facts": FACTS})
    corpus = open_corpus(config, 128, seed=0)
    assert [pool.source for pool in corpus.pools] == ["facts"] and corpus.held_out("prose")


def test_the_second_open_reads_the_cache(make, tmp_path: Path, monkeypatch) -> None:
    config = make({"facts": FACTS})
    first = open_corpus(config, 64, seed=0)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    monkeypatch.setattr(TextFiles, "documents", None)  # not asked for
    second = open_corpus(config, 64, seed=0)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()} == stamps
    assert first.hash == second.hash and first.table == second.table
    assert all((a.rows_ids == b.rows_ids).all() for a, b in zip(first.pools, second.pools, strict=True))


def test_a_changed_text_or_seed_changes_the_hash_and_a_moved_one_does_not(make, folder, tmp_path, monkeypatch) -> None:
    first = open_corpus(make(), 64, seed=0)
    assert open_corpus(make(), 64, seed=1).hash != first.hash
    moved = folder.rename(tmp_path / "moved")
    monkeypatch.setenv("LCCP_CACHE", str(tmp_path / "other"))
    again = open_corpus(make({"prose": TextFiles(paths=(str(moved),))}), 64, seed=0)
    assert again.hash == first.hash and (tmp_path / "other").is_dir()
    assert all((a.rows_ids == b.rows_ids).all() for a, b in zip(first.pools, again.pools, strict=True))
    (moved / "00.txt").write_text("another text")
    assert open_corpus(make({"prose": TextFiles(paths=(str(moved),))}), 64, seed=0).hash != first.hash


def test_two_processes_share_one_cache(make, folder: Path, tmp_path: Path) -> None:
    code = f"""
from lccp_sim.data.pools import *; from lccp_sim.data.documents.sources import *; from lccp_sim.data.tokenizer import *
prose = TextFiles(paths=({str(folder)!r},))
facts = Synthetic(task="facts", text_from="prose", documents=20)
tokenizer, cache = TokenizerConfig(vocab_size=400), {str(tmp_path / "cache")!r}
sources = {{"prose": prose, "facts": facts}}
print(open_corpus(DataConfig(tokenizer=tokenizer, sources=sources, old_context_tokens=64, cache=cache), 64, 0).hash)
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    done = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0], done
    assert done[0][0] == done[1][0] != "" and not list((tmp_path / "cache").glob(".*.tmp"))


def test_what_a_killed_writer_left_is_cleared(make, tmp_path: Path) -> None:
    first = open_corpus(make(), 64, seed=0)
    for entry in list((tmp_path / "cache").glob("pool-*")):
        entry.rename(entry.with_name(f".{entry.name}.tmp"))
    again = open_corpus(make(), 64, seed=0)
    assert again.hash == first.hash and not list((tmp_path / "cache").glob(".*.tmp"))


def test_a_given_tokenizer_takes_the_place_of_the_configured_one(make, tmp_path: Path) -> None:
    first = open_corpus(make(), 64, seed=0)
    first.tokenizer.save(str(tmp_path / "base.json"))
    config = make(tokenizer=TokenizerConfig(vocab_size=320))
    for given in (first.tokenizer, tmp_path / "base.json"):
        assert tokenizer_hash(open_corpus(config, 64, 0, tokenizer=given).tokenizer) == tokenizer_hash(first.tokenizer)
    assert tokenizer_hash(open_corpus(config, 64, 0).tokenizer) != tokenizer_hash(first.tokenizer)


def test_little_long_text_and_nothing_held_out_are_warned_about(make, folder: Path) -> None:
    replay = TextFiles(paths=(str(folder),), max_document_tokens=32, share=9.0)
    [warning] = open_corpus(make({"replay": replay}), 128, seed=0).warnings
    assert "of the training tokens lie in documents longer than the old context (64 tokens)" in warning
    (folder.parent / "solid.txt").write_text("x" * 4000)
    single = TextFiles(paths=(str(folder.parent / "solid.txt"),))
    assert open_corpus(make({"single": single}), 32, seed=0).warnings == [
        "data.sources.single: nothing is held out, its text has a single group; add documents"
    ]


def test_the_end_of_one_big_file_is_held_out_and_said(make, folder: Path) -> None:
    text = "\n\n".join(path.read_text() for path in sorted(folder.iterdir()))
    (folder.parent / "book.txt").write_text(text)
    single = TextFiles(paths=(str(folder.parent / "book.txt"),))
    for _ in range(2):  # made, and from the cache
        corpus = open_corpus(make({"prose": single}), 64, seed=0)
        [held] = corpus.held_out("prose")
        assert text.endswith(corpus.tokenizer.decode(held.tolist()).strip() + "\n")
        assert corpus.warnings[0] == "data.sources.prose: its text is one document; the end of it is held out"
        assert 0.04 < corpus.table[0]["held_out_frac"] < 0.1


def test_what_is_left_out_is_counted_in_the_table_also_from_the_cache(make, folder: Path) -> None:
    (folder / "LICENSE").write_text("all rights")
    (folder / "blank.txt").write_text(" \n")
    for _ in range(2):
        corpus = open_corpus(make(), 64, seed=0)
        assert corpus.table[0]["left_out"] == {"empty": 1, "licence": 1}
        assert [Path(each.name).name for each in corpus.left_out["prose"]] == ["LICENSE", "blank.txt"]


def test_what_cannot_be_prepared_is_refused(make, folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"run.context_tokens=100000: longer than every document \(the longest, .*txt"
    ):
        open_corpus(make(), 100_000, seed=0)
    short = {"prose": TextFiles(paths=(str(folder),), max_document_tokens=32)}
    with pytest.raises(
        ConfigError, match="data.long_frac=0.5: no source has a row of long .*end at 64 tokens.*; add some"
    ):
        open_corpus(make(short, long_frac=0.5), 64, seed=0)
    with pytest.raises(ConfigError, match="data.sources.prose='text_files': has no text for one row of 100000"):
        open_corpus(make(old_context_tokens=100_000), 100_000, seed=0)
    with pytest.raises(ConfigError, match="data.sources.prose.share, data.sources.more.share=0: the shares sum to 0"):
        zero = TextFiles(paths=(str(folder),), share=0.0)
        make({"prose": zero, "more": zero})
    with pytest.raises(ConfigError, match="data.sources.facts.text_from='poetry': must be a text source .*prose"):
        make({"facts": Synthetic(task="facts", text_from="poetry")})
    with pytest.raises(ConfigError, match="data.tokenizer.kind='train': no source has text"):
        only = DataConfig(sources={"a": Synthetic(task="repeats")}, old_context_tokens=64, cache=str(folder / "cache"))
        open_corpus(only, 64, seed=0)
    for keys in ({"long_frac": 1.5}, {"held_out_frac": 0.9}, {"old_context_tokens": 0}):
        with pytest.raises(ConfigError, match=f"data.{next(iter(keys))}="):
            make(**keys)


def test_a_config_is_made_from_plain_values(folder: Path) -> None:
    sources = {"prose": parse_kind(SOURCES, {"kind": "text_files", "paths": [str(folder)]}, "data.sources.prose")}
    plain = {"tokenizer": {"kind": "train", "vocab_size": 512}, "sources": sources, "old_context_tokens": 64}
    config = parse(DataConfig, plain, "data")
    assert config.tokenizer.vocab_size == 512 and config.sources["prose"].paths == (str(folder),)
