"""The first screen: the sentence by the statuses of the signals, and the same table in every place."""

import re
from dataclasses import replace

import pytest

from lccp_sim.analysis.findings import Findings, examine
from lccp_sim.analysis.metrics import shown
from lccp_sim.analysis.report.verdict import (
    COLUMNS,
    FEW,
    IMPROVING,
    LEVELLED,
    UNDECIDED,
    WORSE,
    Signal,
    Verdict,
    first_screen,
    headline,
    verdict,
    verdict_markdown,
    verdict_text,
)
from lccp_sim.analysis.run import load_run
from lccp_sim.analysis.stats.curve import Estimate
from lccp_sim.analysis.stats.equivalence import Equivalence
from lccp_sim.records import Record
from tests.analysis.planted import hits, plant

METRICS = [each.key for each in shown("signal")]
MOVES = Equivalence(1, 2, 9, Estimate(0.1, 0.0, 0.2), 0.05, False, None)

DECEPTIVE = "Train on: the hit levelled at 1.25M tokens, but {} still {} (deceptive saturation)."


def rows(*statuses: str) -> list[Signal]:
    made = []
    for each, status in zip(shown("signal"), statuses, strict=False):
        since = 1_250_000 if status == LEVELLED else None
        made.append(Signal(each.key, each.label, each.unit, 0.1234, 1234.5, status, Estimate(0.0271, 0.0107, 0.0546),
                           0.0303, since))  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("statuses", "stays", "said"),
    [
        ((LEVELLED, IMPROVING, FEW), None, DECEPTIVE.format("answer NLL", "improves")),
        ((LEVELLED, IMPROVING, IMPROVING), None, DECEPTIVE.format("answer NLL and probe", "improve")),
        ((*[LEVELLED] * 4, IMPROVING), None,
         "Stop: hit, answer NLL, probe and initial heads have levelled; held-out NLL still improves."),
        ((IMPROVING, IMPROVING, FEW), None, "Train on: hit and answer NLL still improve."),
        ((LEVELLED, LEVELLED, LEVELLED), None, "Stop: hit, answer NLL and probe have levelled."),
        ((LEVELLED, LEVELLED, FEW), MOVES,
         "Undecided: hit and answer NLL have levelled, but the probe is not shown to be stable."),
        ((FEW, FEW, FEW), None, "Too early to tell: the rule needs at least 6 windows."),
        ((LEVELLED, UNDECIDED), None, "Undecided: whether answer NLL has levelled is open."),
        ((*[LEVELLED] * 5, WORSE), None,
         "Stop: hit, answer NLL, probe and initial heads have levelled; short-context NLL got worse."),
        ((WORSE, WORSE), None, "Undecided: hit and answer NLL got worse."),
        ((), None, "Undecided: there are no needle records, so no hit and no answer NLL to judge by."),
    ],
)  # fmt: skip
def test_the_sentence_follows_from_the_statuses(statuses, stays, said):
    assert headline(Findings(run=None, stays=stays), rows(*statuses)) == said


def test_the_table_is_the_same_in_the_terminal_and_in_markdown():
    made = rows(LEVELLED, IMPROVING)
    said = Verdict(("", "", ""), "", [], [], [], "Train on: one sentence.", made)
    text, markdown = verdict_text(said).split("\n"), verdict_markdown(said).split("\n")
    assert text[0] == "Train on: one sentence." and markdown[0] == "**Train on: one sentence.**"
    assert re.split(r"\s{2,}", text[1]) == list(COLUMNS)
    cells = ["needle hit", "0.123 to 1230", LEVELLED, "+0.027 [0.011, 0.055]", "0.030", "1.25M"]
    assert re.split(r"\s{2,}", text[2]) == cells and markdown[4] == f"| {' | '.join(cells)} |"
    assert replace(made[0], next_doubling=None, threshold=None, since_tokens=None).cells[3:] == ("", "", "")


def test_a_falling_learning_rate_is_part_of_the_first_screen_everywhere(tmp_path):
    moment = [(step, 100 * step) for step in range(1, 21)]
    rates = [Record(*at, "training", "train", "lr", 1e-3 * (1 - at[0] / 21), 1) for at in moment]
    settings = {"run": {"tokens": 2000, "context_tokens": 64, "batch_tokens": 100}, "optim": {"lr": 1e-3}}
    metrics = {"needle/hit_frac": [hits(n) for n in (10, 20, 30)]}
    run = load_run(plant(tmp_path / "run", metrics, changed=settings, extra=rates))
    whole, alone = verdict(examine(run)), first_screen(run)
    assert "rate falls from 0.00" in verdict_text(alone) and verdict_text(alone) == verdict_text(whole)
    assert verdict_markdown(alone) == verdict_markdown(whole)


def test_a_run_has_a_row_a_signal(planted):
    found = examine(load_run(planted[0]))
    said, alone = verdict(found), first_screen(load_run(planted[0]))
    assert verdict_text(alone) == verdict_text(said) and alone.signals == said.signals, "computed alone, it is the same"
    assert [row.metric for row in said.signals] == [key for key in METRICS if found.row(*key.split("/"))]
    assert said.headline.startswith("Train on: the hit levelled") and "(deceptive saturation)" in said.headline
    assert all(
        len(digits) <= 3 for row in said.signals for cell in row.cells for digits in re.findall(r"[1-9]\d*", cell)
    )
