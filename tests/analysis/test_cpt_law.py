"""The CPT law in full against planted turning lengths and a planted replay term."""

from dataclasses import replace

import numpy as np
import pytest

from bench.simulate import domains
from lccp_sim.analysis.areas import Areas
from lccp_sim.analysis.stats import cpt_law
from lccp_sim.analysis.stats.cpt_law import CptLaw, law_turning, replay, turning

OLD = CptLaw(2.6, 1.2, 0.35, 3e-7, 2e6, 1e-5, 0.6)
NEW = CptLaw(3.2, 0.8, -0.9, 4e-7, 2e6, 5e-5, 0.3)
SHORT, LONG = "short_nll_nats", "nll_nats"


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(cpt_law, "DRAWS", 60)
    monkeypatch.setattr(cpt_law, "SWEEP_DRAWS", 30)


def test_the_law_is_its_formula():
    at = Areas(np.array([0.0, 1e5, 2e6]), np.array([0.0, 0.0, 2e5]))
    slow = (1 + at.forward / 2e6) ** -0.5 - 1
    shift = np.exp(-2 * 0.25) * (1 - (1 + 1e-5 * at.forward) ** -0.6)
    value = 2.6 + 1.2 * slow + 0.35 * shift - 3e-7 * at.annealing
    assert replace(OLD, kappa=2.0).predict(at, 0.25) == pytest.approx(value)


@pytest.mark.parametrize("schedule", ["constant", "wsd", "cosine"])
def test_a_loss_that_comes_back_is_seen_to(schedule):
    [both] = domains({SHORT: OLD, LONG: NEW}, schedule)
    found, truth = turning(both[SHORT], both[LONG]), law_turning(OLD, both[SHORT])
    assert found is not None and 1e6 < truth < 1.5e6
    assert found.tokens.low <= truth <= found.tokens.high
    assert found.tokens.value == pytest.approx(truth, rel=0.15)
    assert found.rise.low > 0 and found.rise.value == pytest.approx(0.116, abs=0.02)
    assert found.old.before == found.new.before, "pre-training is shared"


def test_never_and_never_above():
    [both] = domains({SHORT: replace(OLD, A=0.2), LONG: NEW})
    found = turning(both[SHORT], both[LONG]).tokens
    assert found.value == found.high == law_turning(replace(OLD, A=0.2), both[SHORT]) == np.inf and found.low > 6e6
    [both] = domains({SHORT: replace(OLD, B=-0.1), LONG: NEW})
    assert turning(both[SHORT], both[LONG]).tokens.high == 0


def test_too_few_windows_have_no_turning_length():
    [both] = domains({SHORT: OLD, LONG: NEW})
    short, long = (
        replace(c, tokens_W=c.tokens_W[:8], value_W=c.value_W[:8], stderr_W=c.stderr_W[:8], draws_RW=c.draws_RW[:, :8])
        for c in both.values()
    )
    assert turning(short, long) is None and replay([(0.0, short), (0.5, short)]) is None


def test_the_replay_term_is_found_over_a_sweep(monkeypatch):
    monkeypatch.setattr(cpt_law, "KAPPAS", np.linspace(0, 4, 5))
    law, shares = replace(OLD, kappa=2.0), (0.0, 0.5)
    sweep = [each[SHORT] for each in domains({SHORT: law}, shares=shares)]
    found = replay(list(zip(shares, sweep, strict=True)))
    assert found is not None and found.kappa.low <= 2 <= found.kappa.high and found.kappa.value == 2
    for share, curve, tokens in zip(shares, sweep, found.tokens, strict=True):
        assert tokens.low <= law_turning(law, curve, share) <= tokens.high
    assert replay([(0.5, sweep[0]), (0.5, sweep[1])]) is None, "one share tells nothing of replay"
