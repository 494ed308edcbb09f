"""Measuring a model without changing it, and the forward passes that the monitors share."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from lccp_sim.models.language_model import LanguageModel
from lccp_sim.models.loss import token_scores

_Given = TypeVar("_Given")


@contextmanager
def evaluating(model: torch.nn.Module, bf16: bool = False) -> Iterator[None]:
    """Set eval mode, disable gradients and fork the RNG inside the context; restore everything on exit, even on error.

    `bf16`: run matrix products in bf16, unless a monitor or the model requires fp32 (logits).
    """
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    # Do not cache cast weights: the probe changes weights inside this context.
    kind = torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)
    # Not torch.manual_seed: it seeds every GPU of the process, and only those of the model are put back.
    gpus = sorted({weight.device.index for weight in model.parameters() if weight.is_cuda})
    with torch.random.fork_rng(gpus), torch.no_grad(), kind:
        for generator in (torch.default_generator, *(torch.cuda.default_generators[gpu] for gpu in gpus)):
            generator.manual_seed(0)
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


@contextmanager
def counting(
    model: torch.nn.Module, sent: Callable[[int, int], None] = lambda texts, tokens: None
) -> Iterator[list[int]]:
    """Count the tokens sent through the model and its copies inside the context; yields a list of one number.

    A token of a forward with gradients counts as three, since its backward pass costs twice the forward. A forward made
    only to accompany other processes passes its tokens by keyword and is not counted. `sent(texts, tokens)` is called
    before every counted forward with the amounts that it adds.
    """
    tokens = [0]

    def count(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        for x in arguments[:1]:
            more = x.numel() * (3 if torch.is_grad_enabled() else 1)
            sent(len(x), more)
            tokens[0] += more

    hook = model.register_forward_pre_hook(count)
    try:
        yield tokens
    finally:
        hook.remove()


class Spans(NamedTuple):
    """NLL (nats), argmax hit and argmax token of the targets, all [n_items, longest] with `mask`; padding is 0."""

    nll: np.ndarray
    hit: np.ndarray
    top: np.ndarray
    mask: np.ndarray


def pad(rows: list[np.ndarray], fill: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pad rows of different lengths into one array; also return the mask of real entries."""
    width = max(len(row) for row in rows)
    out = np.full((len(rows), width), fill, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=bool)
    for i, row in enumerate(rows):
        out[i, : len(row)], mask[i, : len(row)] = row, True
    return out, mask


def score_spans(model: LanguageModel, tokens: list[np.ndarray], spans: list[tuple[int, int]]) -> Spans:
    """Score the tokens [start, stop) of each sequence, teacher-forced: `score_places` at consecutive places."""
    return score_places(model, tokens, [np.arange(start, stop) for start, stop in spans])


def score_places(model: LanguageModel, tokens: list[np.ndarray], places: list[np.ndarray]) -> Spans:
    """Score the tokens at `places` of each sequence, teacher-forced, in one forward; the LM head runs on these only.

    Token p is predicted from row p-1. Rows may differ in length: they are padded at the end, where causal attention
    cannot reach.
    """
    padded, (answer, mask) = pad(tokens)[0], pad(places, fill=1)
    row, column = mask.nonzero()
    # Indices, not a mask: a mask would force a GPU to synchronise.
    targets = padded[row, answer[mask]]
    given = (padded[:, :-1], answer - 1, row, column, targets)
    tokens_BT, place_BA, row_R, column_R, targets_R = (torch.from_numpy(x).to(model.device) for x in given)
    hidden_BAD = model.hidden_at(tokens_BT, place_BA)
    nll_R, hit_R, top_R = token_scores(model.logits, hidden_BAD[row_R, column_R], targets_R)
    nll, hit, top = np.zeros(mask.shape), np.zeros(mask.shape, dtype=bool), np.zeros(mask.shape, dtype=np.int64)
    nll[mask], hit[mask], top[mask] = nll_R.double().cpu().numpy(), hit_R.cpu().numpy(), top_R.cpu().numpy()
    return Spans(nll, hit, top, mask)


def row_nll(model: LanguageModel, tokens_BT: torch.Tensor) -> np.ndarray:
    """Compute the NLL of the tokens 1, 2, ... of each row, [B, T - 1] fp64 nats, in one forward."""
    hidden_BTD = model(tokens_BT[:, :-1]).hidden_BTD
    nll_R, _, _ = token_scores(model.logits, hidden_BTD.flatten(0, 1), tokens_BT[:, 1:].flatten())
    return nll_R.view(len(tokens_BT), -1).double().cpu().numpy()


def batches(lengths: list[int], tokens_per_forward: int) -> Iterator[list[int]]:
    """Group indices of equal length; at most `tokens_per_forward` tokens per group, but at least one item."""
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    for length, indices in by_length.items():
        size = max(1, tokens_per_forward // length)
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def map_batches(
    model: LanguageModel,
    lengths: list[int],
    tokens_per_forward: int,
    look: Callable[[list[int]], _Given],
    grouped: Callable[[list[int], int], Iterable[list[int]]] = batches,
) -> Iterator[tuple[list[int], _Given]]:
    """Yield groups of indices of texts, each with the result of `look(group)`, computed by one of the processes."""
    groups = list(grouped(lengths, model.comm.tokens(tokens_per_forward, lengths)))
    return zip(groups, model.comm.map(look, groups), strict=True)
