"""LongPPL: how well a model predicts the tokens that only a long context makes likely (arXiv 2410.23771).

A key token is one that the whole text predicts well, and much better than the last tokens alone. One model says once
which these are, so that all windows average the same tokens; keys found anew would follow the model that they judge.
Questionable: each short context begins with BOS. The authors' code gives BOS to the whole text alone, but a model that
always saw it first predicts worse without, and every such token would pass for a key.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt

from lccp_sim.config import Size
from lccp_sim.models.language_model import LanguageModel
from lccp_sim.monitors.monitor import FIRST_WINDOW
from lccp_sim.monitors.observing import row_nll


@dataclass(frozen=True, kw_only=True)
class LongPPL:
    """What a key token is, with the defaults of arXiv 2410.23771 (alpha and beta in nats), and who finds them.

    `keys_from` is `first_window` (the run's own model there) or the path of a checkpoint with the same tokenizer.
    """

    trunc_tokens: Size = 4096
    sliding_tokens: Size = 1024
    alpha: Annotated[float, Gt(0)] = 2.0
    beta: float = -2.0
    keys_from: str = FIRST_WINDOW

    def about(self, tokens: list[np.ndarray]) -> np.ndarray:
        """uint8 [32] that names this definition and these texts: keys are of use for no others."""
        hashed = hashlib.sha256(repr(self).encode())
        for row in tokens:
            hashed.update(row.astype("<i8").tobytes())
        return np.frombuffer(hashed.digest(), dtype=np.uint8)


def find_keys(model: LanguageModel, tokens_BT: torch.Tensor, settings: LongPPL) -> np.ndarray:
    """Which tokens of the texts are key, bool [B, T - 1]: column t is about token t + 1, the first after BOS is 0.

    Key: log p(token | all before) > beta, and larger by more than alpha than log p(token | short context). Short
    contexts slide: one, of BOS and `trunc_tokens` tokens, serves the first of `sliding_tokens` targets, and grows along
    them. The first trunc_tokens + sliding_tokens tokens have their whole text as the short context and are never key.
    Rows are texts of one length, led by BOS; as many go in one forward. Source: arXiv 2410.23771 sec. 3 and its code.
    """
    K, W = settings.trunc_tokens, settings.sliding_tokens
    bos_B1, text_BT = tokens_BT[:, :1], tokens_BT[:, 1:]
    full_BT = row_nll(model, tokens_BT)
    short_BT = full_BT.copy()
    for start in range(W, text_BT.shape[1] - K, W):
        window_BT = torch.cat((bos_B1, text_BT[:, start : start + K + W]), dim=1)
        short_BT[:, start + K : start + K + W] = row_nll(model, window_BT)[:, K:]
    return (short_BT - full_BT > settings.alpha) & (full_BT < -settings.beta)
