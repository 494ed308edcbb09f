"""The oldest transformers that works: what pyproject.toml asks for is what was run, and `make oldest` runs it."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lccp_sim.errors import ConfigError
from lccp_sim.models.foreign.hf import OLDEST, load_checkpoint

ROOT = Path(__file__).parents[1]
OLD = Path(os.environ.get("LCCP_OLDEST", Path(sys.prefix) / "oldest"))
TESTS = ("tests/models/test_hf_folder.py", "tests/models/test_adapter.py")


def test_every_extra_asks_for_it() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = {each for extra in extras.values() for each in extra if each.startswith("transformers")}
    assert asked == {f"transformers>={OLDEST}"}
    made = re.search(r"transformers==(\d+\.\d+)\.", (ROOT / "Makefile").read_text())
    assert made is not None and made[1] == OLDEST


def test_an_older_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").touch()
    monkeypatch.setattr("transformers.__version__", "5.0.0")  # of the module as it is now: tests may import it anew
    with pytest.raises(ConfigError, match=rf"transformers 5.0.0 is too old; pip install 'transformers>={OLDEST}'"):
        load_checkpoint(tmp_path / "model.gguf", None, "cpu")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(not OLD.exists(), reason=f"{OLD} is absent: make oldest puts transformers {OLDEST} there")
def test_it_works() -> None:
    environment = os.environ | {"PYTHONPATH": f"{OLD}{os.pathsep}{ROOT}"}
    code = "import transformers; print(transformers.__version__)"
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(f"{OLDEST}.")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:]
