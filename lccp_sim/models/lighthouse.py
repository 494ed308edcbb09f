"""Lighthouse attention: each head opens the loudest windows of a pyramid, then plain causal attention follows.

Window i of level l is the mean of q, k and v over `factor`^l tokens; level 0 is the tokens. Each coarsest window enters
the attention, and on each level above 0 the windows with the largest |q| and |k| are opened: their parts enter, too. A
query that is the mean of a window answers for the tokens from the window's last one on, over the length of a window.
The output of a token is the sum of its windows' answers, at most one per level. So `entries` rows attend to each other
instead of all tokens. Source: arXiv 2605.06554.

Design notes:
- It is a training method, not part of the model: with more than one level it differs from dense attention. So a stage
  of dense attention ends the run (`dense_from_tokens`), and monitors measure with dense attention.
- The *choice* sees the future. A tile of the sequence chooses its windows at once, so a token's output depends on how
  loud later tokens of its tile are. The tests measure this: changing the last quarter of a row of one tile moves
  outputs in the first three quarters by up to 3.7 to 6.0 times their standard deviation (four seeds). With a fixed
  choice nothing leaks, to the bit.
- Loudness is measured before QK-norm, which would make all tokens equally loud. RoPE does not change it.
- Windows and tiles start with each document, and its end is padded. So documents share neither, and every packing is
  allowed. The authors refuse packed rows.
- The first window of a document is open on every level. Otherwise its first tokens would get an exact zero.
- With grouped queries, each query head chooses separately, by its own q and its shared k.
- Norms, means and sums of answers are computed in fp32 (fp64 for fp64 inputs). In bf16, ties would decide the choice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, MultipleOf
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lccp_sim.config import Size
from lccp_sim.errors import refuse
from lccp_sim.models.attention import by_document

NO_DENSE_STAGE = (
    "model.attention: no dense stage ends this run, yet monitors and users run the model with dense attention; set "
    "model.attention.dense_from_tokens"
)


@dataclass(frozen=True)
class LighthouseAttention:
    """Lighthouse attention in training, and dense attention when a monitor or a user runs the model.

    For each row and query head, `budget` windows are opened on each of the `levels` above 0. Each tile opens
    `tile_budget`, so there are `budget` / `tile_budget` tiles. `dense_layers` (negative: from the end) always attend to
    all tokens. From `dense_from_tokens` training tokens on (null: never), every layer does.
    """

    levels: Annotated[int, Ge(2)]
    factor: Annotated[int, Ge(2)]
    budget: Size
    tile_budget: Annotated[int, Ge(2), MultipleOf(2)] = 128
    dense_layers: tuple[int, ...] = ()
    dense_from_tokens: Size | None = None
    kind: Literal["lighthouse"] = "lighthouse"

    def __post_init__(self) -> None:
        rule = f"must be a multiple of tile_budget={self.tile_budget}, what one tile opens"
        refuse(self.budget % self.tile_budget, "budget", self.budget, rule)

    def at(self, layer: int, num_layers: int) -> "LighthouseAttention | None":
        """Return self, or None if the layer stays dense."""
        return None if layer in {each % num_layers for each in self.dense_layers} else self

    def sparse(self, tokens: int) -> bool:
        """Whether a run trains its next step with it after `tokens` tokens."""
        return self.dense_from_tokens is None or tokens < self.dense_from_tokens

    def keys(self) -> dict[str, Any]:
        """The key of ModelConfig."""
        return {"attention": self}

    @property
    def note(self) -> str | None:
        """A note for a user who trains with it, or None."""
        return NO_DENSE_STAGE if self.dense_from_tokens is None else None

    @property
    def coarsest(self) -> int:
        """Tokens of the widest window."""
        return self.factor ** (self.levels - 1)

    def entries(self, tokens: int) -> int:
        """The number of windows that attend to each other in a row of one document, padded to full windows.

        N / factor^(levels - 1) + (levels - 1) x factor x budget; fewer if a level has fewer windows than the budget.
        """
        count = total = -(-tokens // self.coarsest)
        for _ in range(self.levels - 1):
            count = self.factor * min(self.budget, count)
            total += count
        return total

    def attend(
        self, q_BTNH: Tensor, k_BTMH: Tensor, v_BTMH: Tensor, scale: float, bounds: Tensor, loud_BTX: Tensor
    ) -> Tensor:
        """[B, T, N, H]: attention of each document. `loud_BTX`: fp32 norms of each head of q and of k before QK-norm.

        A tile has one width in all documents of the rows, so that each gets its share of the budget.
        """
        N, M = q_BTNH.shape[2], k_BTMH.shape[2]
        width = -(-q_BTNH.shape[1] * self.tile_budget // (self.coarsest * self.budget))

        def sparse(q: Tensor, k: Tensor, v: Tensor, loud_GTX: Tensor) -> Tensor:
            loud_q, loud_k = loud_GTX.split((N, M), dim=2)
            loud_k = loud_k.repeat_interleave(N // M, dim=2)
            chosen = choose_windows(loud_q, loud_k, self.levels, self.factor, self.tile_budget, width)
            return attend_chosen(q, k, v, scale, chosen)

        return by_document(sparse, bounds, q_BTNH, k_BTMH, v_BTMH, loud_BTX)


class Chosen(NamedTuple):
    """The windows that enter the attention of each head of a document, level 0 first.

    `window_GNS` int64 are their numbers within their level, `place_GNS` int64 their places in causal order; `sizes` are
    their counts per level.
    """

    window_GNS: Tensor
    place_GNS: Tensor
    sizes: tuple[int, ...]
    factor: int


@torch.no_grad()
def choose_windows(q_GTN: Tensor, k_GTN: Tensor, levels: int, factor: int, opened: int, width: int) -> Chosen:
    """The windows of G documents of T tokens, from the norms of q and k of each token and query head (fp32).

    A tile has `width` coarsest windows (the last may be narrower). In it, `opened` windows of each level above 0 are
    opened (all, if there are fewer): half by the norm of q, then half by the norm of k.
    """
    (G, T, N), coarse = q_GTN.shape, factor ** (levels - 1)
    score = torch.stack((q_GTN, k_GTN)).transpose(2, 3)
    scores = [F.pad(score, (0, -T % coarse), value=-1.0)]  # padding is quieter than any token
    for _ in range(levels - 1):
        scores.append(scores[-1].unflatten(-1, (-1, factor)).amax(-1))
        scores[-1][0, ..., 0] = torch.inf
    count = scores[-1].shape[-1]
    width = min(width, count)
    window = torch.arange(-(-count // width) * width, device=score.device).view(-1, width).expand(G, N, -1, -1)
    real = window < count
    windows, keys = [], []
    for level in reversed(range(1, levels)):
        size, unit = factor**level, 1 << (levels - 1)
        q, k = scores[level].gather(-1, window.flatten(2).clamp(max=scores[level].shape[-1] - 1).expand(2, -1, -1, -1))
        q, k = (x.view_as(window).masked_fill(~real, -torch.inf) for x in (q, k))
        loudest = q.topk(min(opened // 2, window.shape[-1])).indices
        k = k.scatter(-1, loudest, torch.inf).masked_fill_(~real, -torch.inf)
        open_ = k.topk(min(opened, window.shape[-1])).indices
        # An open window comes right after the last of its parts, and before what begins then.
        closing = ((window + 1) * size * unit - (1 << (levels - 1 - level))).gather(-1, open_)
        windows.append(_only(window, real))
        keys.append(_only((window * (size * unit)).scatter(-1, open_, closing), real))
        window, real = window.gather(-1, open_), real.gather(-1, open_)
        window = (window[..., None] * factor + torch.arange(factor, device=window.device)).flatten(-2)
        real = real.repeat_interleave(factor, dim=-1)
    windows.append(_only(window, real))
    keys.append(windows[-1] << (levels - 1))
    order = torch.cat(keys[::-1], dim=-1).argsort(dim=-1)
    place = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    return Chosen(torch.cat(windows[::-1], dim=-1), place, tuple(x.shape[-1] for x in windows[::-1]), factor)


def _only(x_GNUX: Tensor, real: Tensor) -> Tensor:
    """[G, N, X]: the real windows of the tiles, without padding; every head has the same number."""
    G, N = x_GNUX.shape[:2]
    return x_GNUX.flatten(2) if bool(real.all()) else x_GNUX[real].view(G, N, -1)


def attend_chosen(q_GTNH: Tensor, k_GTMH: Tensor, v_GTMH: Tensor, scale: float, chosen: Chosen) -> Tensor:
    """[G, T, N, H]: causal attention among the chosen windows of documents of one length, back on their tokens."""
    q, k, v = (_Enter.apply(x, *chosen) for x in (q_GTNH, k_GTMH, v_GTMH))
    y_GNSH = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return _Leave.apply(y_GNSH, q_GTNH.shape[1], *chosen)


class _Enter(Function):
    """[G, N, S, H]: the means of the chosen windows, in their order. Saves only the choice."""

    @staticmethod
    def forward(ctx: Any, x_GTMH: Tensor, window: Tensor, place: Tensor, sizes: tuple[int, ...], factor: int) -> Tensor:
        ctx.save_for_backward(window, place)
        ctx.others, ctx.shape = (sizes, factor), x_GTMH.shape
        return _collect(x_GTMH, window.shape[1], Chosen(window, place, sizes, factor), late=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_GNSH: Tensor) -> tuple[Tensor | None, ...]:
        grad = _spread(grad_GNSH, ctx.shape[1], ctx.shape[2], Chosen(*ctx.saved_tensors, *ctx.others), late=False)
        return grad, None, None, None, None


class _Leave(Function):
    """[G, T, N, H]: per token, the sum of its windows' answers, of those that end at or before it. Saves the choice."""

    @staticmethod
    def forward(
        ctx: Any, y_GNSH: Tensor, tokens: int, window: Tensor, place: Tensor, sizes: tuple[int, ...], factor: int
    ) -> Tensor:
        ctx.save_for_backward(window, place)
        ctx.others = sizes, factor
        return _spread(y_GNSH, tokens, window.shape[1], Chosen(window, place, sizes, factor), late=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_GTNH: Tensor) -> tuple[Tensor | None, ...]:
        chosen = Chosen(*ctx.saved_tensors, *ctx.others)
        return _collect(grad_GTNH, grad_GTNH.shape[2], chosen, late=True), None, None, None, None, None


def _collect(x_GTMH: Tensor, heads: int, chosen: Chosen, late: bool) -> Tensor:
    """[G, N, S, H]: the mean of each chosen window of c tokens; `late`: the sum over c tokens from its last one on."""
    (G, T, _, H), S, p = x_GTMH.shape, chosen.window_GNS.shape[-1], chosen.factor
    rest = -T % p ** (len(chosen.sizes) - 1)
    table = F.pad(x_GTMH, (0, 0, 0, 0, 0, rest)) if rest else x_GTMH
    out = x_GTMH.new_empty(G * heads * S, H)
    for level, (window, place) in enumerate(_levels(chosen)):
        if level:
            # The late windows of a level are unions of those one level down, too, but begin p - 1 of them later; all of
            # the last one but its first part lies beyond the end.
            inner = (
                table[:, p - 1 : -1].unflatten(1, (table.shape[1] // p - 1, p)) if late else table.unflatten(1, (-1, p))
            )
            sums = inner.sum(2, dtype=_exact(x_GTMH.dtype))
            table = torch.cat((sums, table[:, -1:].to(sums.dtype)), dim=1) if late else sums.div_(p)
        rows = table.reshape(-1, H).index_select(0, _rows(window, *table.shape[1:3]))
        out.index_copy_(0, _places(place, S), rows.to(out.dtype))
    return out.view(G, heads, S, H)


def _spread(y_GNSH: Tensor, tokens: int, heads: int, chosen: Chosen, late: bool) -> Tensor:
    """[G, T, M, H]: the transpose of `_collect`: each entry is added to the tokens from which it was collected."""
    (G, _, S, H), p = y_GNSH.shape, chosen.factor
    count = -(-tokens // p ** (len(chosen.sizes) - 1))
    y_RH = y_GNSH.reshape(-1, H)
    table = torch.zeros(G, count, heads, H, dtype=_exact(y_GNSH.dtype), device=y_GNSH.device)
    for level, (window, place) in reversed([*enumerate(_levels(chosen))]):
        if level < len(chosen.sizes) - 1:
            above, count = table, count * p
            if late:
                table = above.new_zeros(G, count, heads, H)
                table[:, p - 1 : -1].unflatten(1, (count // p - 1, p)).copy_(above[:, :-1, None])
                table[:, -1] = above[:, -1]
            else:
                table = above.div_(p).repeat_interleave(p, dim=1)
        rows = y_RH.index_select(0, _places(place, S)).to(table.dtype)
        table.view(-1, H).index_add_(0, _rows(window, count, heads), rows)
    return table[:, :tokens].to(y_GNSH.dtype)


def _levels(chosen: Chosen) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers and places of the chosen windows of each level, [G, N, X]."""
    return zip(chosen.window_GNS.split(chosen.sizes, -1), chosen.place_GNS.split(chosen.sizes, -1), strict=True)


def _rows(window_GNX: Tensor, count: int, heads: int) -> Tensor:
    """Rows of the windows in a flattened table [G, `count`, `heads`, H]; query heads share key heads in order."""
    G, N, _ = window_GNX.shape
    document, head = (torch.arange(n, device=window_GNX.device).view(-1, 1) for n in (G, N))
    return ((document[..., None] * count + window_GNX) * heads + head * heads // N).flatten()


def _places(place_GNX: Tensor, entries: int) -> Tensor:
    """Rows of the entries in a flattened [G, N, `entries`, H]."""
    G, N, _ = place_GNX.shape
    return (torch.arange(G * N, device=place_GNX.device).view(G, N, 1) * entries + place_GNX).flatten()


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: fp32, or fp64."""
    return torch.promote_types(dtype, torch.float32)
