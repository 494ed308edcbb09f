"""B(m), the bound of the base and the critical dimension: fast forms against plain sums and published values."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lccp_sim.cli import main
from lccp_sim.configure.compose import check
from lccp_sim.models.positions import AlphaRope, BaseRope, LinearRope, Llama3Rope, NtkRope, Rope, YarnRope
from lccp_sim.plan.rope import (
    STEP,
    base_bound,
    base_frequencies,
    critical_dimension,
    first_negative,
    plain_base,
    warning,
)
from tests.home import build


def plain_first_negative(frequencies: np.ndarray, context: int) -> int | None:
    sums = [sum(math.cos(m * f) for f in frequencies) for m in range(1, context + 1)]
    return next((m for m, b in enumerate(sums, 1) if b < 0), None)


@pytest.mark.parametrize("context", [1, 2, 15, 16, 17, 300, 1000])
@pytest.mark.parametrize(("d_head", "base"), [(16, 100.0), (16, 1e4), (64, 500.0), (64, 5e3), (2, 10.0)])
def test_the_first_negative_distance_is_that_of_the_plain_sum(d_head: int, base: float, context: int) -> None:
    frequencies = base_frequencies(d_head, base)
    assert first_negative(frequencies, context) == plain_first_negative(frequencies, context)


@pytest.mark.parametrize(("context", "published"), [(4096, 2.7e4), (32768, 6.4e5), (131072, 7.8e6)])  # 2405.14591
def test_the_bound_is_the_published_one(context: int, published: float) -> None:
    assert base_bound(128, context) == pytest.approx(published, rel=0.12)


def test_where_no_base_is_enough_it_says_so() -> None:
    assert base_bound(2, 100) is None
    assert "plain RoPE has no base that is enough" in str(warning(BaseRope(base=1e4), 2, 100))


def test_every_smaller_base_of_the_grid_fails() -> None:
    bound = base_bound(16, 256)
    assert bound is not None
    assert plain_first_negative(base_frequencies(16, bound), 256) is None
    base = 2.0
    while base < bound * (1 - 1e-9):
        assert first_negative(base_frequencies(16, base), 256) is not None
        base *= STEP


@pytest.mark.parametrize(("d_head", "base", "context"), [(128, 1e4, 4096), (64, 1e5, 2048), (128, 5e5, 65536)])
def test_the_critical_dimension_is_that_of_the_formula(d_head: int, base: float, context: int) -> None:
    formula = 2 * math.ceil(d_head / 2 * math.log(context / (2 * math.pi), base))
    assert critical_dimension(base_frequencies(d_head, base), context) == formula


def test_llama_2_has_the_published_critical_dimension() -> None:
    assert critical_dimension(base_frequencies(128, 1e4), 4096) == 92  # arXiv 2310.05209


SCALED = {"original_context_tokens": 4096, "factor": 8.0}
ROPES: list[tuple[Rope, bool]] = [  # and whether 32768 tokens are too many for heads of 128 channels
    (BaseRope(base=1e4), True),
    (BaseRope(base=1e6), False),
    (AlphaRope(base=1e4, alpha=1000.0), False),
    (AlphaRope(base=1e4, alpha=10.0), True),
    (NtkRope(base=1e4, factor=8.0), True),
    (LinearRope(base=1e4, factor=2.0), True),
    (LinearRope(base=1e4, factor=64.0), False),
    (YarnRope(base=1e4, **SCALED), True),  # the base fails at 4096 already
    (YarnRope(base=1e5, **SCALED), False),
    (Llama3Rope(base=5e5, low_freq_factor=1.0, high_freq_factor=4.0, **SCALED), False),
]


@pytest.mark.parametrize(("rope", "warned"), ROPES, ids=lambda value: getattr(value, "kind", None))
def test_a_warning_is_about_the_frequencies_whatever_made_them(rope: Any, warned: bool) -> None:
    note = warning(rope, 128, 32768)
    assert (note is not None) == warned
    if note:
        assert "run.context_tokens=32768; plain RoPE needs a base of 6.32e+05 or more" in note and "\n" not in note


def test_bases_are_seen_through_ntk_and_alpha_alone() -> None:
    for rope, base in ((BaseRope(base=5e5), 5e5), (AlphaRope(base=1e4, alpha=50.0), 1e4 * 50 ** (128 / 126))):
        assert plain_base(np.asarray(rope.frequencies(128)[0])) == pytest.approx(base)
    assert plain_base(np.asarray(LinearRope(base=1e4, factor=2.0).frequencies(128)[0])) is None
    assert plain_base(np.ones(1)) is None


def test_a_base_above_the_bound_passes_though_one_distance_dips() -> None:
    rope = BaseRope(base=5e5)
    assert first_negative(np.asarray(rope.frequencies(16)[0]), 1024) == 405
    assert (base_bound(16, 1024) or 0) < 5e5 and warning(rope, 16, 1024) is None


@pytest.mark.parametrize(
    "run", ["smoke", "tiny_emergence", "tiny_short", "tiny_base", "tiny_raised", "tiny_lccp", "small_lccp"]
)
def test_no_shipped_training_run_lies_below_the_bound(run: str) -> None:
    config = check([f"run={run}"])
    assert warning(config.model.rope, config.model.d_head, config.run.context_tokens) is None


def test_training_warns_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = build(tmp_path)
    quiet = [f"monitors.{name}=null" for name in ("probe", "needle", "heads", "induction", "intervention")]
    words = ["run.tokens=256", "model.rope.base=20", *quiet, "--config-dir", f"{home}/configs"]
    assert main(["train", "run=tiny", *words]) == 0
    assert " ".join(capsys.readouterr().out.split()).count("warning: model.rope: ") == 1
