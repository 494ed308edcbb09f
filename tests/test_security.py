"""Files of others run nothing, and each test that docs/security.md names is there."""

import ast
import re
from pathlib import Path

import pytest

from lccp_sim.analysis.judge.criteria import read_gate
from lccp_sim.analysis.run import load_run
from lccp_sim.errors import ConfigError
from lccp_sim.train.saved.run_directory import read_config

ROOT = Path(__file__).parents[1]
OBJECT = "!!python/object/apply:pathlib.Path.touch ['{}']\n"


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    run, touched = tmp_path / "run", tmp_path / "touched"
    run.mkdir()
    (run / "config.yaml").write_text(OBJECT.format(touched))
    (run / "records.jsonl").write_text(
        '{"step": 0, "tokens": 0, "tier": "training", "monitor": "m", "metric": "x", "value": 1.0, "n": 1}\n'
    )
    for read in (read_config, load_run, lambda path: read_gate(path / "config.yaml")):
        with pytest.raises(ConfigError):
            read(run)
    assert not touched.exists()


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Every call of a function of this dotted name in the package, and where."""
    found = []
    for path in sorted((ROOT / "lccp_sim").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                found.append((f"{path.name}:{node.lineno}", node))
    return found


def test_no_reader_unpickles_arrays() -> None:
    for where, call in calls("np.load"):
        allowed = [word.value for word in call.keywords if word.arg == "allow_pickle"]
        assert all(isinstance(value, ast.Constant) and value.value is False for value in allowed), where
    assert len(calls("np.load")) > 3, "NumPy's default is off, too"


def test_every_checkpoint_is_read_as_weights_alone() -> None:
    found = calls("torch.load")
    assert found
    for where, call in found:
        assert ("weights_only", True) in [(word.arg, getattr(word.value, "value", None)) for word in call.keywords], (
            where
        )


def test_every_test_of_the_page_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "security.md").read_text())
    assert len(named) > 10
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"
