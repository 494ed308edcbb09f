"""How many threads torch uses: it decides the order of sums, and so the last bits of every number."""

import torch

from lccp_sim.config import Config


def set_threads(config: Config) -> None:
    """None; takes `run.threads`, or leaves torch's own choice where it is null."""
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
