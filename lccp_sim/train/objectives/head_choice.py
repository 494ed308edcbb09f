"""The heads that an objective targets: the strongest copying heads of the starting weights, or random heads."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt

from lccp_sim.config import top_k
from lccp_sim.data.pools import Corpus
from lccp_sim.errors import refuse
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors.intervention import Heads, random_heads, strongest_heads
from lccp_sim.monitors.needle import Needle


@dataclass(frozen=True, kw_only=True)
class HeadChoice:
    """`k` heads (null: 3 %, from 8 to 30), scored on `items` needles per length in held-out text of the source `text`.

    random: the control, equally many heads of the same layers that are neither the strongest nor retrieval heads.
    """

    lengths: tuple[Annotated[int, Gt(0)], ...]
    text: str
    pick: Literal["strongest", "random"] = "strongest"
    k: Annotated[int, Gt(0)] | None = None
    items: Annotated[int, Gt(1)] = 20

    def __post_init__(self) -> None:
        rule = "must be a multiple of 5: needles are spread over 5 depths"
        refuse(self.items % 5, "objective.heads.items", self.items, rule)
        refuse(not self.lengths, "objective.heads.lengths", [], "needs at least one length")

    def heads(self, corpus: Corpus, model: Transformer, seed: int) -> Heads:
        """The heads, (layer, head). Call it inside `evaluating`. Raises ConfigError if a needle does not fit."""
        needle = Needle(lengths=self.lengths, haystack=self.text, items=self.items, controls=2)
        items = [item._replace(control=None) for item in needle.prepare(corpus)]
        score_LN = needle.score(model, items).head_scores[..., 0].mean(0)
        top = strongest_heads(score_LN, self.k or top_k(score_LN.size))
        return top if self.pick == "strongest" else random_heads(score_LN, top, np.random.default_rng((seed, 42)))
