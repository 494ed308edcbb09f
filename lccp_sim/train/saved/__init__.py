"""The files of a run, and its starting point."""
