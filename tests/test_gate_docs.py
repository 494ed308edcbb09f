"""docs/gate.md works as it stands: its file is a gate, and each of its commands runs."""

import os
import re
from pathlib import Path

import pytest

from lccp_sim.analysis.judge.criteria import Criterion, read_gate
from lccp_sim.cli import check, main
from tests.analysis.world import World, write_run
from tests.test_docs import ROOT, commands, run_dry

PAGE = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
COMMANDS = commands(PAGE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs that the page names, and its criteria file, older than they are."""
    root = tmp_path_factory.mktemp("place")
    for seed, name in enumerate(("first", "next-s0", "next-s1", "other-s0")):
        world = World(seed=seed, items=4, windows=8, without=("heads", "routing", "intervention", "induction"))
        write_run(root / "runs" / name, world)
    [block] = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (root / "page.yaml").write_text(block)
    os.utime(root / "page.yaml", (0, 0))
    return root


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_runs(
    words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    if words[1] == "measure":
        run_dry(words)
        return
    if words[2].startswith("path/"):  # of checkpoints, see tests/train/test_compared.py
        check(["run=measure", *(word for word in words if "=" in word)])
        return
    if "--init" not in words:
        (place / "gate.yaml").write_bytes((place / "page.yaml").read_bytes())
    else:
        (place / "gate.yaml").unlink(missing_ok=True)
    assert main(words[1:]) in ((0, 1, 2) if words[1] == "gate" else (0,))
    said = capsys.readouterr()
    assert not said.err and said.out
    assert all((place / words[i + 1]).is_file() for i, word in enumerate(words) if word in ("--json", "--markdown"))


def test_the_table_names_every_key(place: Path) -> None:
    gate, criteria = read_gate(place / "page.yaml")
    assert gate.seeds == 2 and len(criteria) == 4
    table = PAGE.partition("### The keys of a criterion")[2].partition("\n\n")[0]
    rows = {
        key for line in table.splitlines() for key in re.findall(r"`(\w+)`", line.split("|")[1] if "|" in line else "")
    }
    assert rows == set(Criterion.__dataclass_fields__)
