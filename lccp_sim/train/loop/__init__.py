"""The training loop: the module, its data, precision, recomputation and the progress line."""
