"""Samples from a model at temperature 1, batched and seeded, with the log-probability of each drawn token.

A token is the index at which the distribution's cumulative sum reaches one uniform number. So a sample is a function of
the weights, the prompt and its numbers: batching changes it only by rounding.

Keys and values are cached, and attention reaches the cache through its `comm`. A prompt passes through the model like
any row, and its keys and values are kept. Then each forward takes one token per row, which sees them. Rows may differ
in length: each writes at its own position, over the padding of its prompt.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lccp_sim.models.attention import attend_at
from lccp_sim.models.comm import Comm
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.models.transformer import Transformer


class Sampled(NamedTuple):
    """int64 tokens, including a stop token if one was drawn; each token's log-probability and entropy, fp64 nats."""

    tokens: np.ndarray
    logp: np.ndarray
    entropy: np.ndarray


@torch.no_grad()
def sample(
    model: LanguageModel, prompts: Sequence[np.ndarray], stops: frozenset[int], uniform_PGA: np.ndarray
) -> list[list[Sampled]]:
    """G samples of each of P prompts. A sample ends at the first token of `stops`, or after A tokens.

    `uniform_PGA`, in (0, 1]: one number per token; 0 takes the most likely token (greedy). Prompts are padded to the
    longest. Only lccp-sim's models have a cache; others read each text again for every token.
    """
    P, G, A = uniform_PGA.shape
    length_R = torch.tensor([len(prompt) for prompt in prompts], device=model.device).repeat_interleave(G)
    with ExitStack() as stack:
        if isinstance(model, Transformer):
            hidden_RD, step = _cached(model, prompts, G, A, stack)
        else:
            hidden_RD, step = _again(model, prompts, G, A)
        uniform_RA = torch.from_numpy(uniform_PGA.reshape(P * G, A)).to(model.device)
        stop_X = torch.tensor(sorted(stops), device=model.device)
        done_R = torch.zeros(P * G, dtype=torch.bool, device=model.device)
        columns: list[tuple[Tensor, Tensor, Tensor]] = []
        for t in range(A):
            logp_RV = model.logits(hidden_RD).double().log_softmax(-1)
            token_R = _draw(logp_RV, uniform_RA[:, t])
            entropy_R = -(logp_RV.exp() * logp_RV).sum(-1)
            columns.append((token_R, logp_RV.gather(1, token_R[:, None])[:, 0], entropy_R))
            done_R |= torch.isin(token_R, stop_X)
            if t == A - 1 or bool(done_R.all()):
                break
            hidden_RD = step(token_R, length_R + t)
    token_RA, logp_RA, entropy_RA = (torch.stack(each, dim=1).cpu().numpy() for each in zip(*columns, strict=True))
    sampled = []
    for tokens, logp, entropy in zip(token_RA, logp_RA, entropy_RA, strict=True):
        stopped = np.flatnonzero(np.isin(tokens, list(stops)))
        n = int(stopped[0]) + 1 if len(stopped) else len(tokens)
        sampled.append(Sampled(tokens[:n], logp[:n], entropy[:n]))
    return [sampled[first : first + G] for first in range(0, P * G, G)]


def _draw(logp_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """The first token whose cumulative probability reaches the row's number; for 0 the most likely token."""
    sum_RV = logp_RV.exp().cumsum(-1)
    drawn_R = (sum_RV < uniform_R[:, None] * sum_RV[:, -1:]).sum(-1)
    return torch.where(uniform_R > 0, drawn_R, logp_RV.argmax(-1))


Step = Callable[[Tensor, Tensor], Tensor]  # tokens [R] and their positions [R] -> hidden states [R, D]


def _padded(model: LanguageModel, prompts: Sequence[np.ndarray], more: int = 0) -> Tensor:
    tokens_PT = torch.zeros(len(prompts), max(map(len, prompts)) + more, dtype=torch.int64)
    for row, prompt in zip(tokens_PT, prompts, strict=True):
        row[: len(prompt)] = torch.from_numpy(prompt)
    return tokens_PT.to(model.device)


def _cached(model: Transformer, prompts: Sequence[np.ndarray], G: int, A: int, stack: ExitStack) -> tuple[Tensor, Step]:
    """The hidden states that predict each row's first token, and the step to continue; the prompts are read once."""
    length_P = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    caches = stack.enter_context(caching(model, length_P, A))
    hidden_PTD = model(_padded(model, prompts)).hidden_BTD
    for cache in caches:
        cache.repeat(G)

    def step(token_R: Tensor, place_R: Tensor) -> Tensor:
        return model(token_R[:, None], place_R[:, None]).hidden_BTD[:, 0]

    return hidden_PTD[torch.arange(len(prompts)), length_P - 1].repeat_interleave(G, dim=0), step


def _again(model: LanguageModel, prompts: Sequence[np.ndarray], G: int, A: int) -> tuple[Tensor, Step]:
    """The same, from full forwards of the texts so far."""
    tokens_RT = _padded(model, [prompt for prompt in prompts for _ in range(G)], A)
    row_R = torch.arange(len(tokens_RT), device=model.device)

    def step(token_R: Tensor, place_R: Tensor) -> Tensor:
        tokens_RT[row_R, place_R] = token_R
        return model.hidden_at(tokens_RT, place_R[:, None])[:, 0]

    last_R = torch.tensor([len(prompt) - 1 for prompt in prompts], device=model.device).repeat_interleave(G)
    return model.hidden_at(tokens_RT, last_R[:, None])[:, 0], step


class LayerCache(Comm):
    """One layer's keys and values, [B, S + room, M, H]. `length_B` (int64): the number of tokens of each prompt."""

    def __init__(self, length_B: Tensor, room: int):
        self.length_B, self.room, self.written = length_B, room, 0
        self.k_BSMH = self.v_BSMH = torch.empty(0)

    def attend(
        self,
        local: Callable[..., Tensor],
        q_BTNH: Tensor,
        k_BTMH: Tensor,
        v_BTMH: Tensor,
        scale: float,
        bounds: Tensor,
        window: int | None = None,
    ) -> Tensor:
        """[B, T, N, H]: the prompts' attention at the first call, then that of one more token per row (T = 1)."""
        if not self.k_BSMH.numel():
            self.k_BSMH, self.v_BSMH = (F.pad(x, (0, 0, 0, 0, 0, self.room)) for x in (k_BTMH, v_BTMH))
            return local(q_BTNH, k_BTMH, v_BTMH, scale, bounds, window)
        row_B, place_B = torch.arange(len(q_BTNH), device=q_BTNH.device), self.length_B + self.written
        self.k_BSMH[row_B, place_B], self.v_BSMH[row_B, place_B] = k_BTMH[:, 0], v_BTMH[:, 0]
        self.written += 1
        return attend_at(q_BTNH, self.k_BSMH, self.v_BSMH, scale, place_B[:, None], window)

    def repeat(self, times: int) -> None:
        """Repeat each prompt as `times` consecutive rows."""
        self.length_B = self.length_B.repeat_interleave(times)
        self.k_BSMH, self.v_BSMH = (x.repeat_interleave(times, dim=0) for x in (self.k_BSMH, self.v_BSMH))


@contextmanager
def caching(model: Transformer, length_B: Tensor, room: int) -> Iterator[list[LayerCache]]:
    """Within the context, cache keys and values: of prompts of these lengths, then of up to `room` tokens."""
    attentions = [block.attention for block in model.layers]
    before, caches = [each.comm for each in attentions], [LayerCache(length_B, room) for _ in attentions]
    for attention, cache in zip(attentions, caches, strict=True):
        attention.comm = cache
    try:
        yield caches
    finally:
        for attention, comm in zip(attentions, before, strict=True):
            attention.comm = comm
