"""The ranks of a run. Only this package and `train/saved/sharded.py` use torch.distributed."""
