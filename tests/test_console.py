"""What is printed where stdout is no terminal keeps its numbers, and `key={}` empties a group of keys."""

import pytest

from lccp_sim.cli import main
from lccp_sim.configure.compose import check


def test_tables_keep_their_numbers_where_stdout_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # as a shell may export it
    assert main(["plan", "run=tiny_lccp", "--hardware", "h100"]) == 0
    said = capsys.readouterr().out
    assert "…" not in said and "training, with checkpointing" in said


@pytest.mark.parametrize(
    ("overrides", "variants"),
    [
        (["monitors.needle.variants={}"], {}),
        (["+monitors.needle.variants={}"], {}),
        (["monitors.needle.variants={}", "monitors.needle.variants.distractor=3"], {"distractor": 3}),
        ([], {"heldout": 10, "distractor": 20, "multikey": 20}),
    ],
)
def test_an_empty_mapping_empties_what_is_there(overrides: list[str], variants: dict[str, int]) -> None:
    needle = check(["run=tiny_lccp", *overrides]).monitors.watch["needle"]
    assert needle.variants == variants
