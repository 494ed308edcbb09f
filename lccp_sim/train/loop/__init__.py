"""The training of a run: the module, its data, its schedule of work."""
