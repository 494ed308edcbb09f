"""Random stretches of held-out documents: the text around a needle."""

import numpy as np

from lccp_sim.data.pools import Corpus
from lccp_sim.errors import ConfigError, nearest


def held_out(corpus: Corpus, source: str) -> list[np.ndarray]:
    """Return the held-out documents of a source. Raises ConfigError if the run has no source of that name."""
    names = corpus.held_out_documents
    if source not in names:
        known = f"this run has {', '.join(names)}{nearest(source, names)}"
        raise ConfigError(f"monitors: there is no source named {source!r}; {known}")
    return corpus.held_out(source)


class Haystack:
    """Random draws from the held-out documents of the source `name`. Raises ConfigError if it has none."""

    def __init__(self, corpus: Corpus, name: str):
        self.documents, self.name = held_out(corpus, name), name
        self.lengths = np.array([len(d) for d in self.documents])
        if not self.documents:
            raise ConfigError(f"monitors: the source {name!r} has no held-out documents; raise data.held_out_frac")

    def take(self, rng: np.random.Generator, length: int) -> np.ndarray:
        """Draw `length` consecutive tokens of one document, uniformly over all positions.

        Raises ConfigError if no document is long enough.
        """
        room = np.maximum(self.lengths - length + 1, 0)
        if not room.sum():
            raise ConfigError(
                f"monitors: no held-out document of {self.name!r} has {length} tokens (the longest: "
                f"{self.lengths.max()}); shorten the monitors' lengths or name another source"
            )
        which = int(rng.choice(len(room), p=room / room.sum()))
        start = int(rng.integers(room[which]))
        return self.documents[which][start : start + length]
