"""The ranks of a run, and the only place that names torch.distributed."""
