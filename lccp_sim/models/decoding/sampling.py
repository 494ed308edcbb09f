"""Samples from a model at temperature 1, batched and seeded, with the log-probability of each drawn token.

A token is the index at which the distribution's cumulative sum reaches one uniform number. So a sample is a function of
the weights, the prompt and its numbers: batching changes it only by rounding.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lccp_sim.models.decoding.cache import caching
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
        return model(tokens_RT).hidden_BTD[row_R, place_R]

    last_R = torch.tensor([len(prompt) - 1 for prompt in prompts], device=model.device).repeat_interleave(G)
    return model(tokens_RT).hidden_BTD[row_R, last_R], step
