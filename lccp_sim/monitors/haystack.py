"""Random stretches of held-out documents: the text around a needle."""

import numpy as np

from lccp_sim.config import ConfigError


class Haystack:
    """Draws from the documents of the source called `name`; ConfigError where it has none."""

    def __init__(self, documents: list[np.ndarray], name: str):
        self.documents, self.name = documents, name
        self.lengths = np.array([len(d) for d in documents])
        if not len(documents):
            raise ConfigError(f"monitors: the source {name!r} has no held-out documents; raise data.held_out_frac")

    def take(self, rng: np.random.Generator, length: int) -> np.ndarray:
        """`length` tokens in a row of one document, drawn by length. Raises ConfigError where none is long enough."""
        room = np.maximum(self.lengths - length + 1, 0)
        if not room.sum():
            raise ConfigError(
                f"monitors: no held-out document of {self.name!r} has {length} tokens (the longest: "
                f"{self.lengths.max()}); shorten the monitors' lengths or name another source"
            )
        which = int(rng.choice(len(room), p=room / room.sum()))
        start = int(rng.integers(room[which]))
        return self.documents[which][start : start + length]
