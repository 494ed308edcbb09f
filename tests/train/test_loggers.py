"""`run.loggers` names loggers, and nothing else that Python could call."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lccp_sim.config import Config
from lccp_sim.errors import ConfigError
from lccp_sim.train.loop.progress import loggers


def test_what_is_no_logger_is_not_called(make: Callable[..., Config], tmp_path: Path) -> None:
    settings = {"mine": {"class": "subprocess.run", "args": ["touch", str(tmp_path / "ran")]}}
    with pytest.raises(ConfigError, match="run.loggers.mine.class='subprocess.run': must be a Lightning logger"):
        loggers(make({"run.loggers": settings}), tmp_path, 0)
    assert not (tmp_path / "ran").exists()


def test_a_logger_of_a_user_is_made(make: Callable[..., Config], tmp_path: Path) -> None:
    settings = {"mine": {"class": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(tmp_path / "mine")}}
    assert len(loggers(make({"run.loggers": settings}), tmp_path, 0)) == 3
