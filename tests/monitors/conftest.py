"""One corpus for all tests of the monitors."""

import pytest

from lccp_sim.data.pools import Corpus
from tests.monitors.worlds import make_corpus


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return make_corpus()
