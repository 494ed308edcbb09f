"""Forward and annealing areas of the learning rate, which replace tokens as the measure of training progress.

A loss law in tokens holds only under a constant learning rate: a token at a tenth of the rate moves the weights a tenth
as far, and a falling rate lowers the loss by itself. So laws use two areas. The forward area is the sum of rates. The
annealing area is the sum of a decaying memory of the rate's decreases (arXiv 2408.11029 eq. 1, adopted by
arXiv 2505.07796 eq. 4). Both are expressed in tokens at the peak rate, so that under a constant rate the forward area
is the token count, the annealing area is 0, and the law is a law in tokens.

Design note: the paper does not define warm-up. Here the memory starts at the peak. A warm-up adds its rates to the
forward area, and its increase does not count as negative annealing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from lccp_sim.analysis.run import RunData
from lccp_sim.config import OptimConfig

MEMORY = 0.999  # decay of the memory of decreases per step (arXiv 2408.11029 sec. 3)
HELD = 0.1  # least share of steps at the peak for a schedule to have a plateau; a cosine has a few per cent
FELL = 1e-3  # a rate that is below the peak by this share of it has fallen


@dataclass(frozen=True)
class Areas:
    """Forward and annealing areas [W], both in tokens at the peak rate."""

    forward: NDArray[np.float64]
    annealing: NDArray[np.float64]

    @classmethod
    def constant(cls, tokens: NDArray[np.float64]) -> "Areas":
        """Return the areas under a constant rate: the tokens, and no annealing."""
        tokens = np.asarray(tokens, float)
        return cls(tokens, np.zeros_like(tokens))

    @property
    def annealed(self) -> bool:
        """Whether the rate fell before any of these points, so that there is annealing to fit."""
        return bool(self.annealing.any())

    def __getitem__(self, part: Any) -> "Areas":
        return Areas(self.forward[part], self.annealing[part])

    def then(self, other: "Areas") -> "Areas":
        """Append the points of `other`."""
        return Areas(np.append(self.forward, other.forward), np.append(self.annealing, other.annealing))


@dataclass(frozen=True)
class Rate:
    """The learning rate of each optimizer step, `rate_S`, of `batch_tokens` tokens each."""

    rate_S: NDArray[np.float64]
    batch_tokens: int

    @cached_property
    def peak(self) -> int:
        """The step that first has the largest rate."""
        return int(np.argmax(self.rate_S))

    @cached_property
    def fall(self) -> int | None:
        """The first step after the peak with a lower rate; None if there is none yet."""
        below = np.flatnonzero(self.rate_S[self.peak :] < (1 - FELL) * self.rate_S[self.peak])
        return int(self.peak + below[0]) if below.size else None

    def at(self, tokens: NDArray[np.float64]) -> Areas:
        """Compute the areas at token counts, linear between steps. After the schedule's end the last rate continues."""
        tokens = np.asarray(tokens, float)
        more = max(0, int(np.ceil(np.max(tokens, initial=0) / self.batch_tokens)) - len(self.rate_S))
        rate_S = np.append(self.rate_S, np.full(more, self.rate_S[-1])) / self.rate_S[self.peak]
        fallen_S = np.zeros_like(rate_S)
        fallen_S[self.peak + 1 :] = -np.diff(rate_S[self.peak :])
        memory_S = lfilter([1.0], [1.0, -MEMORY], fallen_S)
        grid = self.batch_tokens * np.arange(len(rate_S) + 1.0)
        areas = (np.interp(tokens, grid, self.batch_tokens * np.append(0, np.cumsum(s))) for s in (rate_S, memory_S))
        return Areas(*areas)

    def doubled(self, tokens: float) -> Areas:
        """Compute the areas at the end of a run twice as long as this run up to `tokens`, under the same schedule.

        A schedule with a plateau extends the plateau and then falls as before; any other schedule is stretched.
        """
        steps = round(tokens / self.batch_tokens)
        rate_S = self.rate_S[:steps] if steps <= len(self.rate_S) else self.rate_S
        rate_S = np.append(rate_S, np.full(steps - len(rate_S), rate_S[-1]))
        held_S = rate_S >= (1 - FELL) * rate_S.max()
        last = int(np.flatnonzero(held_S)[-1]) + 1
        if held_S.mean() >= HELD:
            rate_S = np.concatenate([rate_S[:last], np.full(steps, rate_S.max()), rate_S[last:]])
        else:
            rate_S = np.repeat(rate_S, 2)
        return Rate(rate_S, self.batch_tokens).at(np.array([2.0 * steps * self.batch_tokens]))

    def said(self) -> str:
        """A description of the schedule."""
        top, end = self.rate_S[self.peak], self.rate_S[-1]
        if self.fall is None:
            return f"the learning rate stays at its peak of {top:.3g}"
        share = self.fall / len(self.rate_S)
        return f"the learning rate falls from {top:.3g} to {end:.3g}, starting at {100 * share:.0f} % of the run"


def rate_of(run: RunData) -> Rate | None:
    """Return the learning rate of a run, None if it is constant after warm-up or was not recorded.

    Logged rates are interpolated linearly. Rates before the first logged one, and future rates of a live run, come from
    the config.
    """
    batch = run.setting("run.batch_tokens")
    rows = run.select("train", "lr")
    if not batch or len(rows) < 2:
        return None
    step_S, logged_S = rows.step.to_numpy(float), rows.value.to_numpy(float)
    planned = _planned(run.setting("optim", {}), int(run.setting("run.tokens", 0)) // int(batch))
    number_S = np.arange(1.0, max(step_S[-1], round(run.tokens / batch)) + 1)
    rate_S = np.interp(number_S, step_S, logged_S)
    if planned is not None:
        early = int(step_S[0]) - 1
        rate_S[:early] = planned[:early]
        rate_S = rate_S if run.finished else np.append(rate_S, planned[len(rate_S) :])
    rate = Rate(rate_S, int(batch))
    return rate if rate.fall is not None and rate_S.max() > 0 else None


def _planned(optim: Mapping[str, Any], steps: int) -> NDArray[np.float64] | None:
    """Return the rate of each step as the config plans it; None if the config does not say."""
    known = {each.name for each in fields(OptimConfig)}
    if "lr" not in optim or not steps:
        return None
    config = OptimConfig(**{key: value for key, value in optim.items() if key in known})
    return np.array([config.lr * config.factor(step, steps) for step in range(steps)])
