"""The full CPT law: when the old domain recovers, and how the share of replay affects it.

    L = c + A (S0 + S1)^-alpha + B exp(-kappa r) (1 - (1 + E S1)^-beta) - C S2

(arXiv 2505.07796 eq. 4, with its L0 and the annealing of pre-training contained in c.) S1 and S2 are the forward and
annealing areas of the run, S0 the forward area of pre-training, r the share of replay. Further training lowers the loss
(A), while the new distribution raises it on the old domain (B above 0) or lowers it on the new one. So the loss on the
old domain may rise and return. The tokens until it is back at its value of step 0 are the turning length.

Domains are fitted together. They share S0, which belongs to the model, and S1 and S2; E, beta and the linear parameters
are separate. Arms of a sweep start from one model and share everything but B, which decreases with r.

Design note: parameters that a run much shorter than pre-training cannot determine are not searched. alpha is 0.5,
between the 0.50 and 0.68 that the paper prints, and A and C are not negative. The paper says that replay enters
exponentially; B times exp(-kappa r) is our interpretation. The fit uses variable projection, as in `laws.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np

from lccp_sim.analysis.areas import Areas
from lccp_sim.analysis.stats.curve import Curve, Estimate
from lccp_sim.analysis.stats.estimate import Array
from lccp_sim.analysis.stats.forecast import HORIZON, first_at, open_estimate
from lccp_sim.analysis.stats.laws import first_window, root_weights, scattered

SLOW_EXPONENT = 0.5
CPT_WINDOWS = 9  # least windows of a curve: the law has up to eight parameters, and the scale of the noise
AREAS_BEFORE = np.geomspace(0.1, 100, 8)  # S0, in forward areas of the run
BETAS = np.geomspace(0.05, 5, 8)
SPEEDS = 16  # values of E
KAPPAS = np.linspace(0, 6, 25)
DRAWS, SWEEP_DRAWS = 300, 150
SLOW, FALLEN = 1, 3  # columns whose parameters are not below 0


@dataclass(frozen=True)
class CptLaw:
    """The law of one domain. `before` is S0 and `speed` is E, for areas in tokens at the peak rate."""

    c: float
    A: float
    B: float
    C: float
    before: float
    speed: float
    beta: float
    kappa: float = 0.0

    def predict(self, at: Areas, replay: float | Array = 0.0) -> Array:
        """Compute the loss at these areas under a share of replay; A counts from S1 = 0, so c is the loss at step 0."""
        shape_NP = _columns(at, np.asarray(replay, float), self.before, np.array([[self.speed, self.beta]]), self.kappa)
        return shape_NP[0] @ np.array([self.c, self.A, self.B, self.C])


@dataclass(frozen=True)
class Turning:
    """The turning length: when, by the law, the loss of the old domain is back at its value of step 0.

    `tokens`: 0 if it was never above, inf if it does not return within HORIZON times the run, at the peak rate. `rise`:
    the largest excess within the run. `old`, `new`: the laws of the two domains.
    """

    tokens: Estimate
    rise: Estimate
    old: CptLaw
    new: CptLaw


@dataclass(frozen=True)
class Replay:
    """The law of the old domain over a sweep, with the shift B exp(-kappa r).

    `kappa`: how strongly replay reduces the shift. `shift`: B without replay. `shares`: of replay, by arm. `tokens`:
    the turning length of each arm.
    """

    kappa: Estimate
    shift: Estimate
    shares: tuple[float, ...]
    tokens: tuple[Estimate, ...]
    law: CptLaw


def turning(old: Curve, new: Curve) -> Turning | None:
    """Compute a run's turning length, from the short-context loss `old` and the long-context loss `new`.

    The two are fitted jointly and must have the same windows. None with fewer than CPT_WINDOWS.
    """
    if len(old.tokens_W) < CPT_WINDOWS or not np.array_equal(old.tokens_W, new.tokens_W):
        return None
    seen = old.areas
    domains = [_Domain(seen, np.zeros(len(seen.forward)), *_values(curve)) for curve in (old, new)]
    laws_D = _fit(domains)
    ahead = _ahead(old)
    path_RN = np.stack([law.predict(ahead) for law in laws_D[0]])
    within_N = np.arange(len(ahead.forward)) <= _end(ahead, old)
    rise_R = np.maximum(0, (path_RN - path_RN[:, :1])[:, within_N].max(1))
    return Turning(open_estimate(_returns(_grid(old), path_RN)), Estimate.of(rise_R[0], rise_R[1:]), *(
        laws[0] for laws in laws_D
    ))  # fmt: skip


def replay(arms: Sequence[tuple[float, Curve]]) -> Replay | None:
    """Fit the replay term to the short-context loss of each arm of a sweep, given its share of replay from 0 to 1.

    Arms start from one model. None with fewer than two shares, or fewer than CPT_WINDOWS in an arm.
    """
    shares = tuple(share for share, _ in arms)
    if len(set(shares)) < 2 or min(len(curve.tokens_W) for _, curve in arms) < CPT_WINDOWS:
        return None
    parts = [_values(curve) for _, curve in arms]
    rows = min(SWEEP_DRAWS + 1, *(len(value_RW) for value_RW, _ in parts))
    seen = arms[0][1].areas
    for _, curve in arms[1:]:
        seen = seen.then(curve.areas)
    replay_W = np.concatenate([np.full(len(curve.tokens_W), share) for share, curve in arms])
    value_RW = np.concatenate([value_RW[:rows] for value_RW, _ in parts], axis=1)
    domain = _Domain(seen, replay_W, value_RW, np.concatenate([root_W for _, root_W in parts]))
    [laws] = _fit([domain], KAPPAS)
    turned = []
    for share, curve in arms:
        path_RN = np.stack([law.predict(_ahead(curve), share) for law in laws])
        turned.append(open_estimate(_returns(_grid(curve), path_RN)))
    kappa_R, shift_R = (np.array([getattr(law, name) for law in laws]) for name in ("kappa", "B"))
    return Replay(_plain(kappa_R), _plain(shift_R), shares, tuple(turned), laws[0])


def law_turning(law: CptLaw, curve: Curve, share: float = 0.0) -> float:
    """Compute the turning length of a law over the run of a curve: 0 if it never rises, inf if it does not return."""
    return float(_returns(_grid(curve), law.predict(_ahead(curve), share)[None])[0])


@dataclass(frozen=True)
class _Domain:
    """Data fitted by one set of parameters: the areas, shares of replay and root weights of values [R, W]."""

    seen: Areas
    replay_W: Array
    value_RW: Array
    root_W: Array


def _values(curve: Curve) -> tuple[Array, Array]:
    """Return the curve and its resamples [1 + R, W], with the scatter of windows, and root weights [W]."""
    return np.vstack([curve.value_W, scattered(curve)[:DRAWS]]), root_weights(curve.stderr_W)


def _columns(at: Areas, replay_N: Array, before: float, theta_GQ: Array, kappa: float) -> Array:
    """Compute the law's linear part [G, N, 4] at points (E, beta): constant, slow decrease, shift, annealing."""
    speed_G1, beta_G1 = theta_GQ[:, :1], theta_GQ[:, 1:]
    shift_GN = np.exp(-kappa * replay_N) * -np.expm1(-beta_G1 * np.log1p(speed_G1 * at.forward))
    slow_N = (1 + at.forward / before) ** -SLOW_EXPONENT - 1
    same = [np.broadcast_to(column_N, shift_GN.shape) for column_N in (np.ones_like(slow_N), slow_N, -at.annealing)]
    return np.stack([same[0], same[1], shift_GN, same[2]], -1)


def _fit(domains: Sequence[_Domain], kappas: Array = KAPPAS[:1]) -> list[list[CptLaw]]:
    """Fit the law to each domain and resample, [D][R]: the best point of the grid, with one S0 for all domains.

    S0 is chosen by likelihood, with a noise scale per domain. A parameter that must not be negative is dropped if it
    would be: of the fits with and without it, the best that keeps the signs is the constrained minimum.
    """
    end = float(domains[0].seen.forward.max())
    found = [[_best(domain, before * end, kappas) for domain in domains] for before in AREAS_BEFORE]  # by S0 and domain
    twice_SR = np.array([
        sum(len(domain.root_W) * np.log(rss_R) for domain, (rss_R, _) in zip(domains, each, strict=True))
        for each in found
    ])  # fmt: skip
    best_R = twice_SR.argmin(0)
    laws = []
    for number in range(len(domains)):
        rows = [found[best][number][1][row] for row, best in enumerate(best_R)]
        laws.append([CptLaw(*map(float, row)) for row in rows])
    return laws


def _best(domain: _Domain, before: float, kappas: Array) -> tuple[Array, Array]:
    """Return residual sums of squares [R] and the fields of CptLaw [R, 8] at one S0."""
    first, last = first_window(domain.seen.forward), float(domain.seen.forward.max())
    speeds = 1 / np.geomspace(first / 4, 4 * last, SPEEDS)
    theta_GQ = np.stack(np.meshgrid(speeds, BETAS, indexing="ij"), -1).reshape(-1, 2)
    free = (SLOW, FALLEN) if domain.seen.annealed else (SLOW,)
    scaled_RW = domain.value_RW * domain.root_W
    square_R = (scaled_RW**2).sum(1)
    least_R = 1e-14 * square_R  # rounding error
    rows = np.arange(len(scaled_RW))
    rss_R, fields_RF = np.full(len(rows), np.inf), np.zeros((len(rows), 8))
    for kappa in kappas:
        all_GWP = _columns(domain.seen, domain.replay_W, before, theta_GQ, float(kappa)) * domain.root_W[:, None]
        for kept in chain.from_iterable(combinations(free, n) for n in range(len(free), -1, -1)):
            used = sorted((0, 2, *kept))
            basis_GWP, upper_GPP = np.linalg.qr(all_GWP[..., used])
            flat = basis_GWP.swapaxes(0, 1).reshape(scaled_RW.shape[1], -1)
            along_RGP = (scaled_RW @ flat).reshape(len(rows), len(theta_GQ), -1)
            linear_RGP = np.einsum("gpq,rgq->rgp", np.linalg.inv(upper_GPP), along_RGP)
            held_RG = (linear_RGP[..., [used.index(column) for column in kept]] >= 0).all(-1)
            left_RG = np.maximum(square_R[:, None] - (along_RGP**2).sum(-1), least_R[:, None])
            left_RG = np.where(held_RG, left_RG, np.inf)
            best_R = left_RG.argmin(1)
            better_R = left_RG[rows, best_R] < rss_R
            rss_R = np.where(better_R, left_RG[rows, best_R], rss_R)
            linear_R4 = np.zeros((len(rows), 4))
            linear_R4[:, used] = linear_RGP[rows, best_R]
            other_R = np.stack([np.full(len(rows), before), *theta_GQ[best_R].T, np.full(len(rows), kappa)], -1)
            fields_RF[better_R] = np.concatenate([linear_R4, other_R], 1)[better_R]
    return rss_R, fields_RF


def _grid(curve: Curve) -> Array:
    """Return the tokens at which the path is evaluated, from well before the first window to the horizon."""
    return np.geomspace(curve.tokens_W[1] / 8, HORIZON * curve.tokens_W[-1], 200)


def _ahead(curve: Curve) -> Areas:
    """Return the areas at step 0 and at `_grid`; after the run's end at the peak rate, without annealing."""
    grid, end = _grid(curve), curve.tokens_W[-1]
    at = curve.areas_at(np.minimum(grid, end))
    beyond = Areas(at.forward + np.maximum(0, grid - end), np.where(grid > end, 0.0, at.annealing))
    return Areas.constant(np.zeros(1)).then(beyond)


def _end(ahead: Areas, curve: Curve) -> int:
    """Return the index of the run's end in `ahead`."""
    return int(np.searchsorted(np.append(0.0, _grid(curve)), curve.tokens_W[-1], side="right")) - 1


def _returns(tokens_N: Array, path_RN: Array) -> Array:
    """Return the tokens [R] at which each path is back at its first value after being above it; 0 if it never is above.

    The path has step 0 before the points of `tokens_N`.
    """
    above_RN = path_RN[:, 1:] - path_RN[:, :1]
    since_RN = np.logical_or.accumulate(above_RN > 1e-9, axis=1)
    return np.where(since_RN[:, -1], first_at(tokens_N, np.where(since_RN, -above_RN, -1.0)), 0.0)


def _plain(value_R: Array) -> Estimate:
    low, high = np.quantile(value_R[1:], [0.025, 0.975])
    return Estimate(float(value_R[0]), float(low), float(high), value_R[1:])
