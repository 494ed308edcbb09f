"""What every test starts from: one thread, fixed seeds, and no hub to ask."""

import os
import random

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg")
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from tests.costs import slow_tests  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def any_cpu_trains_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests train tiny models in bf16 wherever they run; those of the refusal say what the CPU has."""
    monkeypatch.setattr("lccp_sim.train.loop.precision.bf16_units", lambda: ["avx512_bf16"])


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every generator that a test may draw from is seeded anew, so that no test depends on its neighbours."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests."""
    known = slow_tests()
    for item in items:
        if item.nodeid in known:
            item.add_marker("slow")
