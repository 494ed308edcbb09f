"""The ranks of a run: with `train/saved/sharded.py` the only place that names torch.distributed."""
