"""Whether a RoPE setting can distinguish positions at a context: the lower bound of the base, the critical dimension.

B(m) = sum over pairs of cos(m theta_i) measures how much more a head attends to a similar token than to a random one, m
positions away. If it is negative, the loss may adapt to a context from which heads cannot retrieve (arXiv 2405.14591).
Design note: scaled kinds have no single base, so their frequencies are tested directly, and the bound in the message is
that of plain RoPE.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np

STEP, LARGEST = 1.005, 1e30  # of the search for the bound, base after base; heads of 2 channels have none


class Known(NamedTuple):
    """The RoPE of a published model: head width, context in tokens, plain base, scaling, and paper."""

    model: str
    d_head: int
    context_tokens: int
    base: float
    scaling: str
    paper: str


KNOWN_MODELS = (
    Known("OLMoE-1B-7B", 128, 4096, 1e4, "", "arXiv 2409.02060"),
    Known("Llama-3.1", 128, 131072, 5e5, "llama3 x8 from 8192", "arXiv 2407.21783"),
    Known("Mixtral-8x7B", 128, 32768, 1e6, "", "arXiv 2401.04088"),
    Known("Qwen3-30B-A3B", 128, 40960, 1e6, "", "arXiv 2505.09388"),
    Known("Hunyuan-A13B, 32k stage", 128, 32768, 1e4 * 50 ** (128 / 126), "alpha 50 on 1e4", "its report, 2.3"),
    Known("Hunyuan-A13B extended", 128, 65536, 2e6, "", "arXiv 2604.02650, 3.3"),
    Known("Hunyuan-A13B, 256k stage", 128, 262144, 1e4 * 1000 ** (128 / 126), "alpha 1000 on 1e4", "its report, 2.3"),
    Known("ProLong-8B, 64k stage", 128, 65536, 8e6, "", "arXiv 2410.02660"),
    Known("ProLong-8B, 512k stage", 128, 524288, 1.28e8, "", "arXiv 2410.02660"),
    Known("gpt-oss", 64, 131072, 1.5e5, "YaRN x32 from 4096", "arXiv 2508.10925"),
)


def base_frequencies(d_head: int, base: float) -> np.ndarray:
    """The angle per position of each pair, [H/2] fp64 in radians, of plain RoPE."""
    return base ** (-np.arange(0, d_head, 2) / d_head)


def first_negative(frequencies: np.ndarray, context_tokens: int) -> int | None:
    """The first distance m within 1 ... context with B(m) < 0, or None. `frequencies` [H/2] in radians per position.

    With m = a S + b, the cosines of sums are one matrix product for many m, with 2 sqrt(context) cosines per pair.
    """
    side = math.isqrt(context_tokens) + 1
    inner = np.outer(frequencies, np.arange(side))
    cos, sin = np.cos(inner), np.sin(inner)
    start, stop = 0, 1
    while start < side:  # most settings that fail do so early
        outer = np.outer(np.arange(start, min(stop, side)) * side, frequencies)
        negative = np.flatnonzero(np.cos(outer) @ cos - np.sin(outer) @ sin < 0)
        if len(negative):
            m = start * side + int(negative[0])
            return m if m <= context_tokens else None
        start, stop = stop, 4 * stop
    return None


@cache
def base_bound(d_head: int, context_tokens: int) -> float | None:
    """The smallest base of plain RoPE with B(m) >= 0 for every m up to the context, on a grid of 0.5 %, or None.

    The search finds a failing distance for every smaller base of the grid. A base between two grid points may pass, and
    a larger base may fail, because B's minimum is not monotone in the base. Source: arXiv 2405.14591.
    """
    # What fails at half the context fails here, so the search goes on where that one ended, on the same grid.
    base = base_bound(d_head, context_tokens // 2) if context_tokens > 16 else 2.0
    if base is None:
        return None
    while first_negative(base_frequencies(d_head, base), context_tokens) is not None:
        base *= STEP
        if base > LARGEST:
            return None
    return base


def plain_base(frequencies: np.ndarray) -> float | None:
    """The base that gives these frequencies as plain RoPE (as for the kinds ntk and alpha), or None."""
    d_head = 2 * len(frequencies)
    base = float(frequencies[-1]) ** (-d_head / (d_head - 2)) if d_head > 2 else 0.0
    plain = base > 0 and np.allclose(frequencies, base_frequencies(d_head, base), rtol=1e-9)
    return base if plain else None


def critical_dimension(frequencies: np.ndarray, context_tokens: int) -> int:
    """The number of a head's channels whose period fits into the context; the others never complete a turn in training.

    Source: arXiv 2310.05209, 2 ceil(H/2 log_base(context / 2 pi)). It is counted here, so it applies to any kind of
    RoPE.
    """
    return 2 * int((2 * math.pi / frequencies < context_tokens).sum())


def warning(rope: Any, d_head: int, context_tokens: int) -> str | None:
    """A warning in one line if a context is too long for `rope`, a variant of models/positions.py, else None.

    A plain base at or above the bound passes, even if B(m) dips below zero, as may happen above the bound.
    """
    frequencies = np.asarray(rope.frequencies(d_head)[0], dtype=float)
    reach = first_negative(frequencies, context_tokens)
    if reach is None:
        return None
    bound, plain = base_bound(d_head, context_tokens), plain_base(frequencies)
    if bound is not None and plain is not None and plain >= bound:
        return None
    remedy = "has no base that is enough" if bound is None else f"needs a base of {bound:.3g} or more"
    return (
        f"model.rope: {reach:,} tokens apart, heads of {d_head} channels no longer prefer a like token to a random one "
        f"(B(m) < 0, arXiv 2405.14591), and run.context_tokens={context_tokens}; plain RoPE {remedy}"
    )
