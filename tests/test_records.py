"""The file that all else relies on: one finite number a line, readable after a kill, never half written."""

import json
import os
from pathlib import Path

import pytest

from lccp_sim.errors import DamagedRecords, NotFinite
from lccp_sim.files import append_lines
from lccp_sim.records import Record, read_records

HIT = Record(
    4, 4096, "probabilistic", "needle", "hit_frac", 0.25, 40, 0.07, {"span": "full", "length": 512, "depth": 0.5}
)
LOSS = Record(4, 4096, "training", "train", "loss_nats", 3.0, 1)


def test_a_line_has_the_documented_form() -> None:
    assert HIT.line() == (
        '{"step": 4, "tokens": 4096, "tier": "probabilistic", "monitor": "needle", "metric": "hit_frac", '
        '"value": 0.25, "n": 40, "stderr": 0.07, "tags": {"depth": 0.5, "length": 512, "span": "full"}}\n'
    )
    assert list(json.loads(LOSS.line()))[-2:] == ["stderr", "tags"]
    assert LOSS.line().endswith('"stderr": null, "tags": {}}\n')


def test_text_other_than_ascii_is_written_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    record = Record(0, 0, "probabilistic", "perplexity", "nll_nats", 1.0, 3, tags={"source": "Märchen"})
    append_lines(path, [record.line()])
    assert "Märchen".encode() in path.read_bytes()
    assert read_records(path) == ([record], None)


def test_what_is_appended_is_read_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    third = Record(5, 5120, "training", "train", "loss_nats", 0.1 + 0.2, 1)
    assert append_lines(path, [HIT.line(), LOSS.line()]) == path.stat().st_size
    length = append_lines(path, [third.line()])
    assert length == path.stat().st_size == sum(len(record.line()) for record in (HIT, LOSS, third))
    assert read_records(path) == ([HIT, LOSS, third], None)


def test_the_order_of_tags_makes_no_other_record() -> None:
    turned = Record(4, 4096, "probabilistic", "needle", "hit_frac", 0.25, 40, 0.07, dict(reversed(HIT.tags.items())))
    assert turned.key == HIT.key and turned.line() == HIT.line()
    assert LOSS.key != HIT.key


@pytest.mark.parametrize("bytes_lost", [1, 2, 40])
def test_a_line_cut_off_by_a_kill_is_left_out_with_a_warning(tmp_path: Path, bytes_lost: int) -> None:
    path = tmp_path / "records.jsonl"
    append_lines(path, [HIT.line(), LOSS.line()])
    os.truncate(path, path.stat().st_size - bytes_lost)
    records, warning = read_records(path)
    assert records == [HIT]
    assert warning and str(path) in warning and "incomplete" in warning


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"step": 1}', HIT.line().replace("0.25", "NaN")[:-1]])
def test_a_bad_line_in_the_middle_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    append_lines(path, [HIT.line(), line + "\n", LOSS.line()])
    with pytest.raises(DamagedRecords, match=r"records\.jsonl, line 2: not a record"):
        read_records(path)


@pytest.mark.parametrize(("value", "stderr"), [(float("nan"), None), (float("inf"), None), (1.0, float("nan"))])
def test_a_value_that_is_not_finite_is_refused_and_named(value: float, stderr: float | None) -> None:
    with pytest.raises(NotFinite, match=r"heads/spearman \{'k': 8\} at step 7: .* is not finite"):
        Record(7, 7168, "mechanistic", "heads", "spearman", value, 32, stderr, {"k": 8})


def test_an_unknown_tier_is_refused() -> None:
    with pytest.raises(ValueError, match="tier 'behavioral' is none of training, behavioural"):
        Record(0, 0, "behavioral", "probe", "exact_match_frac", 0.0, 1)
