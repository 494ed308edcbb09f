"""What is told of a look while it goes on, and how long it is said to take before."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lccp_sim.cli import main
from lccp_sim.configure.compose import check
from lccp_sim.monitors.monitor import Pass
from lccp_sim.progress import Work
from lccp_sim.train.window.estimate import TokenCount, estimate, expected_seconds, kinds, longer, timed
from tests.train.foreign import folder
from tests.train.test_callback import Bigram

TEXTS = np.arange(300)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """What is told of any work from now on."""
    found: list[tuple[str, float]] = []
    monkeypatch.setattr(Work, "__call__", lambda self, said, share: found.append((said, share)))
    return found


def test_a_look_is_counted_in_texts_and_weighed_in_tokens() -> None:
    told: list[tuple[str, float]] = []
    plan = {"needle": [Pass(4, 100)], "probe": [Pass(2, 100, 3)], "other": []}
    count = TokenCount(plan, lambda *words: told.append(words), before="here, ", whole=(0.5, 1.0))
    count.begin("needle")
    count.sent(2, 200), count.sent(2, 200)
    count.begin("other")
    count.sent(1, 50)
    count.begin("probe")
    count.sent(2, 600), count.sent(1, 100)
    assert told == [
        ("here, needle: 0 of 4 texts", 0.5),
        ("here, needle: 2 of 4 texts", 0.6),
        ("here, other: 0 texts", 0.7),
        ("here, probe: 0 of 2 texts", 0.7),
        ("here, probe: 2 of 2 texts", 1.0),
    ]


def test_one_of_two_processes_speaks_for_both() -> None:
    told: list[tuple[str, float]] = []
    count = TokenCount({"needle": [Pass(4, 100)]}, lambda *words: told.append(words), world=2)
    count.begin("needle")
    count.sent(1, 100), count.sent(1, 100)
    assert told == [("needle: 0 of 4 texts", 0.0), ("needle: 2 of 4 texts", 0.5)]


def test_longer_texts_are_extrapolated_in_a_line_of_seconds_a_token() -> None:
    found = {(100, False): 1.0, (200, False): 4.0, (100, True): 3.0}
    assert longer(found, 400, False) == pytest.approx(400 * 0.04)  # 0.01, 0.02, ... 0.04 a token
    assert longer(found, 400, True) == pytest.approx(12.0)
    assert longer({(100, False): 1.0}, 300, True) == pytest.approx(3.0)


def test_timing_ends_at_its_limit() -> None:
    ticks = iter(range(1000))
    wanted = [(64, False), (16, False), (32, True)]
    found = timed(Bigram(), wanted, TEXTS, limit=float("inf"), now=lambda: float(next(ticks)))
    assert found == {(16, False): 1.0, (32, True): 1.0, (64, False): 1.0}
    ticks = iter(range(1000))
    sent: list[Any] = []
    model = Bigram()
    model.register_forward_pre_hook(lambda module, arguments: sent.append(arguments[0].shape[1]))
    found = timed(model, wanted, TEXTS, limit=3.0, now=lambda: float(next(ticks)))
    assert sent == [16, 16] and found[64, False] == pytest.approx(4.0)


def test_the_time_of_a_look_is_that_of_its_texts() -> None:
    watch = check(["run=measure"]).monitors.watch
    seconds = {kind: 1.0 for of in kinds(watch).values() for kind in of}
    assert expected_seconds(watch, seconds) == {
        "needle": 3 * (10 + 2 + 2), "perplexity": 8 + 8 * 3, "induction": 8, "intervention": 5 * 5, "heads": 5,
    }  # fmt: skip
    line = estimate(Bigram(), watch, TEXTS, False, 3)
    assert re.match(r"estimate: about \d+ s for each of 3 checkpoints \(.*needle \d+ s.*timed here$", line)


def test_the_default_asks_for_a_third_of_what_thorough_does() -> None:
    few, many = (
        sum(n * tokens for of in kinds(check([f"run={run}"]).monitors.watch).values() for (tokens, _), n in of.items())
        for run in ("measure", "measure_thorough")
    )
    assert few < 100_000 and many > 3 * few  # bench/measure_cost.py: ten minutes


def test_a_foreign_series_begins_with_an_estimate_and_is_told_of(
    measuring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], told: list[tuple[str, float]]
) -> None:
    for name in "ab":
        folder(measuring, tmp_path / name)
    (tmp_path / "series.yaml").write_text("checkpoints: [{path: a, tokens: 0}, {path: b, tokens: 5}]")
    words = ["--config-dir", str(measuring / "configs"), "run=look", "--out", str(tmp_path / "out")]
    assert main(["measure", str(tmp_path / "series.yaml"), *words]) == 0
    first, *rest = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("warning")]
    assert first.startswith("estimate: about 0 s for each of 2 checkpoints (") and rest[0].startswith("step")
    looks = [each for each in told if each[0].startswith("checkpoint")]
    said = [words for words, _ in looks]
    assert said[0] == "checkpoint 1 of 2, loading a" and "checkpoint 2 of 2, needle: 0 of 8 texts" in said
    shares = [share for _, share in looks]
    assert shares == sorted(shares) and shares[said.index("checkpoint 2 of 2, loading b")] == 0.5 and shares[-1] < 1


def test_thorough_is_for_what_is_not_of_a_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(finished), "--thorough", "run=smoke"]) == 1
    assert "run=smoke" in (said := capsys.readouterr().err) and "leave one out" in said and said.count("\n") == 1
    assert main(["measure", str(finished), "--thorough"]) == 1
    assert "run=measure_thorough" in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_the_corpus_and_every_window_of_a_run_are_told_of(
    run: Callable[..., Path], told: list[tuple[str, float]], tmp_path: Path
) -> None:
    run({"run.tokens": 768, "monitors.probe": None, "data.cache": str(tmp_path / "cache")})
    said = [words for words, _ in told]
    for step in (0, 3):
        assert f"window at step {step}, needle: 0 of 10 texts" in said
        assert f"window at step {step}, induction: 0 of 2 texts" in said
    assert any(re.match(r"step 3 of 3, loss \d\.\d{3}, [\d,]+ tokens/s", words) for words in said)
    assert {"reading prose", "training the tokenizer", "composing copies: 0 of 20 rows"} <= set(said)
    assert any(words.startswith("tokenizing prose: 0 of ") for words in said)
