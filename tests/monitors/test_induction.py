"""The repeated spans are where the items say; what does not fit is refused."""

import numpy as np
import pytest

from lccp_sim.config import ConfigError
from lccp_sim.data.pools import Corpus
from lccp_sim.data.synthetic import plain_tokens
from lccp_sim.monitors import Induction


def test_both_copies_stand_where_the_items_say(corpus: Corpus) -> None:
    monitor = Induction(lengths=(40, 41, 300), haystack="prose", items=30, span_tokens=18)
    items, plain = monitor.prepare(corpus), set(plain_tokens(corpus.tokenizer).tolist())
    assert len(items) == 90
    for item in items:
        first, second = item.tokens[slice(*item.first)], item.tokens[slice(*item.second)]
        assert len(item.tokens) == item.length == item.second[1] and item.tokens[0] == corpus.bos
        assert (first == second).all() and len(first) == 18 and set(first.tolist()) <= plain
        assert 1 <= item.first[0] and item.first[1] <= item.second[0]
        assert item.second[0] - item.first[0] >= item.length // 2 - 1
    assert len(np.unique([item.first[0] for item in items if item.length == 300])) > 15


def test_a_length_for_less_than_two_spans_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="monitors.induction.lengths: 39 tokens do not hold two spans of 18"):
        Induction(lengths=(39,), haystack="prose", span_tokens=18).prepare(corpus)
