"""What each test costs: a pytest plugin, `make test-costs`, and the list of slow tests that it keeps.

The processor seconds of a test include its child processes and the fixtures that it is the first to ask for. A test
above SLOW seconds is in tests/slow.json and has the mark `slow`: `make test` leaves it out, `make test-all` and
`.ci/run` run it. Design note: a measured list marks the same tests for everyone, and one rule replaces a mark by hand.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

SLOW = 2.5  # processor seconds
LIST = Path(__file__).with_name("slow.json")
COSTS: dict[str, float] = {}


def slow_tests() -> dict[str, float]:
    """The slow tests and their processor seconds, by node id."""
    return json.loads(LIST.read_text(encoding="utf-8")) if LIST.exists() else {}


def seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure a test with its fixtures."""
    began = seconds()
    yield
    COSTS[item.nodeid] = round(seconds() - began, 1)


def pytest_sessionfinish() -> None:
    """Write the list."""
    slow = {name: cost for name, cost in sorted(COSTS.items()) if cost > SLOW}
    LIST.write_text(json.dumps(slow, indent=1) + "\n", encoding="utf-8")
    print(f"\n{sum(COSTS.values()):.0f} s in {len(COSTS)} tests; {len(slow)} are slow, with {sum(slow.values()):.0f} s")
